"""Tuning: what a merge can learn from images of its tasks; the part they are of is declared and kept."""

from hf_taskvec.tuning.coefficients import LearnedCoefficients, learn_coefficients
from hf_taskvec.tuning.descent import Descent

__all__ = ["Descent", "LearnedCoefficients", "learn_coefficients"]
