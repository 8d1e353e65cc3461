"""RegMean++: what is measured layer by layer in the merged model, and the merge by it."""

from __future__ import annotations

import copy
import dataclasses
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from hf_taskvec import Task, TaskVector, merge
from hf_taskvec.errors import BaseMismatchError, DataError, IncompatibleVectorsError, NonFiniteError, UnknownNameError
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.statistics import Statistics, collect_statistics
from hf_taskvec.statistics.collect import ChosenImages
from hf_taskvec.tuning import collect_prefix_statistics
from hf_taskvec.weights.names import canonical, parameters_of
from tests.helpers import equal_vectors, finetuned
from tests.toys import toy_base, toy_task

NAMES = ("digits", "shapes")
COUNT, EXACT = 12, {"rank": 192, "dtype": "float64"}  # as many rows as the widest map has inputs
LAYERS = [f"vision_model.encoder.layers.{number}." for number in range(2)]


@cache
def vectors(only: str = "") -> dict[str, TaskVector]:
    """A random vector for each of two tasks, of all parameters or of those whose names begin with `only`."""
    made = {}
    for seed, name in enumerate(NAMES, start=1):
        vector = TaskVector.from_models(toy_base().model, finetuned(toy_base().model, seed=seed, size=0.05))
        deltas = {key: delta for key, delta in vector.deltas.items() if key.startswith(only)}
        made[name] = TaskVector(deltas, dataclasses.replace(vector.info, task=name))
    return made


@cache
def tasks() -> list[Task]:
    return [toy_task(name) for name in NAMES]


def collect(given: dict[str, TaskVector], **settings: Any) -> list[Statistics]:
    chosen = [task for task in tasks() if task.name in given]
    return collect_prefix_statistics(toy_base(), given, chosen, **{"num_images": COUNT, **settings})


@cache
def collected() -> list[Statistics]:
    return collect(vectors(), **EXACT)


def slow_regmean_pp(shrink: float) -> dict[str, Tensor]:
    """The merged deltas by whole forward passes of whole models, one layer after the other."""
    base, given = toy_base(), list(vectors().values())
    images = [ChosenImages(base, task, "train", count=COUNT, seed=0) for task in tasks()]
    pixels = [Normalize(base)(own.__getitems__(range(COUNT))["pixel_values"]) for own in images]
    merged: dict[str, Tensor] = {}
    below = ("vision_model.embeddings", "vision_model.pre_layrnorm")
    for stage in (below, *LAYERS, "vision_model.post_layernorm"):
        names = [name for name in given[0].deltas if name.startswith(stage)]
        seen = [
            inputs({**merged, **{name: vector.deltas[name] for name in names}}, shown)
            for vector, shown in zip(given, pixels, strict=True)
        ]
        for name in names:
            deltas = [vector.deltas[name].double() for vector in given]
            rows = [own.get(name.removesuffix(".weight")) for own in seen]
            if deltas[0].ndim == 1 or rows[0] is None or rows[1] is None:
                merged[name] = (deltas[0] + deltas[1]) / 2
                continue
            grams = [own.T @ own / len(own) for own in rows if own is not None]
            grams = [shrink * gram + (1 - shrink) * gram.diag().diag() for gram in grams]
            crossed = sum(delta.flatten(1) @ gram for delta, gram in zip(deltas, grams, strict=True))
            merged[name] = torch.linalg.solve(sum(grams), crossed, left=False).view(deltas[0].shape)
    return merged


@torch.no_grad()
def inputs(deltas: dict[str, Tensor], pixels: Tensor) -> dict[str, Tensor]:
    """The inputs (rows, n) in float64 of every linear map of the base plus some deltas."""
    model = copy.deepcopy(toy_base().model)
    weights = canonical(model.named_parameters())
    for name, delta in deltas.items():
        weights[name].add_(delta)
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        windows = args[0]
        if isinstance(module, nn.Conv2d):
            windows = windows.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3)
        seen[name] = windows.reshape(-1, windows.shape[-1]).double()

    for name, module in canonical(model.vision_model.named_modules(prefix="vision_model")).items():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_pre_hook(partial(keep, name))
    model.vision_model(pixels)
    return seen


def test_it_is_the_definition_by_whole_forward_passes() -> None:
    merged, expected = merge(list(vectors().values()), "regmean_pp", statistics=collected()), slow_regmean_pp(0.95)
    assert {*merged.deltas} == {*expected}
    for name, delta in merged.deltas.items():
        torch.testing.assert_close(delta.double(), expected[name], rtol=1e-2, atol=1e-3, msg=name)


