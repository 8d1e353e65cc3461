"""The doctor: findings before a merge, remedies only where they were measured, and leaks between tasks."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from typer.testing import CliRunner, Result

from hf_taskvec import Task, TaskVector, VectorInfo, get_task, gradient_vector, load_base
from hf_taskvec.command.app import app
from hf_taskvec.doctor import Evidence, Predictor, Remedy, diagnose, find_leaks
from hf_taskvec.doctor.diagnosis import advice_of, findings_of, predict_kept
from hf_taskvec.doctor.evidence import features_of
from hf_taskvec.doctor.facts import Facts, vector_facts, with_tasks
from hf_taskvec.doctor.symptoms import SYMPTOMS
from hf_taskvec.errors import BaseMismatchError, CheckpointError, DataError, IncompatibleVectorsError, UnknownNameError
from hf_taskvec.evaluation.accuracy import evaluate
from hf_taskvec.evaluation.intervals import Interval
from hf_taskvec.tasks.subsets import subset
from tests.bases import colours_task, save_colour_dataset, save_tiny_base, tiny_base
from tests.helpers import finetuned


def vector(values: Tensor | list[float], task: str | None = None, **info: object) -> TaskVector:
    deltas = values if isinstance(values, Tensor) else torch.tensor(values)
    return TaskVector({"w": deltas}, VectorInfo(kind="fine-tuned", task=task, **info))  # type: ignore[arg-type]


def facts(**changes: object) -> Facts:
    """Two vectors of which nothing is to be said."""
    table = ((1.0, 0.1), (0.1, 1.0))
    values = Facts(("a", "b"), (1.0, 1.0), table, ((0.0, 0.4), (0.4, 0.0)), table, (5.0, 5.0), (1.0, 1.0))
    return replace(values, **changes)  # type: ignore[arg-type]


def evidence(**changes: object) -> Evidence:
    values = Evidence("base", {}, (2,), "two tasks", refused={"vectors": "none was fitted"})
    return replace(values, **changes)  # type: ignore[arg-type]


def remedy(name: str, low: float, *, mean: float = 0.1, helped: float = 1.0) -> Remedy:
    return Remedy(name, Interval(mean, low, 0.2, 4), helped, 9)


def colour_tasks() -> list[Task]:
    """Two tasks on the same few images, told by other prompts."""
    return [colours_task(), replace(colours_task(), name="shades", templates=("the shade {}",))]


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_vectors_are_those_of_a_worked_example() -> None:
    pair = [vector(torch.diag(torch.tensor([3.0, 1.0])), "a"), vector(torch.tensor([[0.0, -1.0], [2.0, 0.0]]), "b")]
    seen = vector_facts([*pair, vector(-torch.eye(2), "c")])
    assert seen.labels == ("a", "b", "c")
    assert seen.norms == pytest.approx((math.sqrt(10), math.sqrt(5), math.sqrt(2)))
    assert seen.cosines[0][2] == pytest.approx(-4 / math.sqrt(20))
    assert seen.conflicts[0] == (0.0, 0.0, 0.5)  # of four entries two are opposed, two are zero in both
    assert seen.stable_ranks == pytest.approx((10 / 9, 5 / 4, 2.0))
    assert seen.ratio(2) == pytest.approx(math.sqrt(2) / ((math.sqrt(10) + math.sqrt(5)) / 2))
    assert seen.narrowness(0) == pytest.approx((5 / 4 + 2) / 2 / (10 / 9))


def test_directions_that_two_vectors_share_are_told_from_those_that_only_one_has() -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(64, 16, generator=generator))
    one = left[:, :8] @ torch.randn(8, 64, generator=generator)
    same, other = left[:, :8] @ torch.randn(8, 64, generator=generator), left[:, 8:] @ torch.randn(8, 64)
    overlaps = vector_facts([vector(one), vector(same), vector(other)]).overlaps
    assert overlaps is not None
    assert overlaps[0][1] == pytest.approx(64 / 8, rel=1e-4)  # all of it: as often as chance would have it, 8 of 64
    assert overlaps[0][2] == pytest.approx(0.0, abs=1e-4)


def test_vectors_that_change_different_matrices_are_diagnosed() -> None:
    def one(**deltas: Tensor) -> TaskVector:
        return TaskVector({"w": torch.zeros(40, 33), "v": torch.zeros(40, 33), "b": torch.zeros(3), **deltas})

    ones, generator = torch.ones(40, 33), torch.Generator().manual_seed(0)
    seen = vector_facts([one(w=ones), one(v=torch.randn(40, 33, generator=generator)), one(b=torch.ones(3))])
    assert seen.cosines[0][1:] == (0.0, 0.0)
    assert seen.conflicts[0][1:] == (0.0, 0.0)
    assert seen.stable_ranks is not None
    assert seen.stable_ranks[0] == pytest.approx(0.5)  # one matrix of rank one, one of none
    assert seen.stable_ranks[2] == 0.0
    assert seen.narrowness(2) is None


def test_figures_of_tasks_are_accuracies_and_first_order_changes() -> None:
    base, tasks = tiny_base(), colour_tasks()
    names = [name for name in dict(base.model.named_parameters()) if name.endswith("mlp.fc1.weight")]
    covered = [name for name in names if name.startswith("vision_model")]
    vectors = [gradient_vector(base, task, learning_rate=0.05, trainable_parameters=covered) for task in tasks]
    seen = with_tasks(vector_facts(vectors), vectors, base, tasks)
    before = evaluate(base, tasks, split="validation", progress=False)
    assert seen.base_accuracies == pytest.approx([result.accuracy for result in before.results])
    after = evaluate(vectors[0].apply_to(base), tasks[:1], split="validation", progress=False)
    assert seen.own_accuracies is not None
    assert seen.own_accuracies[0] == pytest.approx(after.accuracy)
    assert seen.turns == pytest.approx((1.0, 1.0), abs=1e-4)  # they are the gradients
    assert seen.descents is not None
    assert seen.descents[0][1] == pytest.approx(seen.descents[1][0], rel=1e-3)  # g_a · g_b, either way
    assert seen.undone(0) == pytest.approx(-seen.descents[0][1] / seen.descents[0][0])
    without = with_tasks(vector_facts(vectors), vectors, base, tasks, gradients=False)
    assert without.turns is None
    assert without.undone(0) is None


# -- findings ---------------------------------------------------------------------------------------------------------

GRADIENT_KINDS = ("turned", "undone")
TOLD = {"base_accuracies": (0.5, 0.5), "own_accuracies": (0.7, 0.7), "excess_confidences": (0.0, 0.0)}
GRADIENTS = {"descents": ((1.0, 0.1), (0.1, 1.0)), "turns": (0.3, 0.3)}


@pytest.mark.parametrize(
    ("symptom", "changes", "words"),
    [
        ("outweighs", {"norms": (1.0, 3.0)}, "'b' is 3.00 times as long as the others"),
        ("opposed", {"cosines": ((1.0, -0.2), (-0.2, 1.0))}, "their cosine is -0.200"),
        ("conflicting", {"conflicts": ((0.0, 0.625), (0.625, 0.0))}, "opposite signs in 62.5 % of their entries"),
        ("crowded", {"overlaps": ((9.0, 9.5), (9.5, 9.0))}, "overlap 9.5 times as much as random ones"),
        ("narrow", {"stable_ranks": (8.0, 2.0)}, "'b' lies in few directions: its stable rank is 2.0"),
        ("overconfident", {**TOLD, "excess_confidences": (0.0, 0.23)}, "23 points above its accuracy"),
        ("little-gain", {**TOLD, "own_accuracies": (0.7, 0.52)}, "50 % of validation images without it, 52 % with it"),
        ("dependent", {**TOLD, "own_accuracies": (0.7, 0.9)}, "'b' depends on its vector"),
        ("turned", {**GRADIENTS, "turns": (0.3, 0.02)}, "their cosine is 0.02"),
        ("undone", {**GRADIENTS, "descents": ((1.0, 0.1), (-0.5, 1.0))}, "they undo 50 % of what its own takes off"),
    ],
)
def test_each_symptom_is_found_where_it_is_and_told_with_its_figure(
    symptom: str, changes: dict[str, object], words: str
) -> None:
    assert findings_of(facts(), None) == ()
    assert findings_of(facts(**TOLD, **GRADIENTS), None) == ()
    (finding,) = findings_of(facts(**changes), None)
    assert finding.symptom == symptom
    assert words in finding.text
    assert finding.value > finding.limit
    assert "b" in finding.labels
    assert finding.remedy is None


def test_every_symptom_has_its_test() -> None:
    marks = test_each_symptom_is_found_where_it_is_and_told_with_its_figure.pytestmark  # type: ignore[attr-defined]
    assert [case[0] for case in marks[0].args[1]] == [symptom.name for symptom in SYMPTOMS]


def test_findings_that_cost_most_come_first() -> None:
    sick = facts(norms=(1.0, 3.0), cosines=((1.0, -0.2), (-0.2, 1.0)))
    harms = {"opposed": Interval(-0.2, -0.3, -0.1, 5), "outweighs": Interval(-0.01, -0.1, 0.1, 5)}
    assert [one.symptom for one in findings_of(sick, evidence(harms=harms))] == ["opposed", "outweighs"]
    assert [one.symptom for one in findings_of(sick, None)] == ["outweighs", "opposed"]


def test_a_symptom_that_did_no_harm_in_measured_merges_is_dismissed() -> None:
    pair = [vector([1.0, 0.1], "a", base_hashes={"w": "1"}), vector([-3.0, 0.1], "b", base_hashes={"w": "1"})]
    for low, dismissed in ((0.01, ("outweighs",)), (-0.01, ())):
        harms = {"outweighs": Interval(0.05, low, 0.1, 5)}
        told = diagnose(pair, evidence=evidence(base_hashes={"w": "1"}, harms=harms))
        assert told.dismissed == dismissed
        assert ("outweighs" in [one.symptom for one in told.findings]) == (not dismissed)
        assert ("Seen too, but measured merges with it kept more than others: outweighs." in str(told)) == bool(
            dismissed
        )


@pytest.mark.parametrize(
    ("tried", "offered"),
    [
        ([remedy("shrink", 0.01)], "shrink"),
        ([remedy("shrink", -0.01)], None),  # its interval does not rule out that it harms
        ([remedy("shrink", 0.01, helped=0.7)], None),  # it helped in fewer than four of five
        ([remedy("shrink", 0.01), remedy("tsv_m@1", 0.02, mean=0.15)], "tsv_m@1"),
        ([], None),
    ],
)
def test_a_remedy_is_offered_only_if_it_was_measured_to_help(tried: list[Remedy], offered: str | None) -> None:
    (finding,) = findings_of(facts(norms=(1.0, 3.0)), evidence(remedies={"outweighs": tuple(tried)}))
    assert (finding.remedy.name if finding.remedy else None) == offered
    assert (finding.advice is None) == (offered is None)


def test_earlier_epochs_are_offered_only_to_vectors_that_had_some() -> None:
    known = evidence(remedies={"outweighs": (remedy("epoch-1", 0.01),)})
    for epochs, offered in (((5.0, 5.0), "epoch-1"), ((5.0, None), None), ((1.0, 5.0), None)):
        (finding,) = findings_of(facts(norms=(1.0, 3.0), epochs=epochs), known)
        assert (finding.remedy.name if finding.remedy else None) == offered


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shrink", "shrink 'b' to 0.33 of its length"),
        ("drop", "leave out 'b'"),
        ("epoch-2", "merge the vectors of epoch 2"),
        ("tsv_m@1", 'merge(vectors, "tsv_m") with scaling 1'),
    ],
)
def test_advice_tells_what_to_do_here(name: str, words: str) -> None:
    assert words in advice_of(name, facts(norms=(1.0, 3.0)))


# -- prediction -------------------------------------------------------------------------------------------------------


def test_a_prediction_is_told_with_its_interval_or_why_there_is_none() -> None:
    ratio = Predictor(("ratio",), (0.0,), (1.0,), (-0.5,), 0.9, 0.07, (-2.0,), (2.0,))
    known = evidence(predictors={"vectors": ratio})
    predictions, silence = predict_kept(known, facts(norms=(1.0, 2.0)))
    assert silence == ""
    assert [one.label for one in predictions] == ["a", "b"]
    assert predictions[1].kept == pytest.approx(0.9 - 0.5 * math.log(2))
    assert predictions[1].high - predictions[1].kept == pytest.approx(0.07)
    assert predict_kept(known, facts(norms=(1.0, 100.0))) == (
        (),
        "ratio lies outside the range on which the predictor was fitted",
    )
    assert predict_kept(evidence(), facts()) == ((), "none was fitted")
    assert predict_kept(known, facts(**TOLD)) == ((), "none was fitted")  # of those with tasks
    turned = replace(ratio, features=("turn",))
    assert predict_kept(evidence(predictors={"tasks": turned}), facts(**TOLD))[1] == "turn is not known of every vector"


def test_features_are_known_as_far_as_the_figures_are() -> None:
    assert features_of(facts(norms=(1.0, 2.0)), 1)["ratio"] == pytest.approx(math.log(2))
    assert "base" not in features_of(facts(), 0)
    told = features_of(facts(**TOLD, **GRADIENTS), 0)
    assert told["kept by the base"] == pytest.approx(5 / 7)
    assert told["undone"] == pytest.approx(-0.1)


def test_evidence_says_nothing_of_other_bases_and_sizes() -> None:
    pair = [vector([1.0, 0.1], "a", base="mine", base_hashes={"w": "1"})] * 2
    known = evidence(base_hashes={"w": "1"}, refused={"vectors": "too little was measured"})
    assert diagnose(pair, evidence=known).silence == "too little was measured"
    other = diagnose(pair, evidence=evidence(base_hashes={"w": "2"}, harms={"crowded": Interval(0, 0, 0, 3)}))
    assert other.silence == "it was measured on base, and these are of mine"
    assert other.told == ""
    assert diagnose(pair * 2, evidence=known).silence == "it was measured on merges of 2 vectors, and these are 4"


def test_evidence_survives_a_file_and_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    ratio = Predictor(("ratio",), (0.0,), (1.0,), (-0.5,), 0.9, 0.07, (-2.0,), (2.0,))
    tried = {"outweighs": (remedy("shrink", 0.01),)}
    known = evidence(predictors={"tasks": ratio}, remedies=tried, harms={"narrow": Interval(0.1, 0.0, 0.2, 3)})
    (tmp_path / "evidence.json").write_text(json.dumps(dataclasses.asdict(known)))
    assert Evidence.load(tmp_path / "evidence.json") == known
    (tmp_path / "other.json").write_text('{"base": "mine"}')
    with pytest.raises(CheckpointError, match=r"other\.json is not evidence of the doctor"):
        Evidence.load(tmp_path / "other.json")


# -- bad input --------------------------------------------------------------------------------------------------------


def test_vectors_that_cannot_be_diagnosed_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="needs two or more of them, got 1"):
        diagnose([vector([1.0])])
    with pytest.raises(IncompatibleVectorsError, match=r"vector 1 \('dull'\) changes nothing"):
        diagnose([vector([1.0]), vector([0.0], "dull")])
    with pytest.raises(BaseMismatchError, match=r"vector 1 \('b'\) was made from theirs, vector 0 \('a'\) from mine"):
        diagnose(
            [
                vector([1.0], "a", base="mine", base_hashes={"w": "1"}),
                vector([1.0], "b", base="theirs", base_hashes={"w": "2"}),
            ]
        )
    with pytest.raises(IncompatibleVectorsError, match="shape"):
        diagnose([vector([1.0]), vector([1.0, 2.0])])


def test_tasks_that_do_not_match_the_vectors_are_refused_by_name() -> None:
    base, tasks = tiny_base(), [get_task("digits"), get_task("shapes")]
    pair = [vector([1.0], "digits"), vector([2.0], "shapes")]
    with pytest.raises(DataError, match="base and tasks go together"):
        diagnose(pair, base)
    with pytest.raises(UnknownNameError, match="no task for vector 1: 'shapes'"):
        diagnose(pair, base, tasks[:1])
    with pytest.raises(DataError, match="there is no vector of patterns"):
        diagnose(pair, base, [*tasks, get_task("patterns")])
    with pytest.raises(DataError, match=r"vector 1 \('fine-tuned'\) does not tell its task"):
        diagnose([pair[0], vector([2.0])], base, tasks)


def test_a_task_that_was_cut_is_not_made_larger() -> None:
    pair = [subset(task, max_validation=3) for task in colour_tasks()]
    size = tiny_base().model.vision_model.post_layernorm.bias.shape
    vectors = [TaskVector({"vision_model.post_layernorm.bias": torch.full(size, x)}) for x in (0.1, -0.2)]
    seen = with_tasks(vector_facts(vectors), vectors, tiny_base(), pair, gradients=False)
    assert seen.base_accuracies is not None
    assert all(3 * accuracy == pytest.approx(round(3 * accuracy)) for accuracy in seen.base_accuracies)


# -- the text and the command -----------------------------------------------------------------------------------------


def test_nothing_is_longer_than_a_screen() -> None:
    generator = torch.Generator().manual_seed(1)
    many = [vector(size * torch.randn(40, 30, generator=generator), f"task {size}" * 40) for size in range(1, 21)]
    many += [vector(-many[0].deltas["w"] * 30, "z")]
    text = str(diagnose(many))
    assert len(text.splitlines()) <= 24
    assert "outweighs" in text
    assert max(map(len, text.splitlines())) < 400


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its task's data and two vectors of it, in folders; never changed by a test."""
    root = tmp_path_factory.mktemp("doctor")
    base = load_base(save_tiny_base(root / "base"))
    save_colour_dataset(root / "data" / "colours")
    save_colour_dataset(root / "data" / "shades", seed=1)
    for task, seed in (("colours", 1), ("shades", 2)):
        moved = finetuned(base.model, seed=seed, size=0.01 * seed)
        info = VectorInfo(kind="fine-tuned", base="base", task=task, epochs=5.0)
        TaskVector.from_models(base.model, moved, info=info).save_pretrained(root / task)
    return root


