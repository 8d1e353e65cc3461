"""Make, share, merge and study task vectors of CLIP ViT models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_taskvec.atm import AlternatingRun, alternating_tuning_and_merging
    from hf_taskvec.base import Base, load_base
    from hf_taskvec.config import TaskVectorConfig
    from hf_taskvec.equivalence import Equivalence, verify_equivalence
    from hf_taskvec.evaluation import choose_scaling, evaluate, scaling_curve
    from hf_taskvec.gradients import gradient_stack, gradient_vector
    from hf_taskvec.hub import (
        create_collection,
        list_epochs,
        list_vectors,
        push_model_to_hub,
        push_series_to_hub,
        push_to_hub,
    )
    from hf_taskvec.info import VectorInfo
    from hf_taskvec.joint import JointTrainer
    from hf_taskvec.merging import list_methods, merge, merge_method
    from hf_taskvec.report import Report, TaskResult
    from hf_taskvec.tasks import SUITES, TASKS, Task, get_task, get_tasks
    from hf_taskvec.trainer import TaskVectorTrainer
    from hf_taskvec.vector import TaskVector
    from hf_taskvec.weights import choose_weights

__version__ = "0.1.0"

# Each name is imported when it is first used: a merge needs neither Transformers nor Datasets, which take seconds.
_MODULES = {
    "atm": ["AlternatingRun", "alternating_tuning_and_merging"],
    "base": ["Base", "load_base"],
    "config": ["TaskVectorConfig"],
    "equivalence": ["Equivalence", "verify_equivalence"],
    "evaluation": ["choose_scaling", "evaluate", "scaling_curve"],
    "gradients": ["gradient_stack", "gradient_vector"],
    "hub": [
        "create_collection",
        "list_epochs",
        "list_vectors",
        "push_model_to_hub",
        "push_series_to_hub",
        "push_to_hub",
    ],
    "info": ["VectorInfo"],
    "joint": ["JointTrainer"],
    "merging": ["list_methods", "merge", "merge_method"],
    "report": ["Report", "TaskResult"],
    "tasks": ["SUITES", "TASKS", "Task", "get_task", "get_tasks"],
    "trainer": ["TaskVectorTrainer"],
    "vector": ["TaskVector"],
    "weights": ["choose_weights"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "SUITES",
    "TASKS",
    "AlternatingRun",
    "Base",
    "Equivalence",
    "JointTrainer",
    "Report",
    "Task",
    "TaskResult",
    "TaskVector",
    "TaskVectorConfig",
    "TaskVectorTrainer",
    "VectorInfo",
    "alternating_tuning_and_merging",
    "choose_scaling",
    "choose_weights",
    "create_collection",
    "evaluate",
    "get_task",
    "get_tasks",
    "gradient_stack",
    "gradient_vector",
    "list_epochs",
    "list_methods",
    "list_vectors",
    "load_base",
    "merge",
    "merge_method",
    "push_model_to_hub",
    "push_series_to_hub",
    "push_to_hub",
    "scaling_curve",
    "verify_equivalence",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_taskvec' has no attribute {name!r}")
    return getattr(import_module(f"hf_taskvec.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
