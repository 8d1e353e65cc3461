"""The other experiments: equivalence, orders, dynamics, and alternating tuning and merging at equal budget."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.theory import (
    FeedForward,
    MeanLoss,
    clip_losses,
    convergence_study,
    feed_forward_loss,
    measure_drift,
    predicted_loss_gap,
)
from hf_taskvec.theory.dynamics import measure_dynamics
from hf_taskvec.theory.equivalence import verify_equivalence
from hf_taskvec.theory.expansion import joint_path, merged_weights
from hf_taskvec.training.atm import alternating_tuning_and_merging
from hf_taskvec.training.run import quiet
from hf_taskvec.training.trainer import TaskVectorTrainer
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import compute_or_read, share_out
from paper.comparison import JOINT, accuracies, converged_merge
from paper.runs import train_run
from paper.settings import Reproduction

Values = dict[str, Any]


def once(settings: Reproduction, name: str, compute: Callable[[], Values]) -> Values:
    """The JSON `studies/<name>.json`, computed if it is not there."""
    return compute_or_read(
        study_path(settings, name), settings.plan(), compute=lambda path: write_json(path, compute()), read=read_json
    )


def study_path(settings: Reproduction, name: str) -> Path:
    """The JSON of a study."""
    return Path(settings.output_dir) / "studies" / f"{name}.json"


def study_equivalence(settings: Reproduction, base: Base, tasks: Sequence[Task]) -> Values:
    """One epoch against the gradient, exact and with the settings of each optimiser on the first task."""

    def compute() -> Values:
        exact = verify_equivalence(base, tasks)
        result: Values = {"full_batch": exact.to_dict() | {"table": exact.to_markdown()}}
        for optimizer in settings.optimizers:
            if optimizer != "full_batch":
                args = settings.config(optimizer, seed=settings.seeds[0], epochs=1, folder=Path("unused"))
                result[optimizer] = verify_equivalence(base, tasks[0], args=args).to_dict()
        return result

    return once(settings, "equivalence", compute)


def study_orders(settings: Reproduction, base: Base, tasks: Sequence[Task]) -> Values:
    """The fitted orders, the bound and the loss gap on a three-task tanh network and on the base's tower."""

    def compute() -> Values:
        network = FeedForward((4, 6, 5, 3))
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(3, 20, 4, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (3, 20), generator=generator)
        start = 0.5 * torch.randn(network.num_weights, generator=generator, dtype=torch.float64)
        losses = [feed_forward_loss(network, x, y) for x, y in zip(inputs, labels, strict=True)]
        small = [subset(task, max_train=settings.theory_images) for task in tasks[:3]]
        clip = clip_losses(base, small)
        return {
            "mlp": _orders(losses, start, rates=[0.04, 0.02, 0.01, 0.005, 0.0025], bound_rate=0.1),
            "clip": _orders(clip.losses, clip.start, rates=[8e-5, 4e-5, 2e-5, 1e-5], bound_rate=1e-4),
        }

    return once(settings, "orders", compute)


def _orders(losses: Sequence[MeanLoss], start: torch.Tensor, *, rates: list[float], bound_rate: float) -> Values:
    study = convergence_study(losses, start, learning_rates=rates, epochs=3)
    drift = measure_drift(losses, start, learning_rate=bound_rate, epochs=2, iterations=6)
    merged = merged_weights(losses, start, learning_rate=bound_rate, epochs=2)
    joint = joint_path(losses, start, learning_rate=bound_rate, epochs=2)[-1]
    gap = sum(loss.value(merged) - loss.value(joint) for loss in losses) / len(losses)
    return {
        **dataclasses.asdict(study),
        "order": study.order,
        "corrected_order": study.corrected_order,
        "drift": dataclasses.asdict(drift),
        "loss_gap": gap,
        "predicted_loss_gap": predicted_loss_gap(losses, start, learning_rate=bound_rate, epochs=2),
        "bound_rate": bound_rate,
    }


