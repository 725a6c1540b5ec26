"""torchattacks, foolbox, ART and pyautoattack, both ways: their attacks as candidates, our defences as their models.

A `Defence` is an ordinary module from images in [0, 1] to logits. Whatever a library returns is judged on draws of
depura's own; its success flags are not looked at.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depura
from depura.attacks.attack import Candidates
from depura.attacks.external import External, Make
from depura.attacks.libraries import (
    art_source,
    as_art,
    as_foolbox,
    autoattack_source,
    foolbox_source,
    torchattacks_source,
)
from depura.evaluation.demo import digits_purifier
from depura.evaluation.scoring import choose, score
from depura.evaluation.study import AttackRun, Study
from toys import Streams

pytestmark = pytest.mark.attacks

EPS, STEPS, N = 0.2, 10, 16
STEP = 2.5 * EPS / STEPS
LINF = depura.Ball("linf", EPS)
DOC = Path(__file__).parents[2] / "docs" / "attacks-of-other-libraries.md"


@pytest.fixture(scope="module")
def data() -> depura.ImageSet:
    return depura.load_digits("test").first(N)


@pytest.fixture(scope="module")
def defence() -> depura.Defence:
    return depura.Defence(digits_purifier(), depura.digits_classifier())


def wrong(defence: depura.Defence, data: depura.ImageSet, images: Tensor) -> float:
    scores = score(defence, images, data.labels, Streams(0).report(data.ids), draws=range(32))
    return float(scores.errors(data.labels).float().mean()) / 32


def judge(defence: depura.Defence, data: depura.ImageSet, candidates: Tensor) -> None:
    """Inside the ball, far below the null, and far below what was made without seeing the purifier."""
    assert all(bool(LINF.contains(images, data.images, slack=1e-5).all()) for images in candidates)
    chosen = choose(defence, candidates, data.labels, Streams(0).select(data.ids), draws=range(16)).images
    bare = depura.Defence(None, depura.digits_classifier())
    init = Streams(0).init(data.ids)
    blind = depura.PGD(LINF, n_steps=STEPS)(bare, data.images, data.labels, init=init).images[0]
    null, transfer, adaptive = (1 - wrong(defence, data, images) for images in (data.images, blind, chosen))
    print(f"null {null:.3f}, transfer {transfer:.3f}, attacked {adaptive:.3f}")
    assert null > 0.9
    assert adaptive < transfer
    assert adaptive < null - 0.3


# --- a defence as a model of a library -------------------------------------------------------------------------------


def test_torchattacks_takes_a_defence(defence: depura.Defence, data: depura.ImageSet) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(0)
    attack = torchattacks.EOTPGD(defence, eps=EPS, alpha=STEP, steps=STEPS, eot_iter=4)
    judge(defence, data, attack(data.images, data.labels).detach()[None])


def test_foolbox_takes_a_defence(defence: depura.Defence, data: depura.ImageSet) -> None:
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=4 * STEPS)
    raw, _, _ = attack(as_foolbox(defence), data.images, data.labels, epsilons=EPS)
    judge(defence, data, raw.detach()[None])


def test_art_takes_a_defence(defence: depura.Defence, data: depura.ImageSet) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    torch.manual_seed(0)
    attack = evasion.ProjectedGradientDescentPyTorch(
        as_art(defence, (1, 8, 8), 10), norm=np.inf, eps=EPS, eps_step=STEP, max_iter=4 * STEPS, verbose=False
    )
    judge(defence, data, torch.from_numpy(attack.generate(data.images.numpy(), data.labels.numpy()))[None])


def test_pyautoattack_takes_a_defence(defence: depura.Defence, data: depura.ImageSet) -> None:
    pyautoattack = pytest.importorskip("pyautoattack")
    attack = pyautoattack.AutoAttack(defence, eps=EPS, seed=0, version="custom", attacks=["apgd-ce"])
    images, _ = attack.run_standard_evaluation(data.images, data.labels, batch_size=N)
    judge(defence, data, images.detach()[None])


def test_models_of_the_libraries_predict_what_the_defence_does(data: depura.ImageSet) -> None:
    pytest.importorskip("foolbox")
    pytest.importorskip("art")
    bare = depura.Defence(None, depura.digits_classifier())
    with torch.no_grad():
        logits = bare(data.images)
        torch.testing.assert_close(as_foolbox(bare)(data.images), logits)
    estimator = as_art(bare, (1, 8, 8), 10)
    np.testing.assert_allclose(estimator.predict(data.images.numpy()), logits.numpy(), rtol=1e-5, atol=1e-5)
    assert estimator.nb_classes == 10
    assert tuple(estimator.input_shape) == (1, 8, 8)


# --- an attack of a library as candidates ----------------------------------------------------------------------------


def sources(steps: int, *, norm: str = "linf", n_classes: int = 10) -> dict[str, Make]:
    """Gradient descent of each library, with `steps` steps of a quarter of the radius."""
    linf = norm == "linf"
    fraction = {"steps": steps}
    return {
        "torchattacks": torchattacks_source("PGD" if linf else "PGDL2", fraction, times_eps={"alpha": 0.25}),
        "foolbox": foolbox_source("LinfPGD" if linf else "L2PGD", fraction, times_eps={"abs_stepsize": 0.25}),
        "art": art_source(
            "ProjectedGradientDescentPyTorch",
            {"max_iter": steps, "num_random_init": 1, "verbose": False},
            n_classes=n_classes,
            times_eps={"eps_step": 0.25},
        ),
    }


class Linear(nn.Module):
    """Two classes, the second of which gains along a fixed direction."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(3)))

    def forward(self, images: Tensor) -> Tensor:
        rise = (self.w * (images - 0.5)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(rise), rise], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("library", ["torchattacks", "foolbox", "art"])
