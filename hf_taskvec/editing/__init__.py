"""Editing beyond addition: forgetting with a receipt, and analogies."""

from __future__ import annotations

from hf_taskvec.editing.analogy import analogy, choose_analogy
from hf_taskvec.editing.forgetting import Forgotten, forget

__all__ = ["Forgotten", "analogy", "choose_analogy", "forget"]
