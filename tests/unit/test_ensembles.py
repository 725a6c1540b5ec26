"""Several attacks as one: who is attacked by what, what is kept, and what the released ensemble got wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attack_contract import EOT, INIT, B, bare, keeps_the_contract, labelled, random_defence
from depura._check import InputError
from depura.attacks.apgd import APGD
from depura.attacks.baselines import RandomPoints
from depura.attacks.ensembles import InTurn, Together, rand, standard
from depura.attacks.losses import BoundedMargin, cross_entropy, dlr
from depura.attacks.pgd import PGD
from depura.attacks.square import Square
from depura.attacks.threat import Ball
from depura.defence import Defence
from depura.purifiers.composed import FixedNoise
from slow import slow
from toys import randn

SHAPE = (1, 4, 4)
W = randn(1, 3, 3, seed=7)


def small(ball: Ball) -> tuple[APGD, Square, PGD]:
    return (APGD(ball, n_steps=6, common=0), Square(ball, n_queries=12, renew=None), PGD(ball, n_steps=4))


@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_in_turn_keeps_the_contract(eps: float) -> None:
    found = keeps_the_contract(Priced(InTurn(small(Ball("linf", eps)))), randomised=False, shape=(3, 4, 5))
    assert bool((found.finished >= 0).any())


class Priced:
    """The attack, with a field that tells the contract that images may end early."""

    finish = 1.0

    def __init__(self, attack: InTurn) -> None:
        self._attack = attack

    def __getattr__(self, name: str):
        return getattr(self._attack, name)

    def __call__(self, *args, **kwargs):
        return self._attack(*args, **kwargs)

    def at(self, eps: float) -> Priced:
        return Priced(self._attack.at(eps))


@pytest.mark.parametrize("randomised", [False, True])
def test_together_keeps_the_contract(randomised: bool) -> None:
    ball = Ball("l2", 0.3)
    apgd, pgd = APGD(ball, n_steps=4, eot=2, common=3), PGD(ball, n_steps=3, eot=2)
    attack = Together((apgd, pgd, RandomPoints(ball, n_points=4, eot=2)))
    keeps_the_contract(attack, randomised=randomised, shape=(3, 4, 5))


def test_together_is_each_attack_by_itself_from_rounds_of_its_own() -> None:
    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    ball = Ball("linf", 0.1)
    attacks = (APGD(ball, n_steps=6, common=0), PGD(ball, n_steps=4, loss=BoundedMargin(1e-9)), RandomPoints(ball))
    whole = Together(attacks)(model, images, labels, init=INIT, eot=EOT)
    parts = [a(model, images, labels, init=INIT.in_round(k), eot=EOT) for k, a in enumerate(attacks)]
    torch.testing.assert_close(whole.images, torch.cat([p.images for p in parts]), rtol=0, atol=0)
    assert whole.spent.tolist() == sum(p.spent for p in parts).tolist()  # type: ignore[union-attr]
    assert whole.gradients is not None
    told = [(p.gradients.zero, p.spent[:, 0].double()) for p in parts if p.gradients is not None]
    torch.testing.assert_close(whole.gradients.zero, sum(z * n for z, n in told) / sum(n for _, n in told))
    assert whole.gradients.zero.tolist() == [4 / 11] * B


def test_attacks_in_turn_start_from_rounds_of_their_own() -> None:
    """Two random points of an image that cannot be broken: the better one is kept."""
    ball = Ball("linf", 0.1)
    images, labels = torch.full((B, 1, 3, 3), 0.5, dtype=torch.float64), torch.zeros(B, dtype=torch.int64)
    points = [
        RandomPoints(ball, n_points=1)(model_of(50.0), images, labels, init=INIT.in_round(k)).images[0] for k in (0, 1)
    ]
    margins = torch.stack([model_of(50.0)(x)[:, 1] for x in points])
    assert set(margins.argmax(0).tolist()) == {0, 1}
    one = RandomPoints(ball, n_points=1)
    found = InTurn((one, one))(model_of(50.0), images, labels, init=INIT)
    torch.testing.assert_close(model_of(50.0)(found.images[0])[:, 1], margins.amax(0), rtol=0, atol=1e-12)


def test_an_image_goes_to_the_first_attack_that_breaks_it() -> None:
    """Margins of .05, .5 and 5 at the images: random points break the first, APGD the second, nothing the third."""

    def model(images: Tensor) -> Tensor:
        z = ((images - 0.5) * W).flatten(1).sum(1) - bias[: len(images)]
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images, labels = torch.full((3, 1, 3, 3), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    bias, ball = torch.tensor([-0.05, 0.5, 5.0], dtype=torch.float64), Ball("linf", 0.1)
    found = [
        InTurn((RandomPoints(ball, n_points=1), APGD(ball, n_steps=10, common=0)))(
            lambda x, k=k: model_of(float(bias[k]))(x), images[k : k + 1], labels[:1], init=INIT.take([k])
        )
        for k in range(3)
    ]
    assert [int(f.finished) for f in found] == [0, 1, -1]
    assert [int(f.spent[0, 0]) for f in found] == [0, 11, 11]
    best = images[0] + 0.1 * W.sign()
    torch.testing.assert_close(found[2].images[0, 0], best, rtol=0, atol=1e-9)
    assert bool(found[0].loss[1].isnan().all())


def model_of(bias: float):
    def model(images: Tensor) -> Tensor:
        z = ((images - 0.5) * W).flatten(1).sum(1) - bias
        return torch.stack([torch.zeros_like(z), z], dim=1)

    return model


def test_a_randomised_model_is_refused_and_a_pinned_one_is_not() -> None:
    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    attack = InTurn(small(Ball("linf", 0.1)))
    with pytest.raises(InputError, match=r"InTurn: expected a deterministic model, .* Attack it with rand"):
        attack(model, images, labels, init=INIT, eot=EOT)
    with pytest.raises(InputError, match="deterministic"):
        attack(model, images, labels, init=INIT)
    assert model.purifier is not None
    pinned = model.with_(purifier=FixedNoise(model.purifier))
    attack(pinned, images, labels, init=INIT, eot=EOT)


@pytest.mark.parametrize("norm", ["linf", slow("l2"), "l1"])
def test_standard_breaks_whatever_any_of_its_parts_breaks(norm: str) -> None:
    model = bare(SHAPE)
    images, labels = labelled(model, SHAPE)
    attack = standard(Ball(norm, {"linf": 0.02, "l2": 0.06, "l1": 0.2}[norm]), n_steps=20, n_targets=4, n_queries=100)
    found = attack(model, images, labels, init=INIT, eot=EOT)
    broken = model(found.images[0]).argmax(1) != labels
    assert (found.finished >= 0).tolist() == broken.tolist()
    alone = torch.zeros(B, dtype=torch.bool)
    for k, part in enumerate(attack.attacks):
        candidates = part(model, images, labels, init=INIT.in_round(k), eot=EOT).images
        alone |= torch.stack([model(x).argmax(1) != labels for x in candidates]).any(0)
    assert broken.tolist() == alone.tolist()
    assert 1 <= int(broken.sum()) < B, "some break, some do not"


def test_standard_takes_the_margin_where_there_are_too_few_classes() -> None:
    model = Defence(None, model_of(0.3))
    images, labels = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    found = standard(Ball("linf", 0.1), n_steps=20, n_targets=1, n_queries=50)(
        model, images, labels, init=INIT.take([0, 1])
    )
    assert model(found.images[0]).argmax(1).tolist() == [1, 1]


class Lottery(torch.nn.Module):
    """A linear model whose every draw errs with probability about 1/4, wherever the image is."""

    def forward(self, images: Tensor, noise) -> Tensor:  # type: ignore[no-untyped-def]
        jump = noise(torch.zeros(len(images), 1, dtype=images.dtype), kind=0)[:, 0]
        z = ((images - 0.5) * W).flatten(1).sum(1) - 3 + 4.5 * jump
        return torch.stack([torch.zeros_like(z), z, torch.full_like(z, -20.0)], dim=1)


def test_rand_attacks_every_image_and_returns_none_as_it_was() -> None:
    """The released ensemble leaves images alone that one draw got wrong, and returns those clean that no draw broke."""
    images, labels = torch.full((B, 1, 3, 3), 0.5, dtype=torch.float64), torch.zeros(B, dtype=torch.int64)
    found = rand(Ball("linf", 0.1), n_steps=20, eot=4)(Lottery(), images, labels, init=INIT, eot=EOT)
    best = images + 0.1 * W.sign()
    for k in (0, 2, 3, 5):  # last and settled of both losses
        torch.testing.assert_close(found.images[k], best, rtol=0, atol=1e-9)
    assert bool((found.finished == -1).all())


def test_rand_has_both_losses_and_the_draws_that_it_is_given() -> None:
    attack = rand(Ball("l2", 0.5), n_steps=7, eot=3)
    assert [part.loss for part in attack.attacks] == [cross_entropy, dlr]  # type: ignore[attr-defined]
    assert attack.cost.gradients == 2 * 8 * 3


def test_refusals() -> None:
    with pytest.raises(InputError, match="Together: expected attacks of one threat model"):
        Together((PGD(Ball("linf", 0.1)), PGD(Ball("linf", 0.2))))
    with pytest.raises(InputError, match="InTurn: expected attacks of one threat model"):
        InTurn(())
    with pytest.raises(InputError, match="Square: expected a ball in linf or l2, got l1"):
        replace(Square(Ball("linf", 0.1)), ball=Ball("l1", 0.1))
