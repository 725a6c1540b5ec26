"""Attack libraries, both ways: a `Defence` is an ordinary module that they work on unchanged, and their attacks are
sources of candidates in a study.

What they return is judged on draws of its own; their own success flags are not looked at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import depura
from depura.attacks.external import Art, AutoAttack, External, Foolbox, Torchattacks, art_classifier, foolbox_model
from depura.demo import digits_purifier
from depura.evaluation.scoring import score
from depura.evaluation.streams import Streams
from depura.reports.summary import summarise

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


SOURCES = {
    "torchattacks": Torchattacks("EOTPGD", {"alpha": STEP, "steps": STEPS, "eot_iter": 4}),
    "foolbox": Foolbox("LinfPGD", {"abs_stepsize": STEP, "steps": 4 * STEPS}),
    "art": Art("ProjectedGradientDescentPyTorch", 10, {"eps_step": STEP, "max_iter": 4 * STEPS, "verbose": False}),
    "pyautoattack": AutoAttack("rand"),
}


@pytest.mark.parametrize("library", SOURCES)
def test_candidates_of_a_library_in_a_study(
    library: str, defence: depura.Defence, data: depura.ImageSet, tmp_path: Path
) -> None:
    """The library's rows are judged like any other, and its evaluations counted by the hook."""
    pytest.importorskip(library)
    attack = External(depura.Ball("linf", EPS), SOURCES[library])
    bare = defence.with_(purifier=None)
    few = data.first(4 if library == "pyautoattack" else N)
    rows = (
        depura.Row("bare", "no defence", attack, bare, bare, "undefended"),
        depura.Row("library", library, attack, defence, defence, "adaptive"),
    )
    study = depura.Study("library", few, defence, rows, report_draws=32, pictures=0)
    summary = summarise(depura.run(study, tmp_path / "run"))
    values = {line.name: line for line in summary.lines}
    print(library, summary.headline, values["library"].examples)
    assert values["bare"].metrics.single.value <= 0.25
    assert values["library"].null.single.value > 0.7
    assert values["library"].examples.gradients > 0
    assert values["library"].evaluations[1] > 0
    if library != "pyautoattack":  # which returns images unperturbed that no single draw broke
        assert values["library"].metrics.single.value < values["library"].null.single.value - 0.3


def test_a_defence_as_a_model_of_foolbox_and_art(defence: depura.Defence, data: depura.ImageSet) -> None:
    pytest.importorskip("foolbox")
    pytest.importorskip("art")
    clean = foolbox_model(defence)(data.images).argmax(1)
    assert float((clean == data.labels).float().mean()) > 0.8
    estimator = art_classifier(defence, shape=(1, 8, 8), n_classes=10)
    logits = estimator.predict(data.images.numpy())
    assert logits.shape == (N, 10)
    assert float((logits.argmax(1) == data.labels.numpy()).mean()) > 0.8
    gradient = estimator.loss_gradient(data.images.numpy(), np.eye(10, dtype=np.float32)[data.labels.numpy()])
    assert gradient.shape == data.images.shape
    assert float(np.abs(gradient).max()) > 0


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
