"""A `transformers.Trainer` that is fed by an objective: its images, their order, and evaluation on its parts."""

from __future__ import annotations

from typing import Any, get_args

from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import Trainer

from hf_taskvec.errors import check_known
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks import Split
from hf_taskvec.tasks.pixels import PixelDataset
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.objective import Objective
from hf_taskvec.training.sampler import ShuffledSampler


class ObjectiveTrainer(Trainer):
    """`Trainer` on the images of an objective; `hf_taskvec.training.trainer` makes vectors with it."""

    args: TaskVectorConfig
    model: ImageClassifier
    base: Base
    objective: Objective

    def create_accelerator_and_postprocess(self) -> None:
        """As that of `Trainer`, whatever was trained or measured in this process before.

        Accelerate keeps one state for a process, the precision among it: it refuses a second precision, and new
        `TrainingArguments` empty the state. So each trainer keeps its own, and puts it back when it works.
        """
        AcceleratorState._reset_state()
        super().create_accelerator_and_postprocess()
        self._accelerate = dict(vars(self.accelerator.state))

    def _take_process(self) -> None:
        vars(self.accelerator.state).update(self._accelerate)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`."""
        self._take_process()
        return super().train(*args, **kwargs)

    def planned_steps(self) -> tuple[int, int]:
        """Optimiser steps of an epoch, and of the whole run."""
        self._take_process()
        _, per_epoch, *_, last = self.set_initial_training_values(self.args, self.get_train_dataloader())
        return per_epoch, last

    def evaluate(self, eval_dataset: Any = None, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, on a part of the task by name: the validation part if left out.

        Args:
            eval_dataset: `train`, `validation` or `test`; or a dataset with the columns `image` and `label`, such as
                `task.load("test")`, with the classes of the task.
            **kwargs: As in `Trainer.evaluate`.

        Raises:
            TypeError: If it is something else.
        """
        if eval_dataset is None and self.eval_dataset is None:
            eval_dataset = "validation"
        self._take_process()
        scores: dict[str, float] = super().evaluate(self._images(eval_dataset), **kwargs)
        return scores

    def predict(self, test_dataset: Any, **kwargs: Any) -> Any:
        """As `Trainer.predict`, on a part of the task by name; see `evaluate`."""
        self._take_process()
        return super().predict(self._images(test_dataset), **kwargs)

    def _images(self, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: self._images(each) for name, each in data.items()}
        if data is None or isinstance(data, PixelDataset):
            return data
        if isinstance(data, Dataset):
            return self.objective.images(self.base, data)
        if isinstance(data, str):
            check_known("part of the task", data, get_args(Split))
            return self.objective.images(self.base, data)
        raise TypeError(
            f"a trainer evaluates a part of its task by name (train, validation, test), or a Dataset of its classes, "
            f"got {type(data).__name__}; for other tasks: evaluate(trainer.task_vector().apply_to(base), [task])"
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a vector's card is written where it is published, by `push_to_hub`."""
        raise TypeError("a task vector's card is made by push_to_hub, with its measured accuracies: hf_taskvec.cards")

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: a run's vectors lie in its one `output_dir`."""
        raise TypeError(
            "hyperparameter_search would write the vectors of all trials into one output_dir; train one trainer "
            "per trial, each with an output_dir of its own"
        )

    def _init_training_state(self, max_steps: int, per_epoch: int, num_train_epochs: int, *rest: Any) -> Any:
        trained = super()._init_training_state(max_steps, per_epoch, num_train_epochs, *rest)
        # Transformers would take one more step from a run that is done, if it ended within an epoch.
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else trained

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the recorder pushes vectors."""

    def _get_train_sampler(self, train_dataset: Any = None) -> ShuffledSampler:
        args = self.args
        return ShuffledSampler(
            len(self.train_dataset),
            seed=args.data_seed if args.data_seed is not None else args.seed,
            multiple=1 if args.world_size == 1 else args.world_size * self._train_batch_size,
            shuffle=args.train_sampling_strategy == "random",
        )
