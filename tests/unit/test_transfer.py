"""Transfer: candidates are the source's, the model is asked for the ranking alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attack_contract import EOT, INIT, B, bare, keeps_the_contract, labelled, random_defence
from depura._check import InputError
from depura.attacks.losses import margin
from depura.attacks.pgd import PGD
from depura.attacks.queries import COMMON
from depura.attacks.threat import Ball
from depura.attacks.transfer import Transfer
from depura.noise import Noise, Stream
from depura.records.describe import describe
from toys import TanhClassifier

SHAPE = (1, 4, 4)
INNER = PGD(Ball("linf", 0.1), n_steps=3, eot=2, n_restarts=3)


def never(images: Tensor, noise: Noise) -> Tensor:
    raise AssertionError("the model was asked")


def test_candidates_are_the_sources_own() -> None:
    """Of a deterministic source, and of a randomised one on the stream that was named; the model is not asked."""
    images, labels = labelled(random_defence(SHAPE), SHAPE)
    expected = INNER(bare(SHAPE), images, labels, init=INIT)
    found = Transfer(INNER, bare(SHAPE))(never, images, labels, init=INIT, eot=EOT)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.loss, expected.loss)
    assert found.spent.tolist() == [[0, 0]] * B
    assert found.gradients is None
    source = random_defence(SHAPE)
    for stream in (Stream.EOT, Stream.PROBE):
        expected = INNER(source, images, labels, init=INIT, eot=INIT.on(stream))
        found = Transfer(INNER, source, stream=stream)(never, images, labels, init=INIT, eot=EOT)
        assert torch.equal(found.images, expected.images)


@pytest.mark.parametrize("keep", [1, 2, 6])
def test_the_best_few_by_loss_on_the_model(keep: int) -> None:
    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    attack = Transfer(INNER, bare(SHAPE), keep=keep, eot=3)
    found = attack(model, images, labels, init=INIT, eot=EOT)
    proposed = INNER(bare(SHAPE), images, labels, init=INIT).images
    assert found.images.shape[0] == attack.n_candidates == keep
    assert found.spent.tolist() == [[0, 18]] * B
    assert attack.cost == (0, 18, 3, ())
    picked = set()
    for row in range(B):
        with torch.no_grad():
            losses = [
                sum(
                    float(margin(model(c[row : row + 1], EOT.take([row]).draw(COMMON + j)), labels[row : row + 1]))
                    for j in range(3)
                )
                for c in proposed
            ]
        order = sorted(range(6), key=lambda n: -losses[n])[:keep]
        picked.add(tuple(order))
        torch.testing.assert_close(found.images[:, row], proposed[order, row], rtol=0, atol=0)
    assert len(picked) > 1, "each image has its own"


def test_a_ranking_by_another_loss() -> None:
    images, labels = labelled(random_defence(SHAPE), SHAPE)

    def least(logits: Tensor, classes: Tensor) -> Tensor:
        return -margin(logits, classes)

    worst = Transfer(INNER, bare(SHAPE), keep=6, eot=1)(random_defence(SHAPE), images, labels, init=INIT, eot=EOT)
    upside = Transfer(INNER, bare(SHAPE), keep=6, eot=1, loss=least)
    found = upside(random_defence(SHAPE), images, labels, init=INIT, eot=EOT)
    torch.testing.assert_close(found.images, worst.images.flip(0), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5)])
@pytest.mark.parametrize(
    ("randomised", "settings"), [(True, {"keep": 2, "eot": 3}), (False, {"keep": 1, "eot": 1}), (True, {})]
)
def test_keeps_the_contract(norm: str, shape: tuple[int, int, int], randomised: bool, settings: dict) -> None:  # type: ignore[type-arg]
    class Either:
        """The randomised source in the precision of what it is given."""

        def __call__(self, images: Tensor, noise: Noise) -> Tensor:
            return random_defence(shape).to(images.dtype)(images, noise)

    inner = PGD(Ball(norm, 0.1), n_steps=2, eot=2, n_restarts=2)
    attack = Transfer(inner, Either(), stream=Stream.PROBE, **settings)
    keeps_the_contract(attack, randomised=randomised, shape=shape)


def test_at_another_radius_and_what_it_costs() -> None:
    source = bare(SHAPE)
    attack = Transfer(INNER, source, keep=2, eot=5, stream=Stream.EOT)
    assert attack.at(0.05) == Transfer(INNER.at(0.05), source, keep=2, eot=5, stream=Stream.EOT)
    assert attack.ball == Ball("linf", 0.1)
    assert str(Transfer(INNER, source).cost) == "nothing"
    assert Transfer(INNER, source).n_candidates == 6


def test_progress_leaves_room_for_the_ranking() -> None:
    images, labels = labelled(random_defence(SHAPE), SHAPE)
    told: list[float] = []
    attack = Transfer(INNER, bare(SHAPE), keep=1, eot=3)
    attack(random_defence(SHAPE), images, labels, init=INIT, eot=EOT, progress=told.append)
    assert told == sorted(told)
    assert told[-2:] == [pytest.approx(0.5), 1.0], "18 gradients on the source, 18 evaluations of the model"


def test_description_tells_sources_apart() -> None:
    one, other = TanhClassifier(16, seed=0), TanhClassifier(16, seed=1)
    described = [describe(Transfer(INNER, source)) for source in (one, TanhClassifier(16, seed=0), other)]
    assert described[0] == described[1] != described[2]
    assert "weights_sha256" in described[0]["source"]


def test_unusable_settings() -> None:
    with pytest.raises(InputError, match="source to be a callable"):
        Transfer(INNER, "digits")  # type: ignore[arg-type]
    for settings in ({"keep": 0}, {"keep": 7}, {"keep": 1, "eot": 0}):
        with pytest.raises(InputError, match=r"keep|eot"):
            Transfer(INNER, bare(SHAPE), **settings)
    images, labels = labelled(random_defence(SHAPE), SHAPE)
    with pytest.raises(InputError, match="Transfer: expected labels"):
        Transfer(INNER, bare(SHAPE))(never, images, labels[:3], init=INIT)
