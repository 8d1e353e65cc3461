"""`TaskVectorTrainer`: a `transformers.Trainer` that fine-tunes a vision tower and gives its task vector."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from hf_taskvec.cards.publish import push_series_to_hub, push_to_hub
from hf_taskvec.errors import UnknownNameError
from hf_taskvec.evaluation.metrics import Accuracy
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.pixels import IGNORED, PixelDataset, keep_batch, load_pixels
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.full_batch import prepare_full_batch
from hf_taskvec.training.recording import VECTORS, GradientTracker, Recorder, epoch_name
from hf_taskvec.training.sampler import ShuffledSampler
from hf_taskvec.vectors.files import load_vector, save_vector
from hf_taskvec.vectors.info import VectorInfo, library_versions
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.names import parameters_of


class TaskVectorTrainer(Trainer):
    """Fine-tunes a base's vision tower on a task against its frozen zero-shot head.

    Runs under `python`, `torchrun` and `accelerate launch` alike, and resumes like any `Trainer`. The loss is the sum
    over images divided by their number in the whole accumulated batch, so that accumulation, a ragged last batch and
    several processes change nothing.

    Args:
        base: The model to start from, left unchanged.
        args: The run's settings.
        task: The task; its train part is trained on, its validation part evaluated if `args.eval_strategy` asks.
        callbacks: Further callbacks.
        optimizers: Optimiser and schedule, instead of those `args` names.

    Raises:
        DataError: If an image does not decode, or the task's classes do not fit its labels.
    """

    args: TaskVectorConfig
    model: ImageClassifier

    def __init__(
        self,
        base: Base,
        args: TaskVectorConfig | None = None,
        *,
        task: Task,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ) -> None:
        args = args or TaskVectorConfig()
        self.base, self.task = base, task
        self.dataset_revision = task.dataset_revision()
        with args.main_process_first(local=True, desc="decoding images"):
            train = self.load_images("train")
            wanted = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
            validation = self.load_images("validation") if wanted else None
        if args.full_batch:
            prepare_full_batch(args, len(train), base)
        model = self.build_classifier(args.include_projection)
        model.freeze_except(args.trainable_parameters)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=keep_batch,
            compute_loss_func=summed_cross_entropy,
            compute_metrics=accuracy_of if validation else None,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.resumed_from: Path | None = None
        self._started: float | None = None
        self._ended: float | None = None
        self.gradients = GradientTracker()
        self.add_callback(Recorder(self))

    # -- what a run is made of; a subclass that trains otherwise replaces these --------------------------------------

    def load_images(self, split: Split) -> PixelDataset:
        """The images of a part of the task."""
        return load_pixels(self.task, split, self.base.processor.image_processor)

    def build_classifier(self, include_projection: bool) -> ImageClassifier:
        """The model to train."""
        return ImageClassifier(self.base, self.task, include_projection=include_projection)

    # -- what a run gives ---------------------------------------------------------------------------------------------

    def task_vector(self) -> TaskVector:
        """The difference of the weights as they are now and the base's."""
        trained = {name: weight.to(self.base.device) for name, weight in self.model.weights().items()}
        base = {name: weight for name, weight in parameters_of(self.base.model).items() if name in trained}
        return TaskVector.from_weights(
            base, trained, include_projection=self.args.include_projection, info=self.vector_info()
        )

    def task_vectors(self) -> list[TaskVector]:
        """The vectors at each epoch's end so far, memory-mapped from `output_dir/vectors/epoch-N`."""
        epochs = range(1, int(self.state.epoch or 0) + 1)
        return [self.recorded_vector(epoch_name(epoch)) for epoch in epochs] if self.args.record_epochs else []

    def recorded_vector(self, name: str) -> TaskVector:
        """A recorded vector by its name: `epoch-2`, `step-100`, `fraction-0.25`."""
        names = [path.name for path in self.vectors_folder.glob("*") if not path.name.startswith(".")]
        if name not in names:
            raise UnknownNameError("recorded vector", name, names)
        return load_vector(self.vectors_folder / name)

    def record(self, name: str) -> None:
        """Saves the vector of this moment under `output_dir/vectors/<name>`."""
        if self.args.should_save:
            save_vector(self.task_vector(), self.vectors_folder / name)

    def vector_info(self) -> VectorInfo:
        """Provenance of the vector of this moment."""
        args, state = self.args, self.state
        return VectorInfo(
            kind="fine-tuned", base=self.base.name, base_revision=self.base.revision, task=self.task.name,
            dataset=self.task.dataset_name, dataset_config=self.task.config,
            dataset_revision=self.dataset_revision,
            epochs=float(state.epoch or 0), steps=state.global_step,
            optimizer=str(getattr(args.optim, "value", args.optim)), learning_rate=float(args.learning_rate),
            weight_decay=float(args.weight_decay),
            batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            num_images=len(self.train_dataset), seed=args.seed,
            settings={
                "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
                "warmup_steps": args.warmup_steps, "max_grad_norm": args.max_grad_norm,
                "num_train_epochs": args.num_train_epochs, "trainable_parameters": args.trainable_parameters,
            },
            versions=library_versions(), seconds=self.seconds,
        )  # fmt: skip

    @property
    def vectors_folder(self) -> Path:
        """Where recorded vectors lie."""
        return Path(str(self.args.output_dir)) / VECTORS

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
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        args, vectors = self.args, self.task_vectors()
        options = {
            "token": token or args.hub_token, "revision": revision or args.hub_revision,
            "private": args.hub_private_repo, "commit_message": commit_message,
        }  # fmt: skip
        if len(vectors) > 1:
            return push_series_to_hub(vectors, str(self.hub_model_id), **options)
        return push_to_hub(self.task_vector(), str(self.hub_model_id), **options)

    # -- hooks of Trainer ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`; `True` resumes from the last checkpoint in `output_dir`."""
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = get_last_checkpoint(str(self.args.output_dir))
            if checkpoint is None:
                raise ValueError(f"resume_from_checkpoint=True, but {self.args.output_dir} has no checkpoint")
        self.resumed_from = None if checkpoint is None else Path(checkpoint)
        self._started, self._ended = time.perf_counter(), None
        result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        self._ended = time.perf_counter()
        return result

    @property
    def seconds(self) -> float | None:
        """How long the last call of `train` took, or has taken so far; `None` before the first."""
        if self._started is None:
            return None
        return round((self._ended or time.perf_counter()) - self._started, 1)

    def _get_train_sampler(self, train_dataset: Any = None) -> ShuffledSampler:
        args = self.args
        multiple = 1 if args.world_size == 1 else args.world_size * self._train_batch_size
        seed = args.data_seed if args.data_seed is not None else args.seed
        self.sampler = ShuffledSampler(len(self.train_dataset), seed=seed, multiple=multiple)
        return self.sampler

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the recorder pushes vectors."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.args.track_gradients:
            limit = self.args.max_grad_norm
            clipped = float(norm) / limit if limit > 0 and float(norm) > limit else 1.0  # undoes the clipping
            named = self.model.named_parameters()
            gradients = {name: p.grad for name, p in named if p.grad is not None}
            self.gradients.add(gradients, norm=float(norm), factor=clipped)
        return norm


def summed_cross_entropy(
    outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The cross-entropy summed over images and divided by their number in the whole accumulated batch."""
    total = functional.cross_entropy(outputs["logits"], labels, ignore_index=IGNORED, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else labels.ne(IGNORED).sum())


def accuracy_of(prediction: EvalPrediction) -> dict[str, float]:
    """The accuracy for `Trainer.evaluate`."""
    predictions = torch.as_tensor(prediction.predictions).argmax(dim=-1)
    return Accuracy().compute(predictions=predictions, references=prediction.label_ids)
