"""The doctor: what stands against a merge before it is made, with what was measured to help."""

from hf_taskvec.doctor.diagnosis import Diagnosis, Finding, Prediction, diagnose
from hf_taskvec.doctor.evidence import Evidence, Predictor, Remedy
from hf_taskvec.doctor.facts import Facts
from hf_taskvec.doctor.leaks import Leak, find_leaks

__all__ = [
    "Diagnosis",
    "Evidence",
    "Facts",
    "Finding",
    "Leak",
    "Prediction",
    "Predictor",
    "Remedy",
    "diagnose",
    "find_leaks",
]
