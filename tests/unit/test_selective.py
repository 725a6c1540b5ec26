"""Selective on models whose draws disagree, on linear ones, against a plain loop, and in what it promises."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from attack_contract import EOT, INIT, B, keeps_the_contract, random_defence
from depura._check import InputError
from depura.attacks.losses import margin
from depura.attacks.pgd import PGD
from depura.attacks.queries import COMMON
from depura.attacks.selective import Selective, Shared, Turning, shared_step
from depura.attacks.threat import Ball
from depura.noise import Noise
from toys import rand, randn

NORMS = ["linf", "l2"]
W = (8 * randn(1, 3, 3, seed=7)).round() / 8
"""Multiples of 1/8, so that sums of them are exact and opposite gradients cancel to 0."""
ONLY_MARGIN = (Turning(margin),)


def centre(n: int = B) -> Tensor:
    return torch.full((n, 1, 3, 3), 0.5, dtype=torch.float64)


def zeros(n: int = B) -> Tensor:
    return torch.zeros(n, dtype=torch.int64)


def signed(images: Tensor, sign: Tensor, bias: float) -> Tensor:
    """Three classes; the margin of class 0 is sign <w, x - 1/2> - bias."""
    z = sign * ((images - 0.5) * W).flatten(1).sum(1) - bias
    return torch.stack([torch.zeros_like(z), z, z - 50], dim=1)


class Torn:
    """Even draws call for +w, odd draws for -w; keeps what it was asked."""

    def __init__(self, bias: float) -> None:
        self.bias = bias
        self.draws: list[int] = []

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        draws = noise.draws if isinstance(noise.draws, tuple) else (noise.draws,) * len(images)
        self.draws += draws
        return signed(images, torch.tensor([1.0 if d % 2 == 0 else -1.0 for d in draws]), self.bias)


@pytest.mark.parametrize("norm", NORMS)
def test_breaks_half_of_the_draws_where_their_mean_gradient_vanishes(norm: str) -> None:
    dual = float(W.abs().sum()) if norm == "linf" else float(W.norm())
    model, ball = Torn(bias=0.07 * dual), Ball(norm, 0.1)
    averaged = PGD(ball, n_steps=20, eot=10, random_start=False)(model, centre(), zeros(), init=INIT, eot=EOT)
    torch.testing.assert_close(averaged.images, centre().expand_as(averaged.images), rtol=0, atol=1e-12)
    attack = Selective(ball, n_steps=20, n_restarts=1, losses=ONLY_MARGIN, random_start=False)
    found = attack(model, centre(), zeros(), init=INIT, eot=EOT)
    direction = W.sign() if norm == "linf" else W / W.norm()
    torch.testing.assert_close((found.images[0] - centre()).abs(), (0.1 * direction).abs().expand(B, 1, 3, 3))
    for image in range(B):
        logits = model(found.images[0, image : image + 1].expand(10, 1, 3, 3), EOT.take([image]).expand(range(10)))
        assert int((logits.argmax(1) != 0).sum()) == 5


@pytest.mark.parametrize("loss", Selective(Ball("linf", 0.1)).losses, ids=["margin", "cross_entropy", "dlr"])
@pytest.mark.parametrize("norm", NORMS)
def test_reaches_the_optimum_of_a_linear_model(norm: str, loss: Turning) -> None:
    """With the default steps, from a random start; for class 1 the way is the opposite one."""
    direction = W.sign() if norm == "linf" else W / W.norm()
    attack = Selective(Ball(norm, 0.1), eot=1, n_restarts=1, losses=(loss,))
    for label, sign in ((0, 1), (1, -1)):
        labels = torch.full((B,), label)
        found = attack(lambda x: signed(x, torch.ones(len(x)), 0.0), centre(), labels, init=INIT)
        expected = (centre() + sign * 0.1 * direction).clamp(0, 1)
        torch.testing.assert_close(found.images[0], expected, rtol=0, atol=1e-3 * 0.1)


def test_stays_within_pixels_that_are_black_or_white() -> None:
    images = torch.where(W > 0, 1.0, 0.0).to(torch.float64)[None]
    found = Selective(Ball("linf", 0.1), n_steps=5, n_restarts=1, losses=ONLY_MARGIN, eot=1)(
        lambda x: signed(x, torch.ones(len(x)), 0.0), images, zeros(1), init=INIT.take([0])
    )
    torch.testing.assert_close(found.images[0], images, rtol=0, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_against_a_plain_loop(norm: str) -> None:
    """One image and one draw at a time; a step with a gradient that is not finite changes nothing."""
    defence, ball = random_defence((1, 3, 3)), Ball(norm, 0.2)

    def model(images: Tensor, noise: Noise) -> Tensor:
        """Draw 16, which is at the second step of the second restart, has no finite gradient."""
        sums, draws = images.flatten(1).sum(1), torch.tensor(noise.draws).expand(len(images))
        spoilt = torch.where(draws == 16, sums - sums.detach(), 1.0).sqrt() - (draws != 16).double()
        return defence(images, noise) + spoilt[:, None] * torch.arange(5)

    images, labels = rand(B, 1, 3, 3, seed=4), torch.tensor([0, 1, 2, 3, 4])
    losses = (Turning(margin), Turning(lambda z, y: torch_cross_entropy(z, y, reduction="none"), at=0.3))
    n, m = 4, 3
    attack = Selective(
        ball, n_steps=n, step_size=0.15, eot=m, losses=losses, n_restarts=3, sharpness=2.0, n_rounds=4, smoothing=0.7
    )
    got = attack(model, images, labels, init=INIT, eot=EOT)
    for row in (0, 3):
        origin, y, noise = images[row : row + 1], labels[row : row + 1], EOT.take([row])
        for restart in range(3):
            loss, border = losses[restart % 2]
            x, smooth = ball.sample(images, INIT, step=restart)[row : row + 1], torch.zeros_like(origin)
            seen: list[tuple[float, float, Tensor]] = []
            for i in range(n):
                values, gradients, wrong = [], [], 0
                for j in range(m):
                    leaf = x.clone().requires_grad_()
                    logits = model(leaf, noise.draw((restart * n + i) * m + j))
                    value = loss(logits, y)[0]
                    gradients.append(torch.autograd.grad(value, leaf)[0][0])
                    values.append(float(value.detach()))
                    wrong += int(logits.argmax(1) != y)
                seen.append((wrong, sum(values) / m, x))
                assert float(got.loss[restart * n + i, row]) == pytest.approx(sum(values) / m, abs=1e-9)
                if restart * n + i == 5:
                    assert not all(bool(u.isfinite().all()) for u in gradients)
                    continue
                size = 0.15 * (n - i) / n
                weights = shared_step(
                    ball,
                    torch.tensor([values], dtype=torch.float64) - border,
                    torch.stack(gradients)[None],
                    size=size,
                    sharpness=2.0,
                    n_rounds=4,
                ).weights[0]
                g = sum(float(q) * u for q, u in zip(weights, gradients, strict=True))
                share = 1 / (i + 1) ** 0.7
                smooth = share * g[None] + (1 - share) * smooth
                x = ball.project(x + size * ball.unit(smooth), origin)
            torch.testing.assert_close(got.images[2 * restart, row], x[0], rtol=0, atol=1e-9)
            best = max(seen, key=lambda entry: entry[:2])[2]
            torch.testing.assert_close(got.images[2 * restart + 1, row], best[0], rtol=0, atol=1e-9)


def test_the_best_point_is_the_one_with_most_wrong_draws() -> None:
    """At the start the loss is larger, but fewer draws are wrong."""

    def model(images: Tensor, noise: Noise) -> Tensor:
        step = (images - 0.5).flatten(1).sum(1)
        draws = torch.tensor(noise.draws)
        first = draws < 2
        z = torch.where(first, torch.where(draws % 2 == 0, 100.0, -1.0), 0.5) + step - step.detach()
        return torch.stack([torch.zeros_like(z), z, z - 50], dim=1)

    attack = Selective(Ball("linf", 0.1), n_steps=3, eot=2, n_restarts=1, losses=ONLY_MARGIN, random_start=False)
    found = attack(model, centre(), zeros(), init=INIT, eot=EOT)
    assert found.loss[:, 0].tolist() == pytest.approx([49.5, 0.5, 0.5], abs=1e-9)
    assert float((found.images[1] - centre()).abs().min()) > 0.04, "the second point, not the start"


def test_default_steps_add_up() -> None:
    """To 2.5 eps at least: a linear model is crossed in few steps too."""
    for n in (1, 2, 5, 50):
        attack = Selective(Ball("l2", 0.1), n_steps=n, n_restarts=1, losses=ONLY_MARGIN, eot=1)
        found = attack(lambda x: signed(x, torch.ones(len(x)), 0.0), centre(), zeros(), init=INIT)
        assert float(((found.images[0] - centre()) * W / W.norm()).flatten(1).sum(1).min()) > 0.09


# --- what it promises ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "randomised", "shape", "settings"),
    [
        ("linf", True, (1, 4, 4), {}),
        ("l2", True, (3, 4, 5), {"random_start": False}),
        ("l2", False, (1, 4, 4), {"step_size": 0.05, "smoothing": 0.0}),
        ("linf", False, (3, 4, 5), {}),
    ],
)
def test_keeps_the_contract(norm: str, randomised: bool, shape: tuple[int, int, int], settings: dict) -> None:  # type: ignore[type-arg]
    attack = Selective(Ball(norm, 0.1), n_steps=3, eot=3, n_restarts=2, **settings)
    found = keeps_the_contract(attack, randomised=randomised, shape=shape)
    assert found.finished.tolist() == [-1] * B
    assert attack.cost == (18, 0, 3, ())


class Mixed:
    """Images whose first pixel is large can be broken on all draws, others on the step's own draws only."""

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        common = torch.tensor([d >= COMMON for d in noise.draws])  # type: ignore[union-attr]
        steady = images[:, 0, 0, 0] > 0.5
        z = ((images - 0.5) * W).flatten(1).sum(1)
        z = torch.where(common & ~steady, z - 100, z + 3)
        return torch.stack([torch.zeros_like(z), z, z - 50], dim=1)


