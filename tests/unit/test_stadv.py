"""Flows against plain loops; StAdv against the steepest flow of linear models, and what its threat model can tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import depura
from attack_contract import EOT, INIT, B, keeps_the_contract
from depura._check import InputError
from depura.attacks.attack import Attack
from depura.attacks.flow import Flow, roughness, sampled, warped
from depura.attacks.losses import cross_entropy
from depura.attacks.stadv import StAdv
from depura.attacks.threat import Threat
from depura.noise import Noise
from toys import rand, randn

SHAPES = [(1, 4, 4), (3, 4, 5), (2, 6, 3)]


def by_loops(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Bilinear reading at (row i + shift of rows, column j + shift of columns), in pixels; black outside."""
    _, h, w = image.shape
    out = np.zeros_like(image)
    for i in range(h):
        for j in range(w):
            row = min(max(i + shift[i, j, 1], -0.5), h - 0.5)
            column = min(max(j + shift[i, j, 0], -0.5), w - 0.5)
            for a in (math.floor(row), math.floor(row) + 1):
                for b in (math.floor(column), math.floor(column) + 1):
                    if 0 <= a < h and 0 <= b < w:
                        out[:, i, j] += (1 - abs(row - a)) * (1 - abs(column - b)) * image[:, a, b]
    return out


def bent(flow: Flow, images: Tensor, shifts: Tensor) -> Tensor:
    still = flow.grid(images)
    return sampled(images, flow.project(still + shifts, still))


@pytest.mark.parametrize("eps", [0.1, 0.4, 1.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_bending_by_plain_loops(shape: tuple[int, int, int], eps: float) -> None:
    images = rand(3, *shape, seed=1)
    shifts = 2 * eps * (2 * rand(3, *shape[1:], 2, seed=2) - 1)
    got = bent(Flow(eps), images, shifts)
    in_pixels = shifts.clamp(-eps, eps).numpy() * np.array([shape[2] / 2, shape[1] / 2])
    for image, shift, result in zip(images.numpy(), in_pixels, got.numpy(), strict=True):
        np.testing.assert_allclose(result, by_loops(image, shift), rtol=0, atol=1e-13)


def test_no_flow_leaves_images_alone() -> None:
    images = rand(3, 3, 7, 5, seed=1)
    torch.testing.assert_close(sampled(images, Flow().grid(images)), images, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (5, 2)])
def test_roughness_by_plain_loops(shape: tuple[int, int]) -> None:
    h, w = shape
    flow = randn(2, h, w, 2, seed=3)
    expected = np.zeros(2)
    for b in range(2):
        for i in range(h):
            for j in range(w):
                for a, c in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    here = flow[b, i, j]
                    there = flow[b, a, c] if 0 <= a < h and 0 <= c < w else here
                    expected[b] += math.sqrt(float((here - there).square().sum()) + 1e-10)
    np.testing.assert_allclose(roughness(flow).numpy(), expected, rtol=1e-13)


# --- the threat model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3, 0.9, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["corner", "sample"])
def test_bent_images_are_contained(method: str, shape: tuple[int, int, int], eps: float) -> None:
    flow, images = Flow(eps), rand(B, *shape, seed=1)
    got = getattr(flow, method)(images, INIT, step=2)
    assert bool(flow.contains(got, images, slack=1e-12).all())
    assert bool(flow.contains(got.float(), images.float()).all())
    if eps:
        assert float(flow.distance(got, images).min()) > 0


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.9])
def test_every_single_pixel_beyond_its_neighbours_is_noticed(eps: float) -> None:
    """The bounds by loops over all pixels within reach; each pixel of the image is put just inside and outside."""
    flow, image = Flow(eps), 0.2 + 0.6 * rand(1, 2, 5, 4, seed=6)
    h, w = 5, 4
    up, side = eps * h / 2, eps * w / 2
    others = 1 - max(0.0, 1 - up) * max(0.0, 1 - side)
    for i in range(h):
        for j in range(w):
            near = [
                float(image[0, 1, a, b]) if 0 <= a < h and 0 <= b < w else 0.0
                for a in range(i - math.ceil(up), i + math.ceil(up) + 1)
                for b in range(j - math.ceil(side), j + math.ceil(side) + 1)
            ]
            here = float(image[0, 1, i, j])
            for end in (here + others * (min(near) - here), here + others * (max(near) - here)):
                for off, allowed in ((-1e-3, True), (1e-3, False)):
                    changed = image.clone()
                    changed[0, 1, i, j] = end + off * (1 if end >= here else -1)
                    if end == here and allowed:
                        continue
                    assert bool(flow.contains(changed, image)) == allowed


