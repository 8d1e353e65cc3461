"""What is reproduced: base, tasks, seeds, optimisers, budgets and methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from accelerate import PartialState

from hf_taskvec.arguments import arg
from hf_taskvec.errors import UnknownNameError, check_positive
from hf_taskvec.merging import get_method
from hf_taskvec.models.base import Base, load_base
from hf_taskvec.tasks import Task, get_tasks
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.training.config import TaskVectorConfig

CONVERGED = "converged"
LATER = {"bf16": False, "attn_implementation": None}  # settings that earlier results did as without

# The learning rates are the settings' own. Adam is AdamW without weight decay.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw_cosine": {"optim": "adamw_torch", "weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 0.1},
    "adamw": {"optim": "adamw_torch", "weight_decay": 0.1, "lr_scheduler_type": "constant", "warmup_steps": 0},
    "adam": {"optim": "adamw_torch", "weight_decay": 0.0, "lr_scheduler_type": "constant", "warmup_steps": 0},
    "sgd": {"optim": "sgd", "weight_decay": 0.0, "lr_scheduler_type": "constant", "warmup_steps": 0},
    "full_batch": {"full_batch": True},
}


@dataclass(frozen=True)
class ScaledMethod:
    """A merge method and the factor of its vector: a number, or 1/T for `None`."""

    method: str
    scaling: float | None

    @classmethod
    def parse(cls, text: str) -> ScaledMethod:
        """Reads `ties@1` or `task_arithmetic@1/T`."""
        method, _, scaling = text.partition("@")
        get_method(method)
        if scaling in ("", "1/T"):
            return cls(method, None)
        try:
            return cls(method, float(scaling))
        except ValueError:
            raise ValueError(f"the scaling of {text!r} must be a number or 1/T") from None

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings with their defaults."""
        return get_method(self.method).defaults

    def factor(self, num_tasks: int) -> float:
        """The factor for T tasks."""
        return 1 / num_tasks if self.scaling is None else self.scaling