def test_images_are_finished_on_draws_that_were_not_ascended() -> None:
    images = 0.4 + 0.2 * rand(B, 1, 3, 3, seed=1)
    images[:, 0, 0, 0] = torch.tensor([0.8, 0.2, 0.8, 0.2, 0.8])
    attack = Selective(Ball("linf", 0.1), n_steps=3, eot=2, n_restarts=2, losses=ONLY_MARGIN, finish=1.0, common=4)
    found = attack(Mixed(), images, zeros(), init=INIT, eot=EOT)
    assert found.finished.tolist() == [0, -1, 0, -1, 0]
    assert found.spent.tolist() == [[2, 4], [12, 24], [2, 4], [12, 24], [2, 4]]
    assert attack.cost == (12, 24, 4, ())
    steady = [0, 2, 4]
    start = attack.ball.sample(images, INIT)
    torch.testing.assert_close(found.images[:, steady], start[steady].expand(4, 3, 1, 3, 3), rtol=0, atol=0)
    assert bool(found.loss[1:, steady].isnan().all())
    assert bool(found.loss[:, [1, 3]].isfinite().all())
    assert not torch.allclose(found.images[0, [1, 3]], start[[1, 3]], atol=0.01)
    alone = attack(Mixed(), images[1:2], zeros(1), init=INIT.take([1]), eot=EOT.take([1]))
    torch.testing.assert_close(alone.images[:, 0], found.images[:, 1], rtol=0, atol=1e-12)
    told: list[float] = []
    alone = attack(Mixed(), images[:1], zeros(1), init=INIT.take([0]), eot=EOT.take([0]), progress=told.append)
    torch.testing.assert_close(alone.images, start[:1].expand(4, 1, 1, 3, 3), rtol=0, atol=0)
    assert alone.loss.shape[0] == 6
    assert told[-1] == 1.0