def test_contains_asks_for_the_range() -> None:
    """Black and white neighbours: the limits of the box are told apart from those of the neighbourhood."""
    image = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64).reshape(1, 1, 2, 2)
    flow = Flow(2.0)
    assert flow.contains(1 - image, image).tolist() == [True]
    assert flow.contains(image - 1e-6, image).tolist() == [False]
    assert flow.contains(image + 1e-6, image).tolist() == [False]


def test_distance_is_the_largest_change() -> None:
    images = rand(4, 2, 3, 3, seed=1)
    changed = images.clone()
    changed[1, 1, 2, 0] -= 0.3
    changed[2, 0, 0, 1] += 0.2
    assert Flow().distance(changed, images).tolist() == pytest.approx([0, 0.3, 0.2, 0])


def test_corners_move_every_point_as_far_as_may_be() -> None:
    """On ramps the values read tell where: column numbers in the first channel, row numbers in the second."""
    ramp = torch.stack([torch.arange(9.0).expand(7, 9), torch.arange(7.0)[:, None].expand(7, 9)]).double() / 10
    images, eps = ramp.expand(B, 2, 7, 9).contiguous(), 0.1
    moved = (Flow(eps).corner(images, INIT) - images)[:, :, 1:-1, 1:-1] * 10
    torch.testing.assert_close(moved[:, 0].abs(), torch.full_like(moved[:, 0], eps * 9 / 2))
    torch.testing.assert_close(moved[:, 1].abs(), torch.full_like(moved[:, 1], eps * 7 / 2))
    signs = moved.sign()
    assert float(signs.mean().abs()) < 0.2
    assert float((signs[:, 0] * signs[:, 1]).mean().abs()) < 0.2
    assert not torch.equal(Flow(eps).corner(images, INIT, step=1), Flow(eps).corner(images, INIT))
    alone = Flow(eps).corner(images[2:3], INIT.take([2]))
    torch.testing.assert_close(alone, Flow(eps).corner(images, INIT)[2:3], rtol=0, atol=1e-15)


