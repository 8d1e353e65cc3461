"""Mergeability: what is measured of a base, variants that are trained and judged once, trends over scale."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mergeability.measures import disentanglement_error, kept_share, second_order
from mergeability.scale import (
    AUTHORS_PARAMETERS,
    MEASURES,
    draw_scale,
    extrapolation,
    fit_trend,
    scale_data,
    scale_texts,
    trend_table,
)
from mergeability.variants import parse_variants
from paper.settings import Reproduction
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_taskvec import gradient_vector
from hf_taskvec.errors import ArgumentsError, DataError, SettingsDifferError, UnknownNameError
from hf_taskvec.theory import clip_losses
from hf_taskvec.theory.expansion import joint_path, merged_weights
from recipes import scale_study, variant_study
from tests.toys import toy_base, toy_task

TINY: dict[str, Any] = {
    "patch_size": 16,
    "text_width": 64,
    "text_layers": 1,
    "projection_dim": 16,
    "vocab_size": 700,
    "steps": 3,
    "batch_size": 8,
    "warmup_steps": 1,
    "save_steps": 2,
    "descriptor_weight": 1.0,
}
TASKS = [toy_task("digits", images=12), toy_task("shapes", images=12)]


def settings(folder: Path, **changes: object) -> Reproduction:
    values = {
        "tasks": ["digits", "shapes"],
        "output_dir": str(folder),
        "seeds": [0],
        "optimizers": ["adamw"],
        "learning_rates": [1e-3],
        "max_epochs": [2],
        "patience": 1,
        "budgets": [1],
        "batch_size": 8,
        "max_train": 16,
        "max_validation": 12,
        "max_test": 12,
        "theory_images": 4,
        "dynamics_optimizer": "adamw",
        "atm_optimizer": "adamw",
    }
    return Reproduction(**{**values, **changes})


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="hf_taskvec")  # every choice here rests on a handful of images


def cell(parameters: float, **values: float | None) -> dict[str, Any]:
    measures = dict.fromkeys(MEASURES, 0.1)
    shape = {"variant": "v", "seed": 0, "width": 64, "layers": 1 + int(parameters) % 2, "views": 9}
    scores = {"probe": 0.5, "zero_shot": 0.4, "individual": 0.6, "merges": {}}
    return {**shape, **scores, "parameters": parameters, **measures, **values}


@pytest.mark.slow
def test_a_study_trains_and_judges_every_size_once_and_draws_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = scale_study.ScaleArguments(
        widths=[64, 128], depths=[1], generated_pairs=16, scalings=[0.1, 0.5], methods=["task_arithmetic"], common=TINY
    )
    data = scale_study.main(args, settings(tmp_path))
    first, second = data["cells"]
    assert (first["variant"], second["variant"]) == ("1x64", "1x128")
    assert first["parameters"] < second["parameters"]
    assert {path.name for path in tmp_path.iterdir()} >= {"scale.json", "scale.png", "report.md", "1x64", "1x128"}
    for name in MEASURES:
        assert first[name] is None or math.isfinite(first[name]), name
    assert data["trends"]["gain"] is None  # two sizes are no trend
    stamp = (tmp_path / "1x64" / "seed-0.json").stat().st_mtime_ns
    (tmp_path / "1x128" / "seed-0.json").unlink()
    assert scale_study.main(replace(args, dry_run=True), settings(tmp_path))["cells"] == [first]
    assert scale_study.main(args, settings(tmp_path)) == data
    assert (tmp_path / "1x64" / "seed-0.json").stat().st_mtime_ns == stamp
    with pytest.raises(SettingsDifferError, match="config="):
        scale_study.main(replace(args, common={**TINY, "steps": 4}), settings(tmp_path))
    with pytest.raises(DataError, match="no cell of the study is finished"):
        scale_study.main(replace(args, dry_run=True), settings(tmp_path / "none"))
    assert "merge over zero-shot" in capsys.readouterr().out


def test_variants_become_one_table_on_validation_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = variant_study.VariantArguments(
        variants=["plain: width=64 layers=1", "no averaging: width=64 layers=1 ema_decay=0"],
        generated_pairs=16,
        scalings=[0.1, 0.5],
        common=TINY,
        page=str(tmp_path / "table.md"),
    )
    cells = variant_study.main(args, settings(tmp_path / "out", bf16=True))
    page = (tmp_path / "table.md").read_text()
    assert [one["variant"] for one in cells] == ["plain", "no averaging"]
    assert "| plain |" in page
    assert "| no averaging |" in page
    assert set(cells[0]["merges"]) == {"task_arithmetic", "tsv_m"}
    logs = [json.loads((tmp_path / "out" / name / "base" / "training_log.json").read_text()) for name in ("plain",)]
    assert logs[0]["generated_pairs"] == 16
    capsys.readouterr()


def test_variants_are_the_common_settings_with_changes() -> None:
    variants = parse_variants(["patch 4: patch_size=4 layers=6", "long: steps=1e3"], {"learning_rate": 1, "layers": 3})
    assert (variants["patch 4"].patch_size, variants["patch 4"].layers, variants["long"].layers) == (4, 6, 3)
    assert isinstance(variants["long"].steps, int)
    assert isinstance(variants["long"].learning_rate, float)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["patch_size=4"], ArgumentsError, "'name: setting=value"),
        (["a b: width=64", "a-b: width=128"], ArgumentsError, "a name of its own"),
        ([], ArgumentsError, "no variant"),
        (["a: widht=64"], UnknownNameError, "Did you mean 'width'"),
        (["a: width=64.5"], ValueError, "width of 'a' must be of type int, got 64.5"),
        (["a: caption_mates=1"], ValueError, "must be of type bool"),
        (["a: fine_captions=2"], ValueError, r"fine_captions must be in \[0, 1\]"),
    ],
)
def test_a_variant_that_makes_no_sense_is_named(texts: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_variants(texts, {})


def test_the_grid_is_one_of_whole_attention_heads() -> None:
    assert scale_texts([64], [2, 4]) == ["2x64: layers=2 width=64", "4x64: layers=4 width=64"]
    with pytest.raises(ValueError, match="got 100"):
        scale_texts([64, 100], [2])
    with pytest.raises(ValueError, match="got none"):
        scale_texts([64], [])


def test_a_trend_finds_the_slope_per_doubling_and_carries_it_on() -> None:
    sizes = [2.0**power for power in range(16, 24)]
    noise = torch.randn(8, generator=torch.Generator().manual_seed(0)) * 1e-3
    trend = fit_trend(sizes, [0.02 * math.log2(size) + float(e) for size, e in zip(sizes, noise, strict=True)])
    assert trend is not None
    assert trend.slope == pytest.approx(0.02, abs=1e-3)
    assert trend.low <= trend.slope <= trend.high
    assert trend.line[-1] == pytest.approx(0.02 * math.log2(AUTHORS_PARAMETERS), abs=0.01)
    assert trend.line_high[-1] - trend.line_low[-1] > trend.line_high[4] - trend.line_low[4]


def test_few_sizes_have_no_trend_and_nan_is_refused() -> None:
    assert fit_trend([1e5, 1e6, 1e5, 1e6], [1, 2, 1, 2]) is None
    assert fit_trend([1e5, 1e6, 1e7], [1, 2, 3]) is None
    with pytest.raises(DataError, match="finite"):
        fit_trend([1e5, 1e6, 1e7, 1e8], [1, 2, 3, math.nan])


def test_the_authors_size_is_that_of_their_tower() -> None:
    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
    )
    with torch.device("meta"):
        tower = CLIPVisionModel(config)
    assert sum(parameter.numel() for parameter in tower.parameters()) == AUTHORS_PARAMETERS


def test_figure_and_table_show_the_cells_the_trend_and_the_authors() -> None:
    authors = MEASURES["cosine"].authors
    assert authors is not None
    wavy = [authors + 0.01 * (-1) ** power for power in range(16, 24)]  # a trend whose band holds the authors' figure
    cells = [cell(2.0**power, cosine=value) for power, value in zip(range(16, 24), wavy, strict=True)]
    cells[0]["kept"] = None
    data = json.loads(json.dumps(scale_data(cells)))
    figure = draw_scale(data)
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert "authors' ViT-B/16" in labels
    assert "trend" in labels
    assert data["trends"]["kept"]["count"] == 7
    assert trend_table(data).count("\n") == len(MEASURES) + 1
    first, second = extrapolation(data).split(". They miss them for: ")
    assert MEASURES["cosine"].title in first
    assert MEASURES["gain"].title in second  # 10 points everywhere, theirs 17.5
    assert MEASURES["second_order"].title in second


def test_tasks_that_leave_each_other_alone_are_disentangled_and_opposite_ones_are_not() -> None:
    base = toy_base()
    vectors = {task.name: gradient_vector(base, task, learning_rate=5.0) for task in TASKS}
    nothing = {name: vector * 0.0 for name, vector in vectors.items()}
    alone = {"digits": vectors["digits"], "shapes": nothing["shapes"]}
    assert disentanglement_error(base, {**nothing}, TASKS, scaling=1.0, split="validation") == 0
    assert disentanglement_error(base, alone, TASKS[:1], scaling=1.0, split="validation") == 0
    assert disentanglement_error(base, vectors, TASKS, scaling=1.0, split="validation") > 0


def test_the_second_order_term_is_the_distance_from_joint_training_over_half_the_rate() -> None:
    base, rate = toy_base(), 1e-4
    problem = clip_losses(base, TASKS)
    merged = merged_weights(problem.losses, problem.start, learning_rate=rate, epochs=2)
    joint = joint_path(problem.losses, problem.start, learning_rate=rate, epochs=2)[-1]
    measured = float((merged - joint).norm() / (joint - problem.start).norm())
    assert second_order(base, TASKS) * rate / 2 == pytest.approx(measured, rel=0.05)


def test_the_kept_share_is_of_what_the_experts_gain() -> None:
    assert kept_share(0.5, 0.7, 0.3) == pytest.approx(0.5)
    assert kept_share(0.5, 0.3, 0.3) is None
