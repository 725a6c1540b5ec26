"""Candidates from elsewhere: what a library is given, what becomes of its answer, and what it may not touch."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attack_contract import EOT, INIT, B, bare, labelled, random_defence
from depura._check import InputError
from depura.attacks.ball import Ball
from depura.attacks.external import Art, AutoAttack, External, Foolbox, Torchattacks, art_classifier, foolbox_model
from depura.evaluation.describe import describe

SHAPE = (1, 4, 4)
BALL = Ball("linf", 0.1)


@dataclass(frozen=True)
class Steps:
    """Stands in for a library: signed gradient steps that leave the ball, with noise of the global generators."""

    n_steps: int = 3

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball) -> Tensor:
        assert next(model.parameters()).dtype == images.dtype
        x = images
        for _ in range(self.n_steps):
            leaf = x.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(leaf), labels)
            (gradient,) = torch.autograd.grad(loss, leaf)
            jitter = torch.rand_like(x) + float(np.random.rand()) + random.random()
            x = leaf.detach() + ball.eps * gradient.sign() * jitter
        model(x)
        return x


@pytest.mark.parametrize("randomised", [False, True])
def test_candidates_counts_and_generators(randomised: bool) -> None:
    model = random_defence(SHAPE) if randomised else bare(SHAPE)
    images, labels = labelled(model, SHAPE)
    attack = External(BALL, Steps(), n_runs=2, gradients=3, forwards=1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    told: list[float] = []
    found = attack(model, images, labels, init=INIT, eot=EOT, told=told.append)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert found.images.shape == (2, B, *SHAPE)
    assert all(bool(BALL.contains(x, images, slack=1e-12).all()) for x in found.images)
    assert not torch.equal(found.images[0], found.images[1]), "runs are seeded apart"
    assert not any(torch.equal(x, images) for x in found.images)
    assert found.spent.tolist() == [list(attack.cost[:2])] * B
    assert found.gradients is None
    assert told == [0.5, 1.0]
    again = attack(model, images, labels, init=INIT, eot=EOT)
    torch.testing.assert_close(again.images, found.images, rtol=0, atol=0)
    other = attack(model, images, labels, init=replace(INIT, seed=9), eot=EOT)
    assert not torch.equal(other.images, found.images)
    assert attack.at(0.2).ball.eps == 0.2


def test_every_call_has_noise_of_its_own() -> None:
    @dataclass(frozen=True)
    class Twice:
        def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball) -> Tensor:
            first, second = model(images), model(images)
            assert not torch.allclose(first, second)
            assert not torch.allclose(model(images[:1].repeat(2, 1, 1, 1))[0], model(images[:1].repeat(2, 1, 1, 1))[1])
            return images

    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    External(BALL, Twice())(model, images, labels, init=INIT, eot=EOT)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:2], "External: expected finite images of shape"),
        (lambda x: x * torch.nan, "got values that are not finite"),
    ],
)
def test_unusable_answers_are_refused(spoil, message: str) -> None:
    @dataclass(frozen=True)
    class Broken:
        def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball) -> Tensor:
            return spoil(images)

    images, labels = labelled(bare(SHAPE), SHAPE)
    with pytest.raises(InputError, match=message):
        External(BALL, Broken())(bare(SHAPE), images, labels, init=INIT)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m, x, y: Torchattacks("PGD")(m, x, y, BALL),
        lambda m, x, y: Foolbox("LinfPGD")(m, x, y, BALL),
        lambda m, x, y: Art("SquareAttack", n_classes=5)(m, x, y, BALL),
        lambda m, x, y: AutoAttack()(m, x, y, BALL),
        lambda m, x, y: foolbox_model(m),
        lambda m, x, y: art_classifier(m, shape=SHAPE, n_classes=5),
    ],
    ids=["torchattacks", "foolbox", "art", "pyautoattack", "foolbox model", "art classifier"],
)
def test_a_missing_library_is_named_with_what_to_do(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", gone)
    images, labels = labelled(bare(SHAPE), SHAPE)
    with pytest.raises(
        InputError, match=r"External: expected the package \w+, got none .* pip install 'depura\[attacks\]'"
    ):
        ask(bare(SHAPE), images, labels)


def test_records_can_say_what_it_was() -> None:
    said = describe(External(BALL, Torchattacks("EOTPGD", {"steps": 10})))
    assert said["source"]["name"] == "EOTPGD"
    assert said["source"]["settings"] == {"steps": 10}
