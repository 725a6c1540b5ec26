"""Routes one by one: what each computes, what it costs, and how the purifier's other parts go with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from depura.denoisers import Clipped
from depura.gradients import Direct, GradientRoute, StoredState, StraightThrough
from depura.noise import Kind
from depura.purifier import Defence, MeanProb, Purifier, Resized, Single, Vote
from depura.schedules import EDM, steps_at
from depura.solvers import Ancestral, Euler, Heun
from toys import (
    CLEAN,
    NOISE,
    TanhClassifier,
    V,
    X,
    numerical,
    purifier_of,
    rand,
    randn,
    tanh_edm,
    tanh_eps,
    value_and_gradient,
)

# --- around the walk: rounds, resizing, clamps, the rule --------------------------------------------------------------


def test_several_rounds_are_the_rounds_in_turn() -> None:
    """Round r is the single-round purifier at the noise of round r, on the last result."""
    one, three = purifier_of("Ancestral"), purifier_of("Ancestral", rounds=3)
    x = X
    with torch.no_grad():
        for number in range(3):
            x = 0.5 * (one_in_round(one, x, number) + 1)
        torch.testing.assert_close(three(X, NOISE), x, rtol=0, atol=1e-13)


def one_in_round(purifier: Purifier, x: Tensor, number: int) -> Tensor:
    """The walk written out: state in [-1, 1] after one round."""
    tape = replace(NOISE, round=number)
    state = (2 * x - 1) + purifier.steps[0].sigma * tape(x, kind=Kind.FORWARD)
    for step in purifier.steps:
        state = purifier.solver.step(purifier.denoiser, state, step, tape).x_next
    return state


@pytest.mark.parametrize("route", [StoredState(2), Direct()], ids=str)
def test_resized(route: GradientRoute) -> None:
    purifier = Resized(purifier_of("Ancestral", "toward", gradient=route), size=6)
    x = rand(1, 1, 4, 4, seed=1)
    _, gradient = value_and_gradient(purifier, x)
    torch.testing.assert_close(gradient, numerical(purifier, x), rtol=0, atol=1e-7)


def test_clipped_denoiser_and_clamped_exit_have_no_gradient_where_they_act() -> None:
    purifier = purifier_of("Ancestral")
    inner = purifier.with_(denoiser=Clipped(purifier.denoiser), clamp=True)
    out, stored = value_and_gradient(inner)
    _, direct = value_and_gradient(inner.with_(gradient=Direct()))
    torch.testing.assert_close(stored, direct, rtol=0, atol=1e-12)
    torch.testing.assert_close(stored, numerical(inner), rtol=0, atol=1e-7)
    assert 0 < int(((out == 0) | (out == 1)).sum()) < out.numel(), "the clamp must act somewhere, not everywhere"


@pytest.mark.parametrize("guided", ["unguided", "toward"])
@pytest.mark.parametrize("rule", [Single(), MeanProb(1), MeanProb(3)], ids=str)
def test_defence(rule, guided: str) -> None:
    purifier = purifier_of("EulerMaruyamaVP", guided)
    weights = randn(1, 3, seed=5)
    stored = Defence(purifier, TanhClassifier(16), rule=rule)
    direct = stored.with_(gradient=Direct())
    _, gradient = value_and_gradient(stored, v=weights)
    _, other = value_and_gradient(direct, v=weights)
    assert float(gradient.abs().max()) > 1e-3
    torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, numerical(stored, v=weights), rtol=0, atol=1e-7)


def test_the_gradient_of_a_vote_is_that_of_the_mean() -> None:
    mean = Defence(purifier_of("Ancestral"), TanhClassifier(16), rule=MeanProb(3))
    weights = randn(1, 3, seed=5)
    _, expected = value_and_gradient(mean, v=weights)
    value, gradient = value_and_gradient(mean.with_(rule=Vote(3)), v=weights)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(value, mean(X, NOISE)), "the value is that of the vote"


def test_edm_clock_in_one_step() -> None:
    """One Euler step from sigma to 0 is the denoiser itself, and so is its gradient."""
    purifier = Purifier(tanh_edm(), steps=steps_at(EDM(), [0.7, 0.0]), solver=Euler())
    leaf = X.clone().requires_grad_()
    expected = (tanh_edm()(2 * leaf - 1 + 0.7 * NOISE(X, kind=Kind.FORWARD), 0.7) + 1) / 2
    (by_hand,) = torch.autograd.grad((expected * V).sum(), leaf)
    out, gradient = value_and_gradient(purifier)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-13)


# --- BPDA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(("solver", "guided"), [("EulerMaruyamaVP", "unguided"), ("Ancestral", "toward from noise")])
def test_straight_through_is_the_identity_times_the_exit_scale(solver: str, guided: str, rounds: int) -> None:
    purifier = purifier_of(solver, guided, rounds=rounds)
    exact, _ = value_and_gradient(purifier)
    out, gradient = value_and_gradient(purifier.with_(gradient=StraightThrough()))
    assert torch.equal(out, exact), "the value is not changed by the route"
    torch.testing.assert_close(gradient, purifier.steps[-1].scale_next * V, rtol=0, atol=1e-15)


def test_straight_through_keeps_the_jacobian_of_resizing_and_classifier() -> None:
    inner = purifier_of("Ancestral", gradient=StraightThrough())
    x, v = rand(1, 1, 4, 4, seed=1), randn(1, 1, 4, 4, seed=2)
    _, gradient = value_and_gradient(Resized(inner, size=7), x, v)

    def there_and_back(t: Tensor) -> Tensor:
        up = nn.functional.interpolate(t, size=(7, 7), mode="bilinear", align_corners=False)
        return nn.functional.interpolate(up, size=(4, 4), mode="bilinear", align_corners=False)

    expected = torch.autograd.functional.vjp(there_and_back, x, v)[1]
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-14)
    classifier, weights = TanhClassifier(16), randn(1, 3, seed=5)
    _, through = value_and_gradient(Defence(inner, classifier), v=weights)
    purified = inner(X, NOISE)
    expected = torch.autograd.functional.vjp(classifier, purified, weights)[1]
    torch.testing.assert_close(through, expected, rtol=0, atol=1e-14)


# --- the machinery ----------------------------------------------------------------------------------------------------


def test_backward_calls_and_repeated_gradients() -> None:
    """`loss.backward()` accumulates as for any module, and the graph can be kept."""
    purifier = purifier_of("Heun", "toward")
    _, expected = value_and_gradient(purifier)
    x = X.clone().requires_grad_()
    loss = (purifier(x, NOISE) * V).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("route", [StoredState(), StoredState(2), Direct()], ids=str)
def test_network_calls_per_step(route: GradientRoute) -> None:
    """One call a step forward, one more a step for StoredState's way back; Heun takes two but for the clean end."""
    counts: list[float] = []
    inner = tanh_eps()

    def counting(x: Tensor, sigma: float) -> Tensor:
        counts.append(sigma)
        return inner(x, sigma)

    purifier = Purifier(counting, steps=CLEAN, solver=Ancestral(), gradient=route)
    levels = [s.sigma for s in CLEAN]
    value_and_gradient(purifier)
    back = [] if isinstance(route, Direct) else levels
    assert sorted(counts) == sorted(levels + back)
    counts.clear()
    purifier(X, NOISE)
    assert counts == levels
    counts.clear()
    purifier.with_(solver=Heun())(X, NOISE)
    assert len(counts) == 2 * len(levels) - 1
