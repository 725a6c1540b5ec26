"""SPSA's estimate against the gradients of linear models: its mean, variance, the border, the draws it is made on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attack_contract import EOT, INIT, keeps_the_contract, labelled, random_defence
from depura import InputError
from depura.attacks.losses import cross_entropy, margin
from depura.attacks.queries import COMMON, Queries
from depura.attacks.spsa import SPSA, Gaussian, Rademacher
from depura.attacks.threat import Ball
from depura.noise import Kind, Noise
from slow import slow
from toys import rand, randn

NORMS = ["linf", "l2"]
W = randn(1, 3, 4, seed=7)
LABELS = torch.zeros(5, dtype=torch.int64)


def two(x: Tensor, bias: float | Tensor = 0.0) -> Tensor:
    """Two classes; logit 1 minus logit 0 is <w, x - 1/2> - bias."""
    z = ((x - 0.5) * W.to(x.dtype)).flatten(1).sum(1) - bias
    return torch.stack([torch.zeros_like(z), z], dim=1)


def estimates(attack: SPSA, x: Tensor, model=two, *, eot: Noise | None = None, step: int = 0) -> Tensor:
    """Estimates of the gradient at points x, each with directions of its own."""
    noise = Noise(3, images=tuple(range(len(x))))
    queries = Queries("test", model, x, torch.zeros(len(x), dtype=torch.int64), noise=eot)
    return attack.estimate(queries, x, noise, at=torch.arange(len(x)), step=step).gradient


# --- the estimate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.001, 0.3])
def test_a_single_pixel_is_estimated_exactly_at_the_border_too(delta: float) -> None:
    """With one pixel and signs every pair has the whole answer, if the move is divided by what it really was."""
    x = torch.tensor([0.0, 0.0004, 0.2, 0.5, 0.9995, 1.0]).double()[:, None, None, None]

    def model(images: Tensor) -> Tensor:
        z = 3.5 * images[:, 0, 0, 0]
        return torch.stack([0 * z, z], dim=1)

    found = estimates(SPSA(Ball("linf", 0.1), n_pairs=2, delta=delta), x, model)
    torch.testing.assert_close(found, torch.full_like(found, 3.5), rtol=1e-11, atol=0)


@pytest.mark.parametrize("place", ["middle", "border"])
@pytest.mark.parametrize("directions", [Rademacher(), Gaussian()], ids=["signs", "normal"])
def test_the_estimate_is_unbiased_with_the_variance_of_the_other_pixels(directions, place: str) -> None:
    """Signs in the middle: variance of pixel i is the sum of w_j^2 of the others, over the pairs; normal: + 2 w_i^2."""
    n, pairs = 600, 8
    one = torch.full((1, 1, 3, 4), 0.5).double()
    if place == "border":
        one = torch.tensor([0.0, 1.0, 0.0004, 0.9996, 0.0015, 0.5]).double().repeat(2).reshape(1, 1, 3, 4)
    found = estimates(SPSA(Ball("l2", 0.1), n_pairs=pairs, directions=directions), one.expand(n, 1, 3, 4))
    error = found.std(0) / math.sqrt(n)
    assert float(((found.mean(0) - W) / error).abs().max()) < 4
    if place == "middle":
        variance = W.square().sum() - W.square() * (1 if directions == Rademacher() else -1)
        ratio = found.var(0) / (variance / pairs)
        assert 0.75 < float(ratio.min()) <= float(ratio.max()) < 1.33
        many = estimates(SPSA(Ball("l2", 0.1), n_pairs=4 * pairs, directions=directions), one.expand(n, 1, 3, 4))
        assert found.var(0).sum() / many.var(0).sum() == pytest.approx(4, rel=0.1), "as 1 / pairs"


def test_reach_by_simulation() -> None:
    u = Gaussian()(torch.empty(1, 1, 1, 200000).double(), Noise(0, images=(1,)), step=0).abs()
    for room in (0.0, 0.02, 0.1, 0.25, 1.0):
        expected, left = float((u * (0.1 * u).clamp_max(room)).mean()), torch.tensor(room, dtype=torch.float64)
        assert float(Gaussian().reach(left, 0.1)) == pytest.approx(expected, abs=8e-4)
        assert float(Rademacher().reach(left, 0.1)) == min(room, 0.1)


def test_directions() -> None:
    like = torch.empty(5, 3, 20, 21).double()
    for directions in (Rademacher(), Gaussian()):
        u = directions(like, INIT, step=3)
        assert abs(float(u.mean())) < 4 / math.sqrt(u.numel())
        assert float(u.var()) == pytest.approx(1, abs=0.05)
        torch.testing.assert_close(directions(like[[3, 0]], INIT.take([3, 0]), step=3), u[[3, 0]], rtol=0, atol=1e-15)
        assert not torch.equal(directions(like, INIT, step=4), u)
        assert directions(like.float(), INIT, step=3).dtype == torch.float32
    assert set(Rademacher()(like, INIT, step=0).flatten().tolist()) == {-1.0, 1.0}


def test_both_members_share_their_draws_and_other_pairs_have_others() -> None:
    """Shared, a bias a hundred times as large as the whole image cancels; with draws of its own it is all there is."""
    asked: list[list[int]] = []

    def loud(x: Tensor, noise: Noise) -> Tensor:
        asked.append(list(noise.draws))
        return two(x, 100 * noise(x[:, 0, 0, 0], kind=Kind.FORWARD))

    def apart(x: Tensor, noise: Noise) -> Tensor:
        """The same, but the second half of the rows, the second members, on draws elsewhere."""
        bias = noise(x[:, 0, 0, 0], kind=Kind.FORWARD)
        bias[len(x) // 2 :] = noise(x[:, 0, 0, 0], kind=Kind.REVERSE)[len(x) // 2 :]
        return two(x, 100 * bias)

    x = torch.full((5, 1, 3, 4), 0.5).double()
    attack = SPSA(Ball("linf", 0.1), n_pairs=3, eot=2)
    quiet = estimates(attack, x)
    shared, independent = (estimates(attack, x, model, eot=EOT) - quiet for model in (loud, apart))
    assert float(shared.abs().max()) < 1e-9
    # Two independent biases of deviation 100, mean of 6, over 2 delta.
    assert float(independent.std()) == pytest.approx(100 * math.sqrt(2 / 6) / 0.002, rel=0.4)
    assert asked == [[2 * pair, 2 * pair + 1] * 10 for pair in range(3)]
    asked.clear()
    estimates(attack, x, loud, eot=EOT, step=4)
    assert asked == [[2 * pair, 2 * pair + 1] * 10 for pair in range(12, 15)]


@pytest.mark.parametrize("norm", NORMS)
def test_spsa_against_a_plain_loop(norm: str) -> None:
    """One image, member and draw at a time, away from the border."""
    shape, n, pairs, m, delta = (1, 4, 4), 3, 2, 2, 0.01
    model = random_defence(shape)
    images, labels = labelled(model, shape)
    images = 0.3 + 0.4 * images
    ball = Ball(norm, 0.1)
    attack = SPSA(ball, n_steps=n, n_pairs=pairs, delta=delta, step_size=0.03, eot=m, loss=cross_entropy)
    got = attack(model, images, labels, init=INIT, eot=EOT)
    for row in range(5):
        origin, x, history = images[row : row + 1], images[row : row + 1], []
        for i in range(n):
            g, losses = torch.zeros_like(x), []
            for p in range(i * pairs, (i + 1) * pairs):
                u = INIT.take([row]).bits(x.shape, kind=Kind.ATTACK, step=p)
                u = torch.where(u >= 2**31, 1.0, -1.0).double()
                for j in range(p * m, (p + 1) * m):
                    pair = [
                        float(cross_entropy(model(x + s * delta * u, EOT.take([row]).draw(j)), labels[row : row + 1]))
                        for s in (1, -1)
                    ]
                    g = g + (pair[0] - pair[1]) / (2 * delta) * u / (pairs * m)
                    losses += pair
            history.append((sum(losses) / len(losses), x))
            x = ball.project(x + 0.03 * (g.sign() if norm == "linf" else g / g.norm()), origin)
        torch.testing.assert_close(got.images[0, row], x[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(got.images[1, row], max(history, key=lambda h: h[0])[1][0], rtol=0, atol=1e-9)
        torch.testing.assert_close(got.loss[:, row].tolist(), [loss for loss, _ in history], rtol=0, atol=1e-12)


# --- the attack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "directions"),
    [
        pytest.param("linf", Rademacher(), id="linf-signs"),
        slow("l2", Rademacher(), id="l2-signs"),
        slow("linf", Gaussian(), id="linf-normal"),
        slow("l2", Gaussian(), id="l2-normal"),
    ],
)
def test_spsa_comes_near_the_optimum_of_a_linear_model(norm: str, directions) -> None:
    """And never beyond; with enough pairs, in images that touch the border."""
    images = 0.4 + 0.2 * rand(5, 1, 3, 4, seed=1)
    images[:, :, 0] = torch.where(W[0, 0] > 0, 0.0, 1.0)
    dual = float(W.abs().sum() if norm == "linf" else W.norm())
    attack = SPSA(Ball(norm, 0.1), n_steps=24, n_pairs=48, directions=directions)
    got = attack(two, images, LABELS, init=INIT)
    for found in got.images:
        gain = margin(two(found), LABELS) - margin(two(images), LABELS)
        assert float(gain.min()) > 0.95 * 0.1 * dual
        assert float(gain.max()) <= 0.1 * dual * (1 + 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_broken_beyond_its_margin_and_never_before(norm: str) -> None:
    dual = float(W.abs().sum() if norm == "linf" else W.norm())
    images = torch.full((5, 1, 3, 4), 0.5, dtype=torch.float64)
    attack = SPSA(Ball(norm, 0.1), n_steps=20, n_pairs=32, finish=1.0, common=1)
    for bias, breaks in ((0.1 * dual * 1.001, False), (0.1 * dual * 0.8, True)):
        got = attack(lambda x, bias=bias: two(x, bias), images, LABELS, init=INIT)
        assert (got.finished >= 0).tolist() == [breaks] * 5
        assert (two(got.images[0], bias).argmax(1) != LABELS).tolist() == [breaks] * 5


def test_lucky_draws_do_not_finish_an_image() -> None:
    """Wrong in some draws whatever the image; the common tape decides, and only where all answers were wrong."""

    def lucky(wrong: set[int]):
        def model(x: Tensor, noise: Noise) -> Tensor:
            asked.append(sum(d >= COMMON for d in noise.draws))
            return two(x, torch.tensor([-9.0 if d in wrong else 9.0 for d in noise.draws]).double())

        return model

    asked: list[int] = []
    images = rand(5, 1, 3, 4, seed=1)
    attack = SPSA(Ball("linf", 0.1), n_steps=4, n_pairs=2, eot=2, finish=0.6, common=4)
    assert attack.cost == (0, 4 * 2 * 2 * 2 + 3 * 4, 4, ())
    got = attack(lucky({*range(16), COMMON, COMMON + 1}), images, LABELS, init=INIT, eot=EOT)
    assert got.finished.tolist() == [-1] * 5
    assert sum(asked) == 5 * 3 * 4
    assert got.spent[:, 1].tolist() == [attack.cost.forwards] * 5
    asked.clear()
    got = attack(lucky({*range(0, 16, 2), *range(COMMON, COMMON + 4)}), images, LABELS, init=INIT, eot=EOT)
    assert got.finished.tolist() == [-1] * 5
    assert sum(asked) == 0
    got = attack(lucky({*range(16), *range(COMMON, COMMON + 3)}), images, LABELS, init=INIT, eot=EOT)
    assert got.finished.tolist() == [0] * 5
    assert got.spent.tolist() == [[0, 8 + 4]] * 5
    assert got.loss.isfinite().sum(0).tolist() == [1] * 5


@pytest.mark.parametrize("norm", NORMS)
def test_losses_that_are_not_finite_leave_an_image_where_it_is(norm: str) -> None:
    def broken(x: Tensor) -> Tensor:
        z = two(x)[:, 1] + torch.where(x[:, 0, 0, 0] > 0.8, torch.nan, 0.0)
        return torch.stack([0 * z, z], dim=1)

    images = torch.full((2, 1, 3, 4), 0.5).double()
    images[1, 0, 0, 0] = 0.9
    got = SPSA(Ball(norm, 0.05), n_steps=3, n_pairs=4)(broken, images, LABELS[:2], init=INIT.take([0, 1]))
    assert torch.equal(got.images[:, 1], images[[1, 1]])
    assert not torch.equal(got.images[0, 0], images[0])


@pytest.mark.parametrize("norm", NORMS)
def test_all_questions_are_images(norm: str) -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return two(x)

    images = rand(5, 1, 3, 4, seed=1).round()
    SPSA(Ball(norm, 0.1), n_steps=2, n_pairs=3, delta=0.1, directions=Gaussian())(model, images, LABELS, init=INIT)
    low, high = torch.aminmax(torch.cat(seen))
    assert (float(low), float(high)) == (0.0, 1.0)


def test_settings() -> None:
    attack = SPSA(Ball("linf", 0.1), step_size=0.02)
    assert attack.at(0.2) == replace(attack, ball=Ball("linf", 0.2), step_size=0.04)
    assert SPSA(Ball("l2", 0.1)).at(0.5) == SPSA(Ball("l2", 0.5))
    assert str(SPSA(Ball("linf", 0.1), eot=2).cost) == "20,480 forwards"
    for wrong in ({"n_steps": 0}, {"n_pairs": 0}, {"delta": 0.0}, {"step_size": 0.0}, {"eot": 0}, {"finish": 2.0}):
        with pytest.raises(InputError):
            replace(attack, **wrong)
    with pytest.raises(InputError, match="n_steps times n_pairs"):
        replace(attack, n_steps=2**12, n_pairs=2**12)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5)])
@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("directions", [Rademacher(), Gaussian()], ids=["signs", "normal"])
def test_spsa_keeps_the_contract(norm: str, randomised: bool, shape: tuple[int, int, int], directions) -> None:
    attack = SPSA(Ball(norm, 0.1), n_steps=2, n_pairs=3, eot=2, directions=directions)
    keeps_the_contract(attack, randomised=randomised, shape=shape)
