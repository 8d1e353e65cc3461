"""Editing beyond addition: forgetting with a receipt, analogies, transport to another base, and the tangent space."""

from __future__ import annotations

from hf_taskvec.editing.analogy import analogy, choose_analogy
from hf_taskvec.editing.disentanglement import Disentanglement, disentanglement, nonlinear_advantage
from hf_taskvec.editing.forgetting import Forgotten, forget
from hf_taskvec.editing.transport import transport
from hf_taskvec.models.tangent import linearize

__all__ = [
    "Disentanglement",
    "Forgotten",
    "analogy",
    "choose_analogy",
    "disentanglement",
    "forget",
    "linearize",
    "nonlinear_advantage",
    "transport",
]