def test_a_step_with_a_right_draw_asks_nothing() -> None:
    """Half of the draws are wrong anywhere, never all."""
    model = Torn(bias=1e-3)
    attack = Selective(Ball("linf", 0.1), n_steps=4, eot=4, n_restarts=1, losses=ONLY_MARGIN, finish=0.5, common=4)
    found = attack(model, centre(), zeros(), init=INIT, eot=EOT)
    assert max(model.draws) < 16
    assert found.spent.tolist() == [[16, 0]] * B
    assert found.finished.tolist() == [-1] * B


def test_bad_gradients_do_not_move_an_image_or_its_neighbours() -> None:
    def model(images: Tensor, noise: Noise) -> Tensor:
        z = ((images - 0.5) * W).flatten(1).sum(1)
        broken = torch.tensor([i == 102 and d % 2 == 1 for i, d in zip(noise.images, noise.draws, strict=True)])  # type: ignore[arg-type]
        sums = images.flatten(1).sum(1)
        z = z + torch.where(broken, sums - sums.detach(), 1.0).sqrt() - (~broken).double()
        return torch.stack([torch.zeros_like(z), z, z - 50], dim=1)

    attack = Selective(Ball("linf", 0.1), n_steps=8, eot=2, n_restarts=1, losses=ONLY_MARGIN, random_start=False)
    found = attack(model, centre(), zeros(), init=INIT, eot=EOT)
    torch.testing.assert_close(found.images[:, 2], centre(2), rtol=0, atol=0)
    assert found.gradients is not None
    assert found.gradients.bad.tolist() == [0, 0, 0.5, 0, 0]
    torch.testing.assert_close(found.images[0, 1], (centre() + 0.1 * W.sign())[1], rtol=0, atol=1e-12)


