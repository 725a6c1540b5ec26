"""Selective on models whose draws disagree, on linear ones, against a plain loop, and in what it promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from attack_contract import EOT, INIT, B, keeps_the_contract, random_defence
from depura._check import InputError
from depura.attacks.losses import margin
from depura.attacks.pgd import PGD
from depura.attacks.queries import COMMON
from depura.attacks.selective import Selective, Turning, shared_step
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