def test_the_command_tells_of_vectors_alone(place: Path) -> None:
    code = "from hf_taskvec.command.app import main; main()"
    command = [sys.executable, "-c", code, "doctor", str(place / "colours"), str(place / "shades")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second, *_, last = done.stdout.splitlines()
    assert first == "2 vectors"
    assert re.fullmatch("- outweighs: 'shades' is (1.9|2.0). times as long as the others, and .* in a sum", second)
    assert last == "No prediction: it was measured on hf-taskvec/tiny-clip, and these are of base."


def call(*argv: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, argv)], prog_name="hf-taskvec")


def test_the_command_tells_of_tasks_too_and_every_form_agrees(place: Path) -> None:
    words = [place / "colours", place / "shades", "--base", place / "base", "--data-dir", place / "data"]
    told = json.loads(call(*words, "--json").stdout)
    assert set(told) == {"facts", "findings", "dismissed", "predictions", "silence", "leaks", "told"}
    assert len(told["facts"]["base_accuracies"]) == 2
    assert len(told["facts"]["descents"][0]) == 2
    assert told["leaks"] == []
    result = call(*words, "--skip-gradients", "--skip-leaks", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [one["symptom"] for one in told["findings"] if one["symptom"] not in GRADIENT_KINDS]


def test_the_command_refuses_in_one_sentence(place: Path) -> None:
    for words, text in (
        ([place / "colours"], "needs two or more of them, got 1"),
        ([place / "colours", place / "shades", "--tasks", "digits", "--base", place / "base"], "no task for vector 0"),
        ([place / "colours", place / "none"], "none"),
    ):
        result = call(*words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1
        assert text in result.stderr


# -- leaks ------------------------------------------------------------------------------------------------------------


def picture_task(folder: Path, images: dict[str, list[Image.Image]]) -> Task:
    """A task of two classes in folders, the pictures dealt to them in turn."""
    for split, pictures in images.items():
        for index, picture in enumerate(pictures):
            place = folder / split / ("light" if index % 2 else "dark")
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{index:03}.png")
    return Task.from_dataset(folder)


def scene(seed: int) -> Image.Image:
    """A smooth random picture, 48 px."""
    grid = np.random.default_rng(seed).integers(0, 255, size=(6, 6, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((48, 48), Image.Resampling.BICUBIC)


def test_training_images_in_another_tasks_test_part_are_found_also_rescaled_and_recoloured(tmp_path: Path) -> None:
    taken = scene(100).resize((40, 40)).point(lambda value: min(255, value + 3))
    one = picture_task(tmp_path / "one", {"train": [scene(k) for k in range(99, 119)], "test": [scene(1), scene(2)]})
    drawn = [scene(3), scene(4), taken, scene(5)]
    two = picture_task(tmp_path / "two", {"train": [scene(k) for k in range(200, 220)], "test": drawn})
    (leak,) = find_leaks([one, two], tiny_base())
    assert (leak.source, leak.target, leak.images, leak.tested) == ("one", "two", 1, 4)
    assert "1 of 4 test images of 'two' are training images of 'one'" in str(leak)


def test_even_pictures_that_share_a_hash_are_no_leak(tmp_path: Path) -> None:
    def plain(value: int) -> Image.Image:
        return Image.new("RGB", (48, 48), (value, value, value))

    one = picture_task(tmp_path / "one", {"train": [plain(k) for k in range(20)], "test": [plain(90), plain(91)]})
    two = picture_task(tmp_path / "two", {"train": [plain(200), plain(210)] * 10, "test": [plain(160), plain(170)]})
    assert list(find_leaks([one, two], tiny_base())) == []


def test_two_strokes_on_an_even_ground_are_two_pictures(tmp_path: Path) -> None:
    def stroke(left: int, right: int, width: int) -> Image.Image:
        picture = Image.new("RGB", (64, 64))
        ImageDraw.Draw(picture).line([(left, 8), (right, 56)], fill=(255, 255, 255), width=width)
        return picture

    drawn, written = [stroke(31, 31, 2)] * 20, [stroke(31, 33, 4)] * 2
    one = picture_task(tmp_path / "one", {"train": drawn, "test": [scene(1), scene(2)]})
    two = picture_task(tmp_path / "two", {"train": [scene(k) for k in range(20, 40)], "test": written})
    assert list(find_leaks([one, two], tiny_base())) == []
