"""Tuning: what a merge can learn from images of its tasks; the part they are of is declared and kept."""

from hf_taskvec.tuning.coefficients import LearnedCoefficients, learn_coefficients
from hf_taskvec.tuning.descent import Descent
from hf_taskvec.tuning.masks import LearnedMasks, rank_masks
from hf_taskvec.tuning.prefix import collect_prefix_statistics
from hf_taskvec.tuning.search import CoefficientSearch, Trial, search_coefficients
from hf_taskvec.tuning.surgery import Surgery, surgery

__all__ = [
    "CoefficientSearch",
    "Descent",
    "LearnedCoefficients",
    "LearnedMasks",
    "Surgery",
    "Trial",
    "collect_prefix_statistics",
    "learn_coefficients",
    "rank_masks",
    "search_coefficients",
    "surgery",
]