def study_dynamics(settings: Reproduction, base: Base, *, progress: bool = True) -> list[Values]:
    """Norms and cosines of the epochs' gradients, one entry per seed and task."""
    pairs = [(seed, task) for seed in settings.seeds for task in settings.load_tasks(seed)]
    with tqdm(pairs, desc="dynamics", disable=not progress) as bar:

        def measure(pair: tuple[int, Task]) -> Values:
            seed, task = pair
            entry = once(settings, _dynamics(pair), lambda: _dynamics_of(settings, base, task, seed=seed))
            bar.update()
            return entry

        return share_out(pairs, lambda pair: study_path(settings, _dynamics(pair)), measure)


def _dynamics(pair: tuple[int, Task]) -> str:
    return f"dynamics-{pair[1].name}-{pair[0]}"


def _dynamics_of(settings: Reproduction, base: Base, task: Task, *, seed: int) -> Values:
    folder = Path(settings.output_dir) / "work" / _dynamics((seed, task))
    shutil.rmtree(folder, ignore_errors=True)
    args = settings.config(
        settings.dynamics_optimizer, seed=seed, epochs=settings.dynamics_epochs, folder=folder, record_gradients=True
    )
    trainer = TaskVectorTrainer(base, args, task=task)
    quiet(trainer)
    trainer.train()
    dynamics = measure_dynamics(base, task, folder)
    shutil.rmtree(folder)
    return dynamics.to_dict() | {"seed": seed}


def study_atm(settings: Reproduction, base: Base, *, progress: bool = True) -> list[Values]:
    """Accuracies of rounds at equal budget, of joint training with that budget, and of post-hoc rounds, per seed."""
    with tqdm(settings.seeds, desc="alternating tuning and merging", disable=not progress) as bar:

        def measure(seed: int) -> Values:
            entry = once(settings, f"atm-{seed}", lambda: _atm(settings, base, seed))
            bar.update()
            return entry

        return share_out(settings.seeds, lambda seed: study_path(settings, f"atm-{seed}"), measure)


def _atm(settings: Reproduction, base: Base, seed: int) -> Values:
    tasks, work = settings.load_tasks(seed), Path(settings.output_dir) / "work" / f"atm-{seed}"
    args = settings.config(settings.atm_optimizer, seed=seed, epochs=settings.atm_budget, folder=work)
    rounds = {}
    for count in settings.atm_rounds:
        folder = work / f"rounds-{count}"
        run = alternating_tuning_and_merging(base, tasks, args=args, rounds=count, output_dir=folder)
        rounds[str(count)] = accuracies(run.vector.apply_to(base), tasks)
    joint = _joint(settings, base, tasks, seed=seed, folder=work / JOINT)
    result = {"seed": seed, "rounds": rounds, JOINT: joint, "post_hoc": _post_hoc(settings, base, tasks, seed, work)}
    shutil.rmtree(work)
    return result


def _joint(settings: Reproduction, base: Base, tasks: Sequence[Task], *, seed: int, folder: Path) -> dict[str, float]:
    """Accuracies of joint training with the budget of alternating tuning and merging."""
    budget = settings.atm_budget
    only = dataclasses.replace(settings, budgets=[1, budget], max_epochs=[budget] * len(settings.optimizers))
    run = train_run(only, base, tasks, optimizer=settings.atm_optimizer, seed=seed, folder=folder)
    return accuracies(run.vector(f"{budget:g}").apply_to(base), tasks)


def _post_hoc(
    settings: Reproduction, base: Base, tasks: Sequence[Task], seed: int, work: Path
) -> list[dict[str, float]]:
    """Accuracies after 0, 1, … rounds on validation images from the mean of converged vectors."""
    count = settings.post_hoc_rounds
    if count == 0:
        return []
    start = TaskVector.from_pretrained(converged_merge(settings, settings.atm_optimizer, seed))
    args = settings.config(settings.atm_optimizer, seed=seed, epochs=count, folder=work)
    run = alternating_tuning_and_merging(
        base, tasks, args=args, rounds=count, output_dir=work / "post-hoc", start=start, train_on="validation"
    )
    return [accuracies(vector.apply_to(base), tasks) for vector in (start, *run.rounds)]
