"""Every exact route is the derivative of the program: route x route x finite differences x closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from depura.denoisers import Clipped
from depura.exact import GaussianDenoiser, MixtureDenoiser
from depura.gradients import Direct, GradientRoute, StoredState, StraightThrough
from depura.guidance import State, pull
from depura.noise import Kind, Noise
from depura.purifier import Defence, FromInputUnder, MeanProb, Purifier, Resized, Single, Vote, from_input, from_noise
from depura.schedules import EDM, VP, DiscreteLinear, Step, steps_at, uniform_steps
from depura.solvers import Ancestral, Euler, EulerMaruyama, EulerMaruyamaVP, Heun, Solver
from toys import TanhClassifier, Toward, TowardNoised, difference_quotients, rand, randn, tanh_edm, tanh_eps

STEPS = uniform_steps(VP(), t_start=0.3, n_steps=4, t_end=1e-3)
CLEAN = uniform_steps(VP(), t_start=0.3, n_steps=4)
SOLVERS: dict[str, tuple[Solver, tuple[Step, ...]]] = {
    "Euler": (Euler(), STEPS),
    "Heun": (Heun(), CLEAN),
    "Ancestral": (Ancestral(), CLEAN),
    "Ancestral 0.5": (Ancestral(0.5), STEPS),
    "EulerMaruyama": (EulerMaruyama(), STEPS),
    "EulerMaruyamaVP": (EulerMaruyamaVP(), STEPS),
}
GUIDED = {
    "unguided": (None, from_input),
    "toward": (Toward(), from_input),
    "toward noised": (TowardNoised(), from_input),
    "toward from noise": (Toward(), from_noise),
    "toward, released start": (Toward(), FromInputUnder(DiscreteLinear(), 299.0)),
}
DENOISERS: dict[str, Callable[[], nn.Module]] = {
    "eps": tanh_eps,
    "edm": tanh_edm,
    "mixture": lambda: MixtureDenoiser(0.7 * randn(3, 1, 4, 4, seed=9), std=0.3),
}
ROUTES = [StoredState(1), StoredState(2), StoredState(3), StoredState(100)]
X, V = rand(1, 1, 4, 4, seed=1), randn(1, 1, 4, 4, seed=2)
NOISE = Noise(7, images=(3,))


def purifier_of(solver: str, guided: str = "unguided", denoiser: str = "eps", **changes) -> Purifier:
    guidance, start = GUIDED[guided]
    kernel, steps = SOLVERS[solver]
    parts = {"steps": steps, "solver": kernel, "guidance": guidance, "start": start} | changes
    return Purifier(DENOISERS[denoiser](), **parts)


def value_and_gradient(purifier: Callable, x: Tensor = X, v: Tensor = V, noise: Noise = NOISE) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    out = purifier(leaf, noise)
    (gradient,) = torch.autograd.grad((out * v).sum(), leaf)
    return out.detach(), gradient


def numerical(purifier: Callable, x: Tensor = X, v: Tensor = V, noise: Noise = NOISE) -> Tensor:
    """Per coordinate; all perturbed copies in one batch, with the noise of the one image."""

    def f(batch: Tensor) -> Tensor:
        return (purifier(batch, noise.take([0] * len(batch))) * v).flatten(1).sum(1)

    return difference_quotients(f, x)


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("solver", SOLVERS)
def test_routes_agree_with_each_other_and_with_finite_differences(solver: str, guided: str, denoiser: str) -> None:
    purifier = purifier_of(solver, guided, denoiser)
    out, direct = value_and_gradient(purifier.with_(gradient=Direct()))
    assert float(direct.abs().max()) > 1e-3, "a zero gradient would agree with anything"
    for route in ROUTES:
        same, stored = value_and_gradient(purifier.with_(gradient=route))
        assert torch.equal(same, out)
        torch.testing.assert_close(stored, direct, rtol=0, atol=1e-12)
    torch.testing.assert_close(direct, numerical(purifier), rtol=0, atol=1e-7)


@pytest.mark.parametrize("guided", ["unguided", "toward", "toward noised", "toward from noise"])
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP"])
def test_directional_derivatives_converge(solver: str, guided: str) -> None:
    """Five directions; the error of central differences falls as h^2 before rounding, and reaches 1e-6."""
    purifier = purifier_of(solver, guided, rounds=2)
    _, gradient = value_and_gradient(purifier)
    coarse = fine = 0.0
    for seed in range(5):
        u = randn(1, 1, 4, 4, seed=100 + seed)
        exact, errors = float((gradient * u).sum()), []
        for h in (1e-3, 1e-4, 1e-5, 1e-6):
            with torch.no_grad():
                difference = purifier(X + h * u, NOISE) - purifier(X - h * u, NOISE)
            errors.append(abs(float((difference * V).sum()) / (2 * h) - exact))
        assert min(errors) <= 1e-6 * abs(exact)
        coarse, fine = coarse + errors[0], fine + errors[1]
    assert coarse / 150 <= fine <= coarse / 50, "not second order"


@pytest.mark.parametrize("guided", ["unguided", "toward", "toward from noise"])
@pytest.mark.parametrize("rounds", [2, 3])
def test_several_rounds(rounds: int, guided: str) -> None:
    purifier = purifier_of("Ancestral", guided, rounds=rounds)
    _, direct = value_and_gradient(purifier.with_(gradient=Direct()))
    _, stored = value_and_gradient(purifier.with_(gradient=StoredState(3)))
    torch.testing.assert_close(stored, direct, rtol=0, atol=1e-12)
    torch.testing.assert_close(stored, numerical(purifier), rtol=0, atol=1e-7)


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


# --- linear-Gaussian known answer: the purifier is affine, and its matrix is known ---------------------------------

MEAN, STD = 0.4 * randn(1, 4, 4, seed=11), 0.2 + 0.5 * rand(1, 4, 4, seed=12)


def gain(sigma: float) -> Tensor:
    return STD**2 / (STD**2 + sigma**2)


def factor_and_spread(name: str, step: Step) -> tuple[Tensor, float]:
    """x' - mean = factor (x - mean) + spread z for a Gaussian, from the papers' formulas."""
    a, b = step.sigma, step.sigma_next
    slope, slope_next = a / (STD**2 + a**2), b / (STD**2 + b**2)
    abar, before = 1 / (1 + a**2), 1 / (1 + b**2)
    if name == "Euler":
        return 1 + (b - a) * slope, 0.0
    if name == "Heun":
        euler = 1 + (b - a) * slope
        return (1 + (b - a) / 2 * (slope + slope_next * euler) if b > 0 else euler), 0.0
    if name == "EulerMaruyama":
        return 1 - (a**2 - b**2) / (STD**2 + a**2), math.sqrt(a**2 - b**2)
    if name.startswith("Ancestral"):
        eta = 0.5 if name.endswith("0.5") else 1.0
        u = eta * math.sqrt((1 - before) / (1 - abar) * (1 - abar / before)) / math.sqrt(before)
        return gain(a) + math.sqrt(b**2 - u**2) * slope, u
    rate = (0.1 + 19.9 * step.t) * (step.t - step.t_next)
    ratio = math.exp((-9.95 * step.t**2 - 0.1 * step.t + 9.95 * step.t_next**2 + 0.1 * step.t_next) / 2)
    scale_next = math.exp((-9.95 * step.t_next**2 - 0.1 * step.t_next) / 2)
    # The VP step acts on x_t itself, whose mean is not that of x: add what it does to the mean separately.
    return ratio * ((1 + rate / 2) - rate * (1 + a**2) / (STD**2 + a**2)), math.sqrt(rate) / scale_next


def drift_of_mean(name: str, step: Step) -> Tensor:
    """What a step at x = mean adds to it: 0, but for the VP step, which also grows x_t as a whole."""
    if name != "EulerMaruyamaVP":
        return torch.zeros_like(MEAN)
    rate = (0.1 + 19.9 * step.t) * (step.t - step.t_next)
    ratio = math.exp((-9.95 * step.t**2 - 0.1 * step.t + 9.95 * step.t_next**2 + 0.1 * step.t_next) / 2)
    return (ratio * (1 + rate / 2) - 1) * MEAN


@pytest.mark.parametrize("kappa", [0.0, 0.15])
@pytest.mark.parametrize("start", [from_input, from_noise])
@pytest.mark.parametrize("name", SOLVERS)
def test_linear_gaussian_known_answer(name: str, start, kappa: float) -> None:
    """Guided by kappa pull(|x0 - x_in|^2 / 2), a displacement -kappa gain (x0 - x_in): value and Jacobian."""

    def toward(at: State) -> Tensor:
        return kappa * pull(0.5 * (at.x0 - at.x_in).square().flatten(1).sum(1), at.x)

    solver, steps = SOLVERS[name]
    x = rand(2, 1, 4, 4, seed=1)
    noise = Noise(7, images=(3, 4))
    x_in = 2 * x - 1
    state = steps[0].sigma * noise(x, kind=Kind.FORWARD) + (x_in if start is from_input else 0)
    jacobian = torch.full((1, 4, 4), 1.0 if start is from_input else 0.0, dtype=torch.float64)
    for step in steps:
        factor, spread = factor_and_spread(name, step)
        g = gain(step.sigma)
        x0 = MEAN + g * (state - MEAN)
        moved = MEAN + drift_of_mean(name, step) + factor * (state - MEAN)
        state = moved - kappa * g * (x0 - x_in)
        if spread:
            state = state + spread * noise(x, kind=Kind.REVERSE, step=step.index)
        jacobian = factor * jacobian - kappa * g * (g * jacobian - 1)
    expected = (steps[-1].scale_next * state + 1) / 2
    jacobian = steps[-1].scale_next * jacobian
    guidance = toward if kappa else None
    v = randn(2, 1, 4, 4, seed=3)
    for route in (StoredState(), Direct()):
        purifier = Purifier(
            GaussianDenoiser(MEAN, STD), steps=steps, solver=solver, guidance=guidance, start=start, gradient=route
        )
        if kappa == 0 and start is from_noise and isinstance(route, Direct):
            continue  # no path at all: automatic differentiation has nothing to differentiate
        out, gradient = value_and_gradient(purifier, x, v, noise)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, jacobian * v, rtol=0, atol=1e-12)


# --- BPDA ------------------------------------------------------------------------------------------------------------


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


# --- comparisons notice mistakes -------------------------------------------------------------------------------------


class DetachingDenoiser(nn.Module):
    """A denoiser that cuts the graph: every route through autograd sees the same wrong Jacobian."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return self.inner(x.detach(), sigma)


