"""Routes that are not exact on purpose: each is the derivative of something that can be written down."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks import coordinate_error, largest
from depura._check import InputError
from depura.defence import Defence
from depura.diffusion.denoisers import Clipped
from depura.diffusion.guidance import State, minus_gradient
from depura.diffusion.solvers import Ancestral, DpmSolverPP, from_noise
from depura.gradients import Adjoint, Deviated, Direct, GradientRoute, Grafted, Relaxed, StoredState, StraightThrough
from depura.noise import Noise
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import GradientMode
from toys import (
    CLEAN,
    NOISE,
    SOLVERS,
    STEPS,
    TanhClassifier,
    Toward,
    V,
    X,
    numerical,
    purifier_of,
    rand,
    randn,
    tanh_eps,
    value_and_gradient,
)

# --- BPDA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(
    ("solver", "guided"),
    [("EulerMaruyamaVP", "unguided"), ("Ancestral", "toward from noise"), ("DpmSolverPP", "toward")],
)
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


@pytest.mark.parametrize("route", [StraightThrough(), Relaxed(), Relaxed(inner=Direct())], ids=str)
def test_a_clamped_exit_lets_the_gradient_through(route: GradientRoute) -> None:
    """The same gradient with the clamp as without it, whose exact derivative is zero where it acts."""
    purifier = purifier_of("Ancestral", gradient=route)
    free, clamped = value_and_gradient(purifier), value_and_gradient(purifier.with_(clamp=True))
    assert torch.equal(clamped[0], free[0].clamp(0, 1))
    assert 0 < int((clamped[0] != free[0]).sum()) < X.numel()
    assert torch.equal(clamped[1], free[1])
    exact = [value_and_gradient(purifier.with_(clamp=c, gradient=StoredState(1)))[1] for c in (False, True)]
    assert largest(*exact) > 1e-3


# --- Adjoint ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"solver": SOLVERS["Heun"][0]}, "Adjoint: expected an unguided reverse process"),
        ({"solver": Ancestral()}, "Adjoint: expected an unguided reverse process"),
        ({"solver": DpmSolverPP()}, "Adjoint: expected an unguided reverse process"),
        ({"guidance": Toward()}, "Adjoint: expected an unguided reverse process"),
        ({"steps": CLEAN}, "Adjoint: expected steps that end above noise level 0"),
    ],
)
def test_walks_without_an_adjoint_are_refused(parts: dict, message: str) -> None:
    purifier = purifier_of("EulerMaruyamaVP", gradient=Adjoint(), **parts)
    with pytest.raises(InputError, match=message):
        purifier(X.clone().requires_grad_(), NOISE)
    purifier(X, NOISE)  # without a gradient there is nothing to refuse


def test_adjoint_of_a_linear_drift_in_closed_form() -> None:
    """One Euler step of dx/dsigma = (x - D) / sigma for D = g(sigma) x: the adjoint multiplies by the late slope.

    a (1 + (sigma - sigma') (-1) (1 - g') / sigma'), where the exact derivative has g and sigma instead.
    """
    (step,) = STEPS[:1]

    def linear(x: Tensor, sigma: float) -> Tensor:
        return x / (1 + sigma**2)

    purifier = DiffusionPurifier(linear, steps=(step,), solver=SOLVERS["Euler"][0], gradient=Adjoint())
    _, gradient = value_and_gradient(purifier)
    late, early = (s / (1 + s**2) for s in (step.sigma_next, step.sigma))
    length = step.sigma_next - step.sigma
    assert largest(gradient, step.scale_next * (1 + length * late) * V) <= 1e-12
    _, exact = value_and_gradient(purifier.with_(gradient=StoredState(1)))
    assert largest(exact, step.scale_next * (1 + length * early) * V) <= 1e-12


# --- Relaxed ----------------------------------------------------------------------------------------------------------

TAU = 0.3


class Hard:
    """The pieces whose derivative is zero almost everywhere, each as a part of a walk."""

    @staticmethod
    def sign(at: State) -> Tensor:
        return -0.3 * torch.sign(at.x0 - at.x_in)

    @staticmethod
    def sign_in_place(at: State) -> Tensor:
        return -0.3 * (at.x0 - at.x_in).sign_()

    @staticmethod
    def l1_in_place(at: State) -> Tensor:
        return 0.3 * minus_gradient((at.x0 - at.x_in).abs_().flatten(1).sum(1), at.x)

    @staticmethod
    def l1(at: State) -> Tensor:
        return 0.3 * minus_gradient((at.x0 - at.x_in).abs().flatten(1).sum(1), at.x)

    @staticmethod
    def l1_loss(at: State) -> Tensor:
        return 0.3 * minus_gradient(F.l1_loss(at.x0, at.x_in, reduction="none").flatten(1).sum(1), at.x)

    @staticmethod
    def l1_norm(at: State) -> Tensor:
        return 0.3 * minus_gradient(torch.linalg.vector_norm(at.x0 - at.x_in, 1, dim=(1, 2, 3)), at.x)


class Smooth:
    """The same guidance with tanh(z / tau) for sign(z), shifted by constants to the same values at one walk.

    Its ordinary derivative there is what `Relaxed` promises.
    """

    def __init__(self, walk: DiffusionPurifier, noise: Noise) -> None:
        x_in = 2 * X - 1
        self.centres = {moment.step.index: moment.x0 - x_in for moment in walk.trajectory(X, noise)}

    def shift(self, at: State) -> Tensor:
        z = self.centres[at.step.index]
        return torch.sign(z) - torch.tanh(z / TAU)

    def sign(self, at: State) -> Tensor:
        return -0.3 * (torch.tanh((at.x0 - at.x_in) / TAU) + self.shift(at))

    def l1(self, at: State) -> Tensor:
        z = at.x0 - at.x_in
        distance = TAU * torch.log(torch.cosh(z / TAU)) + self.shift(at) * z
        return 0.3 * minus_gradient(distance.flatten(1).sum(1), at.x)


@pytest.mark.parametrize("start", ["from input", "from noise"])
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP"])
@pytest.mark.parametrize(
    ("hard", "smooth"),
    [
        (Hard.sign, "sign"),
        (Hard.sign_in_place, "sign"),
        (Hard.l1, "l1"),
        (Hard.l1_in_place, "l1"),
        (Hard.l1_loss, "l1"),
        (Hard.l1_norm, "l1"),
    ],
)
def test_relaxed_sign_is_the_derivative_of_the_smooth_program(hard, smooth: str, solver: str, start: str) -> None:
    """Over a whole walk: values of the hard program bit for bit, gradient of the smooth one by differences."""
    parts = {"start": from_noise} if start == "from noise" else {}
    purifier = purifier_of(solver, guidance=hard, gradient=StoredState(1), **parts)
    out, exact = value_and_gradient(purifier)
    program = purifier.with_(guidance=getattr(Smooth(purifier, NOISE), smooth))
    assert largest(program(X, NOISE), out) <= 1e-12, "the smooth program passes through the same walk"
    truth = numerical(program)
    for inner in (StoredState(1), StoredState(budget=10**9), StoredState(3), Direct()):
        same, relaxed = value_and_gradient(purifier.with_(gradient=Relaxed(TAU, inner)))
        assert torch.equal(same, out)
        assert largest(relaxed, truth) <= 1e-7
    assert largest(exact, truth) > 1e-2


def halves(x: Tensor) -> Tensor:
    return torch.round(2 * x) / 2


def floored_in_place(x: Tensor) -> Tensor:
    return (2 * x).add_(0.5).floor_() / 2


def clamped(x: Tensor) -> Tensor:
    return x.clamp(-0.2, 0.2)


def pushed(at: State) -> Tensor:
    """Guidance that is no gradient itself."""
    return -0.2 * torch.tanh(at.x0 - at.x_in)


@pytest.mark.parametrize("hard", [halves, floored_in_place, clamped])
def test_relaxed_rounding_and_clamps_let_the_gradient_through(hard: Callable[[Tensor], Tensor]) -> None:
    """In the denoiser: the derivative of the denoiser without them, at the states of the walk with them."""
    inner = tanh_eps()
    purifier = purifier_of("Ancestral", denoiser=lambda x, sigma: hard(inner(x, sigma)), guidance=pushed)
    walk = list(purifier.trajectory(X, NOISE))
    offsets = {moment.step.sigma: moment.x0 - inner(moment.x, moment.step.sigma) for moment in walk}
    program = purifier.with_(denoiser=lambda x, sigma: inner(x, sigma) + offsets[sigma])
    out, exact = value_and_gradient(purifier.with_(gradient=StoredState(1)))
    same, relaxed = value_and_gradient(purifier.with_(gradient=Relaxed(TAU)))
    assert torch.equal(same, out)
    assert largest(relaxed, value_and_gradient(program)[1]) <= 1e-12
    assert coordinate_error(program) <= 1e-7
    assert largest(relaxed, exact) > 1e-3


@pytest.mark.parametrize("hard", [halves, clamped])
@pytest.mark.parametrize("inner", [StoredState(1), StoredState(budget=10**9), Direct()], ids=str)
def test_relaxed_leaves_a_gradient_inside_the_walk_as_it_is(inner: GradientRoute, hard) -> None:
    """Guidance by a gradient through such a denoiser: zero where that is flat, so its value may not be relaxed.

    By hand: -0.3 J^T (flat * g), g the gradient of the distance, with the mask a constant of the walk.
    """
    network = tanh_eps()
    purifier = purifier_of("Ancestral", "toward", denoiser=lambda x, sigma: hard(network(x, sigma)))
    walk = list(purifier.trajectory(X, NOISE))
    free = {moment.step.sigma: network(moment.x, moment.step.sigma) for moment in walk}
    offsets = {moment.step.sigma: moment.x0 - free[moment.step.sigma] for moment in walk}
    steep = {
        sigma: (x0.abs() < 0.2).double() if hard is clamped else torch.zeros_like(x0) for sigma, x0 in free.items()
    }

    def toward(at: State) -> Tensor:
        z = at.x0 - at.x_in
        weights = steep[at.step.sigma] * z / torch.sqrt(0.1 + z.square())
        return -0.3 * torch.autograd.grad(at.x0, at.x, weights, create_graph=True)[0]

    program = purifier.with_(denoiser=lambda x, sigma: network(x, sigma) + offsets[sigma], guidance=toward)
    out, _ = value_and_gradient(purifier.with_(gradient=StoredState(1)))
    same, relaxed = value_and_gradient(purifier.with_(gradient=Relaxed(TAU, inner)))
    assert torch.equal(same, out)
    assert largest(program(X, NOISE), out) <= 1e-12
    assert largest(relaxed, value_and_gradient(program)[1]) <= 1e-12


def test_relaxed_leaves_an_unrecorded_gradient_inside_the_walk_as_it_is() -> None:
    """Guidance written without create_graph."""

    def careless(at: State) -> Tensor:
        (gradient,) = torch.autograd.grad(
            at.x0.sign().square().sum() + at.x0.clamp(-0.2, 0.2).sum(), at.x, retain_graph=True
        )
        return -0.3 * gradient

    purifier = purifier_of("Ancestral", guidance=careless)
    assert torch.equal(purifier(X, NOISE), purifier.with_(gradient=Relaxed(TAU))(X, NOISE))


def test_relaxed_is_exact_for_a_smooth_walk() -> None:
    for guided in ("unguided", "toward noised"):
        purifier = purifier_of("Heun", guided, gradient=StoredState(1), rounds=2)
        assert torch.equal(value_and_gradient(purifier)[1], value_and_gradient(purifier.with_(gradient=Relaxed()))[1])


def test_relaxed_ends_with_the_step() -> None:
    """Outside the purifier, and after it, sign and clamp have their own derivatives."""
    purifier = purifier_of("Ancestral", guidance=Hard.l1, gradient=Relaxed(TAU))
    x = X.clone().requires_grad_()
    torch.sign(purifier(x, NOISE)).sum().backward()
    assert float(x.grad.abs().max()) == 0
    clipped = purifier.with_(denoiser=Clipped(purifier.denoiser))
    assert largest(value_and_gradient(clipped)[1], value_and_gradient(purifier)[1]) > 1e-3


# --- Grafted ----------------------------------------------------------------------------------------------------------


def rows_of(images: tuple[int, ...]) -> tuple[Tensor, Noise, Tensor]:
    """Rows of several images, one draw each, with cotangents of their own."""
    stock = {3: rand(1, 4, 4, seed=1), 9: rand(1, 4, 4, seed=2)}
    noise = Noise(7, images=images, draws=tuple(range(len(images))))
    return torch.stack([stock[i] for i in images]), noise, randn(len(images), 1, 4, 4, seed=61)


@pytest.mark.parametrize("inner", [StoredState(), StoredState(1), Direct()], ids=str)
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("guided", ["unguided", "toward", "toward noised"])
def test_grafted_with_one_draw_per_image_is_exact(guided: str, rounds: int, inner: GradientRoute) -> None:
    x, noise, v = rows_of((3, 9))
    purifier = purifier_of("EulerMaruyamaVP", guided, gradient=inner, rounds=rounds)
    out, exact = value_and_gradient(purifier, x, v, noise)
    same, grafted = value_and_gradient(purifier.with_(gradient=Grafted(inner)), x, v, noise)
    assert torch.equal(same, out)
    assert largest(grafted, exact) <= 1e-12


@pytest.mark.parametrize("images", [(3, 3, 3, 9, 9, 9), (9, 3, 3, 9, 3, 9)])
@pytest.mark.parametrize(
    ("solver", "guided"),
    [*(("EulerMaruyamaVP", name) for name in ("unguided", "toward", "toward noised")), ("DpmSolverPP", "toward")],
)
def test_grafted_by_hand(solver: str, guided: str, images: tuple[int, ...]) -> None:
    """Each image: the sum of its rows' cotangents through the Jacobian of its first row, in equal shares."""
    x, noise, v = rows_of(images)
    purifier = purifier_of(solver, guided, gradient=Direct())
    out, exact = value_and_gradient(purifier, x, v, noise)
    same, grafted = value_and_gradient(purifier.with_(gradient=Grafted()), x, v, noise)
    assert torch.equal(same, out)
    for image in (3, 9):
        rows = [row for row, other in enumerate(images) if other == image]
        first = rows[:1]
        jacobian = torch.autograd.functional.jacobian(lambda t: purifier(t, noise.take(first)), x[first])  # noqa: B023
        expected = torch.einsum("i,ij->j", v[rows].sum(0).flatten(), jacobian.reshape(16, 16)).reshape(1, 4, 4)
        assert largest(grafted[rows].sum(0), expected) <= 1e-12
        for row in rows:
            assert largest(grafted[row], expected / 3) <= 1e-12
    assert largest(grafted, exact) > 1e-2


def test_grafted_costs_one_gradient_for_all_draws() -> None:
    """N S evaluations forward and S (and S more to recompute) through the first."""
    counts = {True: 0, False: 0}
    inner = tanh_eps()

    def counting(x: Tensor, sigma: float) -> Tensor:
        counts[torch.is_grad_enabled() and x.requires_grad] += len(x)
        return inner(x, sigma)

    x, noise, v = rows_of((3, 3, 3, 9, 9, 9))
    value_and_gradient(purifier_of("Ancestral", denoiser=counting, gradient=Grafted(StoredState(1))), x, v, noise)
    assert counts == {False: (6 + 2) * 4, True: 2 * 4}


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "mode"),
    [
        (Direct(), GradientMode.EXACT),
        (StoredState(), GradientMode.EXACT),
        (StraightThrough(), GradientMode.BPDA),
        (Adjoint(), GradientMode.ADJOINT),
        (Grafted(), GradientMode.GRAFTED),
        (Relaxed(), GradientMode.RELAXED),
        (Deviated(), GradientMode.DEVIATED),
    ],
)
def test_modes_and_values(route: GradientRoute, mode: GradientMode) -> None:
    """Every route says what it is, gives one and the same value, and leaves no graph where none is asked for."""
    purifier = purifier_of("EulerMaruyamaVP", rounds=2, clamp=True)
    other = Defence(purifier, TanhClassifier(16)).with_(gradient=route)
    assert (route.mode, other.mode) == (mode, mode)
    with torch.no_grad():
        expected = purifier(X, NOISE)
    assert torch.equal(value_and_gradient(other.purifier)[0], expected)
    assert torch.equal(other.purifier(X, NOISE), expected)
    assert not other.purifier(X, NOISE).requires_grad


@pytest.mark.parametrize("route", [StoredState(), StoredState(1), Adjoint(), Grafted(), Relaxed()], ids=str)
def test_second_derivatives_are_refused(route: GradientRoute) -> None:
    x = X.clone().requires_grad_()
    out = purifier_of("EulerMaruyamaVP", gradient=route)(x, NOISE)
    with pytest.raises(NotImplementedError, match="Second derivatives need the route Direct"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)
