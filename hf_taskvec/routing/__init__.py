"""Routing: models that choose among the vectors of several tasks by the image itself, as Transformers loads them."""

from hf_taskvec.routing.config import RoutedVisionConfig
from hf_taskvec.routing.data_free import mass, smile
from hf_taskvec.routing.learned import twin, we_moe
from hf_taskvec.routing.model import RoutedVisionModel
from hf_taskvec.routing.report import evaluate_routed

__all__ = [
    "RoutedVisionConfig",
    "RoutedVisionModel",
    "evaluate_routed",
    "mass",
    "smile",
    "twin",
    "we_moe",
]
