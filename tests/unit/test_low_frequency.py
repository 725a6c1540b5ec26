"""Filters against plain loops, the attack against a transcription in numpy, and what a bounded dissimilarity allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

import depura
from attack_contract import EOT, INIT, B, keeps_the_contract
from depura._check import InputError, InputTypeError
from depura.analysis.summary import summarise
from depura.attacks.attack import Attack
from depura.attacks.low_frequency import CENTRE, INSIDE, Filters, LowFrequency, filtered_by
from depura.attacks.perceptual import Perceptual
from depura.attacks.threat import Threat
from depura.defence import Defence
from depura.diffusion.exact import GaussianDenoiser
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.evaluation.runner import run
from depura.evaluation.study import AttackRun, Study
from depura.image_ops import dssim
from depura.noise import Noise
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.directory import RunDirectory
from depura.reports import prose
from toys import rand, randn

SHAPES = [(1, 4, 4), (3, 4, 5), (2, 6, 3)]


# --- a transcription in numpy, image by image -------------------------------------------------------------------------


def structural(a: np.ndarray, b: np.ndarray) -> float:
    """(1 - SSIM) / 2 with an 11 x 11 Gaussian window of 1.5 pixels, zeros outside."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def local(x: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            x = scipy.ndimage.correlate1d(x, window, axis=axis, mode="constant")
        return x

    ma, mb = local(a), local(b)
    va, vb, both = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
    c1, c2 = 1e-4, 9e-4
    return float((1 - ((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()) / 2)


def filtered_by_loops(x: np.ndarray, guide: np.ndarray, own: np.ndarray, colour: float | None) -> np.ndarray:
    """One filter: weights exp(own) times those of the colour, over the neighbours that there are, of sum 1."""
    _, h, w = x.shape
    side = math.isqrt(len(own))
    reach, out = side // 2, np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            total = 0.0
            for a in range(side):
                for b in range(side):
                    r, s = i + a - reach, j + b - reach
                    if 0 <= r < h and 0 <= s < w:
                        weight = math.exp(own[a * side + b, i * w + j])
                        if colour is not None:
                            weight *= math.exp(-((guide[:, i, j] - guide[:, r, s]) ** 2).sum() / (2 * colour**2))
                        total += weight
                        out[:, i, j] += weight * x[:, r, s]
            out[:, i, j] /= total
    return out


def made_by_loops(x: np.ndarray, free: np.ndarray, sides: tuple[int, ...], colour: float | None) -> np.ndarray:
    """The example of one image from its free numbers."""
    n = x.size
    out = (np.tanh(np.arctanh(INSIDE * (2 * x - 1)) + free[:n].reshape(x.shape)) / INSIDE + 1) / 2
    for side in sides:
        count = side**2 * x.shape[1] * x.shape[2]
        out = filtered_by_loops(out, x, free[n : n + count].reshape(side**2, -1), colour)
        n += count
    return out


def attacked_by_loops(
    x: np.ndarray, slope: np.ndarray, attack: LowFrequency, sides: tuple[int, ...]
) -> list[np.ndarray]:
    """Adam on <slope, example> less the weighted excess, its gradient by central differences; all iterates."""
    pixels = x.shape[1] * x.shape[2]
    free = [np.zeros(x.size)]
    for side in sides:
        kernels = np.zeros((side**2, pixels))
        kernels[side**2 // 2] = CENTRE
        free.append(kernels.ravel())
    point = np.concatenate(free)
    rates = np.full(len(point), attack.kernel_rate)
    rates[: x.size] = attack.rate

    def objective(at: np.ndarray) -> float:
        made = made_by_loops(x, at, sides, attack.colour)
        return float((slope * made).sum() - attack.weight * max(0.0, structural(made, x) - attack.ball.eps))

    m, v, made = np.zeros_like(point), np.zeros_like(point), [made_by_loops(x, point, sides, attack.colour)]
    for i in range(attack.n_steps):
        g = np.zeros_like(point)
        for k in range(len(point)):
            step = np.zeros_like(point)
            step[k] = 1e-5
            g[k] = (objective(point + step) - objective(point - step)) / 2e-5
        g /= max(1.0, float(np.linalg.norm(g)))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        point = point + rates * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
        made.append(made_by_loops(x, point, sides, attack.colour))
    return made


class Linear(torch.nn.Module):
    """Logit 1 less logit 0 is <slope, x>, less a bias."""

    def __init__(self, slope: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.slope, self.bias = slope, bias

    def forward(self, images: Tensor) -> Tensor:
        z = (images * self.slope).flatten(1).sum(1) - self.bias
        return torch.stack([torch.zeros_like(z), z], dim=1)


# --- the threat model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_dissimilarity_by_numpy(shape: tuple[int, int, int]) -> None:
    a, b = rand(B, *shape, seed=1), rand(B, *shape, seed=2)
    expected = [structural(*pair) for pair in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(dssim(a, b).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(Perceptual().distance(a.float(), b.float()).numpy(), expected, rtol=1e-6)
    assert float(dssim(a, a).abs().max()) < 1e-12
    assert Perceptual().distance(a.float(), b.float()).dtype == torch.float64


def rms(a: Tensor, b: Tensor) -> Tensor:
    """A measure in which the way inside has a closed form."""
    return (a - b).square().flatten(1).mean(1).sqrt()


def test_the_way_back_in_closed_form() -> None:
    """Of the root mean square of the change the share eps / rms is kept; what is inside is left as it is."""
    origin, x = rand(B, 2, 3, 4, seed=1), rand(B, 2, 3, 4, seed=2)
    x[1] = origin[1] + 1e-3 * (x[1] - origin[1])
    got = Perceptual(0.1, rms).project(x, origin)
    share = (0.1 / rms(x, origin)).clamp(max=1)[:, None, None, None]
    torch.testing.assert_close(got, origin + share * (x - origin), rtol=0, atol=1e-11)
    assert torch.equal(got[1], x[1])
    beyond = Perceptual(0.1, rms).project(x + 3, origin)
    assert torch.equal(beyond, Perceptual(0.1, rms).project(torch.ones_like(x), origin)), "into [0, 1] first"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("method", ["corner", "sample", "project"])
def test_what_is_brought_inside_is_inside(method: str, eps: float, dtype: torch.dtype) -> None:
    threat, origin = Perceptual(eps), rand(B, 3, 6, 5, seed=1).to(dtype)

    def made(rows: list[int]) -> Tensor:
        if method == "project":
            return threat.project(rand(B, 3, 6, 5, seed=2).to(dtype)[rows], origin[rows])
        return getattr(threat, method)(origin[rows], INIT.take(rows), step=2)

    got = made(list(range(B)))
    assert got.dtype == dtype
    assert bool(threat.contains(got, origin).all())
    assert float(threat.distance(got, origin).max()) <= eps + 1e-12, "as the record of a run asks"
    if eps and method != "sample":
        assert float(threat.distance(got, origin).min()) > 0.999 * eps
    torch.testing.assert_close(made([3, 1]), got[[3, 1]], rtol=0, atol=1e-7 if dtype == torch.float32 else 1e-9)
    if eps and method != "project":
        other = getattr(threat, method)(origin, INIT, step=3)
        assert not torch.allclose(other, got)


def test_contains_asks_for_size_and_range() -> None:
    origin, threat = rand(2, 1, 4, 4, seed=1), Perceptual(0.1, rms)
    assert threat.contains(0.8 * origin + 0.1, origin).tolist() == [True, True]
    assert Perceptual(1e-3, rms).contains(0.8 * origin + 0.1, origin).tolist() == [False, False]
    near = origin.clone()
    near[0, 0, 0, 0], origin[0, 0, 0, 0] = -1e-4, 0.0
    near[1, 0, 0, 0], origin[1, 0, 0, 0] = 1 + 1e-4, 1.0
    assert threat.contains(near, origin).tolist() == [False, False]


def test_it_is_a_threat_and_an_attack() -> None:
    threat: Threat = Perceptual(0.1)
    attack: Attack = LowFrequency(Perceptual(0.1))
    assert (threat.norm, attack.ball.eps) == ("perceptual", 0.1)
    assert (depura.Perceptual, depura.LowFrequency, depura.dssim) == (Perceptual, LowFrequency, dssim)
    assert attack.at(0.2).ball == Perceptual(0.2)
    for refused, said in (
        (lambda: Perceptual(-0.1), "units of the measure"),
        (lambda: LowFrequency(rate=0.0), "rate"),
        (lambda: LowFrequency(n_steps=0), "n_steps"),
        (lambda: LowFrequency(kernels=(5, 4)), "odd sides"),
        (lambda: LowFrequency(colour=0.0), "None leaves colours out"),
        (lambda: Perceptual(0.1, lambda a, b: (a - b).abs()).distance(rand(2, 1, 3, 3), rand(2, 1, 3, 3)), "2 numbers"),
    ):
        with pytest.raises(InputError, match=said):
            refused()
    with pytest.raises(InputTypeError, match="measure"):
        Perceptual(0.1, "lpips")  # type: ignore[arg-type]


# --- the filters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [None, 0.05, 0.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_filters_by_plain_loops(shape: tuple[int, int, int], colour: float | None) -> None:
    images, sides = rand(3, *shape, seed=1), (3, 5, 1)
    filters = Filters(images, sides, colour)
    free = 2 * randn(*filters.start().shape, seed=2)
    got = filters.made(free)
    for image, numbers, result in zip(images.numpy(), free.numpy(), got.numpy(), strict=True):
        np.testing.assert_allclose(result, made_by_loops(image, numbers, sides, colour), rtol=0, atol=1e-12)


def test_kernels_are_normalised() -> None:
    """Whatever they are, an image of one colour stays as it is, to its borders."""
    images = torch.full((2, 3, 5, 4), 0.3, dtype=torch.float64)
    filters = Filters(images, (5, 7, 3), 0.05)
    free = 5 * randn(*filters.start().shape, seed=2)
    free[:, : images[0].numel()] = 0
    torch.testing.assert_close(filters.made(free), images, rtol=0, atol=1e-14)


def test_kernels_of_the_pixel_itself_are_the_identity() -> None:
    images, kernels = rand(2, 3, 5, 4, seed=1), torch.zeros(2, 9, 20, dtype=torch.float64)
    kernels[:, 4] = 1
    assert torch.equal(filtered_by(images, kernels), images)
    kernels[:, 4], kernels[:, 5] = 0, 1
    right = torch.zeros_like(images)
    right[..., :-1] = images[..., 1:]
    assert torch.equal(filtered_by(images, kernels), right), "neighbour 5 of nine is the one to the right"


def test_filters_are_linear() -> None:
    a, b, kernels = rand(2, 3, 5, 4, seed=1), randn(2, 3, 5, 4, seed=2), rand(2, 25, 20, seed=3)
    both = filtered_by(2 * a - 3 * b, kernels)
    torch.testing.assert_close(both, 2 * filtered_by(a, kernels) - 3 * filtered_by(b, kernels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_the_start_leaves_images_as_they_are(shape: tuple[int, int, int]) -> None:
    """No pixel by a third of 1/255; noise is the worst of images, one of few levels has more black and white."""
    for images in (rand(2, *shape, seed=1), (4 * rand(2, *shape, seed=1)).round() / 4):
        filters = LowFrequency()._filters(images)
        assert float((filters.made(filters.start()) - images).abs().max()) < 1 / 765


def test_colours_keep_edges() -> None:
    """No kernel takes anything across an edge of many standard deviations; without colours it does."""
    images = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    images[..., 3:] = 1
    blurs = torch.zeros_like(Filters(images, (3, 5), 0.05).start())
    torch.testing.assert_close(Filters(images, (3, 5), 0.05).made(blurs), images, rtol=0, atol=1e-12)
    assert float((Filters(images, (3, 5), None).made(blurs) - images).abs().max()) > 0.3


def test_modifiers_are_held_where_pixels_are_in_range() -> None:
    """Black and white themselves have a slope."""
    images = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    filters = Filters(images, (), None)
    for far in (-9.0, 9.0):
        held = filters.held(torch.full((1, 4), far, dtype=torch.float64))
        torch.testing.assert_close(filters.made(held), torch.full_like(images, float(far > 0)), rtol=0, atol=1e-14)
    leaf = filters.start().requires_grad_()
    filters.made(leaf).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[0, 0], torch.tensor((1 - INSIDE**2) / (2 * INSIDE), dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((32, 32), (5, 7, 5, 3)),
        ((64, 15), (5, 7, 5, 3)),
        ((8, 8), (3, 3, 3, 3)),
        ((12, 40), (5, 5, 5, 3)),
        ((2, 3), (3,) * 4),
    ],
)
def test_small_images_have_small_kernels(size: tuple[int, int], sides: tuple[int, ...]) -> None:
    assert LowFrequency()._filters(torch.zeros(1, 1, *size)).sides == sides


# --- the attack -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [None, 0.1])
@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5)])
def test_contract(shape: tuple[int, int, int], randomised: bool, colour: float | None) -> None:
    attack = LowFrequency(Perceptual(0.01), n_steps=4, eot=3, rate=0.1, colour=colour)
    keeps_the_contract(attack, randomised=randomised, shape=shape)


def test_contract_of_another_measure() -> None:
    keeps_the_contract(LowFrequency(Perceptual(0.02, rms), n_steps=3, rate=0.1, kernels=()))


def test_the_gradient_by_differences() -> None:
    """Of the objective by every free number, where the dissimilarity is above eps and where it is not."""
    images, pixels = rand(1, 2, 3, 3, seed=1), randn(1, 2, 3, 3, seed=2)
    for eps in (0.001, 0.9):
        attack = LowFrequency(Perceptual(eps), weight=7.0, kernels=(3, 3), colour=0.3)
        filters = attack._filters(images)
        free = 0.5 * randn(*filters.start().shape, seed=3)
        excess, gradient = attack._gradient(filters, free, pixels)

        def objective(at: np.ndarray, eps: float = eps) -> float:
            made = made_by_loops(images[0].numpy(), at, (3, 3), 0.3)
            over = 7.0 * max(0.0, structural(made, images[0].numpy()) - eps)
            return float((made * pixels[0].numpy()).sum()) - over

        point = free[0].numpy()
        assert (float(excess) > 0.1) == (eps < 0.5)
        for k in range(point.size):
            step = np.zeros_like(point)
            step[k] = 1e-5
            slope = (objective(point + step) - objective(point - step)) / 2e-5
            assert float(gradient[0, k]) == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize(("eps", "colour", "scale"), [(0.9, 0.2, 0.05), (0.9, None, 30.0), (0.002, 0.2, 0.05)])
def test_a_run_number_by_number(eps: float, colour: float | None, scale: float) -> None:
    """Short gradients, gradients that are scaled down, and a dissimilarity that grows beyond eps."""
    images, slope = rand(1, 1, 3, 3, seed=1), scale * randn(1, 3, 3, seed=2)
    attack = LowFrequency(Perceptual(eps), n_steps=4, rate=0.05, kernel_rate=0.3, kernels=(3, 5), colour=colour)
    seen: list[Tensor] = []
    model = Linear(slope)

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return model(x)

    got = attack(watched, images, torch.zeros(1, dtype=torch.int64))
    *expected, last = attacked_by_loops(images[0].numpy(), slope.numpy(), attack, (3, 3))
    for x, its in zip(seen, expected, strict=True):
        np.testing.assert_allclose(x[0].numpy(), its, rtol=0, atol=2e-6)
    for value, its in zip(got.loss[:, 0].tolist(), expected, strict=True):
        excess = 1e4 * max(0.0, structural(its, images[0].numpy()) - eps)
        assert value == pytest.approx(float((slope.numpy() * its).sum()) - excess, abs=1e-4 + 1e-3 * excess)
    kept = attack.ball.project(torch.from_numpy(last)[None], images)
    torch.testing.assert_close(got.images[0], kept, rtol=0, atol=2e-6)
    over = [structural(x[0].numpy(), images[0].numpy()) > eps for x in seen]
    assert any(over) == (eps < 0.5)


def test_the_first_step_behind_the_gaussian_purifier_in_closed_form() -> None:
    """Without filters, Adam's first step is the rate, signed by the slope of the purified margin at each pixel."""
    std = 0.2 + 0.5 * rand(1, 4, 4, seed=3)
    steps = uniform_steps(VP(), t_start=0.1, n_steps=5)
    denoiser = GaussianDenoiser(torch.zeros(1, 4, 4, dtype=torch.float64), std)
    purifier = DiffusionPurifier(denoiser, steps=steps, solver=Ancestral())
    slope, images = randn(1, 4, 4, seed=4), 0.2 + 0.6 * rand(B, 1, 4, 4, seed=5)
    defence = Defence(purifier, Linear(slope))
    attack = LowFrequency(Perceptual(0.9), n_steps=1, eot=2, rate=0.1, kernels=())
    got = attack(defence, images, torch.zeros(B, dtype=torch.int64), eot=EOT).images[0]
    # The purifier is affine with positive slopes, pixel by pixel, so that signs are those of the classifier.
    expected = np.tanh(np.arctanh(0.99 * (2 * images.numpy() - 1)) + 0.1 * np.sign(slope.numpy()))
    np.testing.assert_allclose(got.numpy(), (expected / 0.99 + 1) / 2, rtol=0, atol=1e-6)


def test_a_pixel_that_was_driven_to_white_comes_back_from_there() -> None:
    """Twice up by long steps, then down: a transcription without filters, with the pixels held at 0 and 1."""
    signs, seen = (1.0,) * 2 + (-1.0,) * 40, list[Tensor]()

    def turning(x: Tensor) -> Tensor:
        z = signs[len(seen)] * x.flatten(1).sum(1)
        seen.append(x.detach().clone())
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images = 0.2 + 0.6 * rand(1, 1, 2, 3, seed=1)
    LowFrequency(Perceptual(0.9), n_steps=42, rate=2.0, kernels=())(turning, images, torch.zeros(1, dtype=torch.int64))
    u = np.arctanh(0.99 * (2 * images[0].numpy() - 1))
    m, v = np.zeros_like(u), np.zeros_like(u)
    for i, sign in enumerate(signs):
        np.testing.assert_allclose(seen[i][0].numpy(), (np.tanh(u) / 0.99 + 1) / 2, rtol=0, atol=1e-9)
        g = sign * (1 - np.tanh(u) ** 2) / (2 * 0.99)
        g /= max(1.0, float(np.linalg.norm(g)))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = u + 2.0 * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
        u = np.clip(u, -np.arctanh(0.99), np.arctanh(0.99))
    assert float(seen[2].min()) > 0.999
    assert float(seen[-1].max()) < 0.5


def test_a_margin_that_no_allowed_image_reaches_is_kept() -> None:
    """In root mean square the most that <w, x> can rise by is eps |w| sqrt(n); a margin above it, one of half of it."""
    slope, images = randn(1, 4, 4, seed=4), torch.full((B, 1, 4, 4), 0.5, dtype=torch.float64)
    reach = 0.05 * float(slope.norm()) * 4
    attack = LowFrequency(Perceptual(0.05, rms), n_steps=60, rate=0.02)
    for margin, breaks in ((1.001 * reach, False), (0.5 * reach, True)):
        model = Linear(slope, 0.5 * float(slope.sum()) + margin)
        found = attack(model, images, torch.zeros(B, dtype=torch.int64))
        wrong = torch.stack([model(x).argmax(1) == 1 for x in found.images]).any(0)
        assert bool((wrong == breaks).all())


def test_at_size_zero_images_are_left_alone() -> None:
    images, labels = rand(B, 3, 4, 5, seed=1), torch.zeros(B, dtype=torch.int64)
    got = LowFrequency(Perceptual(0.0), n_steps=2)(lambda x: x.flatten(1)[:, :4], images, labels)
    torch.testing.assert_close(got.images, images.expand(2, *images.shape), rtol=0, atol=1e-6)


def test_the_best_iterate_is_kept_and_a_bad_gradient_does_not_move() -> None:
    """Image 0's loss falls from the third step on; image 1 has no number for a gradient in the second step."""
    calls: list[Tensor] = []

    def turning(images: Tensor) -> Tensor:
        step = len(calls)
        calls.append(images.detach().clone())
        sign = torch.tensor([1.0 if step < 2 else -1.0, math.nan if step == 1 else 1.0], dtype=torch.float64)
        off = torch.tensor([100.0 if step >= 2 else 0.0, 0.0], dtype=torch.float64)
        z = sign * images.flatten(1).sum(1) - off
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images = 0.2 + 0.6 * rand(2, 1, 5, 6, seed=1)
    got = LowFrequency(Perceptual(0.9), n_steps=5)(turning, images, torch.zeros(2, dtype=torch.int64))
    assert got.gradients is not None
    assert int(got.loss[:, 0].argmax()) == 1
    torch.testing.assert_close(got.images[1, 0], calls[1][0])
    assert not torch.allclose(got.images[0, 0], got.images[1, 0])
    assert torch.equal(calls[1][1], calls[2][1]), "stays put where there is no usable gradient"
    assert not torch.allclose(calls[3][1], calls[2][1])
    assert bool(got.images.isfinite().all())
    assert got.gradients.bad.tolist() == [0, 0.2]


def test_every_step_has_draws_of_its_own() -> None:
    asked: list[tuple[int, int]] = []

    def model(images: Tensor, noise: Noise) -> Tensor:
        assert isinstance(noise.draws, tuple)
        asked.extend(zip(noise.images, noise.draws, strict=True))
        return images.flatten(1)[:, :3]

    images, labels = rand(2, 1, 3, 3, seed=1), torch.tensor([0, 1])
    LowFrequency(n_steps=3, eot=2)(model, images, labels, eot=EOT.take([0, 1]))
    assert asked == [(image, 2 * i + j) for i in range(3) for image in (100, 101) for j in range(2)]


# --- the record -------------------------------------------------------------------------------------------------------


def test_a_study_records_the_threat_model(tmp_path) -> None:
    """Its family, its measure, and examples no farther than it allows."""
    steps = uniform_steps(VP(), t_start=0.1, n_steps=2)
    denoiser = GaussianDenoiser(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.4))
    defence = Defence(DiffusionPurifier(denoiser, steps=steps, solver=Ancestral()), depura.digits_classifier())
    attack = LowFrequency(Perceptual(0.03), n_steps=3, rate=0.2, eot=2)
    study = Study(
        name="blurred",
        data=depura.load_digits("test").first(4),
        defence=defence,
        rows=(AttackRun("low", "low frequencies", attack, defence, defence, "adaptive"),),
        select_draws=2,
        report_draws=4,
        curve_eps=(0.015,),
        curve_images=2,
    )
    run(study, tmp_path / "r")
    directory = RunDirectory.open(tmp_path / "r")
    threat = directory.header.threat_model
    assert (threat.norm, threat.eps, threat.family) == ("perceptual", 0.03, "perceptual")
    assert "dssim" in str(directory.header.rows[0].attack)
    summary = summarise(directory)
    assert {v.id: v.status.value for v in summary.verdicts}["V15"] != "FAIL"
    assert "perceptual dissimilarity of at most 0.03" in summary.headline
    assert "not to be compared with l_p balls" in dict(prose.threat_model(summary))["class of threat"]
    (unit,) = (u for u in directory.units() if (u.facts.row, u.facts.eps) == ("low", 0.03))
    assert 0.02 < float(unit.arrays["distance"].max()) <= 0.03 + 1e-9
