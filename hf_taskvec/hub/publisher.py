"""`push_to_hub` as a method of what can be published, as every class of Hugging Face's libraries has it.

What is published needs a card, and cards stand above vectors. So the method asks for the function when it is called,
and `hf_taskvec/__init__.py`, which knows the whole house, says where it is: nothing below imports what is above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

from hf_taskvec.hub.access import PushKeywords


class Publishable:
    """Something that can be published; a mixin without attributes of its own."""

    __slots__ = ()
    find_publisher: ClassVar[Callable[[], Callable[..., str]]]

    def push_to_hub(self, repo_id: str, *, report: Any = None, **options: Unpack[PushKeywords]) -> str:
        """Publishes it: weights, configuration, card and report in one commit; see `hf_taskvec.push_to_hub`.

        Args:
            repo_id: The repository; it is created if need be. Without a namespace it is the user's own.
            report: A `Report` of its results, for the card.
            **options: `private`, `revision`, `token`, `licence` and others; see `PushOptions`.

        Returns:
            The URL of the commit, or of the pull request.
        """
        return Publishable.find_publisher()(self, repo_id, report=report, **options)
