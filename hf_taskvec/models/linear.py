"""The head of a base without a text tower: a linear classifier on its features, fitted once, frozen and kept."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from hf_taskvec.errors import BaseMismatchError, CheckpointError, DataError
from hf_taskvec.models.backbones import backbone_features
from hf_taskvec.models.base import Base
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.cache import cache_folder
from hf_taskvec.tasks.corruptions import CorruptedTask
from hf_taskvec.tasks.pixels import PixelDataset, load_pixels
from hf_taskvec.tasks.subsets import SubsetTask
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.folders import atomic_folder, check_relative, read_json, write_json
from hf_taskvec.weights.names import parameters_of

logger = logging.getLogger(__name__)

FORMAT = 1  # of the files; to be raised with any change to what they hold or how a head is fitted
CONFIG_FILE, WEIGHTS_FILE = "linear_head.json", "linear_head.safetensors"
STRENGTHS = (1.0, 0.1, 0.01, 0.001)  # of the penalty on squared weights, beside the mean loss
_FOLDS = 5  # every fifth image is held out to choose one of them
_NEVER = -20.0  # what the logit of a class without training images is below the least of the others' biases


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear classifier on the features of a base for one task.

    Attributes:
        weight: One row per class (C, F).
        bias: One number per class (C,).
        task: The task's name.
        class_names: The classes, in the order of the rows.
        base: The base's name.
        base_fingerprint: The fingerprint of its weights.
        preprocessing: A hash of its image processor.
        num_images: How many training images it was fitted on.
        regularisation: Factor of half the sum of squared weights, on standardised features, beside the mean loss; with
            two classes the weights are those of their difference.
        train_accuracy: Its accuracy on these images.
        held_out_accuracy: That on a fifth of them when it was fitted on the others, by which the regularisation was
            chosen; `None` if they are too few.
    """

    weight: Tensor
    bias: Tensor
    task: str
    class_names: tuple[str, ...]
    base: str
    base_fingerprint: str
    preprocessing: str
    num_images: int
    regularisation: float
    train_accuracy: float
    held_out_accuracy: float | None

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, F)."""
        return functional.linear(features, self.weight.to(features), self.bias.to(features))

    def facts(self) -> dict[str, Any]:
        """What it is, as JSON values, with a hash of its weights."""
        values = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)[2:]}
        digest = fingerprint(tensor_hashes({"weight": self.weight, "bias": self.bias}))[:32]
        return {**values, "class_names": list(self.class_names), "digest": digest}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes it as safetensors and JSON.

        Raises:
            OutputExistsError: If the folder holds something else.
        """
        with atomic_folder(folder, marker=CONFIG_FILE) as target:
            save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, target / WEIGHTS_FILE)
            write_json(target / CONFIG_FILE, {"format": FORMAT, **self.facts()})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> LinearHead:
        """Reads it.

        Raises:
            CheckpointError: If there is none, or it is damaged.
        """
        place = Path(folder)
        try:
            facts, tensors = read_json(place / CONFIG_FILE), load_file(place / WEIGHTS_FILE)
            known = {spec.name: facts[spec.name] for spec in dataclasses.fields(cls)[2:]}
            names = tuple(map(str, known.pop("class_names")))
            head = cls(tensors["weight"], tensors["bias"], class_names=names, **known)
            if head.weight.shape != (len(names), head.weight.shape[-1]) or head.bias.shape != (len(names),):
                raise ValueError("its shapes do not fit its classes")
            if facts["format"] != FORMAT or head.facts()["digest"] != facts["digest"]:
                raise ValueError("not what was written")
        except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{place} holds no linear head that can be read: {error}") from error
        return head

    def check(self, base: Base, task: Task, where: object) -> None:
        """Raises unless it is a head of this task on this base.

        Args:
            base: The base, without a vector.
            task: The task.
            where: Where the head is from, for the message.

        Raises:
            DataError: If it tells other classes apart.
            BaseMismatchError: If it reads the features of another base.
        """
        ours, theirs = self.class_names, task.class_names
        if len(ours) != len(theirs):
            raise DataError(f"the head in {where} has {len(ours)} classes, task {task.name!r} has {len(theirs)}")
        if ours != theirs:
            row = next(row for row, names in enumerate(zip(ours, theirs, strict=True)) if len(set(names)) > 1)
            raise DataError(
                f"class {row} of the head in {where} is {ours[row]!r:.100}, that of task {task.name!r} is "
                f"{theirs[row]!r:.100}: the rows of a head are in the order of its class names"
            )
        if (self.base_fingerprint, self.preprocessing) != base_facts(base):
            raise BaseMismatchError(
                f"the head in {where} was fitted on the features of {self.base!r} "
                f"({self.base_fingerprint[:12]}…), and {base.name!r} has other weights or another image processor: "
                "give heads= another folder, where its own are kept"
            )