def test_on_a_linear_model_each_reaches_the_farthest_point(library: str, norm: str) -> None:
    pytest.importorskip(library)
    ball = depura.Ball(norm, 0.1 if norm == "linf" else 0.3)  # type: ignore[arg-type]
    model, images, labels = Linear(), torch.full((3, 1, 3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    attack = External(ball, sources(60, norm=norm, n_classes=2)[library], library, n_runs=2)
    w = model.w.detach()
    for at in (attack, attack.at(ball.eps / 2)):
        found = at(model, images, labels)
        best = images + at.ball.eps * (w.sign() if norm == "linf" else w / w.square().sum().sqrt())
        for candidate in found.images:
            torch.testing.assert_close(candidate, best, rtol=0, atol=2e-4)
        assert bool((found.spent[:, 0] >= 2 * 60).all())


def test_autoattack_stops_at_the_first_success_and_returns_the_image_itself_where_it_has_none() -> None:
    pytest.importorskip("pyautoattack")
    model, labels = Linear(), torch.zeros(2, dtype=torch.int64)
    w = model.w.detach()
    near = 0.5 - 0.05 * w.sign() + torch.zeros(1, 1, 3, 4)
    images = torch.cat([near, 0.5 - 0.3 * w.sign()[None]])
    make = autoattack_source({"version": "custom", "attacks": ["apgd-ce"]})
    found = External(depura.Ball("linf", 0.1), make, "apgd")(model, images, labels).images[0]
    assert model(found).argmax(1).tolist() == [1, 0]
    assert torch.equal(found[1], images[1])


def small_sources() -> dict[str, Make]:
    return {**sources(3), "pyautoattack": autoattack_source({"version": "custom", "attacks": ["apgd-ce"]})}


@pytest.mark.parametrize("library", ["torchattacks", "foolbox", "art", "pyautoattack"])
def test_image_by_image_nothing_depends_on_the_batch_and_nothing_on_global_generators(
    library: str, defence: depura.Defence, data: depura.ImageSet
) -> None:
    pytest.importorskip(library)
    attack = External(LINF, small_sources()[library], library, images_at_once=1)
    streams = Streams(5)

    def found(rows: list[int]) -> Candidates:
        ids = [data.ids[r] for r in rows]
        return attack(defence, data.images[rows], data.labels[rows], init=streams.init(ids), eot=streams.eot(ids))

    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    whole = found([0, 1, 2])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    torch.manual_seed(2)
    np.random.seed(2)
    some = found([2, 0])
    torch.testing.assert_close(some.images, whole.images[:, [2, 0]], rtol=0, atol=1e-6)
    assert some.spent.tolist() == whole.spent[[2, 0]].tolist()


@pytest.mark.parametrize("library", ["torchattacks", "foolbox", "art", "pyautoattack"])
def test_images_and_models_in_double_precision_are_served_too(library: str) -> None:
    pytest.importorskip(library)
    makes = {**sources(3, n_classes=2), "pyautoattack": small_sources()["pyautoattack"]}
    images, labels = torch.full((2, 1, 3, 4), 0.5, dtype=torch.float64) + 1e-9, torch.zeros(2, dtype=torch.int64)
    found = External(LINF, makes[library], library)(Linear().double(), images, labels).images[0]
    assert found.dtype == torch.float64
    assert float(LINF.distance(found, images).max()) <= EPS * (1 + 1e-12)
    assert float(LINF.distance(found, images).min()) > EPS / 2


def test_other_attacks_of_the_libraries_are_asked_in_their_own_words(data: depura.ImageSet) -> None:
    """Attacks that seed themselves, take a norm, look without gradients, or minimise a distance."""
    pytest.importorskip("torchattacks")
    pytest.importorskip("foolbox")
    pytest.importorskip("art")
    bare = depura.Defence(None, depura.digits_classifier())
    l2 = depura.Ball("l2", 1.0)
    tried: list[tuple[depura.Ball, Make, bool]] = [
        (l2, torchattacks_source("APGD", {"steps": 5}), True),
        (LINF, torchattacks_source("Square", {"n_queries": 20}), False),
        (depura.Ball("l2", 0.1), foolbox_source("L2DeepFoolAttack", {"steps": 5}), True),  # goes farther by itself
        (LINF, art_source("SquareAttack", {"max_iter": 20, "verbose": False}, n_classes=10), False),
        (l2, art_source("AutoProjectedGradientDescent", {"max_iter": 5, "verbose": False}, n_classes=10), True),
    ]
    for ball, make, with_gradients in tried:
        attack = External(ball, make, str(make.keywords["attack"]), n_runs=2)  # type: ignore[attr-defined]
        found = attack(bare, data.images[:4], data.labels[:4], init=Streams(0).init(data.ids[:4]))
        assert bool((found.spent[:, 0] > 0).all()) == with_gradients, attack.name
        assert bool((found.spent.sum(1) > 0).all())
        assert all(bool(ball.contains(images, data.images[:4]).all()) for images in found.images)
        assert not torch.equal(found.images[0], data.images[:4]), attack.name


def test_a_study_judges_every_library_like_an_attack_of_our_own(
    defence: depura.Defence, data: depura.ImageSet, tmp_path: Path
) -> None:
    for name in ("torchattacks", "foolbox", "art", "pyautoattack"):
        pytest.importorskip(name)
    makes = {
        **sources(4 * STEPS),
        "torchattacks": torchattacks_source("EOTPGD", {"steps": STEPS, "eot_iter": 4}, times_eps={"alpha": 0.25}),
        "pyautoattack": autoattack_source({"version": "custom", "attacks": ["apgd-ce"]}),
    }
    study = Study(
        name="libraries",
        data=data,
        defence=defence,
        rows=tuple(
            AttackRun(name, name, External(LINF, make, name, n_runs=2), defence, defence, kind="adaptive")
            for name, make in makes.items()
        ),
        report_draws=32,
        unit_images=N,
        pictures=0,
    )
    done = depura.run(study, tmp_path / "run", command="test")
    streams, evaluations = Streams(study.seed), {}
    for row in study.rows:
        unit = done.load(f"{row.name}_eps0.2_00000-{N:05d}")
        images = torch.from_numpy(unit.arrays["adversarial"])
        assert bool(LINF.contains(images, data.images).all())
        scores = score(defence, images, data.labels, streams.report(data.ids), draws=range(32))
        assert np.array_equal(scores.predictions.numpy(), unit.arrays["predictions"]), "judged on the report stream"
        assert unit.arrays["select_errors"].shape == (N, 2)
        assert float(scores.errors(data.labels).float().mean()) / 32 > 0.4, row.name
        evaluations[row.name] = unit.arrays["spent"][0].tolist()
        assert unit.facts.evaluations.attack[1] > 0
    print(evaluations)
    assert evaluations["torchattacks"][0] == 2 * STEPS * 4
    assert evaluations["foolbox"][0] == 2 * 4 * STEPS
    assert evaluations["art"][0] == 2 * 4 * STEPS
    described: Any = done.header.rows[0].setting("make")
    assert described["keywords"]["options"] == {"steps": STEPS, "eot_iter": 4}


def test_every_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The blocks one after another, as a reader would paste them."""
    for name in ("torchattacks", "foolbox", "art", "pyautoattack"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(DOC), "exec"), names)
