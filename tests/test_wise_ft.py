"""WiSE-FT: the way between base and fine-tuned model, against models that are interpolated by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_taskvec import Report, TaskResult, TaskVector, evaluate, get_task
from hf_taskvec.evaluation.plots import plot_wise_ft
from hf_taskvec.evaluation.wise_ft import ALPHAS, Interpolation, wise_ft
from hf_taskvec.models.base import Base, load_base
from hf_taskvec.tasks import corrupt
from hf_taskvec.tasks.subsets import subset
from tests.helpers import finetuned


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base()


def test_each_point_is_the_model_whose_weights_are_interpolated(base: Base) -> None:
    digits, shapes = (subset(get_task(name), max_validation=20) for name in ("digits", "shapes"))
    tuned = finetuned(base.model, size=0.2)
    controls = [shapes, corrupt(digits, "contrast", 5)]
    vector = TaskVector.from_models(base.model, tuned)
    curve = wise_ft(base, vector, digits, controls, alphas=[0, 0.3, 1], split="validation", progress=False)
    assert curve.alphas == (0.0, 0.3, 1.0)
    for place, alpha in enumerate(curve.alphas):
        between = copy.deepcopy(base)
        with torch.no_grad():
            for parameter, other in zip(between.model.parameters(), tuned.parameters(), strict=True):
                parameter.mul_(1 - alpha).add_(alpha * other)
        (target, *control) = evaluate(between, [digits, *controls], split="validation", progress=False).results
        # an image on the border between two classes may fall on either side of the rounding
        assert curve.target[place] == pytest.approx(target.accuracy, abs=0.051)
        assert curve.control[place] == pytest.approx(sum(one.accuracy for one in control) / 2, abs=0.051)
    assert len(set(curve.target)) > 1
    assert [one.task for one in curve.reports[0.3].results] == ["digits", "shapes", "digits-contrast-5"]


def test_target_and_control_are_means_over_their_tasks() -> None:
    def report(*accuracies: float) -> Report:
        results = [TaskResult(name, value, 100) for name, value in zip("abc", accuracies, strict=True)]
        return Report("m", "test", tuple(results))

    curve = Interpolation.of({0.0: report(0.2, 0.4, 0.6), 1.0: report(0.8, 0.3, 0.1)}, ["a"])
    assert curve.target == pytest.approx((0.2, 0.8))
    assert curve.control == pytest.approx((0.5, 0.2))
    both = Interpolation.mean([curve, Interpolation((0.0, 1.0), (0.4, 0.4), (0.1, 0.2))])
    assert both.target == pytest.approx((0.3, 0.6))
    assert both.control == pytest.approx((0.3, 0.2))
    with pytest.raises(ValueError, match="same alphas"):
        Interpolation.mean([curve, Interpolation((0.0,), (0.4,), (0.1,))])
    with pytest.raises(ValueError, match="same alphas"):
        Interpolation.mean([])


def test_the_figure_draws_target_against_control_with_an_open_mark_at_the_base() -> None:
    curve = Interpolation((0.0, 0.5, 1.0), (0.2, 0.6, 0.8), (0.5, 0.55, 0.3))
    (axes,) = plot_wise_ft({"digits": curve}, split="validation").axes
    line, start = axes.get_lines()
    assert list(line.get_xdata()) == pytest.approx([20, 60, 80])
    assert list(line.get_ydata()) == pytest.approx([50, 55, 30])
    assert (list(start.get_xdata()), start.get_fillstyle()) == (pytest.approx([20]), "none")
    assert axes.get_xlabel() == "target validation accuracy (%)"
    with pytest.raises(ValueError, match="a curve at least"):
        plot_wise_ft({})


def test_bad_input_is_refused(base: Base) -> None:
    vector = TaskVector.from_models(base.model, base.model)
    for alphas in ([-0.1], [0, 1.2]):
        with pytest.raises(ValueError, match=r"alphas must be in \[0, 1\]"):
            wise_ft(base, vector, "digits", "shapes", alphas=alphas)
    with pytest.raises(ValueError, match="alphas must hold"):
        wise_ft(base, vector, "digits", "shapes", alphas=[])
    with pytest.raises(ValueError, match="share 'digits'"):
        wise_ft(base, vector, "digits", ["shapes", "digits"])
    with pytest.raises(ValueError, match="wise_ft"):
        wise_ft(base, vector, "digits", [])
    assert (ALPHAS[0], ALPHAS[-1], len(ALPHAS)) == (0, 1, 11)
