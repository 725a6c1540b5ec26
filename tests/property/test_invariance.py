"""An image's result and gradient depend on its own address only: not on the batch, grad mode or global state."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depura._check import InputError
from depura.data.digits import load_digits
from depura.defence import Defence, MeanProb, Vote
from depura.diffusion.schedules import VP, karras_steps, uniform_steps
from depura.diffusion.solvers import Ancestral, Euler, EulerMaruyamaVP, Heun, from_noise
from depura.gradients import Direct, StoredState, StraightThrough
from depura.models.digits import digits_classifier, digits_denoiser
from depura.noise import Noise
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import GradientMode
from toys import TanhClassifier, Toward, TowardNoised, randn, tanh_eps

STEPS = uniform_steps(VP(), t_start=0.2, n_steps=4, t_end=1e-5)
DIGITS = load_digits("test")
IDS = DIGITS.ids[:7]
IMAGES = DIGITS.images[:7]
NOISE = Noise(11, images=IDS, draws=tuple(range(7)))
ORDER = [4, 0, 6, 2]
GUIDANCES = {"unguided": None, "toward": Toward(0.1), "toward noised": TowardNoised(0.1)}
ROUTES = [StoredState(), StoredState(3), Direct(), StraightThrough()]
SINGLE = 1e-5
"""Single precision: outputs differ by 5e-7 and gradients (up to 2.3) by 2.4e-6, as measured on these images."""


def digits_purifier(dtype: torch.dtype = torch.float64, **changes) -> DiffusionPurifier:
    parts = {"steps": STEPS, "solver": EulerMaruyamaVP()} | changes
    return DiffusionPurifier(digits_denoiser().to(dtype), **parts)


def run(module: Callable, images: Tensor, noise: Noise, weights: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    out = module(leaf, noise)
    (gradient,) = torch.autograd.grad((out * weights).sum(), leaf)
    return out.detach(), gradient


def compare_batches(module: Callable, images: Tensor, weights: Tensor, tolerance: float) -> None:
    """Together, permuted, and each alone."""
    together = run(module, images, NOISE, weights)
    permuted = run(module, images[ORDER], NOISE.take(ORDER), weights[ORDER])
    for ours, theirs in zip(together, permuted, strict=True):
        torch.testing.assert_close(ours[ORDER], theirs, rtol=0, atol=tolerance)
    for row in (0, 5):
        alone = run(module, images[row : row + 1], NOISE.take([row]), weights[row : row + 1])
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row : row + 1], theirs, rtol=0, atol=tolerance)
    assert float((together[1][0] - together[1][1]).abs().max()) > 1e-2 or isinstance(
        getattr(module, "gradient", None), StraightThrough
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, SINGLE)], ids=str)
@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("guided", GUIDANCES)
def test_batch_and_order(guided: str, route, dtype: torch.dtype, tolerance: float) -> None:
    purifier = digits_purifier(dtype, guidance=GUIDANCES[guided], gradient=route)
    compare_batches(purifier, IMAGES.to(dtype), randn(7, 1, 8, 8, seed=1, dtype=dtype), tolerance)


@pytest.mark.parametrize("solver", [Euler(), Heun(), Ancestral()], ids=str)
def test_batch_and_order_of_other_solvers(solver) -> None:
    purifier = digits_purifier(steps=karras_steps(sigma_max=0.6, n_steps=3), solver=solver, rounds=2)
    compare_batches(purifier, IMAGES.double(), randn(7, 1, 8, 8, seed=1), 1e-12)


@pytest.mark.parametrize("rule", [None, MeanProb(3), Vote(3)], ids=str)
@pytest.mark.parametrize("resized", [False, True])
def test_batch_and_order_of_defences(rule, resized: bool) -> None:
    purifier = digits_purifier(guidance=Toward(0.1))
    defence = Defence(Resized(purifier, size=10) if resized else purifier, digits_classifier().double(), rule=rule)
    compare_batches(defence, IMAGES.double(), randn(7, 10, seed=2), 1e-12)


def test_the_identity_of_an_image_is_its_id_and_not_its_row() -> None:
    purifier = digits_purifier()
    x = IMAGES[:1].double().expand(3, -1, -1, -1)
    same = purifier(x, Noise(1, images=(5, 5, 6)))
    torch.testing.assert_close(same[0], same[1], rtol=0, atol=1e-12)
    assert float((same[0] - same[2]).abs().max()) > 1e-2
    draws = purifier(x, Noise(1, images=(5, 5, 5), draws=(0, 1, 0)))
    assert float((draws[0] - draws[1]).abs().max()) > 1e-2
    torch.testing.assert_close(draws[0], draws[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("guided", [*GUIDANCES, "from noise"])
def test_output_does_not_depend_on_grad_mode(guided: str, route) -> None:
    start = {"start": from_noise, "guidance": Toward()} if guided == "from noise" else {"guidance": GUIDANCES[guided]}
    purifier = digits_purifier(gradient=route, rounds=2, **start)
    x = IMAGES.double()
    plain = purifier(x, NOISE)
    recorded = purifier(x.clone().requires_grad_(), NOISE)
    with torch.no_grad():
        off = purifier(x.clone().requires_grad_(), NOISE)
    assert recorded.requires_grad
    assert not off.requires_grad
    assert not plain.requires_grad, "no input asks for a gradient"
    assert torch.equal(plain, recorded)
    assert torch.equal(plain, off)
    walk = list(purifier.trajectory(x.clone().requires_grad_(), NOISE))
    assert len(walk) == 2 * len(STEPS)
    assert torch.equal((walk[-1].step.scale_next * walk[-1].x_next + 1) / 2, plain)
    assert not any(t.requires_grad for moment in walk for t in (moment.x, moment.x0, moment.x_next))


def test_trajectory_shows_the_walk() -> None:
    purifier = digits_purifier(guidance=Toward(0.1), rounds=2)
    walk = list(purifier.trajectory(IMAGES.double(), NOISE))
    assert [m.round for m in walk] == [0] * 4 + [1] * 4
    assert [m.step for m in walk] == [*STEPS, *STEPS]
    for a, b in itertools.pairwise(walk[:4]):
        assert torch.equal(a.x_next, b.x)
    for m in walk:
        torch.testing.assert_close(m.x0, purifier.denoiser(m.x, m.step.sigma), rtol=0, atol=1e-12)
    resized = Resized(purifier, size=10)
    assert {tuple(m.x.shape) for m in resized.trajectory(IMAGES.double(), NOISE)} == {(7, 1, 10, 10)}


def global_states() -> tuple[bytes, str, str, bool]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr(np.random.get_state()),
        repr(random.getstate()),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_global_generators_are_left_alone(route) -> None:
    defence = Defence(
        digits_purifier(guidance=TowardNoised(), gradient=route), digits_classifier().double(), rule=Vote(2)
    )
    before = global_states()
    run(defence, IMAGES.double(), NOISE, randn(7, 10, seed=2))
    list(defence.purifier.trajectory(IMAGES.double(), NOISE))
    assert global_states() == before


def test_fresh_noise_follows_manual_seed() -> None:
    purifier, x = digits_purifier(), IMAGES.double()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        first, second = purifier(x), purifier(x)
        torch.manual_seed(4)
        again = purifier(x)
        torch.manual_seed(4)
        by_hand = purifier(x, Noise.fresh(7))
    assert torch.equal(first, again)
    assert torch.equal(first, by_hand)
    assert not torch.equal(first, second)


class Fickle(nn.Module):
    """A network that behaves otherwise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        return torch.full_like(x, torch.nan) if self.training else self.weight * torch.tanh(x)


