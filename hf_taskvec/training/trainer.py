"""`TaskVectorTrainer`: a `transformers.Trainer` that fine-tunes a vision tower and gives its task vector."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalPrediction

from hf_taskvec.cards.publish import push_series_to_hub, push_to_hub
from hf_taskvec.errors import CheckpointError, UnknownNameError
from hf_taskvec.models.base import Base
from hf_taskvec.models.tangent import linearize
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.pixels import keep_batch
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.full_batch import prepare_full_batch
from hf_taskvec.training.given import checked_args, objective_of, refuse
from hf_taskvec.training.lora import adapter_deltas, adapter_settings, add_adapter
from hf_taskvec.training.objective import Objective, accuracy_of, with_master_weights
from hf_taskvec.training.output import (
    RUN_FILE,
    SHARDS,
    STATE,
    VECTORS,
    RunFolder,
    check_checkpoint,
    comparable,
    epoch_name,
    last_checkpoint,
    save_beside,
    wanted_checkpoint,
    what_is_left,
    what_lies_in,
)
from hf_taskvec.training.penalties import training_loss
from hf_taskvec.training.plan import base_plan, run_plan, tokenizer_plan
from hf_taskvec.training.provenance import fine_tuned_info
from hf_taskvec.training.recording import Recorder
from hf_taskvec.training.sharding import ShardingTrainer
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.names import parameters_of
from hf_taskvec.weights.resume import plan_differences

logger = logging.getLogger(__name__)


class TaskVectorTrainer(ShardingTrainer):
    """Fine-tunes a base's vision tower on a task against its frozen head, zero-shot or linear.

    Runs under `python`, `torchrun` and `accelerate launch` alike, and resumes like any `Trainer`. The loss is the sum
    over images divided by their number in the whole accumulated batch, so that accumulation, a ragged last batch and
    several processes change nothing. With `args.shard` each process holds its share of the tower (FSDP2), not a copy.

    A run's `output_dir` is its own while it trains and belongs to its task and base afterwards: a run of another task
    or base is refused there, one of the same replaces the vectors of the last and nothing else.

    Args:
        base: The model to start from, left unchanged.
        args: The run's settings.
        task: The task, or a registered task's name; its train part is trained on, its validation part evaluated if
            `args.eval_strategy` asks.
        compute_metrics: Metrics of an evaluation instead of the accuracy, as `Trainer` takes them.
        preprocess_logits_for_metrics: As `Trainer` takes it.
        callbacks: Further callbacks.
        optimizers: Optimiser and schedule, instead of those `args` names.
        peft_config: A `peft.LoraConfig`: low-rank factors are trained instead of the weights, and the vector covers the
            weights that they change.
        tangent: Whether to train in the tangent space of the base, as `args.tangent` says too; see `linearize`.
        **refused: Arguments of `Trainer` that a base and a task take the place of; each is refused by name.

    Raises:
        DataError: If an image does not decode, or the task's classes do not fit its labels.
        TypeError: If an argument is of another kind, or one of `Trainer`'s that has no place here.

    Example:
        >>> import tempfile
        >>> from hf_taskvec import get_task, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> from hf_taskvec.training.run import quiet
        >>> config = TaskVectorConfig(output_dir=tempfile.mkdtemp(), learning_rate=3e-4, warmup_steps=0)
        >>> trainer = TaskVectorTrainer(load_base(), config, task=subset(get_task("digits"), max_train=8))
        >>> quiet(trainer)
        >>> result = trainer.train()
        >>> trainer.task_vector().norm() > 0
        True
    """

    def __init__(
        self,
        base: Base,
        args: TaskVectorConfig | None = None,
        *,
        task: Task | str | Objective,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        peft_config: Any = None,
        tangent: bool = False,
        **refused: Any,
    ) -> None:
        refuse(refused, inspect.getfullargspec(TaskVectorTrainer.__init__).kwonlyargs)
        args = checked_args(base, args, tangent=tangent, adapted=peft_config is not None, optimizers=optimizers)
        self.base, self.objective = base, objective_of(task)
        start = linearize(base) if args.tangent else base
        with args.main_process_first(local=True, desc="decoding images"):
            train = self.objective.images(base, "train")
            validation = self.objective.images(base, "validation") if args.eval_strategy != "no" else None
            classifier = self.objective.classifier(start, include_projection=args.include_projection)
        if args.full_batch:
            prepare_full_batch(args, len(train), base)
        model = with_master_weights(classifier)
        model.freeze_except(args.trainable_parameters)
        if peft_config is not None:
            add_adapter(model, peft_config, args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=keep_batch,
            compute_loss_func=training_loss(self.objective, train, model, base, args),
            compute_metrics=compute_metrics or accuracy_of,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.folder = RunFolder(str(args.output_dir))
        self.plan: dict[str, Any] = {}
        self._own_optimizer = optimizers[0]
        self._adapter = {} if peft_config is None else {"lora": adapter_settings(peft_config)}
        self._best: tuple[float, int] | None = None  # epochs and steps of the weights, if they are not the last ones
        self._started: float | None = None
        self._ended: float | None = None
        self.recorder = Recorder(self)
        self.add_callback(self.recorder)

    # -- what a run gives ---------------------------------------------------------------------------------------------

    def task_vector(self) -> TaskVector:
        """The difference of the weights as they are now and the base's; with LoRA the product of the factors.

        With `shard` it lies in `output_dir/vectors`; within an epoch all processes must call this.
        """
        if self.args.shard:
            return self.gathered_vector()
        if self._adapter:
            weights = parameters_of(self.base.model)
            deltas = {name: delta.to(self.base.device) for name, delta in adapter_deltas(self.model).items()}
            hashes = tensor_hashes({name: weights[name] for name in deltas})
            vector = TaskVector(deltas, dataclasses.replace(self.vector_info(), base_hashes=hashes))
            vector.check_finite()
            return vector
        trained = {name: weight.to(self.base.device) for name, weight in self.model.weights().items()}
        base = {name: w.to(trained[name]) for name, w in parameters_of(self.base.model).items() if name in trained}
        return TaskVector.from_weights(
            base, trained, include_projection=self.args.include_projection, info=self.vector_info()
        )

    def task_vectors(self) -> list[TaskVector]:
        """The vectors at each epoch's end so far and at the end, memory-mapped from `output_dir/vectors/epoch-N`.

        Raises:
            OutputExistsError: If another run has written into `output_dir` since.
        """
        if not self.args.record_epochs:
            return []
        last = float(self.state.epoch or 0)
        epochs = [*range(1, int(last) + 1), *([last] if last % 1 else [])]
        return [self.recorded_vector(epoch_name(epoch)) for epoch in epochs]

    def recorded_vector(self, name: str) -> TaskVector:
        """A recorded vector by its name: `epoch-2`, `step-100`, `fraction-0.25`.

        Raises:
            UnknownNameError: If there is none of that name.
            OutputExistsError: If another run has written into `output_dir` since.
        """
        self.folder.check_owner()
        names = [path.name for path in self.vectors_folder.glob("*") if not path.name.startswith(".")]
        if name not in names:
            raise UnknownNameError("recorded vector", name, names)
        return TaskVector.from_pretrained(self.vectors_folder / name)

    def record(self, name: str) -> None:
        """Saves the vector of this moment under `output_dir/vectors/<name>`."""
        if self.args.shard:
            self.write_vector(name)
        elif self.args.should_save:
            self.task_vector().save_pretrained(self.folder.claim(f"{VECTORS}/{name}"))

    def vector_info(self) -> VectorInfo:
        """Provenance of the vector of this moment."""
        info = fine_tuned_info(
            self.base,
            self.args,
            self.state,
            num_images=len(self.train_dataset),
            seconds=self.seconds,
            optimizer=self._own_optimizer,
        )
        info = dataclasses.replace(info, settings={**info.settings, **self._adapter, **self.model.told()})
        if self._best is not None:
            chosen = {
                "chosen_by": str(self.args.metric_for_best_model),
                "trained_epochs": info.epochs,
                "trained_steps": info.steps,
            }
            epochs, steps = self._best
            info = dataclasses.replace(info, epochs=epochs, steps=steps, settings={**info.settings, **chosen})
        return self.objective.describe(info)

    @property
    def vectors_folder(self) -> Path:
        """Where recorded vectors lie."""
        return self.folder.path / VECTORS

    @property
    def seconds(self) -> float | None:
        """How long the last call of `train` took, or has taken so far; `None` before the first."""
        if self._started is None:
            return None
        return round((self._ended or time.perf_counter()) - self._started, 1)

    def push_to_hub(
        self, commit_message: str | None = None, *, token: str | None = None, revision: str | None = None
    ) -> str | None:
        """Publishes the vector, or the series of vectors if several epochs were recorded; see `hf_taskvec.hub`.

        With `push_to_hub=True` in the settings this happens at the end of the run and, unless `hub_strategy` is "end",
        after each epoch. Checkpoints stay on this machine: Transformers keeps the optimiser's state in them as a
        pickle, and to load a pickle from somebody else is to run whatever code they put into it.

        Returns:
            The URL of the commit; `None` on all processes but the first.
        """
        if self.args.shard:
            self.gathered_vector()
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        args, now = self.args, self.vector_info()
        vectors = [vector for vector in self.task_vectors() if (vector.info.epochs or 0) <= (now.epochs or 0)]
        options = {
            "token": token or args.hub_token,
            "revision": revision or args.hub_revision,
            "private": args.hub_private_repo,
            "commit_message": commit_message,
        }
        if len(vectors) > 1:
            return push_series_to_hub(vectors, str(self.hub_model_id), **options)
        return push_to_hub(self.task_vector(), str(self.hub_model_id), **options)

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`; `True` resumes from the last whole checkpoint in `output_dir`.

        Raises:
            ValueError: If this trainer has trained already and is not to resume, or a step to record never comes.
            CheckpointError: If the checkpoint is unfinished or holds the weights only.
            SettingsDifferError: If it belongs to another run, or `output_dir` to another task or base; what differs is
                named. A longer run may be resumed.
            OutputExistsError: If another run is at work in `output_dir`, or it holds something else where this run
                would write.
        """
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        checkpoint = wanted_checkpoint(self.folder.path, wanted)
        if self._started is not None and checkpoint is None:
            raise ValueError(
                "this trainer has trained already: another run from its weights would give a vector of both, labelled "
                "as one. Make a new TaskVectorTrainer, or resume_from_checkpoint=True with more num_train_epochs"
            )
        writes = self.args.should_save and self._keeps_something()
        if writes or checkpoint:
            self.plan = self._whole_plan()
        if checkpoint:
            check_checkpoint(checkpoint, self.plan)
        self.recorder.prepare()
        with self.folder.locked() if writes else nullcontext():
            if writes:
                self.folder.begin(self.plan, resumed=checkpoint is not None)
            self.recorder.resumed_from, self._best = checkpoint, None
            self._started, self._ended = time.perf_counter(), None
            try:
                result = super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs)
            except KeyboardInterrupt:
                logger.warning("%s", what_is_left(self.folder.path, self.state))
                raise
            self._ended = time.perf_counter()
        self._tell(writes)
        return result

    def unfinished(self) -> Path | None:
        """The last whole checkpoint in `output_dir` if it is one of this very run and the run was stopped after it."""
        try:
            checkpoint = last_checkpoint(self.folder.path)
            there = read_json(checkpoint / RUN_FILE).get("plan") if checkpoint else None
        except (OSError, CheckpointError):
            return None
        if checkpoint is None or not isinstance(there, dict):
            return None
        state, plan = TrainerState.load_from_json(str(checkpoint / STATE)), comparable(self._whole_plan(), there)
        return checkpoint if state.global_step < state.max_steps and not plan_differences(there, plan) else None

    def _whole_plan(self) -> dict[str, Any]:
        head = self.model.told() or tokenizer_plan(self.base)
        return self.objective.plan() | base_plan(self.base) | head | self._settings()

    def _settings(self) -> dict[str, Any]:
        settings = run_plan(self.args) | self._adapter
        if self._own_optimizer is not None:
            settings["optim"] = type(self._own_optimizer).__name__
        return settings

    def _keeps_something(self) -> bool:
        args = self.args
        kept = (args.record_epochs, args.record_steps, args.record_fractions, args.record_gradients, args.shard)
        return args.save_strategy != "no" or any(kept)

    def _tell(self, writes: bool) -> None:
        """Says where the vectors are and what else the run left, and warns of a vector of zeros."""
        if not self.is_world_process_zero():
            return
        if not self._moved():
            logger.warning(
                "the task vector is zero: %d steps moved no weight (learning rate 0, as in a warm-up's first step, or "
                "steps below the weights' rounding); train longer, with a larger learning_rate, or with warmup_steps=0",
                self.state.global_step,
            )
        if writes and (left := what_lies_in(self.folder.path)):
            logger.info("%s", left)
            watched = {type(callback) for callback in self.callback_handler.callbacks}
            if watched & {ProgressCallback, PrinterCallback}:
                tqdm.write(left)

    def _moved(self) -> bool:
        if self.args.shard:
            return not self.gathered_vector().is_zero
        if self._adapter:
            return any(delta.any() for delta in adapter_deltas(self.model).values())
        base, weights = parameters_of(self.base.model), self.model.weights()
        return any(not torch.equal(weight, base[name].to(weight)) for name, weight in weights.items())

    # -- hooks of Trainer ---------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the tower, a ViT or DINOv2 with its head, as `from_pretrained` and `from_checkpoints` read it."""
        if _internal_call and output_dir is not None and self.args.should_save:  # a checkpoint
            write_json(Path(output_dir) / RUN_FILE, {"run": self.folder.run, "plan": self.plan})  # first: it is ours
            for name in (STATE, SHARDS):  # of an earlier run: from here on the checkpoint is not whole
                (Path(output_dir) / name).unlink(missing_ok=True)
            self.recorder.save(Path(output_dir))  # here and not in on_save, for by then older checkpoints are gone
        elif not _internal_call and (self._adapter or self.args.tangent or self.args.shard):
            raise ValueError("this run has no whole model to save; task_vector().save_pretrained() writes its vector")
        super().save_model(output_dir, _internal_call=_internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and not (self._adapter or self.args.shard):
            save_beside(output_dir or str(self.args.output_dir), self.model, self.base)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        step = self.state.best_global_step or self.state.global_step
        epochs = [entry["epoch"] for entry in self.state.log_history if entry["step"] == step and "epoch" in entry]
        self._best = (float(epochs[-1]), step) if epochs else None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.args.track_gradients:
            limit = self.args.max_grad_norm
            clipped = float(norm) / limit if limit > 0 and float(norm) > limit else 1.0  # undoes the clipping
            trained = self.model.trained().items()  # some are not read, as DINOv2's mask token, and get no gradient
            gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained}
            self.recorder.tracker.add(gradients, norm=float(norm), factor=clipped)
        return norm
