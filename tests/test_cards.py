"""Cards: rendered from configuration and report only, true, valid on the Hub, and inert whatever they are fed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from jinja2 import UndefinedError
from transformers import CLIPModel

from hf_taskvec import Task, evaluate, get_task, get_tasks, load_base, merge
from hf_taskvec.cards import (
    CARD_NAME,
    PICTURE_NAME,
    REPORT_NAME,
    render_base_card,
    render_folder_card,
    render_model_card,
    render_vector_card,
)
from hf_taskvec.cards.publish import push_model_to_hub, push_series_to_hub, push_to_hub, write_repository
from hf_taskvec.cards.results import write_benchmark
from hf_taskvec.errors import CheckpointError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.models.base import EMBEDDED, TINY_CLIP
from hf_taskvec.tasks import TASKS
from hf_taskvec.vectors.files import CONFIG_NAME, read_info
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from tests.bases import save_colour_dataset
from tests.helpers import equal_vectors, tiny_vector
from tests.hub_server import HubServer
from tests.hub_server_api import Token
from tests.hub_server_card import card_errors

INFO = VectorInfo(
    kind="fine-tuned",
    base="openai/clip-vit-base-patch32",
    base_revision="3d74acf",
    base_hashes={"w": "1"},
    task="mnist",
    dataset="ylecun/mnist",
    dataset_revision="77f3279",
    epochs=1.0,
    steps=422,
    seed=3,
    batch_size=128,
    optimizer="adamw_torch",
    learning_rate=1e-5,
    weight_decay=0.1,
    num_images=54000,
    settings={"max_grad_norm": 1.0},
    command="python recipes/finetune.py --task mnist",
    seconds=312.4,
    license="mit",
    versions={"torch": "2.13.0"},
    layer_norms={"vision_model.encoder.layers.0": 0.5, "vision_model.encoder.layers.1": 1.0},
)
OTHER = VectorInfo(kind="fine-tuned", task="svhn", dataset="ufldl-stanford/svhn", dataset_config="cropped_digits")
MERGED = VectorInfo(kind="merged", base=INFO.base, method="task_arithmetic", parents=(INFO, OTHER))
RESULT = TaskResult("mnist", 0.9712, 10000, zero_shot=0.4825, individual=0.9951)
REPORT = Report("vector", "test", (RESULT,), scaling=1.0)
PAIR = Report("merged", "test", (RESULT, TaskResult("svhn", 0.5, 100, zero_shot=0.25, individual=0.8)), scaling=0.3)
HUB_CARDS = Path(__file__).parent.parent / "hub_cards"


def metadata(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_vector_card_has_every_section_and_fact() -> None:
    card = render_vector_card(INFO, REPORT, repo_id="user/clip-mnist")
    headings = re.findall(r"^## (.*)$", card, flags=re.MULTILINE)
    assert headings == ["Use it", "Results", "How it was made", "Limits", "Citation"]
    assert "| `mnist` | 48.2 | 99.5 | 97.1 ± 0.2 | 97.6 | 10,000 |" in card
    for fact in (
        "3d74acf",
        "77f3279",
        "1e-05",
        "128",
        "54000",
        "max\\_grad\\_norm",
        "torch 2.13.0",
        "312 s",
        INFO.command,
    ):
        assert str(fact) in card
    assert INFO.base_fingerprint in card
    assert "2212.04089" in card


def test_a_card_says_that_test_images_were_used() -> None:
    seen = replace(MERGED, settings={"transductive": True})
    for card in (render_vector_card(seen, repo_id="user/x"), render_model_card(seen, repo_id="user/x", scaling=1.0)):
        assert "It is transductive: test images of its tasks were used" in card
    assert "transductive" in metadata(render_vector_card(seen, repo_id="user/x"))["tags"]
    assert "transductive" not in render_vector_card(MERGED, repo_id="user/x")


def test_a_card_counts_tensors_and_entries_and_sets_numbers_plain() -> None:
    card = render_vector_card(replace(INFO, num_entries=80_640), REPORT, repo_id="user/x")
    assert "| covers | 1 tensors with 80,640 entries of the vision tower |" in card
    assert "| covers | 1 tensors of the vision tower |" in render_vector_card(INFO, REPORT, repo_id="user/x")
    assert "| steps | 422 |" in card
    assert "| task | `mnist` |" in card
    assert "| |" not in card.replace("| ---", "")


def test_a_card_says_what_its_fingerprint_and_hash_are_of() -> None:
    card = render_vector_card(replace(INFO, dataset="mnist", dataset_revision="0123456789abcdef" * 2), repo_id="user/x")
    assert f"| base fingerprint, of the covered tensors | `{INFO.base_fingerprint}` |" in card
    assert "| hash of the dataset's files | `0123456789abcdef0123456789abcdef` |" in card
    assert "| dataset revision | `77f3279" in render_vector_card(INFO, repo_id="user/x")


def test_each_parent_stands_beside_its_weight() -> None:
    card = render_vector_card(replace(MERGED, settings={"weights": [0.25, 0.85]}), repo_id="user/x")
    assert "| mnist | 0.25 | ylecun/mnist |" in card
    assert "| svhn | 0.85 | " in card
    assert card_errors(card) == []
    for odd in ([0.5], ["|", "x"], {"a": 1}, None):
        assert "| weight |" not in render_vector_card(replace(MERGED, settings={"weights": odd}), repo_id="user/x")


def test_layers_stand_in_the_order_of_their_numbers() -> None:
    norms = {f"vision_model.encoder.layers.{layer}": 1.0 for layer in (10, 2, 0, 11, 1)}
    card = render_vector_card(replace(INFO, layer_norms=norms), repo_id="user/x")
    assert re.findall(r"layers\.(\d+)", card) == ["0", "1", "2", "10", "11"]


def test_the_classes_and_prompts_of_an_own_task_stand_in_its_card() -> None:
    names = ("zebra finch", "house `sparrow`")
    own = replace(INFO, task="birds", dataset="user/birds", class_names=names, templates=("a photo of a {}.", "{}"))
    cards = [
        render_vector_card(own, repo_id="user/x"),
        render_vector_card(replace(MERGED, parents=(own, OTHER)), repo_id="user/x"),
        render_model_card(own, repo_id="user/x", scaling=1.0),
    ]
    for card in cards:
        assert "The 2 classes of `birds`, in the order of their numbers: `zebra finch`, `house 'sparrow'`." in card
        assert "The prompts of its zero-shot head: `a photo of a {}.`, `{}`." in card
        assert card_errors(card) == []
    many = replace(own, class_names=tuple(f"bird {index}" for index in range(200)))
    assert "`bird 29` and 170 more, in the configuration." in render_vector_card(many, repo_id="user/x")
    registered = replace(own, task="mnist", dataset=TASKS["mnist"].dataset)
    assert "classes of" not in render_vector_card(registered, repo_id="user/x")


def test_a_card_of_a_backbone_speaks_of_no_prompts(tmp_path: Path) -> None:
    facts = {"architecture": "vit", "task": "birds", "dataset": "user/birds"}
    own = replace(INFO, **facts, class_names=("finch", "tit"), templates=("a {}.",))
    report = Report("birds", "test", (TaskResult("birds", 0.5, 10, zero_shot=0.3),))
    cards = [
        render_vector_card(own, report, repo_id="user/x"),
        render_vector_card(replace(MERGED, architecture="vit", parents=(own,)), report, repo_id="user/x"),
        render_model_card(own, report, repo_id="user/x", scaling=1.0),
    ]
    for card in cards:
        assert not re.search("zero-shot|prompt|CLIPModel", card)
        assert "| task | base | this model | images |" in card
        assert "By linear heads on the backbone, one a task" in card
        assert card_errors(card) == []
        assert ("print(evaluate(model, " in card) == ("model = vector.apply_to(base" in card) == (card is not cards[2])
    assert "with its own classes." in render_vector_card(replace(own, dataset="./birds"), repo_id="user/x")
    write_benchmark("birds", [], tmp_path / "suite", description="Birds.")
    assert "or of a model without a text tower linear" in (tmp_path / "suite" / "README.md").read_text()


def test_a_models_card_classifies_in_three_lines_with_the_tasks_own_names() -> None:
    own = replace(INFO, task="birds", class_names=("finch", "tit"), templates=("a bird, the {}.",))
    card = render_model_card(replace(MERGED, parents=(own,)), repo_id="user/x", scaling=0.3)
    assert 'pipeline("zero-shot-image-classification", model="user/x")' in card
    assert 'candidate_labels=["finch", "tit"], hypothesis_template="a bird, the {}."' in card
    assert '"0", "1"' in render_model_card(replace(INFO, task="mnist"), repo_id="user/x", scaling=1.0)


def test_a_card_claims_a_fingerprint_only_where_there_is_one() -> None:
    lora = replace(INFO, kind="lora", base_hashes={}, task=None)
    card = render_vector_card(lora, repo_id="user/x")
    assert "no fingerprint of those weights is stored" in card
    assert "their fingerprint is stored" not in card
    assert "is that model fine-tuned; scaled" in card
    assert "their fingerprint is stored" in render_vector_card(INFO, repo_id="user/x")


def test_the_metadata_follows_the_hubs_rules() -> None:
    data = metadata(render_vector_card(INFO, REPORT, repo_id="user/clip-mnist"))
    assert data["library_name"] == "hf-taskvec"
    assert (data["base_model"], data["base_model_relation"]) == (INFO.base, "finetune")
    assert (data["datasets"], data["license"]) == (["ylecun/mnist"], "mit")
    assert {"task-vector", "task-arithmetic", "model-merging", "task:mnist"} <= set(data["tags"])
    assert data["model-index"][0]["results"][0]["metrics"] == [
        {"type": "accuracy", "value": 0.9712, "name": "accuracy"}
    ]
    merged = metadata(render_vector_card(MERGED, PAIR, repo_id="user/m"))
    assert merged["base_model_relation"] == "merge"
    assert merged["datasets"] == ["ylecun/mnist", "ufldl-stanford/svhn"]
    assert {"task_arithmetic", "task:mnist", "task:svhn"} <= set(merged["tags"])
    assert [r["dataset"]["type"] for r in merged["model-index"][0]["results"]] == merged["datasets"]


@pytest.mark.parametrize("report", [None, REPORT, PAIR])
@pytest.mark.parametrize("info", [VectorInfo(), INFO, MERGED, replace(INFO, kind="gradient"), replace(INFO, base="x")])
def test_every_card_is_accepted_by_the_hub(info: VectorInfo, report: Report | None) -> None:
    cards = [
        render_vector_card(info, report, repo_id="user/x", epochs=[1.0, 2.0]),
        render_model_card(info, report, repo_id="user/x", scaling=0.3),
    ]
    for card in cards:
        assert card_errors(card) == []
        assert "\n\n\n" not in card
        assert "None" not in card


def test_a_card_is_a_function_of_its_inputs() -> None:
    assert render_vector_card(INFO, REPORT, repo_id="u/x") == render_vector_card(INFO, REPORT, repo_id="u/x")
    back = VectorInfo.from_dict(INFO.to_dict()), Report.from_dict(REPORT.to_dict())
    assert render_vector_card(*back, repo_id="u/x") == render_vector_card(INFO, REPORT, repo_id="u/x")


def test_a_card_without_references_has_no_empty_columns() -> None:
    plain = Report("vector", "test", (TaskResult("mnist", 0.5, 100),))
    card = render_vector_card(INFO, plain, repo_id="user/x")
    assert "| task | this model | images |" in card
    assert "normalised" not in card.lower()


def test_a_base_card_names_its_data_and_numbers() -> None:
    config = {
        "description": "A small CLIP.",
        "license": "apache-2.0",
        "facts": {"seed": 0, "width": 512},
        "data": [{"name": "photo-captions", "pairs": 80000, "license": "cc-by-4.0"}],
        "command": "python recipes/pretrain_tiny_clip.py",
        "retrieval": {"image to text, recall at 5": 0.31},
        "limits": ["32 px images only."],
    }
    card = render_base_card(config, REPORT, repo_id="user/tiny-clip")
    assert card_errors(card) == []
    assert "| `photo-captions` | 80,000 | cc-by-4.0 |" in card
    assert "image to text, recall at 5: 31.0 %" in card
    with pytest.raises((UndefinedError, KeyError)):
        render_base_card({key: value for key, value in config.items() if key != "command"}, repo_id="user/x")


INJECTIONS = [
    "{{ 7 * 7 }}",
    "{% for x in range(10) %}owned{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[click](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "a\n---\nlicense: mit\n---\n",
    "a\nlicense: wtfpl",
    "!!python/object/apply:os.system ['touch pwned']",
    "&a [*a]",
    "```\n# Owned\n```python\nimport os",
    "`code` ``more``",
    "| a | b |\n| --- |",
    "\x1b[31mred\x1b[0m",
    "a\u202eb",
    "# Heading",
    "</code></table><h1>Owned</h1>",
    "'); import os; os.system('touch pwned') #",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_nothing_in_a_name_is_markup_code_or_metadata(text: str) -> None:
    parents = (replace(INFO, task=text), replace(OTHER, task="svhn", dataset=text))
    info = replace(
        MERGED, parents=parents, command=text, settings={text: text}, license=None, base=text, layer_norms={text: 1.0}
    )
    report = Report(text, "test", (TaskResult(text, 0.5, 10), TaskResult("svhn", 0.5, 10)), scaling=0.3)
    harmless = replace(info, parents=(INFO, OTHER), command="x", settings={"x": "x"}, base="x", layer_norms={"x": 1.0})
    card = render_vector_card(info, report, repo_id="user/x")
    plain = render_vector_card(harmless, report, repo_id="user/x")
    assert card_errors(card) == []
    assert set(metadata(card)) - {"datasets"} == set(metadata(plain)) - {
        "base_model",
        "base_model_relation",
        "datasets",
    }
    assert "license" not in metadata(card)
    body = card.split("---\n", 2)[2]
    assert headings_of(body) == headings_of(plain.split("---\n", 2)[2])
    assert "49" not in body.replace("2212.04089", "")
    outside = without_code(body)
    assert not re.search(r"(?<!\\)(<[\w/]|!\[|\]\()", outside)
    assert card.replace("\n", "").isprintable()


def headings_of(body: str) -> list[str]:
    """The headings that a reader sees: those outside of code."""
    return re.findall(r"^#+ .*$", without_code(body), flags=re.MULTILINE)


def without_code(body: str) -> str:
    """Markdown without fenced blocks and code spans."""
    lines, fence = [], ""
    for line in body.splitlines():
        marks = re.match(r"`{3,}", line)
        if fence:
            fence = "" if line.strip() == fence else fence
        elif marks:
            fence = marks[0]
        else:
            lines.append(re.sub(r"`[^`]*`", "", line))
    assert not fence, "a fence is left open"
    return "\n".join(lines)


def test_the_code_in_a_card_is_sound_whatever_the_names() -> None:
    info = VectorInfo(task="odd \"name' \\ \n `", base='us"er/base')
    card = render_vector_card(info, REPORT, repo_id="user/x")
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        compile(block, "card", "exec")


def run_code(card: str) -> dict[str, Any]:
    """Runs all Python in a card, blocks and calls in the text; gives the names that it defined."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert blocks
    for code in [*blocks, *re.findall(r"`(TaskVector\.[^`]*)`", card)]:
        exec(code, names)
    return names