def test_with_one_covered_layer_it_is_regmean() -> None:  # below it nothing is merged, and inside it is the task's own
    given = vectors(LAYERS[1])
    options: dict[str, Any] = {"num_images": COUNT, **EXACT}
    own = [
        collect_statistics(toy_base(), task, vector=given[task.name], kinds=("gram",), **options) for task in tasks()
    ]
    regmean = merge(list(given.values()), "regmean", statistics=own)
    merged = merge(list(given.values()), "regmean_pp", statistics=collect(given, **EXACT))
    for name, delta in merged.deltas.items():
        torch.testing.assert_close(delta, regmean.deltas[name], rtol=1e-3, atol=1e-4)
    two_layers = [
        collect_statistics(toy_base(), t, vector=vectors()[t.name], kinds=("gram",), **options) for t in tasks()
    ]
    other = merge(list(vectors().values()), "regmean", statistics=two_layers)
    differing = merge(list(vectors().values()), "regmean_pp", statistics=collected())
    name = f"{LAYERS[1]}mlp.fc1.weight"
    assert (other.deltas[name] - differing.deltas[name]).norm() > 1e-2 * differing.deltas[name].norm()


def test_one_task_returns_its_vector_and_equal_vectors_return_it() -> None:
    digits = vectors(LAYERS[0])["digits"]
    alone = merge([digits], "regmean_pp", statistics=collect({"digits": digits}))
    twin = TaskVector(digits.deltas, dataclasses.replace(digits.info, task="shapes"))
    pair = {"digits": digits, "shapes": twin}
    both = merge(list(pair.values()), "regmean_pp", statistics=collect(pair))
    for name, delta in digits.deltas.items():
        torch.testing.assert_close(alone.deltas[name], delta, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(both.deltas[name], delta, rtol=1e-3, atol=1e-4)


def test_the_order_of_tasks_makes_no_difference() -> None:
    given = vectors(LAYERS[0])
    there = merge(list(given.values()), "regmean_pp", statistics=collect(given))
    back = collect_prefix_statistics(toy_base(), given, tasks()[::-1], num_images=COUNT)
    other = merge(list(given.values())[::-1], "regmean_pp", statistics=back)
    for name, delta in there.deltas.items():
        torch.testing.assert_close(other.deltas[name], delta, rtol=1e-3, atol=1e-4)


def test_the_batch_size_makes_no_difference_and_the_base_is_left_alone() -> None:
    before = {name: weight.clone() for name, weight in parameters_of(toy_base().model).items()}
    one, other = (collect(vectors(LAYERS[0]), batch_size=size, **EXACT) for size in (5, COUNT))
    for left, right in zip(one, other, strict=True):
        assert left.info.images_hash == right.info.images_hash
        for name, factor in left.tensors.items():
            product, expected = factor.T @ factor, right.tensors[name].T @ right.tensors[name]
            torch.testing.assert_close(product, expected, rtol=1e-3, atol=1e-4)
    assert all(weight.equal(before[name]) for name, weight in parameters_of(toy_base().model).items())


def test_saved_statistics_merge_bit_for_bit_and_the_merge_tells_of_them(tmp_path: Path) -> None:
    given = [*vectors(LAYERS[0]).values()]
    made = collect(vectors(LAYERS[0]), shrink=0.9)
    folders = [tmp_path / name for name in NAMES]
    for folder, own in zip(folders, made, strict=True):
        own.save_pretrained(folder)
    merged = merge(given, "regmean_pp", statistics=made, shrink=0.9)
    assert equal_vectors(merged, merge(given, "regmean_pp", statistics=folders, shrink=0.9))
    assert [one["num_images"] for one in merged.info.statistics] == [COUNT, COUNT]
    assert merged.info.settings["shrink"] == 0.9


def test_statistics_of_another_merge_are_refused() -> None:
    given = vectors(LAYERS[0])
    pair, made = [*given.values()], collect(given)
    with pytest.raises(ValueError, match=r"measured in a merge with shrink=0\.95; pass the same"):
        merge(pair, "regmean_pp", statistics=made, shrink=0.5)
    with pytest.raises(IncompatibleVectorsError, match="measured in a merge of other vectors"):
        merge(pair[:1], "regmean_pp", statistics=made[:1])
    with pytest.raises(ValueError, match="have no gram, which regmean needs"):
        merge(pair, "regmean", statistics=made)
    own = [collect_statistics(toy_base(), task, vector=given[task.name], num_images=4) for task in tasks()]
    with pytest.raises(ValueError, match=r"have no prefix.*collect_prefix_statistics"):
        merge(pair, "regmean_pp", statistics=own)
    with pytest.raises(ValueError, match="collect_prefix_statistics"):
        merge(pair, "regmean_pp")


def test_test_images_are_declared() -> None:
    given = vectors(LAYERS[0])
    with pytest.raises(ValueError, match="transductive"):
        collect(given, split="test")
    made = collect(given, split="test", transductive=True)
    with pytest.raises(ValueError, match="are of test images"):
        merge(list(given.values()), "regmean_pp", statistics=made)
    assert merge(list(given.values()), "regmean_pp", statistics=made, transductive=True).info.transductive


def test_bad_input_is_refused() -> None:
    given = vectors(LAYERS[0])
    with pytest.raises(UnknownNameError, match="vector of task"):
        collect_prefix_statistics(toy_base(), {"digits": given["digits"]}, tasks())
    with pytest.raises(UnknownNameError, match="setting of regmean_pp"):
        collect(given, shrnk=0.9)
    with pytest.raises(ValueError, match="shrink must be in"):
        collect(given, shrink=0.0)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        collect(given, ridge=-1.0)
    with pytest.raises(ValueError, match="weights"):
        collect(given, weights=[1.0])
    with pytest.raises(ValueError, match="rank 5000 is more than the 204 inputs"):
        collect(given, rank=5000)
    with pytest.raises(DataError, match="at least one task"):
        collect_prefix_statistics(toy_base(), given, [])
    with pytest.raises(BaseMismatchError):
        collect_prefix_statistics(toy_base(), {"digits": foreign()}, tasks()[:1])
    with pytest.raises(ValueError, match="collect_prefix_statistics"):
        collect_statistics(toy_base(), tasks()[0], kinds=["prefix"])


def foreign() -> TaskVector:
    """A vector whose provenance names other weights."""
    digits = vectors(LAYERS[0])["digits"]
    hashes = dict.fromkeys(digits.deltas, "0" * 32)
    return TaskVector(digits.deltas, dataclasses.replace(digits.info, base_hashes=hashes))


def test_nan_is_named_by_layer_and_image() -> None:
    base = dataclasses.replace(toy_base(), model=copy.deepcopy(toy_base().model))
    base.model.vision_model.encoder.layers[0].layer_norm1.bias.data.fill_(torch.nan)
    given = {"digits": TaskVector({f"{LAYERS[0]}mlp.fc1.weight": torch.ones(128, 64)})}
    with pytest.raises(
        NonFiniteError, match=r"layers\.0\.mlp\.fc1' hold NaN or Inf at image \d+ of the train of 'digits'"
    ):
        collect_prefix_statistics(base, given, tasks()[:1], num_images=2)


class OneOfTwo:
    """An accelerator of one of two processes, which are threads here."""

    sums: ClassVar[list[Tensor]] = []
    barrier = threading.Barrier(2)

    def __init__(self, cpu: bool) -> None:
        self.device, self.num_processes, self.process_index = (
            torch.device("cpu"),
            2,
            int(threading.current_thread().name),
        )

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        self.sums.append(tensor.clone())
        self.barrier.wait(timeout=60)
        total = sum(self.sums[-2:], torch.zeros_like(tensor))
        self.barrier.wait(timeout=60)
        return total


def test_two_processes_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = vectors(LAYERS[0]), dict[str, list[Statistics]]()
    expected = collect(given, num_images=5, **EXACT | {"rank": 64})
    monkeypatch.setattr("hf_taskvec.tuning.prefix.Accelerator", OneOfTwo)

    def work() -> None:
        made[threading.current_thread().name] = collect(given, num_images=5, **EXACT | {"rank": 64})

    threads = [threading.Thread(target=work, name=name) for name in "01"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for left, right, alone in zip(made["0"], made["1"], expected, strict=True):
        assert left.fingerprint == right.fingerprint
        assert left.info.tokens == alone.info.tokens
        for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"):
            gram, whole = (own.prefix(f"{LAYERS[0]}{name}.weight") for own in (left, alone))
            assert gram is not None
            assert whole is not None
            torch.testing.assert_close(gram.matrix(), whole.matrix(), rtol=1e-3, atol=1e-4)