def test_samples_are_uniform_shifts() -> None:
    ramp = torch.arange(40.0).double().expand(1, 1, 40, 40) / 50
    moved = (Flow(0.1).sample(ramp, Noise(0, images=(4,))) - ramp)[..., 5:-5] * 50 / (0.1 * 40 / 2)
    assert scipy.stats.kstest(moved.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_it_is_a_threat_and_an_attack() -> None:
    threat: Threat = Flow(0.1)
    attack: Attack = StAdv(Flow(0.1))
    assert (threat.norm, attack.ball.eps, depura.Flow, depura.StAdv) == ("flow", 0.1, Flow, StAdv)
    with pytest.raises(InputError, match="grid units"):
        Flow(-0.1)
    with pytest.raises(InputError, match="rate"):
        StAdv(rate=0.0)
    with pytest.raises(InputError, match="n_steps"):
        StAdv(n_steps=0)


# --- the attack -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5)])
def test_contract(shape: tuple[int, int, int], randomised: bool) -> None:
    keeps_the_contract(StAdv(Flow(0.3), n_steps=4, eot=3), randomised=randomised, shape=shape)


def along(columns: float, rows: float):
    """Logit 1 minus logit 0 is a sum of the inner pixels, weighted 1 for each channel."""

    def model(images: Tensor) -> Tensor:
        inner = images[:, :, 1:-1, 1:-1].sum((2, 3))
        z = columns * inner[:, 0] + rows * inner[:, 1]
        return torch.stack([torch.zeros_like(z), z], dim=1)

    return model


@pytest.mark.parametrize(("columns", "rows"), [(1.0, -1.0), (-1.0, 1.0), (2.0, 0.5)])
def test_ramps_are_shifted_to_the_bound(columns: float, rows: float) -> None:
    """Reading a ramp further along it raises it: the best flow is the bound, signed, at each pixel that counts."""
    ramp = torch.stack([torch.arange(8.0).expand(6, 8), torch.arange(6.0)[:, None].expand(6, 8)]).double() / 10 + 0.1
    eps, images = 0.1, ramp.expand(2, 2, 6, 8).contiguous()
    attack = StAdv(Flow(eps), n_steps=60, weight=0.0)
    for label, sign in ((0, 1.0), (1, -1.0)):
        got = attack(along(columns, rows), images, torch.full((2,), label))
        moved = (got.images - images)[:, :, :, 1:-1, 1:-1] * 10
        for channel, (weight, size) in enumerate(((columns, 8), (rows, 6))):
            expected = torch.full_like(moved[:, :, channel], sign * math.copysign(eps * size / 2, weight))
            torch.testing.assert_close(moved[:, :, channel], expected, rtol=0, atol=1e-9)


def test_weight_makes_flows_smooth() -> None:
    """With a large weight all points stay together; the released default is 0.0025 / eps."""
    images, labels = rand(B, 1, 6, 6, seed=1), torch.zeros(B, dtype=torch.int64)

    def model(x: Tensor) -> Tensor:
        z = (x * randn(1, 6, 6, seed=4)).flatten(1).sum(1)
        return torch.stack([-z, z], dim=1)

    def gain(weight: float | None) -> Tensor:
        found = StAdv(Flow(0.1), n_steps=20, weight=weight)(model, images, labels).images[0]
        return (model(found) - model(images))[:, 1]

    assert bool((gain(0.0) > gain(1.0)).all())
    torch.testing.assert_close(gain(None), gain(0.025), rtol=0, atol=0)
    assert float((gain(None) - gain(0.05)).abs().max()) > 0


def test_rounding_at_radius_zero() -> None:
    images, labels = rand(B, 3, 4, 5, seed=1), torch.zeros(B, dtype=torch.int64)
    got = StAdv(Flow(0.0), n_steps=2)(lambda x: x.flatten(1)[:, :4], images, labels)
    torch.testing.assert_close(got.images, images.expand(2, *images.shape), rtol=0, atol=1e-14)


def test_the_gradient_by_differences() -> None:
    """Of the objective by the points, away from the kinks."""
    images, pixels = rand(1, 2, 4, 3, seed=1), randn(1, 2, 4, 3, seed=2)
    attack, still = StAdv(Flow(0.4), weight=0.3), Flow(0.4).grid(images)
    points = still + 0.1 + 0.05 * rand(1, 4, 3, 2, seed=3)
    rough, gradient = attack._gradient(images, points, still, pixels)

    def objective(at: Tensor) -> float:
        return float((warped(images, at) * pixels).sum() - 0.3 * roughness(at - still))

    torch.testing.assert_close(rough, 0.3 * roughness(points - still))
    for index in np.ndindex(4, 3, 2):
        step = torch.zeros_like(points)
        step[0][index] = 1e-6
        slope = (objective(points + step) - objective(points - step)) / 2e-6
        assert float(gradient[0][index]) == pytest.approx(slope, abs=1e-6)


def test_the_best_iterate_is_kept_and_a_bad_gradient_does_not_move() -> None:
    """Image 0's loss falls from the third step on; image 1 has no number for a gradient in the second step."""
    calls: list[Tensor] = []

    def turning(images: Tensor) -> Tensor:
        step = len(calls)
        calls.append(images.detach().clone())
        z = images[:, :, 1:-1, 1:-1].flatten(1).sum(1)
        sign = torch.tensor([1.0 if step < 2 else -1.0, math.nan if step == 1 else 1.0], dtype=torch.float64)
        z = sign * z - torch.tensor([100.0 if step >= 2 else 0.0, 0.0], dtype=torch.float64)
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images = (torch.arange(6.0).double() / 10).expand(2, 1, 5, 6).contiguous()
    got = StAdv(Flow(0.3), n_steps=5, weight=0.0)(turning, images, torch.zeros(2, dtype=torch.int64))
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
    StAdv(Flow(0.2), n_steps=3, eot=2)(model, images, labels, eot=EOT.take([0, 1]))
    assert asked == [(image, 2 * i + j) for i in range(3) for image in (100, 101) for j in range(2)]


def test_other_losses() -> None:
    keeps_the_contract(StAdv(Flow(0.2), n_steps=3, loss=cross_entropy, rate=0.05))
