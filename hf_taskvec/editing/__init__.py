"""Editing beyond addition: forgetting with a receipt, analogies, and transport to another base."""

from __future__ import annotations

from hf_taskvec.editing.analogy import analogy, choose_analogy
from hf_taskvec.editing.forgetting import Forgotten, forget
from hf_taskvec.editing.transport import transport

__all__ = ["Forgotten", "analogy", "choose_analogy", "forget", "transport"]
