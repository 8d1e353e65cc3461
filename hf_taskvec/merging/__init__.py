"""Merging: `merge(vectors, method)`; a method is one decorated function in a family file of this package."""

from hf_taskvec.merging import (  # noqa: F401 (registers the methods)
    arithmetic,
    competition,
    knots,
    modifiers,
    sparse,
    spectral,
    stochastic,
    wudi,
)
from hf_taskvec.merging.registry import (
    METHODS,
    MergeMethod,
    get_method,
    list_methods,
    merge_method,
    methods_table,
)
from hf_taskvec.merging.run import merge

__all__ = ["METHODS", "MergeMethod", "get_method", "list_methods", "merge", "merge_method", "methods_table"]