def test_training_mode_does_not_reach_the_parts() -> None:
    purifier = DiffusionPurifier(Fickle(), steps=STEPS, solver=Ancestral())
    classifier = nn.Sequential(Fickle(), nn.Flatten())
    defence = Defence(Resized(purifier, size=8), classifier)
    x = IMAGES.double()
    before = defence(x, NOISE)
    assert bool(before.isfinite().all())
    for module in (defence, purifier, defence.purifier, nn.ModuleList([defence]), nn.Sequential(purifier)):
        module.train()
        assert torch.equal(defence(x, NOISE), before)
        assert not purifier.training
        assert not classifier.training


def test_weights_are_frozen_and_get_no_gradient() -> None:
    purifier = DiffusionPurifier(tanh_eps(), steps=STEPS, solver=Ancestral())
    defence = Defence(purifier, TanhClassifier(64))
    assert not any(p.requires_grad for p in defence.parameters())
    x = IMAGES.double().requires_grad_()
    defence(x, NOISE).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in defence.parameters())


def test_with_shares_weights_and_changes_only_what_it_is_told() -> None:
    purifier = digits_purifier(guidance=Toward(), rounds=2, clamp=True, image_shape=(1, 8, 8), start=from_noise)
    other = purifier.with_(solver=Ancestral(), gradient=Direct())
    assert other.denoiser is purifier.denoiser
    for a, b in zip(purifier.parameters(), other.parameters(), strict=True):
        assert a is b
    assert (other.solver, other.gradient) == (Ancestral(), Direct())
    for name in ("steps", "guidance", "start", "rounds", "clamp", "image_shape"):
        assert getattr(other, name) == getattr(purifier, name), name
    assert (purifier.solver, purifier.gradient) == (EulerMaruyamaVP(), StoredState()), "the original is unchanged"


def test_with_on_resized_and_defence_reaches_the_purifier() -> None:
    classifier = digits_classifier()
    defence = Defence(Resized(digits_purifier(), size=10), classifier, rule=Vote(3))
    other = defence.with_(rounds=2, gradient=StraightThrough())
    assert (other.purifier.size, other.purifier.purifier.rounds) == (10, 2)
    assert (defence.mode, other.mode) == (GradientMode.EXACT, GradientMode.BPDA)
    assert other.rule == Vote(3)
    assert other.classifier is classifier
    assert defence.purifier.purifier.rounds == 1
    bare = defence.with_(purifier=None, rule=None)
    assert bare.mode is GradientMode.EXACT
    torch.testing.assert_close(bare(IMAGES), classifier(IMAGES))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: digits_purifier().with_(step=STEPS),
            r"DiffusionPurifier.with_: expected names among denoiser, steps, .* got step",
        ),
        (lambda: digits_purifier().with_(guide=None, sampler=None), r"DiffusionPurifier.with_: .* got guide, sampler"),
        (lambda: Resized(digits_purifier(), size=8).with_(size=9), r"DiffusionPurifier.with_: .* got size"),
        (
            lambda: Defence(digits_purifier(), TanhClassifier(64)).with_(attack=1),
            r"DiffusionPurifier.with_: .* got attack",
        ),
        (
            lambda: Defence(None, TanhClassifier(64)).with_(steps=STEPS),
            r"Defence.with_: expected .* got steps\. There is no",
        ),
    ],
)
def test_unknown_names_are_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