def test_a_detaching_denoiser_is_noticed_by_finite_differences_only() -> None:
    purifier = purifier_of("Ancestral")
    broken = purifier.with_(denoiser=DetachingDenoiser(purifier.denoiser))
    _, stored = value_and_gradient(broken)
    _, direct = value_and_gradient(broken.with_(gradient=Direct()))
    torch.testing.assert_close(stored, direct, rtol=0, atol=1e-12)
    assert float((stored - numerical(broken)).abs().max()) > 1e-3


def test_a_guidance_that_ignores_the_reference_path_is_noticed() -> None:
    def one_sided(at: State) -> Tensor:
        return Toward()(at._replace(x_in=at.x_in.detach()))

    purifier = purifier_of("Ancestral", "toward")
    _, whole = value_and_gradient(purifier)
    _, part = value_and_gradient(purifier.with_(guidance=one_sided))
    assert float((whole - part).abs().max()) > 1e-3
    torch.testing.assert_close(whole, numerical(purifier), rtol=0, atol=1e-7)


def test_from_noise_without_guidance_has_no_path_and_with_guidance_has_one() -> None:
    unguided = purifier_of("Ancestral", "toward from noise", guidance=None)
    assert not unguided.with_(gradient=Direct())(X.clone().requires_grad_(), NOISE).requires_grad
    _, nothing = value_and_gradient(unguided)
    assert float(nothing.abs().max()) == 0
    _, gradient = value_and_gradient(purifier_of("Ancestral", "toward from noise"))
    assert float(gradient.abs().max()) > 1e-3