@dataclass(frozen=True)
class Reproduction:
    """Settings of a reproduction; `recipes/configs/paper7_*.yaml` are three of them."""

    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    tasks: list[str] = arg("Tasks or suites.", default=["mini"])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    output_dir: str = arg("Where results, vectors in work, figures and report.md go.", default="out/paper7")
    seeds: list[int] = arg("Seeds of the fine-tuning runs.", default=[0, 1, 2, 3, 4])
    optimizers: list[str] = arg("Optimisers.", default=["adamw_cosine", "adam", "sgd", "full_batch"])
    learning_rates: list[float] = arg("One learning rate per optimiser.", default=[3e-4, 3e-4, 3e-2, 0.1])
    max_epochs: list[int] = arg(
        "Most epochs of each optimiser's converged runs; 0 for each task's own `epochs`.", default=[12, 12, 12, 40]
    )
    patience: int = arg("Epochs without a better validation accuracy after which a run has converged.", default=3)
    budgets: list[float] = arg("Budgets in epochs besides convergence; 1 is one of them.", default=[0.25, 0.5, 1, 2, 4])
    merges: list[str] = arg(
        "Merge methods with their scalings, method@number or method@1/T.",
        default=["task_arithmetic@1/T", "ties@1", "breadcrumbs@1/T", "dare@1/T"],
    )
    batch_size: int = arg("Images per step.", default=64)
    max_grad_norm: float = arg("Clipping norm, except in full-batch descent.", default=10.0)
    bf16: bool = arg("Whether runs multiply in bfloat16, with weights in float32.", default=False)
    attn_implementation: str | None = arg(
        "Attention, as Transformers names it; eager is the fastest on a CPU with --bf16.", default=None
    )
    trainable_parameters: list[str] = arg("Patterns of the parameters to train.", default=["*"])
    max_train: int | None = arg("Most training images per task; each seed draws its own.", default=None)
    max_validation: int | None = arg("Most validation images per task.", default=None)
    max_test: int | None = arg("Most test images per task.", default=None)
    num_subsets: int = arg("Random task subsets per seed.", default=4)
    subset_size: int = arg("Tasks in a random subset.", default=5)
    theory_images: int = arg("Images per task in the theory's Hessian-vector products.", default=64)
    dynamics_optimizer: str = arg("Optimiser whose dynamics are measured.", default="adam")
    dynamics_epochs: int = arg("Epochs whose gradients are measured.", default=6)
    atm_optimizer: str = arg("Optimiser of alternating tuning and merging.", default="adam")
    atm_budget: int = arg("Budget of alternating tuning and merging, epochs per task.", default=4)
    atm_rounds: list[int] = arg("Rounds the budget is split into; 1 is one-shot merging.", default=[1, 2, 4, 8])
    post_hoc_rounds: int = arg("Rounds of one validation epoch each, from a merge of converged vectors.", default=5)
    train_images: list[int] = arg("Training images per task, for estimates without the data.", default=[])
    test_images: list[int] = arg("Test images per task, for estimates without the data.", default=[])
    vision_shape: list[int] = arg(
        "Image size, patch, width, layers, heads and MLP width, for estimates without the base.", default=[]
    )

    def __post_init__(self) -> None:
        for name in [*self.optimizers, self.dynamics_optimizer, self.atm_optimizer]:
            if name not in OPTIMIZERS:
                raise UnknownNameError("optimiser", name, OPTIMIZERS)
        for name in ("learning_rates", "max_epochs"):
            if len(getattr(self, name)) != len(self.optimizers):
                raise ValueError(f"{name} must have one value per optimiser ({len(self.optimizers)})")
        for name in ("dynamics_optimizer", "atm_optimizer"):
            if getattr(self, name) not in self.optimizers:
                raise UnknownNameError(
                    f"{name}; it must be among the optimizers:", getattr(self, name), self.optimizers
                )
        if 1 not in self.budgets:
            raise ValueError(f"budgets must hold 1, the epoch that is compared; got {self.budgets}")
        for value in [*self.learning_rates, *self.budgets, self.batch_size, self.patience]:
            check_positive("every rate, budget, batch size and patience", value)
        if self.dynamics_epochs < 2:
            raise ValueError(f"dynamics_epochs must be at least 2 to show a course, got {self.dynamics_epochs}")
        if min(self.max_epochs, default=0) < 0:
            raise ValueError(f"max_epochs must not be negative, got {self.max_epochs}")
        self.scaled_methods()

    def scaled_methods(self) -> dict[str, ScaledMethod]:
        """The merge methods with their scalings, by their text."""
        return {text: ScaledMethod.parse(text) for text in self.merges}

    def load_base(self) -> Base:
        """The base, on the device that its runs are trained on."""
        base = load_base(self.base, attn_implementation=self.attn_implementation)
        base.model.to(PartialState().device)
        return base

    def load_tasks(self, seed: int = 0) -> list[Task]:
        """The tasks, cut to size; each seed has its own training images."""
        return [
            subset(
                task,
                max_train=self.max_train,
                max_validation=self.max_validation,
                max_test=self.max_test,
                train_seed=seed,
            )
            for task in get_tasks(self.tasks, data_dir=self.data_dir)
        ]

    def learning_rate(self, optimizer: str) -> float:
        """An optimiser's learning rate."""
        return self.learning_rates[self.optimizers.index(optimizer)]

    def most_epochs(self, optimizer: str, tasks: Sequence[Task]) -> int:
        """The most epochs of an optimiser's runs on one task, or on several jointly: then the tasks' median."""
        return self.max_epochs[self.optimizers.index(optimizer)] or round(median(task.epochs for task in tasks))

    def config(self, optimizer: str, *, seed: int, epochs: float, folder: Path, **changes: Any) -> TaskVectorConfig:
        """The settings of one run."""
        return TaskVectorConfig(
            trainable_parameters=self.trainable_parameters,
            output_dir=str(folder),
            num_train_epochs=epochs,
            learning_rate=self.learning_rate(optimizer),
            seed=seed,
            per_device_train_batch_size=self.batch_size,
            bf16=self.bf16 and optimizer != "full_batch",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            **{"max_grad_norm": 0.0 if optimizer == "full_batch" else self.max_grad_norm, **OPTIMIZERS[optimizer]},
            **changes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    def plan(self) -> dict[str, Any]:
        """Everything the results depend on."""
        values = {name: value for name, value in self.to_dict().items() if name not in ("output_dir", "data_dir")}
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}
