"""The theory of task arithmetic as multitask learning, against brute force and against its own orders."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hf_taskvec import gradient_vector
from hf_taskvec.theory import (
    ACTIVATIONS,
    FeedForward,
    MeanLoss,
    clip_losses,
    convergence_study,
    corrections,
    drift_bound,
    feed_forward_bounds,
    feed_forward_loss,
    hessian_norm,
    joint_path,
    leading_error,
    measure_drift,
    merged_weights,
    order_of_convergence,
    predicted_loss_gap,
)
from hf_taskvec.theory.equivalence import relative_error
from tests.toys import toy_base, toy_task, wide_base, with_model

NETWORK = FeedForward((4, 6, 5, 3))


def problem(tasks: int = 3) -> tuple[list[MeanLoss], Tensor, Tensor]:
    """A 3-task tanh network in float64: losses, start and all inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tasks, 20, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (tasks, 20), generator=generator)
    start = 0.5 * torch.randn(NETWORK.num_weights, generator=generator, dtype=torch.float64)
    losses = [feed_forward_loss(NETWORK, x, y) for x, y in zip(inputs, labels, strict=True)]
    return losses, start, inputs.flatten(0, 1)


def hessian(loss: MeanLoss, weights: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(loss.parts[0], weights)


def test_gradient_and_hessian_product_are_those_of_autograd() -> None:
    losses, start, _ = problem()
    direction = torch.linspace(-1, 1, len(start), dtype=torch.float64)
    point = start.clone().requires_grad_()
    losses[0].parts[0](point).backward()
    torch.testing.assert_close(losses[0].gradient(start), point.grad)
    torch.testing.assert_close(losses[0].hessian_product(start, direction), hessian(losses[0], start) @ direction)


def test_parts_add_up_to_the_mean_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(7, 4, generator=generator, dtype=torch.float64), torch.arange(7) % 3
    start = torch.randn(NETWORK.num_weights, generator=generator, dtype=torch.float64)
    whole = feed_forward_loss(NETWORK, inputs, labels)
    rows = [slice(0, 5), slice(5, 7)]
    split = MeanLoss(
        [
            lambda w, r=r: functional.cross_entropy(NETWORK.logits(w, inputs[r]), labels[r], reduction="sum") / 7
            for r in rows
        ]
    )
    assert split.value(start) == pytest.approx(whole.value(start))
    torch.testing.assert_close(split.gradient(start), whole.gradient(start))
    torch.testing.assert_close(split.hessian_product(start, start), whole.hessian_product(start, start))


def test_after_one_epoch_task_arithmetic_is_joint_training_whatever_alpha() -> None:
    losses, start, _ = problem()
    for alpha in (None, 1.0, 0.2):
        merged = merged_weights(losses, start, learning_rate=0.3, epochs=1, alpha=alpha)
        joint = joint_path(losses, start, learning_rate=0.3, epochs=1, alpha=alpha)[-1]
        assert float((merged - joint).norm()) <= 1e-14


def test_corrections_are_the_brute_force_double_sum() -> None:
    losses, start, _ = problem()
    epochs, alpha = 3, 0.25
    path = joint_path(losses, start, learning_rate=0.1, epochs=epochs, alpha=alpha)
    for t, correction in enumerate(corrections(losses, path, alpha=alpha)):
        expected = torch.zeros_like(start)
        for layer in range(1, epochs):
            for j in range(layer):
                gradients = [loss.gradient(path[j]) for loss in losses]
                expected += hessian(losses[t], path[layer]) @ (alpha * sum(gradients) - gradients[t])
        torch.testing.assert_close(correction, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_the_orders_on_an_mlp_are_two_and_three(alpha: float | None) -> None:
    losses, start, _ = problem()
    study = convergence_study(losses, start, learning_rates=[0.02, 0.01, 0.005, 0.0025], epochs=3, alpha=alpha)
    assert study.order == pytest.approx(2.0, abs=0.15)
    assert study.corrected_order == pytest.approx(3.0, abs=0.3)


def test_the_closed_form_is_the_covariance_of_hessians_and_gradients() -> None:
    losses, start, _ = problem()
    hessians = torch.stack([hessian(loss, start) for loss in losses])
    gradients = torch.stack([loss.gradient(start) for loss in losses])
    deviations = (hessians - hessians.mean(0)) @ (gradients - gradients.mean(0))[..., None]
    expected = 0.01**2 * 4 * 3 / 2 * deviations.squeeze(-1).mean(0)
    error = leading_error(losses, start, learning_rate=0.01, epochs=4)
    torch.testing.assert_close(error, expected, rtol=1e-10, atol=1e-15)
    distance = merged_weights(losses, start, learning_rate=0.01, epochs=4)
    distance = distance - joint_path(losses, start, learning_rate=0.01, epochs=4)[-1]
    assert float((error - distance).norm() / distance.norm()) < 0.1


def test_the_leading_error_vanishes_for_equal_tasks() -> None:
    losses, start, _ = problem()
    same = [losses[0], losses[0]]
    assert float(leading_error(same, start, learning_rate=0.1, epochs=5).norm()) <= 1e-15


def test_the_loss_gap_is_predicted_to_leading_order() -> None:
    losses, start, _ = problem()
    errors = []
    for rate in (0.02, 0.01):
        merged = merged_weights(losses, start, learning_rate=rate, epochs=4)
        joint = joint_path(losses, start, learning_rate=rate, epochs=4)[-1]
        gap = sum(loss.value(merged) - loss.value(joint) for loss in losses) / len(losses)
        predicted = predicted_loss_gap(losses, start, learning_rate=rate, epochs=4)
        assert gap == pytest.approx(predicted, rel=0.3)
        errors.append(abs(gap - predicted))
    assert errors[1] < errors[0] / 5  # of third order


@pytest.mark.parametrize("learning_rate", [0.5, 0.005])
@pytest.mark.parametrize("epochs", [1, 4])
def test_the_drift_bound_holds_at_large_and_small_rates(learning_rate: float, epochs: int) -> None:
    losses, start, _ = problem()
    drift = measure_drift(losses, start, learning_rate=learning_rate, epochs=epochs, iterations=60)
    assert drift.distance <= drift.bound + 1e-14
    assert drift.bound < 100 * drift.distance + 1e-14 or epochs == 1


def test_the_drift_bound_keeps_its_digits_for_tiny_rates() -> None:
    exact = drift_bound(2.0, 3.0, learning_rate=1e-4, epochs=5)
    assert drift_bound(2.0, 3.0, learning_rate=1e-8, epochs=5) == pytest.approx(exact * 1e-8, rel=1e-3)
    assert drift_bound(2.0, 3.0, learning_rate=0.1, epochs=1) == pytest.approx(0.0, abs=1e-15)


def test_power_iteration_finds_the_hessians_norm() -> None:
    losses, start, _ = problem()
    expected = float(torch.linalg.eigvalsh(hessian(losses[1], start)).abs().max())
    assert hessian_norm(losses[1], start, iterations=2000, tolerance=1e-10) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "function"), [("tanh", torch.tanh), ("gelu", functional.gelu)])