# --- the machinery ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", [lambda out: (out * V).sum(), lambda out: out.square().sum()], ids=["linear", "square"]
)
def test_double_backward_is_refused(loss) -> None:
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError):  # noqa: PT012
        (gradient,) = torch.autograd.grad(loss(purifier_of("Ancestral")(x, NOISE)), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), x)
    direct = purifier_of("Ancestral", gradient=Direct())(x, NOISE)
    (gradient,) = torch.autograd.grad(loss(direct), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert float(second.abs().max()) > 1e-6, "Direct is differentiable twice"


@pytest.mark.parametrize(
    "loss", [lambda out: (out * V).sum(), lambda out: out.square().sum()], ids=["linear", "square"]
)
def test_a_gradient_penalty_is_refused_and_not_silently_dropped(loss) -> None:
    """Beside a term that can be differentiated, the penalty would vanish without an error."""
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError):  # noqa: PT012
        (gradient,) = torch.autograd.grad(loss(purifier_of("Ancestral")(x, NOISE)), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum() + x.square().sum(), x)


def test_backward_calls_and_repeated_gradients() -> None:
    """`loss.backward()` accumulates as for any module, and the graph can be kept."""
    purifier = purifier_of("Heun", "toward")
    _, expected = value_and_gradient(purifier)
    x = X.clone().requires_grad_()
    loss = (purifier(x, NOISE) * V).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("route", [StoredState(1), StoredState(2), StoredState(), Direct()], ids=str)
