"""Random points against a plain loop; the null that asks nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import depura
from attack_contract import EOT, INIT, B, keeps_the_contract, labelled, random_defence
from depura._check import InputError
from depura.attacks.baselines import RandomPoints, corners, gaussian, uniform
from depura.attacks.flow import Flow
from depura.attacks.losses import cross_entropy, margin
from depura.attacks.perceptual import Perceptual
from depura.attacks.queries import COMMON
from depura.attacks.threat import Ball
from slow import slow
from toys import rand

BALLS = [Ball("linf", 0.1), Ball("l2", 0.4), Flow(0.3), Perceptual(0.1)]


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), slow((3, 4, 5))])
@pytest.mark.parametrize(
    ("ball", "kind"),
    [(b, k) for b in BALLS for k in (corners, uniform, gaussian) if k is not gaussian or isinstance(b, Ball)],
)
def test_contract(ball: Ball | Flow | Perceptual, kind, shape: tuple[int, int, int], randomised: bool) -> None:
    keeps_the_contract(RandomPoints(ball, 5, kind, eot=3), randomised=randomised, shape=shape)


@pytest.mark.parametrize("keep", [1, 2, 4])
@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2", "flow", "perceptual"])
def test_the_worst_by_a_plain_loop(ball: Ball | Flow | Perceptual, keep: int) -> None:
    shape = (1, 4, 4)
    model = random_defence(shape)
    images, labels = labelled(model, shape)
    found = RandomPoints(ball, 6, eot=3, keep=keep, loss=cross_entropy)(model, images, labels, init=INIT, eot=EOT)
    points = [ball.corner(images, INIT, step=i) for i in range(6)]
    losses = np.zeros((6, B))
    for i, point in enumerate(points):
        for draw in range(COMMON, COMMON + 3):
            with torch.no_grad():
                losses[i] += cross_entropy(model(point, EOT.draw(draw)), labels).numpy() / 3
    np.testing.assert_allclose(found.loss.numpy(), losses, rtol=1e-12)
    for b in range(B):
        for rank, i in enumerate(np.argsort(-losses[:, b])[:keep]):
            torch.testing.assert_close(found.images[rank, b], points[i][b], rtol=0, atol=1e-15)
    assert found.spent.tolist() == [[0, 18]] * B
    assert found.gradients is None


@pytest.mark.parametrize(("n_points", "keep"), [(1, 2), (1, 1), (3, 3)])
def test_a_null_asks_nothing(n_points: int, keep: int) -> None:
    def model(images: Tensor) -> Tensor:
        raise AssertionError("a null does not look")

    images, labels = rand(B, 1, 4, 4, seed=1), torch.zeros(B, dtype=torch.int64)
    attack = RandomPoints(Ball("linf", 0.1), n_points, keep=keep)
    found = attack(model, images, labels, init=INIT)
    assert attack.cost == (0, 0, 8, ())
    assert found.images.shape[0] == attack.n_candidates == n_points
    for i, candidate in enumerate(found.images):
        assert torch.equal(candidate, Ball("linf", 0.1).corner(images, INIT, step=i))
    assert found.spent.tolist() == [[0, 0]] * B
    assert found.loss.shape == (0, B)
    with pytest.raises(InputError):
        attack(model, images + 2, labels)


def test_losses_that_are_no_numbers_rank_last() -> None:
    """Odd points have none; the best two are the largest of the even ones."""
    calls: list[float] = []

    def model(images: Tensor) -> Tensor:
        calls.append(0.0)
        z = torch.full((len(images),), torch.nan if len(calls) % 2 == 0 else float(len(calls)), dtype=images.dtype)
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images, labels = rand(2, 1, 4, 4, seed=1), torch.zeros(2, dtype=torch.int64)
    ball, init = Ball("linf", 0.1), INIT.take([0, 1])
    found = RandomPoints(ball, 6, eot=1)(model, images, labels, init=init)
    for candidate, i in zip(found.images, (4, 2), strict=True):
        assert torch.equal(candidate, ball.corner(images, init, step=i))


def test_kinds() -> None:
    images = torch.full((B, 1, 20, 20), 0.5, dtype=torch.float64)
    for ball in (Ball("linf", 0.1), Ball("l2", 0.4)):
        for kind, extreme in ((corners, True), (gaussian, True), (uniform, False)):
            size = ball.distance(kind(ball, images, INIT, 3), images) / ball.eps
            assert bool(((size - 1).abs() < 1e-12).all()) == extreme
            assert bool((size <= 1 + 1e-12).all())
    change = (gaussian(Ball("linf", 0.1), images, INIT, 3) - images) / 0.1
    ratio = change.flatten(1).abs().mean(1) / change.flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(ratio, torch.full((B,), (2 / np.pi) ** 0.5, dtype=torch.float64), rtol=0, atol=0.05)
    with pytest.raises(InputError, match="corners or uniform"):
        gaussian(Flow(), images, INIT, 0)
    with pytest.raises(InputError, match="got perceptual"):
        gaussian(Perceptual(), images, INIT, 0)


def test_refusals_and_the_public_name() -> None:
    assert depura.RandomPoints is RandomPoints
    assert RandomPoints(Ball("linf", 0.1)).loss is margin
    for name in ("n_points", "eot", "keep"):
        with pytest.raises(InputError, match=name):
            RandomPoints(Ball("linf", 0.1), **{name: 0})
