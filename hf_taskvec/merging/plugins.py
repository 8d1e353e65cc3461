"""Merge methods of other packages, found by the entry point group `hf_taskvec.merge_methods`."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

logger = logging.getLogger(__name__)
GROUP = "hf_taskvec.merge_methods"
_seen: set[EntryPoint] = set()


def load_plugins(methods: MutableMapping[str, Any]) -> None:
    """Imports what installed packages announce under the group; importing registers.

    Each is tried once in a process. One that fails is named in a warning and adds nothing.

    Args:
        methods: The registry, left as it was by a plugin that fails.
    """
    for plugin in entry_points(group=GROUP):
        if plugin in _seen:
            continue
        _seen.add(plugin)
        before = dict(methods)
        try:
            plugin.load()
        except Exception as error:  # noqa: BLE001 (a stranger's module may raise anything, and must not end this one)
            methods.clear()
            methods.update(before)
            reason = f"{type(error).__name__}: {str(error)[:300]}"
            logger.warning(
                "The merge methods of %s are left out, as they cannot be imported: %s", _name(plugin), reason
            )
        else:
            if methods.keys() == before.keys():
                logger.warning("%s registers no merge method; see hf_taskvec.merge_method", _name(plugin))


def _name(plugin: EntryPoint) -> str:
    package = f" of the package {plugin.dist.name}" if plugin.dist is not None else ""
    return f"{plugin.name} = {plugin.value}{package}"