def test_network_calls_per_step(route: GradientRoute) -> None:
    """One call a step forward, one more a step for the way back if no graphs are kept; Heun takes two but for the clean
    end."""
    counts: list[float] = []
    inner = tanh_eps()

    def counting(x: Tensor, sigma: float) -> Tensor:
        counts.append(sigma)
        return inner(x, sigma)

    purifier = Purifier(counting, steps=CLEAN, solver=Ancestral(), gradient=route)
    levels = [s.sigma for s in CLEAN]
    value_and_gradient(purifier)
    back = levels if isinstance(route, StoredState) and route.segment else []
    assert sorted(counts) == sorted(levels + back)
    counts.clear()
    purifier(X, NOISE)
    assert counts == levels
    counts.clear()
    purifier.with_(solver=Heun())(X, NOISE)
    assert len(counts) == 2 * len(levels) - 1


def test_exact_gradient_of_long_walks() -> None:
    """A hundred steps, the published length: stored states against one graph."""
    steps = uniform_steps(VP(), t_start=0.1, n_steps=100, t_end=1e-5)
    purifier = Purifier(tanh_eps(), steps=steps, solver=EulerMaruyamaVP(), guidance=Toward(0.01))
    _, direct = value_and_gradient(purifier.with_(gradient=Direct()))
    for segment in (1, 7, 100):
        _, stored = value_and_gradient(purifier.with_(gradient=StoredState(segment)))
        torch.testing.assert_close(stored, direct, rtol=0, atol=1e-11)


def test_gradient_of_a_batch_over_draws_is_the_mean_of_single_draws() -> None:
    purifier = purifier_of("EulerMaruyamaVP", "toward")
    x = X.clone().requires_grad_()
    out = purifier(x.expand(5, -1, -1, -1), NOISE.expand(range(5)))
    (together,) = torch.autograd.grad((out * V).sum() / 5, x)
    alone = torch.stack([value_and_gradient(purifier, noise=NOISE.draw(k))[1] for k in range(5)])
    torch.testing.assert_close(together, alone.mean(0), rtol=0, atol=1e-13)


def test_edm_clock_in_one_step() -> None:
    """One Euler step from sigma to 0 is the denoiser itself, and so is its gradient."""
    purifier = Purifier(tanh_edm(), steps=steps_at(EDM(), [0.7, 0.0]), solver=Euler())
    leaf = X.clone().requires_grad_()
    expected = (tanh_edm()(2 * leaf - 1 + 0.7 * NOISE(X, kind=Kind.FORWARD), 0.7) + 1) / 2
    (by_hand,) = torch.autograd.grad((expected * V).sum(), leaf)
    out, gradient = value_and_gradient(purifier)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-13)