@pytest.fixture(scope="module")
def tiny() -> TaskVector:
    """A vector of the embedded base."""
    model = load_base().model
    vector = TaskVector.from_models(model, model)
    deltas = {name: delta + 1e-4 for name, delta in vector.deltas.items()}
    return TaskVector(deltas, replace(vector.info, base=EMBEDDED, kind="fine-tuned"))


def of_task(vector: TaskVector, task: str, **changes: Any) -> TaskVector:
    return TaskVector(vector.deltas, replace(vector.info, task=task, dataset=f"builtin:{task}", **changes))


@pytest.mark.parametrize("kind", ["fine-tuned", "gradient", "merged"])
def test_the_code_in_a_vectors_card_runs(
    hub: HubServer, tiny: TaskVector, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = of_task(tiny, "digits", kind=kind)
    if kind == "merged":
        vector = merge([of_task(tiny, "digits"), of_task(tiny, "shapes")], "average")
    report = Report("vector", "test", (TaskResult("digits", 0.5, 400),), scaling=0.5)
    push_to_hub(vector, "user/x", report=report, token="write-user")
    names = run_code(ModelCard.load("user/x").content)
    assert equal_vectors(names["vector"], vector)
    expected = vector.apply_to(names["base"], scaling=0.5).model.vision_model.post_layernorm.bias
    assert torch.equal(names["model"].model.vision_model.post_layernorm.bias, expected)
    printed = capsys.readouterr().out
    assert [f"| {task} |" in printed for task in ("digits", "shapes")] == [True, kind == "merged"]


def test_the_code_in_the_card_of_an_own_task_measures_it(
    hub: HubServer, tmp_path: Path, tiny: TaskVector, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.store.add_folder("dataset", "user/colours", save_colour_dataset(tmp_path / "colours"))
    task = Task.from_dataset("user/colours", templates=["a {} picture", "{}"])
    own = TaskVector(tiny.deltas, replace(tiny.info, **task.provenance()))
    push_to_hub(own, "user/own", token="write-user")
    push_to_hub(merge([own, own], "average"), "user/merged", token="write-user")
    for repo_id in ("user/own", "user/merged"):
        card = ModelCard.load(repo_id).content
        assert "The 3 classes of `colours`, in the order of their numbers: `red`, `green`, `blue`." in card
        run_code(card)
        assert "| colours |" in capsys.readouterr().out
    local = replace(own.info, dataset="photos", data_settings={"local": True})
    card = render_vector_card(local, repo_id="user/x")
    assert 'Task.from_info(vector.info, dataset="folder")' in card
    assert "evaluate" not in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]


def test_the_card_of_a_built_in_task_asks_for_no_folder(tiny: TaskVector) -> None:
    card = render_vector_card(replace(tiny.info, **get_task("digits").provenance()), repo_id="user/x")
    assert 'get_tasks(["digits"])' in card
    assert "not on the Hub" not in card


def test_the_code_in_a_series_card_runs(hub: HubServer, tiny: TaskVector) -> None:
    series = [of_task(tiny, "unregistered", epochs=epochs) for epochs in (1.0, 2.0)]
    push_series_to_hub(series, "user/x", token="write-user")
    card = ModelCard.load("user/x").content
    assert 'subfolder="epoch-1"' in card
    assert run_code(card)["vector"].info.epochs == 2.0


def test_the_code_in_a_models_card_runs(hub: HubServer, tiny: TaskVector) -> None:
    push_model_to_hub(tiny, "user/x", scaling=0.5, token="write-user")
    names = run_code(ModelCard.load("user/x").content)
    expected = tiny.apply_to(load_base(), scaling=0.5).model.state_dict()
    for name, value in names["model"].state_dict().items():
        torch.testing.assert_close(value.to(torch.float16), expected[name].to(torch.float16), rtol=0, atol=0)
    assert names["processor"].tokenizer("a cat")["input_ids"]


def test_results_on_other_data_than_the_registered_come_without_a_line_that_loads_those() -> None:
    registered = replace(INFO, dataset=TASKS["mnist"].dataset)
    assert "get_tasks" in render_vector_card(registered, REPORT, repo_id="user/x")
    assert "get_tasks" not in render_vector_card(replace(INFO, dataset="my-mnist"), REPORT, repo_id="user/x")


def test_a_card_says_where_its_vector_loses() -> None:
    worse = replace(RESULT, accuracy=0.25)
    assert "loses accuracy against the base on `mnist`." in render_vector_card(
        INFO, replace(REPORT, results=(worse,)), repo_id="user/x"
    )
    assert "loses accuracy" not in render_vector_card(INFO, REPORT, repo_id="user/x")


def test_a_repository_holds_what_its_card_says(tmp_path: Path, base: CLIPModel) -> None:
    vector = tiny_vector(base)
    vector = TaskVector(vector.deltas, replace(vector.info, task="mnist", base="user/base"))
    write_repository(vector, tmp_path / "x", repo_id="user/x", report=REPORT)
    info = read_info(tmp_path / "x")
    assert sum(norm**2 for norm in info.layer_norms.values()) ** 0.5 == pytest.approx(vector.norm(), rel=1e-5)
    assert (tmp_path / "x" / CARD_NAME).read_text() == render_folder_card(tmp_path / "x", repo_id="user/x")


def test_folders_of_a_series_are_told_and_others_left_alone(tmp_path: Path, base: CLIPModel) -> None:
    tiny_vector(base).save_pretrained(tmp_path)
    for name in ("epoch-2", "epoch-10", "epoch-last"):
        (tmp_path / name).mkdir()
    (tmp_path / "epoch-3").write_text("notes")
    assert "after each of the epochs `2`, `10`:" in render_folder_card(tmp_path, repo_id="user/x")


PUBLISHED = sorted(path.parent for path in HUB_CARDS.glob("*/README.md") if path.parent.name != "studio")  # a Space


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_a_published_card_is_what_its_configuration_and_report_give(folder: Path) -> None:
    card = (folder / CARD_NAME).read_text(encoding="utf-8")
    assert card == render_folder_card(folder, repo_id=f"hf-taskvec/{folder.name}")
    assert card_errors(card) == []
    assert (folder / REPORT_NAME).is_file()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_the_code_in_a_published_card_runs(hub: HubServer, tmp_path: Path, folder: Path, tiny: TaskVector) -> None:
    repo_id = f"hf-taskvec/{folder.name}"
    if (folder / CONFIG_NAME).is_file():
        info = read_info(folder)
        deltas = {name: tiny.deltas[name] for name in info.base_hashes}
        vector = TaskVector(deltas, info)  # other weights, but the base that it was published for
        vector.save_pretrained(tmp_path / "v")
        hub.store.add_folder("model", repo_id, tmp_path / "v")
    else:
        hub.store.add_folder("model", repo_id, TINY_CLIP)
    run_code((folder / CARD_NAME).read_text(encoding="utf-8"))


def test_the_recipes_publish_exactly_the_card(hub: HubServer, tmp_path: Path, base: CLIPModel) -> None:
    from recipes.make_card import CardArguments
    from recipes.make_card import main as make_card
    from recipes.publish import PublishArguments
    from recipes.publish import main as publish

    hub.api.tokens["write-hf"] = Token("hf-taskvec")
    vector = tiny_vector(base)
    vector.save_pretrained(tmp_path / "tiny-mnist")
    REPORT.save(tmp_path / "report.json")
    cards = tmp_path / "cards"
    (made,) = make_card(
        CardArguments(
            [str(tmp_path / "tiny-mnist")],
            report=str(tmp_path / "report.json"),
            name="tiny-mnist",
            license="apache-2.0",
            command="python recipes/finetune.py",
            output_dir=str(cards),
            weights_dir=str(tmp_path / "weights"),
        )
    )
    assert sorted(path.name for path in made.iterdir()) == [CARD_NAME, REPORT_NAME, "task_vector_config.json"]
    arguments = PublishArguments(str(tmp_path / "weights"), str(cards), collection="All", token="write-hf")
    assert publish(arguments) == publish(arguments)  # the second time there is nothing to do
    files = hub.store.get("model", "hf-taskvec/tiny-mnist").head.files
    for path in made.iterdir():
        assert hub.store.blob(files[path.name].sha256).read_bytes() == path.read_bytes()
    pulled = TaskVector.from_pretrained("hf-taskvec/tiny-mnist", cache_dir=tmp_path / "cache")
    assert equal_vectors(pulled, vector)
    assert pulled.info.license == "apache-2.0"
    tiny_vector(base, seed=9).save_pretrained(tmp_path / "weights" / "tiny-mnist")
    with pytest.raises(CheckpointError, match="not those that its configuration"):
        publish(arguments)
    (made / CARD_NAME).write_text("Trust me.")
    with pytest.raises(ValueError, match="is not what its configuration and report give"):
        publish(arguments)


@pytest.mark.slow
def test_a_card_is_made_from_vectors_alone(tmp_path: Path, tiny: TaskVector) -> None:
    from recipes.make_card import CardArguments, name_of
    from recipes.make_card import main as make_card

    assert name_of(merge([tiny, tiny], "average")) == "tiny-clip-average"
    vectors = {"gradient": of_task(tiny, "digits", kind="gradient"), "mine": of_task(tiny, "digits")}
    for name, vector in vectors.items():
        vector.save_pretrained(tmp_path / name)
    sources = [str(tmp_path / name) for name in vectors]
    arguments = CardArguments(sources, output_dir=str(tmp_path / "cards"), weights_dir=str(tmp_path / "weights"))
    made = make_card(arguments)
    assert [path.name for path in made] == ["tiny-clip-digits-gradient", "tiny-clip-digits"]
    for folder, vector in zip(made, vectors.values(), strict=True):
        report, card = Report.load(folder / REPORT_NAME), (folder / CARD_NAME).read_text()
        assert card == render_folder_card(folder, repo_id=f"hf-taskvec/{folder.name}")
        assert f"![Validation accuracy minus the base's, by task, against the scaling]({PICTURE_NAME})" in card
        assert (folder / PICTURE_NAME).is_file()
        assert equal_vectors(TaskVector.from_pretrained(tmp_path / "weights" / folder.name), vector)
        by_hand = evaluate(vector.apply_to(load_base(), scaling=report.scaling or 0), get_tasks(["digits"]))
        assert report.results[0].accuracy == by_hand.results[0].accuracy
        assert report.results[0].zero_shot is not None
        assert report.results[0].individual is not None
    assert Report.load(made[1] / REPORT_NAME).scaling == 1.0