def linear_head(base: Base, task: Task) -> LinearHead:
    """The frozen head of a task: fitted on the base's features of the task's training images once, then kept.

    Training, evaluation and the choice of scalings all read it, whatever vector was added to the base. It lies in
    `<heads>/<task>` if the base was loaded with `heads=`, else in the cache of `datasets` under a key of all that it
    depends on: the base's weights and image processor, the images and labels, and the class names. A corrupted task has
    the head of the task as it was, one that trains on its validation part that of its training part.

    Args:
        base: A base without a text tower, with vectors or without.
        task: The task.

    Raises:
        CheckpointError: If there is no head and the base it would be fitted on is not known.
        DataError: If the head that is there is of other classes, or the training images are of one class.
        BaseMismatchError: If the head that is there is another base's.

    Example:
        >>> from transformers import ViTConfig, ViTImageProcessorPil, ViTModel
        >>> from hf_taskvec import Base, get_task
        >>> from hf_taskvec.models.backbones import ImagesOnly
        >>> from hf_taskvec.tasks.subsets import subset
        >>> size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
        >>> vit, images = ViTModel(ViTConfig(**size)), ViTImageProcessorPil(size={"height": 32, "width": 32})
        >>> head = linear_head(Base(vit, ImagesOnly(images), "vit"), subset(get_task("counts"), max_train=50))
        >>> head.weight.shape, head.num_images
        (torch.Size([5, 8]), 50)
    """
    while isinstance(task, CorruptedTask) and task.clean is not None:
        task = task.clean
    if isinstance(task, SubsetTask):
        task = dataclasses.replace(task, train_on="train")
    start = _origin(base, task)
    if base.heads is not None:
        check_relative(task.name, "the task")
        folder = Path(base.heads) / task.name
        if (folder / CONFIG_FILE).exists():
            head = LinearHead.from_pretrained(folder)
            head.check(start, task, folder)
            return head
    images = load_pixels(task, "train", start.processor.image_processor)
    if base.heads is None:
        parts = [*base_facts(start), str(start.model.dtype), images.digest, json.dumps(task.class_names), str(FORMAT)]
        folder = cache_folder() / "linear_heads" / xxhash.xxh3_128_hexdigest("\0".join(parts).encode())
        if (folder / CONFIG_FILE).exists():
            try:
                return LinearHead.from_pretrained(folder)
            except CheckpointError as error:
                logger.warning("%s; it is fitted anew", error)
    head = fit_head(start, task, images)
    head.save_pretrained(folder)
    return head


def _origin(base: Base, task: Task) -> Base:
    """The base as it was before vectors were added to it."""
    if base.origin is None:
        raise CheckpointError(
            f"{base.name!r} is a base plus a vector, and the linear head of task {task.name!r} is one on the features "
            "of the base alone, which is not known here: load that base and add the vector to it, "
            "vector.apply_to(load_base(...))"
        )
    return dataclasses.replace(base, model=base.origin.eval(), edited=False)


def base_facts(base: Base) -> tuple[str, str]:
    """Fingerprint of a base's weights, and hash of its image processor.

    Example:
        >>> from hf_taskvec import load_base
        >>> [len(fact) for fact in base_facts(load_base())]
        [32, 16]
    """
    images = json.dumps(base.processor.image_processor.to_dict(), sort_keys=True, default=str)
    return fingerprint(tensor_hashes(parameters_of(base.model)))[:32], xxhash.xxh3_64_hexdigest(images.encode())


