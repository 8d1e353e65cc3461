"""The studio without its page: vectors under sliders, images, flips, links and what is copied."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel
from typer.testing import CliRunner

from hf_taskvec import TaskVector, VectorInfo, evaluate, get_task, load_base, merge
from hf_taskvec.cards.publish import push_series_to_hub
from hf_taskvec.command.app import app
from hf_taskvec.editing import disentanglement
from hf_taskvec.errors import BaseMismatchError, CheckpointError, DataError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.evaluation.intervals import paired_difference
from hf_taskvec.merging.spectral import tsv_parts
from hf_taskvec.multitask import pack
from hf_taskvec.multitask.files import CONFIG_NAME as PACKED_NAME
from hf_taskvec.studio import Bank, Bench, Setting, open_bank
from hf_taskvec.studio.bank import methods_at_hand
from hf_taskvec.studio.board import board, flips, logits_of, paired_change
from hf_taskvec.studio.opening import MOST_EPOCHS, embedded_vectors
from hf_taskvec.studio.setting import added_of, restored
from hf_taskvec.studio.stages import Tower
from hf_taskvec.tasks.registry import SUITES
from hf_taskvec.weights.names import parameters_of
from tests.bases import colours_task, save_tiny_base, tiny_base
from tests.helpers import equal_vectors
from tests.hub_server import HubServer
from tests.test_lora import save_adapter


def moved(seed: int, *, pattern: str = "vision_model", **info: object) -> TaskVector:
    """A vector of the tiny base that moves the parameters whose names hold a pattern."""
    generator = torch.Generator().manual_seed(seed)
    named = parameters_of(tiny_base().model)
    weights = {name: value for name, value in named.items() if pattern in name and name.startswith("vis")}
    changed = {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    made = VectorInfo(kind="fine-tuned", base=tiny_base().name, **info)  # type: ignore[arg-type]
    return TaskVector.from_weights(weights, changed, include_projection=True, info=made)


def save_foreign(folder: Path) -> str:
    """A vector of the tiny base's architecture that tells another base."""
    vector = moved(3, task="colours")
    hashes = {name: "0" * 32 for name in vector.info.base_hashes}
    other = dataclasses.replace(vector.info, base="user/elsewhere", base_hashes=hashes)
    TaskVector(vector.deltas, other).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two vectors, one of them with moments of its training; never changed by a test."""
    root = tmp_path_factory.mktemp("studio")
    end = moved(1, task="colours", epochs=2.0)
    end.save_pretrained(root / "one" / "vector")
    for name, epochs, factor in (("fraction-0.5", 0.5, 0.2), ("epoch-1", 1.0, 0.6)):
        earlier = TaskVector((factor * end).deltas, dataclasses.replace(end.info, epochs=epochs))
        earlier.save_pretrained(root / "one" / "run" / "vectors" / name)
    moved(2, pattern=".mlp.", task="shades").save_pretrained(root / "two")
    return root


@pytest.fixture(scope="module")
def bank(place: Path) -> Bank:
    return open_bank(tiny_base(), [str(place / "one" / "vector"), str(place / "two")])


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(tiny_base(), [colours_task()], quick=8, most=30)


# -- vectors ----------------------------------------------------------------------------------------------------------


def test_a_vector_comes_with_the_moments_of_its_training(bank: Bank) -> None:
    assert [lever.name for lever in bank.levers] == ["colours", "shades"]
    assert [moment.label for moment in bank.levers[0].moments] == ["½", "1", "2"]
    assert [moment.label for moment in bank.levers[1].moments] == ["end"]
    norms = [moment.norm for moment in bank.levers[0].moments]
    assert norms == pytest.approx([0.2 * norms[2], 0.6 * norms[2], norms[2]])


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m", "average", "iso_c"])
@pytest.mark.parametrize("room", [1 << 28, 0])
def test_a_setting_is_the_merge_of_the_scaled_vectors(
    room: int, method: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_taskvec.studio.prepared.MOST_BYTES", room)
    bank = open_bank(tiny_base(), [str(place / "one" / "vector"), str(place / "two")])
    vectors = [bank.levers[0].moments[1].vector, bank.levers[1].vector]
    for factors in ((0.5, -1.0), (2.0, -0.05), (-0.7, 0.3)):  # the later ones by what the first has prepared
        expected = merge(vectors, method, factors=factors, missing="zero")
        if room:
            assert equal_vectors(bank.merged(Setting(factors, (1, 0), method)), expected)
        for name, delta in bank.delta(Setting(factors, (1, 0), method)).items():
            torch.testing.assert_close(delta, expected.deltas[name], rtol=1e-5, atol=1e-6)


def test_sliders_wait_for_a_decomposition_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, seen = open_bank(tiny_base(), [str(place / "one" / "vector"), str(place / "two")]), list[int]()

    def counted(vectors: Sequence[TaskVector]) -> dict[str, Tensor]:
        seen.append(len(vectors))
        return tsv_parts(vectors)

    monkeypatch.setattr("hf_taskvec.studio.prepared.tsv_parts", counted)
    monkeypatch.setattr("hf_taskvec.studio.bank.SLOW", 0.0)
    slow = []
    for factors in ((0.5, 0.3), (0.6, 0.3), (0.6, -1.0), (0.6, 0.0), (0.7, 0.0)):
        setting = Setting(factors, (2, 0), "tsv_m")
        slow.append(bank.is_slow(setting))
        bank.delta(setting)
    assert seen == [2, 1]
    assert slow == [True, False, False, True, False]


def test_a_merge_is_slow_until_one_by_its_method_was_fast(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = open_bank(tiny_base(), [str(place / "two")])
    setting = Setting((0.5,), (0,), "iso_c")
    assert [bank.is_slow(one) for one in (setting, Setting((0.5,), (0,)), Setting((0.0,), (0,), "ties"))] == [1, 0, 0]
    for limit in (60.0, 0.0):
        monkeypatch.setattr("hf_taskvec.studio.bank.SLOW", limit)
        bank.delta(setting)
        assert bank.is_slow(setting) is (limit == 0)


def test_a_vector_at_0_does_not_count(bank: Bank) -> None:
    alone = merge([bank.levers[0].vector], "average")
    for name, delta in bank.delta(Setting((1.0, 0.0), (2, 0), "average")).items():
        torch.testing.assert_close(delta, alone.deltas[name])
    assert bank.delta(Setting((0.0, 0.0), (2, 0))) == {}


def test_the_heat_maps_are_those_of_the_vectors(bank: Bank) -> None:
    setting = Setting((0.3, 0.3), (0, 0))
    first, second = (lever.vector for lever in bank.levers)
    wide = second.covering(first.deltas.shapes)
    assert bank.chosen(bank.cosines, setting)[0, 1] == pytest.approx(first.cosine(wide), abs=1e-5)
    products = torch.cat([(first[name] * second[name]).flatten() for name in second])
    share = float((products < 0).sum() / (products != 0).sum())
    assert bank.chosen(bank.conflicts, setting)[0, 1] == pytest.approx(share, abs=1e-6)


def test_a_vector_of_another_base_is_refused_before_its_weights_are_opened(place: Path, tmp_path: Path) -> None:
    vector = TaskVector.from_pretrained(place / "two")
    hashes = {name: "0" * 32 for name in vector.info.base_hashes}
    TaskVector(vector.deltas, dataclasses.replace(vector.info, base_hashes=hashes)).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "task_vector.safetensors").unlink()
    with pytest.raises(BaseMismatchError, match="of its parameters have other values"):
        open_bank(tiny_base(), [str(tmp_path / "other")])
    with pytest.raises(CheckpointError):
        open_bank(tiny_base(), [str(tmp_path / "nothing")])


# peft 0.21 reads an attribute that Transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_lora_folder_is_a_vector_whose_recipe_is_refused(place: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(save_tiny_base(tmp_path / "base"))
    save_adapter(model, tmp_path / "lora", target_modules=["q_proj", "v_proj"], r=2)
    bank = open_bank(tiny_base(), [str(place / "two"), str(place / "two")], added=[str(tmp_path / "lora")])
    assert [lever.name for lever in bank.levers] == ["shades", "shades (2)", "lora"]
    setting = Setting((0.0, 0.5, 1.0), (0, 0, 0))
    source = str(tmp_path / "lora")
    assert bank.codes(setting) == {source: f"TaskVector.from_adapter({source!r}, vision_only=True)"}
    assert [parent.kind for parent in bank.merged(setting).info.parents] == ["fine-tuned", "lora"]
    narrow = bank.levers[2].vector
    for name in narrow.deltas:
        torch.testing.assert_close(bank.delta(Setting((0.0, 0.0, 2.0), (0, 0, 0)))[name], 2 * narrow.deltas[name])


def test_a_vector_is_added_by_its_hub_id(hub: HubServer, place: Path, tmp_path: Path) -> None:
    hub.store.add_folder("model", "user/two", place / "two")
    merge([place / "two"], "average").save_pretrained(tmp_path / "merged")
    hub.store.add_folder("model", "user/merged", tmp_path / "merged")
    bank = open_bank(tiny_base(), [str(place / "two")], added=["user/two", "user/merged"])
    assert [lever.name for lever in bank.levers] == ["shades", "shades (2)", "user/merged"]
    assert bank.levers[1].moments[0].source == f"user/two@{hub.store.get('model', 'user/two').head.id}"


def test_the_tasks_of_an_artefact_have_a_slider_each(bank: Bank, place: Path, tmp_path: Path) -> None:
    vectors = [lever.vector.covering(bank.shapes) for lever in bank.levers]
    packed = pack(vectors, "emr", output_dir=tmp_path / "emr")
    both = open_bank(tiny_base(), [str(place / "two")], added=[str(tmp_path / "emr")])
    assert [lever.name for lever in both.levers] == ["shades", "colours", "shades (2)"]
    setting = Setting((0.0, 2.0, 0.0), (0, 0, 0))
    for name, delta in packed.for_task("colours").deltas.items():
        torch.testing.assert_close(both.delta(setting)[name], 2 * delta)
    source = setting.python(both.sources(setting), codes=both.codes(setting))
    names: dict[str, object] = {}
    exec(source.rsplit("\n", 1)[0], names)
    assert equal_vectors(names["merged"], both.merged(setting))  # type: ignore[arg-type]


def test_an_artefact_of_another_base_or_of_too_many_tasks_is_refused(place: Path, tmp_path: Path) -> None:
    two = TaskVector.from_pretrained(place / "two")
    pack({str(number): two for number in range(3)}, "tall_masks", output_dir=tmp_path / "three")
    with pytest.raises(DataError, match="there is room for 2"):
        open_bank(tiny_base(), [str(place / "two")], added=[str(tmp_path / "three")], room=2)
    config = json.loads((tmp_path / "three" / PACKED_NAME).read_text())
    config["info"]["base_hashes"] = dict.fromkeys(config["info"]["base_hashes"], "0" * 32)
    (tmp_path / "three" / PACKED_NAME).write_text(json.dumps(config))
    (tmp_path / "three" / "multi_task_vector.safetensors").unlink()
    with pytest.raises(BaseMismatchError, match="of its parameters have other values"):
        open_bank(tiny_base(), [str(tmp_path / "three")])


def test_the_epochs_of_a_published_series_are_moments(
    hub: HubServer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "write-user")
    hub.store.create("model", "user/base")
    end = bank.levers[0].vector
    vectors = [
        TaskVector((epochs / 20 * end).deltas, dataclasses.replace(end.info, epochs=epochs))
        for epochs in (0.5, *map(float, range(1, 21)))
    ]
    push_series_to_hub(vectors, "user/series", base_name="user/base")
    (lever,) = open_bank(tiny_base(), ["user/series"]).levers
    labels = [moment.label for moment in lever.moments]
    assert (labels[0], labels[-2:], len(labels)) == ("0.5", ["19", "20"], MOST_EPOCHS + 1)
    for moment in lever.moments:
        assert moment.norm == pytest.approx(float(moment.label) / 20 * end.norm(), rel=1e-5)
    early = lever.moments[0]
    assert early.code is not None
    names = {"TaskVector": TaskVector}
    assert equal_vectors(eval(early.code, names), early.vector)
    assert lever.moments[-1].code is None


def test_a_folder_of_epochs_is_a_vector_with_moments(bank: Bank, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "one" / "run" / "vectors", tmp_path / "run")
    (lever,) = open_bank(tiny_base(), [str(tmp_path / "run")]).levers
    assert [moment.label for moment in lever.moments] == ["½", "1"]
    assert [moment.source for moment in lever.moments] == [
        str(tmp_path / "run" / n) for n in ("fraction-0.5", "epoch-1")
    ]
    with pytest.raises(CheckpointError, match="holds no task vector"):
        open_bank(tiny_base(), [str(tmp_path)])
    shutil.copytree(place / "two", tmp_path / "run" / "two")
    with pytest.raises(CheckpointError, match="not the epochs of one run; name those you want: "):
        open_bank(tiny_base(), [str(tmp_path / "run")])


# -- measuring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["vision_model", ".mlp.", "layers.1", "post_layernorm", "visual_projection"])
def test_the_tower_in_stages_gives_the_logits_of_an_edited_model(pattern: str, bench: Bench) -> None:
    vector, exam = moved(3, pattern=pattern), bench.exams[0]
    logits, labels = predict(vector.apply_to(tiny_base(), scaling=0.5), colours_task(), progress=False)
    deltas = {name: 0.5 * vector.deltas[name] for name in vector.deltas}
    first = bench.tower.first_changed(deltas)
    before = bench.tower.run(exam.pixels, {}, end=first)
    ours = bench.tower.run(before, deltas, start=first) @ exam.head.T

    assert len(labels) == len(exam.labels) == 30
    torch.testing.assert_close(ours.sort(dim=0).values, logits.sort(dim=0).values, rtol=1e-4, atol=1e-4)


def test_what_several_visitors_measure_at_once_is_what_each_measures_alone(bench: Bench) -> None:
    base, pixels = tiny_base(), bench.exams[0].pixels
    before = {name: value.clone() for name, value in parameters_of(base.model).items()}
    changes = [{name: scale * delta for name, delta in moved(3).deltas.items()} for scale in (0.5, -1.0)]
    alone = [bench.tower.run(pixels, deltas) for deltas in changes]
    disturbed = []

    def visit(number: int) -> Tensor:
        features = bench.tower.run(pixels, changes[number % 2])
        disturbed.extend(name for name, value in parameters_of(base.model).items() if not value.equal(before[name]))
        return features

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(visit, range(40)))
    assert disturbed == []
    for number, features in enumerate(together):
        torch.testing.assert_close(features, alone[number % 2])


def test_states_that_are_kept_meanwhile_do_not_disturb_the_count(bank: Bank) -> None:
    bench = Bench(tiny_base(), [colours_task()], quick=8, most=8)

    class Growing:
        @property
        def nbytes(self) -> int:  # as if another visitor's states were kept while they are counted
            bench._states[0, 99] = torch.empty(0)
            return 0

    bench._states[0, 98] = Growing()  # type: ignore[assignment]
    bench.measure(bank, Setting((0.0, 0.0), bank.start.moments))
    assert (0, 99) in bench._states


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m"])  # a sum, and what is prepared
def test_a_measurement_is_the_evaluation_of_the_merged_model(method: str, bank: Bank, bench: Bench) -> None:
    setting = Setting((0.5, 1.0), (2, 0), method)
    measured = bench.measure(bank, setting, blocks=len(bench.blocks))
    report = evaluate(bank.merged(setting).apply_to(tiny_base()), colours_task(), progress=False)
    assert measured.accuracies == pytest.approx([report.accuracy])
    assert bench.expert(bank, 0, 0, blocks=len(bench.blocks)) == pytest.approx(
        evaluate(bank.levers[0].vector.apply_to(tiny_base()), colours_task(), progress=False).accuracy
    )


def test_entanglement_is_the_two_halves_of_the_disentanglement_error(bank: Bank) -> None:
    tasks = [colours_task(), dataclasses.replace(colours_task(), name="shades")]
    bench, setting = Bench(tiny_base(), tasks, quick=30, most=30), Setting((1.0, 1.0), (2, 0), "ties")
    changed = bench.entanglement(bank, setting, [0, 1])
    pair = {"colours": bank.levers[0].vector, "shades": bank.levers[1].vector.covering(bank.shapes)}
    expected = disentanglement(tiny_base(), pair, tasks, factors=[1.0], images=None, progress=False)
    halves = [float(differs.mean()) for differs in expected.differs]
    assert sum(halves) > 0
    assert changed.flatten().tolist() == pytest.approx([0.0, halves[0], halves[1], 0.0])
    assert bench.entanglement(bank, setting, [0, None])[1].isnan().all()


def test_what_no_setting_changes_is_computed_once(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, starts = Bench(tiny_base(), [colours_task()], quick=8, most=8), []
    run = Tower.run

    def counted(self: Tower, states: torch.Tensor, deltas: dict[str, torch.Tensor], **ends: int) -> torch.Tensor:
        starts.append((bool(deltas), ends.get("start", 0)))
        return run(self, states, deltas, **ends)

    monkeypatch.setattr(Tower, "run", counted)
    narrow = open_bank(tiny_base(), [bank.levers[1].moments[0].source])
    for factor in (0.5, 1.0, 0.5):
        bench.measure(narrow, Setting((factor,), (0,)))
    after_attention = bench.tower.first_changed(narrow.shapes)
    assert after_attention == 2
    assert [one for one in starts if one[0]] == [(True, after_attention)] * 2  # the third was kept
    assert len([one for one in starts if not one[0]]) == 2  # one image to see how large states are, and all of them


def test_images_come_in_blocks_that_double(bench: Bench, bank: Bank) -> None:
    assert bench.blocks == [(0, 8), (8, 16), (16, 30)]
    quick, all_images = (bench.measure(bank, bank.start, blocks=count).logits[0] for count in (1, 3))
    assert len(all_images) == 30
    torch.testing.assert_close(all_images[:8], quick)


def test_the_interval_is_that_of_paired_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    now, before = (torch.rand(200, generator=generator) < share for share in (0.7, 0.5))
    ours, theirs = paired_change([(now, before)]), paired_difference(now.float().tolist(), before.float().tolist())
    assert ours.mean == pytest.approx(theirs.mean)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_board_counts_and_the_flips_are_what_changed(bank: Bank, bench: Bench) -> None:
    base = bench.measure(bank, Setting((0.0, 0.0), (0, 0)), blocks=3)
    tried = [Setting((first, second), (2, 0)) for first in (-1.0, 1.0, 2.0) for second in (-1.0, 1.0, 2.0)]
    measured = [bench.measure(bank, setting, blocks=3) for setting in tried]
    now = max(measured, key=lambda one: int((one.correct[0] & ~base.correct[0]).sum()))
    shown = board(bench, base, now, base, [None])
    (bar,) = shown.bars
    assert (bar.control, bar.images, bar.base) == (True, 30, pytest.approx(base.accuracies[0]))
    turned = flips(bench, base, now)
    mended = [flip for flip in turned if flip.mended]
    assert shown.change is not None
    assert len(mended) - (len(turned) - len(mended)) == pytest.approx(30 * shown.change.mean)
    assert mended
    for flip in turned:
        assert (flip.label == flip.now, flip.label == flip.before) == (flip.mended, not flip.mended)
        rows = logits_of(bench, base, now, flip)
        assert [row.name for row in rows if row.true] == [flip.label]
        assert rows[0].name == flip.now


# -- links, Python and YAML -------------------------------------------------------------------------------------------


def query_of(link: str) -> dict[str, list[str]]:
    from urllib.parse import parse_qs

    return parse_qs(link.removeprefix("?"))


def test_a_link_restores_the_setting() -> None:
    setting = Setting((0.3, -1.0, 2.0), (0, 4, 1), "ties")
    query = query_of(setting.link(["user/birds@main"]))
    again = restored(query, Setting((0.0,) * 3, (0,) * 3), [1, 5, 2], ["task_arithmetic", "ties"])
    assert (again.setting, again.notes) == (setting, ())
    assert added_of(query) == ["user/birds@main"]


@pytest.mark.parametrize(
    "link",
    [
        "?factors=nan,inf&moments=-1,9&method=<script>",
        "?factors=1e999,-1e999",
        "?factors=1,2,3",
        "?factors=" + "1," * 9999,
        "?factors=0x10,1_0&moments=1e3,nan",
        "?factors=%00,%F0%9F%98%80&moments=½,1",
        "?moments=0.5,0",
        "?method=regmean",
    ],
)
def test_wild_values_of_a_link_are_left_out_and_told(link: str) -> None:
    start = Setting((0.3, 0.3), (1, 0))
    wild = restored(query_of(link), start, [2, 1], methods_at_hand())
    assert wild.notes
    assert all(-1 <= factor <= 2 for factor in wild.setting.factors)
    assert all(0 <= moment < count for moment, count in zip(wild.setting.moments, [2, 1], strict=True))
    assert wild.setting.method == "task_arithmetic"
    assert all(len(note) < 200 for note in wild.notes)


@pytest.mark.parametrize("source", ["/etc", "../x", "./user/x", "user", "a/b/c", "http://x/y", "user/x@../../y"])
def test_a_link_adds_nothing_but_hub_ids(source: str) -> None:
    assert added_of({"add": [source, "user/x", "user/y", "user/z"]}) == ["user/x", "user/y"]


def test_the_yaml_is_a_recipe_that_the_command_runs(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    setting = Setting((0.5, -1.0), (1, 0), "ties")
    (tmp_path / "recipe.yaml").write_text(setting.yaml(bank.sources(setting)))
    done = CliRunner().invoke(app, ["merge", "--config", "recipe.yaml", "-q"])
    assert done.exit_code == 0, done.output
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "out" / "merged"), bank.merged(setting))


def test_the_python_makes_the_same_model(bank: Bank) -> None:
    setting = Setting((0.5, -1.0), (1, 0), "ties")
    source = setting.python(bank.sources(setting), base="somewhere")
    assert "load_base('somewhere')" in source
    names: dict[str, object] = {}
    exec(source.rsplit("\n", 1)[0], names)
    assert equal_vectors(names["merged"], bank.merged(setting))  # type: ignore[arg-type]


def test_sliders_that_all_stand_at_0_are_no_recipe(bank: Bank) -> None:
    with pytest.raises(DataError, match="every slider stands at 0"):
        bank.merged(Setting((0.0, 0.0), (0, 0)))


# -- what comes with the package --------------------------------------------------------------------------------------


def test_the_embedded_vectors_are_small_and_of_the_tasks_of_the_studio() -> None:
    bank = open_bank(load_base())
    names = [lever.name for lever in bank.levers]
    assert len(names) == 8
    assert set(names) < set(SUITES["studio"])
    folders = [Path(folder).parent for folder in embedded_vectors()]
    assert sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) < 3.2e6
    series = [[moment.label for moment in lever.moments] for lever in bank.levers if len(lever.moments) > 1]
    assert series == [["gradient", "¼", "½", "1", "2", "4", "8"]] * 2


def test_an_embedded_vector_mends_its_task() -> None:
    base = load_base()
    bank, bench = open_bank(base), Bench(base, [get_task("places")], quick=64, most=64)
    number = [lever.name for lever in bank.levers].index("places")
    (zero,) = bench.measure(bank, Setting((0.0,) * 8, bank.start.moments)).accuracies
    assert bench.expert(bank, number, 0) > zero + 0.2