def test_at_another_radius() -> None:
    assert Selective(Ball("l2", 0.25), step_size=0.1).at(0.125) == Selective(Ball("l2", 0.125), step_size=0.05)
    assert Selective(Ball("l2", 0.2)).at(0.1) == Selective(Ball("l2", 0.1))
    none = Selective(Ball("linf", 0.0), n_steps=2, n_restarts=1, eot=1, losses=ONLY_MARGIN)
    found = none(lambda x: signed(x, torch.ones(len(x)), 0.0), centre(), zeros(), init=INIT)
    torch.testing.assert_close(found.images, centre().expand(2, B, 1, 3, 3), rtol=0, atol=0)


def test_borders_of_the_default_losses() -> None:
    """Two classes of equal logits are on the border of each; dlr takes three."""
    logits = torch.tensor([[1.0, 1.0, -40.0]], dtype=torch.float64)
    for loss, border in Selective(Ball("linf", 0.1)).losses:
        assert float(loss(logits, zeros(1))) == pytest.approx(border, abs=1e-9)
    assert Selective(Ball("linf", 0.1)).losses[1].at == math.log(2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_steps": 0}, "n_steps"),
        ({"eot": 0}, "eot"),
        ({"n_restarts": 0}, "n_restarts"),
        ({"n_rounds": 0}, "n_rounds"),
        ({"common": 0}, "common"),
        ({"step_size": 0.0}, "step_size"),
        ({"sharpness": 0.0}, "sharpness"),
        ({"smoothing": 1.5}, "smoothing"),
        ({"finish": 0.0}, "finish"),
        ({"finish": 1.5}, "finish"),
        ({"losses": ()}, "Turning"),
        ({"losses": (margin,)}, "Turning"),
    ],
)
def test_unusable_settings(settings: dict, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=said):
        Selective(Ball("linf", 0.1), **settings)


def every_step(norm: str, size: float) -> np.ndarray:
    """Steps of two pixels on a fine grid of the ball and on its border."""
    line = np.linspace(-size, size, 161)
    grid = np.stack([a.ravel() for a in np.meshgrid(line, line)], 1)
    if norm == "linf":
        return grid
    angle = np.linspace(0, 2 * math.pi, 1441)
    return np.concatenate([grid[np.hypot(*grid.T) <= size], size * np.stack([np.cos(angle), np.sin(angle)], 1)])


def expected(step: np.ndarray, losses: np.ndarray, gradients: np.ndarray, sharpness: float) -> np.ndarray:
    """J by its definition: (P, 2) steps of one image."""
    return (1 / (1 + np.exp(-sharpness * (losses + step @ gradients.T)))).sum(1)