# -- fitting ----------------------------------------------------------------------------------------------------------


def fit_head(base: Base, task: Task, images: PixelDataset, *, batch_size: int = 256) -> LinearHead:
    """Fits a head by multinomial logistic regression (scikit-learn, L-BFGS); deterministic, and told in the log.

    Features are standardised for that, and the weights turned back to what they are on the features as they come. The
    regularisation is the strongest of `STRENGTHS` that is best on every fifth image when fitted on the others.

    Args:
        base: The base.
        task: The task.
        images: Its training images.
        batch_size: Images per forward pass.

    Raises:
        DataError: If the images are of one class.
    """
    labels = images.labels.numpy()
    if len(np.unique(labels)) < 2:
        raise DataError(f"the training part of {task.name!r} holds images of one class: no linear head can be fitted")
    features = _features(base, images, batch_size)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation < 1e-6 * max(1.0, float(deviation.max()))] = 1.0
    scaled, classes = (features - mean) / deviation, len(task.class_names)
    strength, held_out = _choose(scaled, labels, classes)
    weight, bias = _solve(scaled, labels, classes, strength, task.name)
    accuracy = _accuracy(scaled, labels, weight, bias)
    told = "the linear head of %r on %r: %d images, regularisation %g, accuracy %.1f %% on them%s"
    other = "" if held_out is None else f", {100 * held_out:.1f} % on a fifth held out"
    logger.info(told, task.name, base.name, len(labels), strength, 100 * accuracy, other)
    weight = weight / deviation
    return LinearHead(
        torch.from_numpy(weight).float(),
        torch.from_numpy(bias - weight @ mean).float(),
        task.name,
        task.class_names,
        base.name,
        *base_facts(base),
        num_images=len(labels),
        regularisation=strength,
        train_accuracy=accuracy,
        held_out_accuracy=held_out,
    )


def _features(base: Base, images: PixelDataset, batch_size: int) -> NDArray[np.float64]:
    """The base's features (N, F) of images."""
    normalize, batches = Normalize(base), []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            pixels = images.__getitems__(range(start, min(start + batch_size, len(images))))["pixel_values"]
            batches.append(backbone_features(base.model, normalize(pixels.to(base.device))).double().cpu())
    return torch.cat(batches).numpy()


def _choose(features: NDArray[Any], labels: NDArray[Any], classes: int) -> tuple[float, float | None]:
    """The regularisation, and the accuracy on held-out images that it is chosen by."""
    held = np.arange(len(labels)) % _FOLDS == _FOLDS - 1
    if not held.any() or len(np.unique(labels[~held])) < 2:
        return STRENGTHS[1], None
    reached = {}
    for strength in STRENGTHS:
        weight, bias = _solve(features[~held], labels[~held], classes, strength, None)
        reached[strength] = _accuracy(features[held], labels[held], weight, bias)
    best = max(STRENGTHS, key=lambda strength: (reached[strength], strength))
    return best, reached[best]


def _solve(
    features: NDArray[Any], labels: NDArray[Any], classes: int, strength: float, told: str | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights (C, F) and biases (C,) of a logistic regression."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.linear_model import LogisticRegression

    solver = LogisticRegression(C=1 / (strength * len(labels)), max_iter=500)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        solver.fit(features, labels)
    if told and any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        logger.warning("the linear head of %r has not converged after 500 iterations", told)
    rows, biases = solver.coef_, solver.intercept_
    if len(solver.classes_) == 2:  # one row, of the second against the first
        rows, biases = np.concatenate([-rows, rows]) / 2, np.concatenate([-biases, biases]) / 2
    weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, biases.min() + _NEVER)
    weight[solver.classes_], bias[solver.classes_] = rows, biases
    return weight, bias


def _accuracy(features: NDArray[Any], labels: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> float:
    return float(((features @ weight.T + bias).argmax(axis=1) == labels).mean())
