"""Vectors of several tasks as one artefact: what they share once, and what each has of its own in few bits."""

from hf_taskvec.multitask.methods import METHODS, get_pack_method, pack_method, pack_methods_table
from hf_taskvec.multitask.packing import certify, choose_strengths, pack
from hf_taskvec.multitask.value import MultiTaskVector, TaskPart

__all__ = [
    "METHODS",
    "MultiTaskVector",
    "TaskPart",
    "certify",
    "choose_strengths",
    "get_pack_method",
    "pack",
    "pack_method",
    "pack_methods_table",
]