def test_the_feed_forward_bounds_hold_along_the_path(name: str, function: object) -> None:
    network = FeedForward(NETWORK.widths, function)  # type: ignore[arg-type]
    _, start, inputs = problem()
    loss = feed_forward_loss(network, inputs, torch.arange(len(inputs)) % 3)
    path = joint_path([loss], start, learning_rate=0.3, epochs=5)
    bounds = feed_forward_bounds(network, ACTIVATIONS[name], path, inputs)
    for weights in path:
        assert float(loss.gradient(weights).norm()) <= bounds.gradient
        assert float(torch.linalg.matrix_norm(hessian(loss, weights), ord=2)) <= bounds.hessian


@pytest.mark.parametrize(("name", "function"), [("tanh", torch.tanh), ("gelu", functional.gelu)])
def test_the_activation_constants_bound_its_derivatives(name: str, function: object) -> None:
    x = torch.linspace(-6, 6, 20001, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(function(x).sum(), x, create_graph=True)[0]  # type: ignore[operator]
    second = torch.autograd.grad(first.sum(), x)[0]
    for derivative, bound in ((first.detach(), ACTIVATIONS[name].first), (second, ACTIVATIONS[name].second)):
        assert float(derivative.abs().max()) <= bound * (1 + 1e-9)
        assert float(derivative.abs().max()) >= bound * 0.999


def test_clip_losses_have_the_gradient_of_the_trained_model() -> None:
    tasks = [toy_task(images=20), toy_task("shapes", images=20)]
    problem = clip_losses(toy_base(), tasks, batch_size=8)
    for task, loss in zip(tasks, problem.losses, strict=True):
        expected = gradient_vector(wide_base(), task, learning_rate=1.0)
        assert relative_error(problem.vector(-loss.gradient(problem.start)), expected) <= 1e-10
        torch.testing.assert_close(problem.flatten(problem.vector(problem.start)), problem.start)


def test_the_hessian_product_of_a_clip_is_the_gradients_derivative() -> None:
    problem = clip_losses(toy_base(), [toy_task(images=10)])
    loss, start = problem.losses[0], problem.start
    direction = torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction /= direction.norm()
    step = 1e-4
    numeric = (loss.gradient(start + step * direction) - loss.gradient(start - step * direction)) / (2 * step)
    exact = loss.hessian_product(start, direction)
    assert float((exact - numeric).norm() / exact.norm()) < 1e-4


def test_the_order_on_a_clip_is_two() -> None:
    problem = clip_losses(toy_base(), [toy_task(images=16), toy_task("shapes", images=16)])
    study = convergence_study(problem.losses, problem.start, learning_rates=[1e-3, 5e-4, 2.5e-4], epochs=2)
    assert study.order == pytest.approx(2.0, abs=0.15)
    assert study.corrected_order == pytest.approx(3.0, abs=0.3)


def test_an_order_is_the_slope_of_the_logarithms() -> None:
    rates = [0.1, 0.05, 0.01]
    assert order_of_convergence(rates, [7 * rate**2.5 for rate in rates]) == pytest.approx(2.5)
    for errors in ([1.0], [1.0, 0.0, 1.0], [1.0, math.nan, 1.0]):
        with pytest.raises(ValueError, match=r"slope needs|positive, finite"):
            order_of_convergence(rates, errors)


def test_bad_input_is_refused() -> None:
    losses, start, _ = problem()
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        joint_path(losses, start, learning_rate=0.0, epochs=1)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        joint_path(losses, start, learning_rate=0.1, epochs=0)
    with pytest.raises(ValueError, match="epochs must be at least 2"):
        convergence_study(losses, start, learning_rates=[0.1, 0.2], epochs=1)
    with pytest.raises(ValueError, match="dropout"):
        clip_losses(with_model(toy_base(), attention_dropout=0.1), [toy_task(images=10)])
