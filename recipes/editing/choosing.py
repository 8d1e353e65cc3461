"""What is added to a base for one task, chosen on validation images and measured on test images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_taskvec import Task, TaskVector, TaskVectorConfig, TaskVectorTrainer, VectorInfo, evaluate
from hf_taskvec.evaluation.scalings import scaling_curve
from hf_taskvec.models.base import Base
from hf_taskvec.training.run import quiet

STEPS = (1, 2, 4, 8, 16, 32)


def scaled(base: Base, vector: TaskVector, task: Task, scalings: Sequence[float]) -> dict[str, Any]:
    """A vector times the scaling that is best on validation images, the smallest of equals; 0 is always tried."""
    curve = scaling_curve(base, vector, task, scalings=[0.0, *scalings], progress=False)
    best = min(curve, key=lambda scaling: (-curve[scaling].accuracy, scaling))
    accuracy = evaluate(vector.apply_to(base, scaling=best), task, progress=False).accuracy
    return {"accuracy": accuracy, "chosen": best}


def few_shot(base: Base, few: Task, task: Task, info: VectorInfo, rates: Iterable[float]) -> dict[str, Any]:
    """Fine-tuning on few images; learning rate and steps are those best on validation images, no step among them."""
    best, chosen, model = evaluate(base, task, split="validation", progress=False).accuracy, "0 steps", base
    for rate in rates:
        for steps, vector in _trained(base, few, info, rate):
            edited = vector.apply_to(base)
            accuracy = evaluate(edited, task, split="validation", progress=False).accuracy
            if accuracy > best:
                best, chosen, model = accuracy, f"{steps} steps at {rate:g}", edited
    return {"accuracy": evaluate(model, task, progress=False).accuracy, "chosen": chosen}


def _trained(base: Base, few: Task, info: VectorInfo, rate: float) -> Iterator[tuple[int, TaskVector]]:
    """The vectors after some steps of one run, on the parameters that another vector covers and with its optimiser."""
    with tempfile.TemporaryDirectory() as folder:
        config = TaskVectorConfig(
            output_dir=str(Path(folder) / "run"),
            learning_rate=rate,
            max_steps=max(STEPS),
            lr_scheduler_type="constant",
            warmup_steps=0,
            per_device_train_batch_size=info.batch_size or 64,
            trainable_parameters=info.settings.get("trainable_parameters", ["*"]),
            record_epochs=False,
            record_steps=list(STEPS),
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = TaskVectorTrainer(base, config, task=few)
        quiet(trainer)
        trainer.train()
        for steps in STEPS:
            yield steps, trainer.recorded_vector(f"step-{steps}")
