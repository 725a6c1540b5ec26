"""The deviated reconstruction in the stored-state sweep, against plain autograd of the sum on the full graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from depura._check import InputError
from depura.defence import Defence
from depura.gradients import Deviated, Direct, Relaxed, StoredState
from depura.methods.likelihood import likelihood
from depura.noise import Noise
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import GradientMode
from toys import NOISES, VS, XS, TanhClassifier, purifier_of, tanh_edm, value_and_gradient

ROUTES = {
    "default": StoredState(),
    "one": StoredState(segment=1),
    "three": StoredState(segment=3),
    "some graphs": StoredState(budget=20_000),
    "all graphs": StoredState(budget=10**9),
    "offloaded": StoredState(segment=2, offload=True),
}
EACH = {None: (0, 1, 2, 3), 1: (3,), 2: (1, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3), 9: (0, 1, 2, 3)}
"""Which of four steps end at a level that counts, by how many levels are asked for."""


def by_autograd(
    purifier: DiffusionPurifier, x: Tensor, v: Tensor, noise: Noise, *, weight: float, counted: Sequence[int]
) -> Tensor:
    """Gradient of (out v).sum() + weight L_dev, L_dev written out in the coordinates of the paper."""
    leaf = x.clone().requires_grad_()
    x_in = 2 * leaf - 1
    image, terms = x_in, []
    for number in range(purifier.rounds):
        drawn = noise.later(number)
        state = purifier.start(image, purifier.steps[0], drawn)
        e = ((state - x_in) / purifier.steps[0].sigma).detach()
        states = (state, *purifier.first(image, drawn)[1:])
        for k, step in enumerate(purifier.steps):
            states, _ = purifier.advance(states, x_in, step, drawn)
            if k in counted:
                abar = 1 / (1 + step.sigma_next**2)
                forth = abar**0.5 * x_in + (1 - abar) ** 0.5 * e
                terms.append((abar**0.5 * states[0] - forth).square().sum() / len(counted))
        image = purifier.steps[-1].scale_next * states[0]
    out = (image + 1) / 2
    if purifier.clamp:
        out = out.clamp(0, 1)
    return torch.autograd.grad((out * v).sum() + weight * torch.stack(terms).sum(), leaf)[0]


def check(purifier: DiffusionPurifier, route: Deviated, counted: Sequence[int] = (0, 1, 2, 3)) -> None:
    value, exact = value_and_gradient(purifier.with_(gradient=Direct()), XS, VS, NOISES)
    out, gradient = value_and_gradient(purifier.with_(gradient=route), XS, VS, NOISES)
    assert torch.equal(out, value), "the value is not changed by the route"
    expected = by_autograd(purifier, XS, VS, NOISES, weight=route.weight, counted=counted)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)
    assert float((expected - exact).norm()) > 0.01 * float(exact.norm()), "the second term must matter"


@pytest.mark.parametrize("inner", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("guided", ["unguided", "toward", "toward noised", "toward from noise"])
def test_in_every_segment_and_budget(guided: str, inner: StoredState) -> None:
    check(purifier_of("Ancestral", guided), Deviated(weight=0.7, inner=inner))


@pytest.mark.parametrize("n_steps", EACH)
def test_levels_are_spread_evenly_and_end_with_the_last(n_steps: int | None) -> None:
    check(purifier_of("EulerMaruyamaVP", "toward"), Deviated(weight=0.7, n_steps=n_steps), EACH[n_steps])


@pytest.mark.parametrize("guided", ["unguided", "toward", "toward, released start"])
@pytest.mark.parametrize("solver", ["Heun", "Ancestral 0.5", "DpmSolverPP, stochastic"])
def test_every_round_has_its_own_term(solver: str, guided: str) -> None:
    check(purifier_of(solver, guided, rounds=3, clamp=True), Deviated(inner=StoredState(segment=2)))


def test_in_other_coordinates_than_the_papers() -> None:
    """A denoiser with scale 1: the distance is taken in variance-preserving coordinates all the same."""
    check(purifier_of("EulerMaruyama", "toward", denoiser=tanh_edm()), Deviated(2.0))


@pytest.mark.parametrize("inner", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("guided", ["unguided", "toward"])
def test_weight_zero_is_the_inner_route_to_the_last_bit(guided: str, inner: StoredState) -> None:
    purifier = purifier_of("Ancestral", guided, rounds=2)
    _, expected = value_and_gradient(purifier.with_(gradient=inner), XS, VS, NOISES)
    _, gradient = value_and_gradient(purifier.with_(gradient=Deviated(0.0, inner=inner)), XS, VS, NOISES)
    assert torch.equal(gradient, expected)


def test_the_inner_route_does_not_change_a_bit() -> None:
    purifier = purifier_of("Ancestral", "toward", rounds=2)
    found = [
        value_and_gradient(purifier.with_(gradient=Deviated(inner=inner)), XS, VS, NOISES)[1]
        for inner in ROUTES.values()
    ]
    assert all(torch.equal(other, found[0]) for other in found)


def test_no_more_denoiser_calls_than_the_inner_route() -> None:
    calls: list[int] = []
    purifier = purifier_of("Ancestral")
    inner = purifier.denoiser

    class Counted(torch.nn.Module):
        def forward(self, x: Tensor, sigma: float) -> Tensor:
            calls.append(len(x))
            return inner(x, sigma)

    counts = []
    for route in (StoredState(segment=1), Deviated(inner=StoredState(segment=1))):
        calls.clear()
        value_and_gradient(purifier.with_(denoiser=Counted(), gradient=route), XS, VS, NOISES)
        counts.append(len(calls))
    assert counts == [8, 8]


def test_rows_do_not_see_each_other() -> None:
    purifier = purifier_of("Ancestral", "toward", gradient=Deviated())
    _, together = value_and_gradient(purifier, XS, VS, NOISES)
    _, alone = value_and_gradient(purifier, XS[2:3], VS[2:3], NOISES.take([2]))
    torch.testing.assert_close(alone, together[2:3], rtol=0, atol=1e-12)


def test_in_a_defence() -> None:
    purifier = purifier_of("Ancestral", "toward")
    defence = Defence(purifier, TanhClassifier(16))
    assert defence.with_(gradient=Deviated()).mode is GradientMode.DEVIATED
    leaf = XS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(defence.with_(gradient=Deviated(0.5))(leaf, NOISES)[:, 0].sum(), leaf)
    with torch.no_grad():
        out = purifier(XS, NOISES)
    out.requires_grad_()
    (v,) = torch.autograd.grad(TanhClassifier(16)(out)[:, 0].sum(), out)
    expected = by_autograd(purifier, XS, v, NOISES, weight=0.5, counted=range(4))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


def test_resized_and_relaxed_around_it() -> None:
    """The term is the inner walk's own: at its size, and with stand-ins that nothing here needs."""
    purifier = purifier_of("Ancestral")
    _, plain = value_and_gradient(purifier.with_(gradient=Deviated()), XS, VS, NOISES)
    _, relaxed = value_and_gradient(purifier.with_(gradient=Relaxed(inner=Deviated())), XS, VS, NOISES)  # type: ignore[arg-type]
    torch.testing.assert_close(relaxed, plain, rtol=0, atol=1e-12)
    _, same_size = value_and_gradient(Resized(purifier.with_(gradient=Deviated()), size=4), XS, VS, NOISES)
    torch.testing.assert_close(same_size, plain, rtol=0, atol=1e-12)


def test_refusals() -> None:
    with pytest.raises(InputError, match="weight"):
        Deviated(-1.0)
    with pytest.raises(InputError, match="n_steps"):
        Deviated(n_steps=0)
    with pytest.raises(InputError, match="from noisy to clean"):
        likelihood(tanh_edm(), n_steps=2, gradient=Deviated())(XS.clone().requires_grad_(), NOISES)