def problems(n: int, m: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws of which some are broken already, with gradients of two pixels in all directions."""
    return randn(n, m, seed=seed) - 0.5, 2 * randn(n, m, 1, 1, 2, seed=seed + 1)


@pytest.mark.parametrize("norm", NORMS)
def test_no_step_breaks_many_more_draws(norm: str) -> None:
    losses, gradients = problems(100, 6)
    steps = every_step(norm, 0.8)
    for sharpness, lowest, mean in ((1.0, 0.95, 0.005), (5.0, 0.8, 0.06)):
        found = shared_step(Ball(norm, 1.0), losses, gradients, size=0.8, sharpness=sharpness, n_rounds=30)
        assert found.step.shape == (100, 1, 1, 2)
        assert bool((Ball(norm, 1.0).distance(found.step, torch.zeros_like(found.step)) <= 0.8 + 1e-12).all())
        gaps = []
        for i in range(100):
            own_losses, own_gradients = losses[i].numpy(), gradients[i].flatten(1).numpy()
            own = expected(found.step[i].reshape(1, 2).numpy(), own_losses, own_gradients, sharpness)[0]
            assert float(found.broken[i]) == pytest.approx(own, abs=1e-9), "the value is that of the step"
            gaps.append(expected(steps, own_losses, own_gradients, sharpness).max() - own)
        assert np.mean(np.array(gaps) < 0.01) >= lowest, "nearly always the best there is"
        assert np.mean(gaps) < mean


@pytest.mark.parametrize("norm", NORMS)
def test_the_end_is_stationary(norm: str) -> None:
    """Weights are the derivative's; the step points along the weighted gradient, or that gradient has vanished."""
    ball, (losses, gradients) = Ball(norm, 1.0), problems(60, 5, seed=3)
    found = shared_step(ball, losses, gradients, size=0.5, sharpness=2.0, n_rounds=400)
    step = found.step.clone().requires_grad_()
    z = 2.0 * (losses + (gradients * step[:, None]).flatten(2).sum(2))
    q = torch.sigmoid(z) * (1 - torch.sigmoid(z))
    torch.testing.assert_close(found.weights, (q / q.sum(1, keepdim=True)).detach())
    (slope,) = torch.autograd.grad(torch.sigmoid(z).sum(), step)
    # How much a move to any point of the ball could gain, to first order: 0 at a stationary point.
    gain = ((0.5 * ball.unit(slope) - found.step) * slope).flatten(1).sum(1)
    assert float(gain.min()) > -1e-9
    assert float(gain.quantile(0.6)) < 1e-5
    assert float(gain.max()) < 0.05, "where the end lies inside or on a face, it is approached slowly"
    on_border = ball.distance(found.step, torch.zeros_like(found.step)) > 0.5 - 1e-9
    assert float(on_border.double().mean()) > 0.5, "the fixed point of the loop"
    if norm == "l2":
        torch.testing.assert_close(found.step[on_border], 0.5 * ball.unit(slope[on_border]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_the_expectation_never_falls_with_more_rounds(norm: str) -> None:
    losses, gradients = problems(50, 6, seed=5)
    found = [
        shared_step(Ball(norm, 1.0), losses, gradients, size=0.8, sharpness=5.0, n_rounds=n).broken
        for n in (1, 2, 3, 5, 10, 30)
    ]
    for less, more in pairwise(found):
        assert bool((more >= less - 1e-9).all())
    assert float((found[-1] - found[0]).mean()) > 0.03


def test_one_draw_is_followed_to_the_border() -> None:
    u = randn(3, 1, 2, 3, 3, seed=2)
    for norm, steepest in (
        ("linf", u[:, 0].sign()),
        ("l2", u[:, 0] / u[:, 0].flatten(1).norm(dim=1)[:, None, None, None]),
    ):
        found = shared_step(Ball(norm, 0.1), torch.zeros(3, 1, dtype=u.dtype), u, size=0.1, sharpness=5.0, n_rounds=3)
        torch.testing.assert_close(found.step, 0.1 * steepest)
        assert found.weights.tolist() == [[1], [1], [1]]


def only(pixel: list[float]) -> Tensor:
    return torch.tensor(pixel, dtype=torch.float64).reshape(1, len(pixel), 1, 1, 1)


def two(losses: list[float], gradients: list[float], sharpness: float = 5.0) -> Shared:
    """Draws whose gradients lie on one line."""
    return shared_step(
        Ball("l2", 1.0),
        torch.tensor([losses], dtype=torch.float64),
        only(gradients),
        size=0.5,
        sharpness=sharpness,
        n_rounds=20,
    )


def test_opposite_draws_do_not_cancel() -> None:
    found = two([-0.3, -0.3, -0.3, -0.3], [1, -1, 1, -1])
    assert float(found.step.abs()) == pytest.approx(0.5)
    assert float(found.broken) > 1.4
    assert float(max(found.weights[0, :2].sum(), found.weights[0, 2:].sum())) == pytest.approx(0.5)
    assert float((found.weights[0] * torch.tensor([1, -1, 1, -1])).sum().abs()) > 0.8


def test_draws_that_no_step_changes_have_no_weight() -> None:
    """Where the published weights, sigmoid(z), would follow the draw that is broken anyway."""
    found = two([4.0, -0.1], [1.0, -1.0])
    assert float(found.step) == pytest.approx(-0.5)
    assert float(found.weights[0, 1]) > 0.99
    found = two([-9.0, -0.1], [1.0, -1.0])
    assert float(found.step) == pytest.approx(-0.5)
    assert float(found.weights[0, 1]) > 0.99


def test_the_best_step_may_be_short() -> None:
    """Two draws just broken, with opposite gradients: any long step loses one of them."""
    found = two([0.2, 0.2], [3.0, -3.0])
    assert abs(float(found.step)) < 0.02
    assert float(found.broken) == pytest.approx(2 / (1 + math.exp(-1)), abs=1e-3)


def test_hopeless_draws_are_still_told_apart() -> None:
    """sigmoid(-1000) is 0 in floating point; its ratio to sigmoid(-995) is not."""
    found = two([-200.0, -199.0], [1.0, -1.0])
    assert bool(found.weights.isfinite().all())
    assert float(found.step) == pytest.approx(-0.5)
    assert float(found.weights[0, 1]) > 0.99


def test_zero_gradients_give_no_step() -> None:
    found = two([-1.0, 0.0], [0.0, 0.0])
    assert float(found.step) == 0
    assert bool(found.weights.isfinite().all())
