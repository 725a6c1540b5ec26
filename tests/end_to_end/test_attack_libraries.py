"""A `Defence` is an ordinary module from images in [0, 1] to logits: attack libraries work on it unchanged.

What they return is judged here on draws of its own; their own success flags are not looked at.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import depura
from depura.demo import digits_purifier
from depura.evaluation.scoring import score
from depura.evaluation.streams import Streams

pytestmark = pytest.mark.attacks

EPS, STEPS, N = 0.2, 10, 16
STEP = 2.5 * EPS / STEPS


@pytest.fixture(scope="module")
def data() -> depura.ImageSet:
    return depura.load_digits("test").first(N)


@pytest.fixture(scope="module")
def defence() -> depura.Defence:
    return depura.Defence(digits_purifier(), depura.digits_classifier())


def accuracy(defence: depura.Defence, data: depura.ImageSet, images: Tensor) -> float:
    scores = score(defence, images, data.labels, Streams(0).report(data.ids), draws=range(32))
    return 1 - float(scores.errors(data.labels).float().mean()) / 32


def judge(defence: depura.Defence, data: depura.ImageSet, found: Tensor) -> None:
    """Inside the ball, far below the null, and far below what was made without seeing the purifier."""
    images = found.detach().float()
    assert bool(depura.Ball("linf", EPS).contains(images, data.images, slack=1e-5).all())
    null = accuracy(defence, data, data.images)
    bare = depura.Defence(None, depura.digits_classifier())
    blind = depura.PGD(depura.Ball("linf", EPS), n_steps=STEPS)(bare, data.images, data.labels).images[0]
    adaptive, transfer = accuracy(defence, data, images), accuracy(defence, data, blind)
    print(f"null {null:.3f}, transfer {transfer:.3f}, attacked {adaptive:.3f}")
    assert null > 0.9
    assert adaptive < transfer
    assert adaptive < null - 0.3


def test_torchattacks(defence: depura.Defence, data: depura.ImageSet) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    attack = torchattacks.EOTPGD(defence, eps=EPS, alpha=STEP, steps=STEPS, eot_iter=4)
    judge(defence, data, attack(data.images, data.labels))


def test_foolbox(defence: depura.Defence, data: depura.ImageSet) -> None:
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    model = foolbox.PyTorchModel(defence, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=4 * STEPS)
    raw, _, _ = attack(model, data.images, data.labels, epsilons=EPS)
    judge(defence, data, raw)


def test_art(defence: depura.Defence, data: depura.ImageSet) -> None:
    classification = pytest.importorskip("art.estimators.classification")
    evasion = pytest.importorskip("art.attacks.evasion")
    torch.manual_seed(0)
    model = classification.PyTorchClassifier(
        defence,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    attack = evasion.ProjectedGradientDescentPyTorch(
        model, norm=np.inf, eps=EPS, eps_step=STEP, max_iter=4 * STEPS, verbose=False
    )
    judge(defence, data, torch.from_numpy(attack.generate(data.images.numpy(), data.labels.numpy())))
