"""Starts, rounds, ranges and composition, against the walk written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from depura.defence import Defence
from depura.diffusion.exact import GaussianDenoiser
from depura.diffusion.schedules import EDM, VP, DiscreteLinear, steps_at, uniform_steps
from depura.diffusion.solvers import (
    Ancestral,
    Euler,
    EulerMaruyamaVP,
    FromInputAround,
    FromInputUnder,
    Heun,
    Solver,
    from_input,
    from_noise,
)
from depura.gradients import StoredState
from depura.methods.diffpure import CIFAR10_L2, CIFAR10_LINF, CIFAR10_RESNET50, IMAGENET, diffpure, released_start
from depura.methods.diffpure_ddpm import CELEBA, diffpure_ddpm
from depura.noise import Kind, Noise
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import DiffusionPurifier
from toys import STEPS, TanhClassifier, rand, tanh_edm

NOISE = Noise(3, images=(4, 9))
X = rand(2, 1, 4, 4)
MEAN, STD = torch.full((1, 4, 4), 0.2, dtype=torch.float64), torch.full((1, 4, 4), 0.5, dtype=torch.float64)


def test_ranges_change_once_each_way() -> None:
    """Without noise and with an exact denoiser of a point, the result is that point, from [-1, 1] to [0, 1]."""

    def point(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.full_like(x, 0.5)

    seen: list[torch.Tensor] = []

    def start(x_in: torch.Tensor, step, noise) -> torch.Tensor:
        seen.append(x_in)
        return x_in

    steps = steps_at(EDM(), [1.0, 0.0])
    out = DiffusionPurifier(point, steps=steps, solver=Euler(), start=start)(X, NOISE)
    torch.testing.assert_close(out, torch.full_like(X, 0.75))
    torch.testing.assert_close(seen[0], 2 * X - 1)


def test_starts() -> None:
    step = steps_at(VP(), [0.3, 0.1])[0]
    n = NOISE(X, kind=Kind.FORWARD)
    sigma = math.sqrt(math.expm1(9.95 * 0.09 + 0.03))
    torch.testing.assert_close(from_input(X, step, NOISE), X + sigma * n, rtol=0, atol=1e-13)
    torch.testing.assert_close(from_noise(X, step, NOISE), sigma * n, rtol=0, atol=1e-13)
    abar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(300))
    x_t = math.sqrt(abar) * X + math.sqrt(1 - abar) * n
    expected = x_t * math.sqrt(1 + sigma**2)
    for start in (FromInputUnder(DiscreteLinear(), 299.0), released_start(0.3)):
        torch.testing.assert_close(start(X, step, NOISE), expected, rtol=0, atol=1e-13)


def test_one_round_by_hand() -> None:
    """One Euler step on a Gaussian to sigma' > 0, with the exit in the schedule's scale."""
    schedule = VP()
    purifier = DiffusionPurifier(GaussianDenoiser(MEAN, STD), steps=steps_at(schedule, [0.3, 0.1]), solver=Euler())
    a, b = schedule.sigma(0.3), schedule.sigma(0.1)
    x = 2 * X - 1 + a * NOISE(X, kind=Kind.FORWARD)
    x0 = 0.2 + 0.25 / (0.25 + a**2) * (x - 0.2)
    expected = (math.exp(-0.5 * (9.95 * 0.01 + 0.01)) * (x0 + b / a * (x - x0)) + 1) / 2
    torch.testing.assert_close(purifier(X, NOISE), expected, rtol=0, atol=1e-13)


def test_guidance_is_added_after_the_step_and_sees_the_state() -> None:
    seen = []

    def push(at):
        seen.append(at)
        return torch.full_like(at.x, 0.25)

    steps = steps_at(EDM(), [1.0, 0.5])
    plain = DiffusionPurifier(GaussianDenoiser(MEAN, STD), steps=steps, solver=Euler())
    pushed = plain.with_(guidance=push)
    torch.testing.assert_close(pushed(X, NOISE), plain(X, NOISE) + 0.125, rtol=0, atol=1e-14)
    (at,) = seen
    x = 2 * X - 1 + NOISE(X, kind=Kind.FORWARD)
    torch.testing.assert_close(at.x, x)
    torch.testing.assert_close(at.x0, 0.2 + 0.25 / 1.25 * (x - 0.2))
    torch.testing.assert_close(at.x_in, 2 * X - 1)
    assert at.x.requires_grad, "so that pull works in every grad mode"
    assert (at.step, at.noise) == (steps[0], NOISE)


def test_each_round_has_noise_of_its_own_and_the_first_input_as_reference() -> None:
    seen = []

    def watch(at):
        seen.append((at.noise.round, at.x_in))
        return torch.zeros_like(at.x)

    steps = steps_at(EDM(), [1.0, 0.5, 0.0])
    DiffusionPurifier(GaussianDenoiser(MEAN, STD), steps=steps, solver=Ancestral(), rounds=3, guidance=watch)(X, NOISE)
    assert [number for number, _ in seen] == [0, 0, 1, 1, 2, 2]
    for _, x_in in seen:
        torch.testing.assert_close(x_in, 2 * X - 1)


def test_clamp() -> None:
    steps = steps_at(EDM(), [2.0, 1.5])
    raw = DiffusionPurifier(GaussianDenoiser(MEAN, STD), steps=steps, solver=Euler())(X, NOISE)
    clamped = DiffusionPurifier(GaussianDenoiser(MEAN, STD), steps=steps, solver=Euler(), clamp=True)(X, NOISE)
    assert float(raw.min()) < 0
    assert float(raw.max()) > 1
    assert torch.equal(clamped, raw.clamp(0, 1))


def test_resized_is_bilinear_both_ways() -> None:
    purifier = DiffusionPurifier(tanh_edm(), steps=steps_at(EDM(), [0.5, 0.0]), solver=Euler(), image_shape=(1, 6, 6))
    images = rand(2, 1, 4, 5)
    up = torch.nn.functional.interpolate(images, size=(6, 6), mode="bilinear", align_corners=False)
    down = torch.nn.functional.interpolate(purifier(up, NOISE), size=(4, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(Resized(purifier, size=6)(images, NOISE), down)


def test_defence_is_purifier_then_classifier() -> None:
    purifier = DiffusionPurifier(tanh_edm(), steps=steps_at(EDM(), [0.5, 0.0]), solver=Euler())
    classifier = TanhClassifier(16)
    torch.testing.assert_close(Defence(purifier, classifier)(X, NOISE), classifier(purifier(X, NOISE)))
    torch.testing.assert_close(Defence(None, classifier)(X), classifier(X))
    torch.testing.assert_close(Defence(None, lambda x: classifier(x))(X, NOISE), classifier(X))
    assert next(Defence(None, lambda x: x.flatten(1)).parameters()).device == X.device, "attack libraries ask for it"


def test_defaults_and_description() -> None:
    steps = uniform_steps(VP(), t_start=0.1, n_steps=5)
    purifier = DiffusionPurifier(tanh_edm(), steps=steps, solver=Euler())
    assert purifier.gradient == StoredState()
    assert (purifier.rounds, purifier.clamp, purifier.guidance) == (1, False, None)
    text = repr(purifier)
    for part in ("steps=5", "solver=Euler()", "gradient=StoredState(segment=None", "rounds=1", "guidance=None"):
        assert part in text


@pytest.mark.parametrize(
    ("preset", "t_star", "n"), [(CIFAR10_LINF, 0.1, 100), (CIFAR10_L2, 0.075, 75), (CIFAR10_RESNET50, 0.125, 125)]
)
def test_published_settings_of_cifar10(preset, t_star: float, n: int) -> None:
    purifier = preset.purifier(lambda x, sigma: x)
    assert len(purifier.steps) == preset.n_steps == n
    assert purifier.solver == EulerMaruyamaVP()
    assert purifier.steps[0].t == t_star
    assert purifier.steps[-1].t_next == 1e-5
    assert purifier.steps[0].label == pytest.approx(999 * t_star, rel=1e-10)
    assert purifier.steps == diffpure(lambda x, sigma: x, t_star=t_star, n_steps=n, label=preset.label).steps


def test_published_settings_of_large_images() -> None:
    imagenet = IMAGENET.purifier(lambda x, sigma: x)
    assert isinstance(imagenet, Resized)
    assert (imagenet.size, len(imagenet.purifier.steps), imagenet.purifier.steps[0].t) == (256, 150, 0.15)
    celeba = CELEBA.purifier(lambda x, sigma: x)
    assert celeba.solver == Ancestral()
    assert [s.t for s in celeba.steps] == list(range(499, -1, -1))
    assert celeba.steps == diffpure_ddpm(lambda x, sigma: x, n_noise=500).steps
    assert len(diffpure_ddpm(lambda x, sigma: x, n_noise=500, n_steps=20).steps) == 20


def test_released_random_noising_varies_the_level_only_on_the_way_in() -> None:
    """Thirty indices around 100, equally likely; the walk back starts where it always does."""
    n = 6000
    schedule, step = DiscreteLinear(), STEPS[0]
    noise = Noise(0, tuple(range(n)))
    x_in = torch.full((n, 1, 1, 2), 0.4, dtype=torch.float64)
    first = FromInputAround(100)(x_in, step, noise)
    fresh = noise(x_in, kind=Kind.FORWARD)
    levels = torch.tensor(
        [[schedule.scale(float(i)), schedule.sigma(float(i))] for i in range(85, 115)], dtype=torch.float64
    )
    scale, sigma = levels.T[:, :, None, None, None, None]
    candidates = scale * (x_in + sigma * fresh) / step.scale
    matches = (candidates - first).abs().amax((2, 3, 4)) < 1e-6
    assert bool((matches.sum(0) == 1).all())
    share = matches.double().mean(1)
    assert float((share - 1 / 30).abs().max()) < 4 * (29 / 900 / n) ** 0.5
    assert torch.equal(FromInputAround(100)(x_in[5:7], step, noise.take([5, 6])), first[5:7])


@pytest.mark.parametrize("solver", [Euler(), Ancestral(), Heun()], ids=["euler", "ancestral", "heun"])
def test_a_denoiser_of_another_dtype_does_not_change_the_states(solver: Solver) -> None:
    """What a network in half precision gives is rounded once, and the walk goes on in the dtype of the images."""
    images, noise = rand(2, 3, 4, 4, dtype=torch.float32), Noise(0, (0, 1))
    steps = uniform_steps(VP(), t_start=0.1, n_steps=3)

    def half(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return (x / (1 + sigma**2)).bfloat16()

    def rounded(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return half(x, sigma).float()

    found = DiffusionPurifier(half, steps=steps, solver=solver)(images, noise)
    assert found.dtype == torch.float32
    assert torch.equal(found, DiffusionPurifier(rounded, steps=steps, solver=solver)(images, noise))
