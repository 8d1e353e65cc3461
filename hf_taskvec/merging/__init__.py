"""Merging: `merge(vectors, method)`; a method is one decorated function in a family file of this folder."""

import importlib
import pkgutil

from hf_taskvec.merging.checkpoints import merge_checkpoints
from hf_taskvec.merging.conditioning import condition
from hf_taskvec.merging.registry import METHODS, MergeMethod, get_method, list_methods, merge_method, methods_table
from hf_taskvec.merging.run import merge

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):  # each family registers its methods
    importlib.import_module(_module.name)

__all__ = [
    "METHODS",
    "MergeMethod",
    "condition",
    "get_method",
    "list_methods",
    "merge",
    "merge_checkpoints",
    "merge_method",
    "methods_table",
]
