"""Statistics: measured as the definitions say, by any number of processes, and kept bit for bit."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hf_taskvec import TaskVector, get_task
from hf_taskvec.errors import BaseMismatchError, CheckpointError, DataError, NonFiniteError, OutputExistsError
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.statistics import Statistics, collect_statistics
from hf_taskvec.statistics.maps import inputs_of
from hf_taskvec.statistics.sums import EXTRA, GramSum
from hf_taskvec.statistics.value import CONFIG_NAME
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.names import parameters_of
from tests.helpers import finetuned
from tests.toys import toy_base, toy_task

FC2 = "vision_model.encoder.layers.1.mlp.fc2.weight"
PATCHES = "vision_model.embeddings.patch_embedding.weight"
NORM = "vision_model.encoder.layers.0.layer_norm1.weight"


@cache
def measured() -> Statistics:
    """Of the toy base with all 50 images; never changed by a test."""
    return collect_statistics(toy_base(), toy_task(), num_images=50, rank=128, dtype="float64", batch_size=32)


def shown() -> Tensor:
    """The images that `measured` shows, normalised."""
    base = toy_base()
    pixels = load_pixels(toy_task(), "train", base.processor.image_processor)
    return Normalize(base)(pixels.__getitems__(range(50))["pixel_values"])


def inputs_to(name: str) -> Tensor:
    """What the module `name` of the tower is given."""
    seen: list[Tensor] = []
    tower = toy_base().model.vision_model
    handle = tower.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        tower(shown())
    handle.remove()
    return seen[0].double()


def test_a_gram_matrix_is_the_mean_over_all_tokens_of_all_images() -> None:
    rows = inputs_to("encoder.layers.1.mlp.fc2").reshape(-1, 128)
    gram = measured().gram(FC2)
    assert gram is not None
    torch.testing.assert_close(gram.matrix(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    assert measured().info.tokens[f"gram/{inputs_of(FC2)}"] == len(rows) == 50 * 17


def test_queries_keys_and_values_share_one_matrix() -> None:
    name = "vision_model.encoder.layers.0.self_attn.{}_proj.weight"
    factors = [measured().gram(name.format(letter)).factor for letter in "qkv"]  # type: ignore[union-attr]
    assert factors[0] is factors[1] is factors[2]


def test_a_patch_embedding_is_a_linear_map_of_patches() -> None:
    patches = shown().unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * 64).double()
    gram = measured().gram(PATCHES)
    assert gram is not None
    torch.testing.assert_close(gram.matrix(), patches.T @ patches / len(patches), rtol=1e-3, atol=1e-3)


def test_the_diagonal_of_a_norm_is_what_its_scale_multiplies() -> None:
    rows = functional.layer_norm(inputs_to("encoder.layers.0.layer_norm1"), [64]).reshape(-1, 64)
    torch.testing.assert_close(measured().diagonal(NORM), rows.square().mean(dim=0), rtol=1e-4, atol=1e-5)


def test_fisher_squares_the_gradient_of_one_image_at_a_time() -> None:
    base, task = toy_base(), toy_task(images=6)
    kinds = ("fisher",)
    one = collect_statistics(base, task, num_images=6, kinds=kinds, dtype="float64", batch_size=6)
    other = collect_statistics(base, task, num_images=6, kinds=kinds, dtype="float64", batch_size=4)
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    torch.testing.assert_close(one.fisher(name), other.fisher(name))  # the batch makes no difference
    classifier = ImageClassifier(base, task).eval()
    pixels = load_pixels(task, "train", base.processor.image_processor).__getitems__(range(6))["pixel_values"]
    weight = classifier.vision_model.encoder.layers[1].mlp.fc1.weight
    expected = torch.zeros_like(weight, dtype=torch.float64)
    for image in range(6):
        logits = classifier(pixels[image : image + 1])["logits"]
        generator = torch.Generator().manual_seed(image)
        label = torch.multinomial(logits.double().softmax(dim=-1)[0], 1, generator=generator)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, label), [weight])
        expected += gradient.double().square() / 6
    torch.testing.assert_close(one.fisher(name), expected, rtol=1e-3, atol=1e-12)


def test_labels_are_drawn_from_the_model_by_the_seed() -> None:
    base, task = toy_base(), toy_task(images=6)
    prints = [
        collect_statistics(base, task, num_images=6, kinds=("fisher",), seed=seed).fingerprint for seed in (1, 1, 2)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_factors_of_kfac_are_the_fisher_information_of_one_image_and_token() -> None:
    base, task = toy_base(), toy_task(images=1)
    seen = collect_statistics(base, task, num_images=1, kinds=("gram", "kfac", "fisher"), dtype="float64")
    name = "visual_projection.weight"
    outputs, inputs = seen.gradients(name), seen.gram(name)
    assert outputs is not None
    assert inputs is not None
    diagonal = torch.outer(outputs.matrix().diagonal(), inputs.matrix().diagonal())
    torch.testing.assert_close(diagonal, seen.fisher(name), rtol=1e-4, atol=1e-12)


def test_a_sketch_keeps_the_leading_part_and_tells_what_is_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -3, 200)
    rows = (torch.randn(500, 200, generator=generator) * scales).float()
    total = GramSum(200, 32, device=torch.device("cpu"), dtype=torch.float32)
    assert total.probe is not None
    assert total.probe.shape == (200, 32 + EXTRA)
    for batch in rows.split(100):
        total.add(batch)
    done = total.factorised(torch.float64)
    gram = rows.double().T @ rows.double() / 500
    best = float(torch.linalg.eigvalsh(gram)[:-32].sum() / gram.trace())
    assert best <= done.error * 1.001
    assert done.error < 2 * best
    difference = gram - done.factor.T @ done.factor
    assert done.rest is not None
    # what the sketch takes too much of one entry, by its rounding, cannot be given back
    torch.testing.assert_close(done.rest.square(), difference.diagonal(), rtol=1e-3, atol=1e-5)
    assert float(torch.linalg.eigvalsh(difference).min()) > -1e-5  # what is left out is positive


@pytest.mark.parametrize("rank", [4, 64])
def test_the_sums_of_two_processes_are_those_of_one(rank: int) -> None:
    rows = torch.randn(60, 64, generator=torch.Generator().manual_seed(0))
    parts = [GramSum(64, rank, device=torch.device("cpu"), dtype=torch.float32) for _ in range(3)]
    parts[0].add(rows)
    parts[1].add(rows[:20])
    parts[2].add(rows[20:])
    for mine, theirs in zip(parts[1].tensors(), parts[2].tensors(), strict=True):
        mine += theirs
    one, two = (sums.factorised(torch.float64).factor for sums in parts[:2])
    torch.testing.assert_close(one.T @ one, two.T @ two, rtol=1e-4, atol=1e-4)


def test_activations_that_are_all_zero_are_no_trouble() -> None:
    for width in (8, 100):
        total = GramSum(width, 4, device=torch.device("cpu"), dtype=torch.float32)
        total.add(torch.zeros(3, width))
        done = total.factorised(torch.float32)
        assert done.factor.shape == (0, width)
        assert (done.rest, done.error) == (None, 0.0)


def test_a_vector_is_measured_on_top_of_its_base() -> None:
    base = toy_base()
    vector = TaskVector.from_models(base.model, finetuned(base.model), info=VectorInfo(task="digits"))
    own = collect_statistics(base, toy_task(), vector=vector, num_images=4)
    plain = collect_statistics(base, toy_task(), num_images=4)
    assert own.info.task == "digits"
    assert own.info.vector is not None
    assert plain.info.vector is None
    assert own.info.base_hashes == plain.info.base_hashes
    assert own.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match="pass the base as it was, and vector="):
        collect_statistics(vector.apply_to(base), toy_task(), num_images=4)
    foreign = TaskVector(vector.deltas, dataclasses.replace(vector.info, base_hashes={FC2: "0"}))
    with pytest.raises(BaseMismatchError):
        collect_statistics(base, toy_task(), vector=foreign, num_images=4)


def test_with_a_vector_only_what_it_covers_is_measured() -> None:
    base, task = toy_base(), toy_task(images=6)
    kinds = ("gram", "diagonal", "fisher", "kfac")
    whole = TaskVector.from_models(base.model, finetuned(base.model, size=0.02))
    some = TaskVector({name: whole.deltas[name] for name in (FC2, NORM)})
    zeros = {name: torch.zeros_like(delta) for name, delta in whole.deltas.items() if name not in some.deltas}
    every = collect_statistics(
        base, task, vector=TaskVector({**some.deltas, **zeros}), num_images=6, kinds=kinds, dtype="float32"
    )
    few = collect_statistics(base, task, vector=some, num_images=6, kinds=kinds, dtype="float32")
    map_of = FC2.removesuffix(".weight")
    assert {*few.tensors} == {
        *(f"{kind}/{map_of}" for kind in ("gram", "gradients")),
        *(f"fisher/{name}" for name in some.deltas),
        f"diagonal/{NORM}",
    }
    assert all(tensor.equal(every.tensors[name]) for name, tensor in few.tensors.items())


def test_statistics_come_back_bit_for_bit(tmp_path: Path) -> None:
    kept = collect_statistics(toy_base(), toy_task(), num_images=4, rank=8)
    kept.save_pretrained(tmp_path / "own")
    again = Statistics.from_pretrained(tmp_path / "own")
    assert again.fingerprint == kept.fingerprint
    assert again.info == kept.info
    assert (again.info.split, again.info.num_images, again.info.rank) == ("train", 4, 8)
    assert again.info.images_hash
    assert again.info.preprocessing


def test_statistics_of_before_with_one_number_beyond_each_factor_are_read_as_they_were(tmp_path: Path) -> None:
    name = "gram/vision_model.encoder.layers.1.mlp.fc2"
    factor = torch.tensor([[3.0, 0.0, 1.0]])
    Statistics({name: factor, "gram/other": factor}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert config["schema_version"] == 2  # what reads up to 1 would leave out the diagonals
    older = config | {"schema_version": 1, "rests": {name: 0.25, "gram/other": 0.0}}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(older))
    read = Statistics.from_pretrained(tmp_path)
    gram = read.gram(FC2)
    assert gram is not None
    assert torch.equal(gram.matrix(), (factor.T @ factor + 0.25 * torch.eye(3)).double())
    assert set(read.tensors) == {name, "gram/other", f"rest/{name}"}
    for rests in ({name: -1.0}, {name: "much"}, [1.0]):
        (tmp_path / CONFIG_NAME).write_text(json.dumps(older | {"rests": rests}))
        with pytest.raises(CheckpointError, match="'rests' must be"):
            Statistics.from_pretrained(tmp_path)


def test_statistics_lie_beside_their_vector(tmp_path: Path) -> None:
    vector = TaskVector({"w": torch.ones(2)})
    vector.save_pretrained(tmp_path / "vector")
    statistics = Statistics({"gram/w": torch.eye(2)})
    for _ in range(2):
        statistics.save_pretrained(tmp_path / "vector")
    assert TaskVector.from_pretrained(tmp_path / "vector") == vector
    assert Statistics.from_pretrained(tmp_path / "vector").fingerprint == statistics.fingerprint
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        statistics.save_pretrained(tmp_path / "notes")
    with pytest.raises(CheckpointError, match="holds no statistics"):
        Statistics.from_pretrained(tmp_path / "notes")
    with pytest.raises(NonFiniteError, match="gram/w"):
        Statistics({"gram/w": torch.full((1, 2), torch.nan)}).save_pretrained(tmp_path / "nan")
    assert not (tmp_path / "nan").exists()


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    Statistics({"gram/w": torch.eye(2)}).save_pretrained(tmp_path / "own")
    config = tmp_path / "own" / CONFIG_NAME
    values = json.loads(config.read_text())
    for change, message in (
        ({"rank": "many"}, "'rank' must be"),
        ({"odd": 1}, "unknown entry 'odd'"),
        ({"schema_version": 99}, "upgrade"),
        ({"library": "other"}, "no configuration"),
    ):
        config.write_text(json.dumps({**values, **change}))
        with pytest.raises(CheckpointError, match=message):
            Statistics.from_pretrained(tmp_path / "own")


def test_wrong_settings_are_refused_before_an_image_is_read() -> None:
    base, task = toy_base(), toy_task()
    for settings, message in (
        ({"split": "test"}, "transductive=True"),
        ({"num_images": 51}, "51, but train of 'digits' has 50"),
        ({"num_images": 0}, "num_images must be a whole number of at least 1, got 0"),
        ({"num_images": "8"}, "num_images must be a whole number of at least 1, got '8'"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"kinds": ("gramm",)}, "Did you mean 'gram'"),
        ({"kinds": ()}, "kinds must be a list"),
        ({"rank": 1.5}, "rank must be a whole number"),
        ({"num_images": 1, "rank": 40}, "rank 40 is more than the 17 inputs of a map that 1 images give"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ):
        with pytest.raises((ValueError, DataError), match=message):
            collect_statistics(base, task, **settings)
    with pytest.raises(TypeError, match="load one by load_base"):
        collect_statistics(base.model, task)
    with pytest.raises(TypeError, match="vector must be a TaskVector, got str"):
        collect_statistics(base, task, vector="out/digits/vector")  # type: ignore[arg-type]
    seen = collect_statistics(base, get_task("digits"), num_images=2, split="test", transductive=True)
    assert seen.info.split == "test"


def test_numbers_of_numpy_do_and_the_result_fits_on_a_line() -> None:
    counts: dict[str, Any] = {"num_images": np.int64(4), "batch_size": np.int64(2)}
    whole: dict[str, Any] = {"num_images": 4.0, "batch_size": 2.0, "rank": 3.0}
    assert collect_statistics(toy_base(), toy_task(), **whole).info.to_dict()["rank"] == 3
    one = collect_statistics(toy_base(), toy_task(), kinds=["diagonal"], **counts)
    assert re.fullmatch(r"Statistics\('digits', diagonal: \d+ tensors, [\d,]+ entries\)", repr(one))


def test_nan_is_named_by_layer_and_image() -> None:
    base = toy_base()
    broken = dataclasses.replace(base, model=finetuned(base.model))
    with torch.no_grad():
        dict(broken.model.named_parameters())["vision_model.encoder.layers.1.mlp.fc1.bias"][0] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"'vision_model\.encoder\.layers\.1\.mlp\.fc2' hold NaN or Inf at image 0"
    ):
        collect_statistics(broken, toy_task(), num_images=50)
    assert not any(module._forward_pre_hooks for module in broken.model.modules())


def test_an_interrupted_collection_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, task = toy_base(), toy_task(images=6)
    options: dict[str, Any] = {"num_images": 6, "batch_size": 3, "kinds": ("gram", "fisher", "kfac")}
    before, add = collect_statistics(base, task, **options), GramSum.add

    def interrupted(self: GramSum, rows: Tensor) -> float:
        if self.count > 0:  # in the second batch
            raise KeyboardInterrupt
        return add(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(GramSum, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect_statistics(base, task, **options).save_pretrained(tmp_path / "statistics")
    assert list(tmp_path.iterdir()) == []
    modules = list(base.model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert collect_statistics(base, task, **options).fingerprint == before.fingerprint


def test_an_interrupted_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Statistics({"gram/w": torch.eye(2)}), Statistics({"gram/w": 2 * torch.eye(2)})
    old.save_pretrained(tmp_path / "seen")

    def interrupted(path: Path, values: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_taskvec.statistics.value.write_json", interrupted)  # the tensors are written by then
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(tmp_path / "seen")
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]
    assert Statistics.from_pretrained(tmp_path / "seen").fingerprint == old.fingerprint
    new.save_pretrained(tmp_path / "seen")
    assert Statistics.from_pretrained(tmp_path / "seen").fingerprint == new.fingerprint


def test_the_model_is_left_as_it_was() -> None:
    base = toy_base()
    before = {name: weight.clone() for name, weight in parameters_of(base.model).items()}
    collect_statistics(base, toy_task(), num_images=2, kinds=("gram", "diagonal", "fisher", "kfac"))
    assert all(torch.equal(before[name], weight) for name, weight in parameters_of(base.model).items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.model.modules())
    assert all(parameter.grad is None for parameter in base.model.parameters())
