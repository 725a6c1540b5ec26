"""A zoo of defences, attacks and judges whose truth is known: what the evaluation says of each."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import depura
from depura.analysis.results import RowResults
from depura.analysis.summary import Summary, summarise
from depura.analysis.verdicts import Status
from depura.analysis.words import images_text
from depura.attacks.apgd import APGD
from depura.attacks.baselines import CleanImages
from depura.attacks.losses import BoundedMargin
from depura.attacks.pgd import PGD
from depura.attacks.square import Square
from depura.audit.audit import audit_gradient
from depura.data.imageset import ImageSet
from depura.defence import Vote
from depura.diffusion.denoisers import EpsDenoiser
from depura.diffusion.exact import GaussianDenoiser, MixtureDenoiser
from depura.diffusion.guidance import State
from depura.diffusion.schedules import VP, Step, TruncatedLabel, uniform_steps
from depura.diffusion.solvers import Ancestral, Denoise, Euler, EulerMaruyamaVP, StepResult, from_noise
from depura.evaluation import units
from depura.evaluation.diagnostics import nothing
from depura.evaluation.header import header
from depura.evaluation.profiles import AttackSuite, SuiteRuns, quick, smoke, under
from depura.evaluation.runner import RefusedError, Shard, run
from depura.evaluation.scoring import SCORING, choose, score
from depura.evaluation.units import run_unit
from depura.gradients import Adjoint, Relaxed, StoredState
from depura.noise import Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.directory import RunDirectory
from depura.statistics.intervals import any_of, mean_with_interval
from mutants import MixedStates, Private, Rewound, accumulated, batch_mean
from slow import slow
from toys import Jittered, Streams, TanhClassifier, TanhNet, purifier_of, rand

EPS = 0.2


def digits(n: int = 16) -> ImageSet:
    return depura.load_digits("test").first(n)


def made_up(images: Tensor, labels: Tensor, n_classes: int = 2) -> ImageSet:
    return ImageSet("made up", images, labels, tuple(range(len(images))), tuple(map(str, range(n_classes))))


def attack_suite(defence: depura.Defence, *, eps: float = EPS, relaxed: bool = False) -> tuple[depura.AttackRun, ...]:
    """A few steps of everything."""
    ball = depura.Ball("linf", eps)
    runs, attack = SuiteRuns(defence, ball), APGD(ball, n_steps=10, eot=4)
    blind = APGD(ball, n_steps=20, common=0)
    rows = [
        runs.undefended(blind),
        runs.unchanged(),
        runs.transfer(blind),
        runs.bpda(attack),
        runs.adaptive(attack),
        runs.black_box(Square(ball, n_queries=60, eot=2, common=8), images=16),
    ]
    if relaxed:
        smooth = defence.with_(gradient=Relaxed(4 * eps))
        rows.append(depura.AttackRun("relaxed", "relaxed", attack, smooth, defence, "relaxed"))
    return tuple(rows)


def recorded(study: depura.Study, folder: Path, *, known: Path | None = None, despite_audit: bool = False) -> Summary:
    """What is said of a run in a folder.

    Units that are files of the folder `known` are not made again. The run refuses those that other settings decided.
    """
    if known is not None:
        directory = RunDirectory.create(folder / "run", header(study, command=""))
        for name in {f"{key.name}.npz" for key in study.units()} & {file.name for file in known.iterdir()}:
            shutil.copy(known / name, directory.path / "units")
    return summarise(run(study, folder / "run", despite_audit=despite_audit))


def judged(
    folder: Path,
    defence: depura.Defence,
    data: ImageSet,
    rows: tuple[depura.AttackRun, ...] | None = None,
    *,
    curve: tuple[float, ...] = (),
    despite_audit: bool = False,
    draws: int = 32,
    reference: bool = False,
    known: Path | None = None,
) -> Summary:
    """A run of a few rows, and what is said of it; without depura's own attack unless it is asked for."""
    rows = attack_suite(defence) if rows is None else rows
    study = depura.Study(
        name="zoo",
        data=data,
        defence=defence,
        rows=rows,
        select_draws=8,
        report_draws=draws,
        curve_eps=curve,
        curve_images=16,
        curve_rows=("adaptive",) if curve else (),
        pictures=0,
        reference=reference,
    )
    return recorded(study, folder, known=known, despite_audit=despite_audit)


def status(summary: Summary, id: str) -> Status:
    return next(v.status for v in summary.verdicts if v.id == id)


def sentence(summary: Summary, id: str) -> str:
    return next(f"{v.sentence} {v.advice}" for v in summary.verdicts if v.id == id)


def accuracy(summary: Summary, row: str) -> float:
    return next(line.metrics.single.value for line in summary.lines if line.name == row)


def null(summary: Summary, row: str = "adaptive") -> float:
    return next(line.null.single.value for line in summary.lines if line.name == row)


# --- defences -------------------------------------------------------------------------------------------------------


def test_z1_a_purifier_that_does_nothing(tmp_path: Path) -> None:
    """As broken as the classifier, and the pipeline adds nothing."""
    found = judged(tmp_path, depura.Defence(nothing(), depura.digits_classifier()), digits(), curve=(1.0,))
    assert status(found, "V2") is Status.PASS
    assert status(found, "V1") is Status.PASS
    assert accuracy(found, "adaptive") <= 0.02
    assert not found.refused
    assert "deterministic" in found.flags


@dataclass(frozen=True)
class Secret:
    """Every image becomes the same one, which nobody else knows."""

    image: Tensor

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.image.expand_as(x) + 0 * x


def test_z2_a_constant_purifier(tmp_path: Path) -> None:
    """Chance at every radius: what is left has nothing to do with the image."""
    data = digits(20)
    steps = uniform_steps(VP(), t_start=0.09, n_steps=1)
    purifier = DiffusionPurifier(Secret(2 * data.images[3:4] - 1), steps=steps, solver=Ancestral())
    found = judged(tmp_path, depura.Defence(purifier, depura.digits_classifier()), data, curve=(0.4, 1.0))
    assert status(found, "V4") is Status.FAIL
    assert "does not depend on the image" in sentence(found, "V4")
    assert found.refused
    assert found.headline.startswith("No headline: V4")
    assert accuracy(found, "adaptive") == pytest.approx(float((data.labels == data.labels[3]).double().mean()))


@dataclass(frozen=True)
class Detached:
    """A denoiser whose author forgot a detach."""

    inner: Callable[[Tensor, float], Tensor]

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.inner(x.detach(), sigma)


@pytest.mark.slow
def test_z3_a_detach_in_the_middle(tmp_path: Path) -> None:
    """The run is refused; made despite that, it shows a gradient of zero where BPDA and queries go through."""
    denoiser = depura.digits_denoiser()
    steps = uniform_steps(VP(), t_start=0.02, n_steps=1)
    cut = DiffusionPurifier(Detached(denoiser), steps=steps, solver=Ancestral(), image_shape=(1, 8, 8))
    defence = depura.Defence(cut, depura.digits_classifier())
    with pytest.raises(RefusedError, match="differences"):
        judged(tmp_path, defence, digits(10))
    found = judged(tmp_path, defence, digits(10), despite_audit=True)
    assert status(found, "V16") is Status.FAIL
    assert status(found, "V12") is Status.FAIL
    assert "masked gradient" in found.flags
    assert status(found, "V7") is Status.WARN
    assert "bpda" in sentence(found, "V7")
    assert status(found, "V8") is Status.WARN
    assert accuracy(found, "bpda") < accuracy(found, "adaptive") - 0.3
    assert accuracy(found, "square") < accuracy(found, "adaptive") - 0.2
    assert found.headline.startswith("No headline")


@dataclass(frozen=True)
class Linear:
    """Two classes: whether w x is above a threshold."""

    weights: Tensor
    threshold: float

    def __call__(self, images: Tensor) -> Tensor:
        decision = images.flatten(1).to(self.weights.dtype) @ self.weights - self.threshold
        return torch.stack([-decision, decision], 1).to(images.dtype)


def single_step(sigma: float, sigma_next: float) -> Step:
    """A step between two levels, without a schedule that scales."""
    found = uniform_steps(VP(), t_start=0.1, n_steps=1)[0]
    return replace(found, sigma=sigma, sigma_next=sigma_next, scale=1.0, scale_next=1.0)


LOUD = 4.0


def loud() -> tuple[depura.Defence, ImageSet]:
    """Noise of four times the images' range, and margins such that 3 draws in 10 are wrong for every image."""
    weights = torch.full((64,), 1 / 8, dtype=torch.float64)  # of length 1
    images = rand(32, 1, 8, 8, seed=5, dtype=torch.float32) * 0.2 + 0.4
    spread = LOUD / 2  # in [0, 1] units
    margin = spread * stats.norm.ppf(0.7)
    sums = images.flatten(1).double() @ weights
    labels = torch.arange(32) % 2
    images = images + (((margin * (2 * labels - 1)) + 4.0 - sums) / 8).float()[:, None, None, None]
    return noisy(Linear(weights, 4.0)), made_up(images, labels)


def noisy(classifier: Linear) -> depura.Defence:
    """Noise of level 4 and a denoiser that takes nothing away."""
    steps = (single_step(LOUD, LOUD),)
    return depura.Defence(DiffusionPurifier(lambda x, sigma: x, steps=steps, solver=Euler()), classifier)


def test_z4_nothing_but_randomness(tmp_path: Path) -> None:
    """An attack of 0.01 moves the decision by a hundredth of the noise: attack and null are the same, N times too."""
    defence, data = loud()
    rows = tuple(r for r in attack_suite(defence, eps=0.01) if r.kind != "black-box")
    found = judged(tmp_path, defence, data, rows, draws=64, reference=True)
    line = next(line for line in found.lines if line.name == "adaptive")
    assert null(found) == pytest.approx(0.7, abs=0.05)
    assert line.metrics.single.value == pytest.approx(null(found), abs=0.05)
    assert line.metrics.any.value == pytest.approx(line.null.any.value, abs=0.04)
    assert line.metrics.any.value == pytest.approx(0.7**10, abs=0.04)
    assert "nothing beyond noise" in found.headline
    assert "nothing beyond noise" in found.flags


def toward_by_sign(at: State) -> Tensor:
    """Toward the input by the gradient of the Manhattan distance, which is a sign."""
    return 0.5 * at.step.sigma * torch.sign(at.x_in - at.x0)


@pytest.mark.slow
def test_z5_signs_from_noise(tmp_path: Path) -> None:
    """Like MimicDiffusion: the exact gradient is zero, smooth stand-ins and BPDA see through."""
    known = MixtureDenoiser(2 * depura.load_digits("train").images[:100] - 1, std=0.5)
    steps = uniform_steps(VP(), t_start=0.2, n_steps=10)
    purifier = DiffusionPurifier(known, steps=steps, solver=Euler(), start=from_noise, guidance=toward_by_sign)
    defence = depura.Defence(purifier, depura.digits_classifier())
    rows = tuple(r for r in attack_suite(defence, relaxed=True) if r.kind != "black-box")
    found = judged(tmp_path, defence, digits(8), rows)
    masked = next(line.gradients for line in found.lines if line.name == "adaptive")
    assert masked is not None
    assert masked.zero > 0.99
    assert "masked gradient" in found.flags
    assert status(found, "V12") is Status.WARN
    assert "the row to read is relaxed" in sentence(found, "V12")
    assert min(accuracy(found, "relaxed"), accuracy(found, "bpda")) < accuracy(found, "adaptive") - 0.2
    without = judged(tmp_path / "b", defence, digits(8), rows[:-1], known=tmp_path / "run" / "units")
    assert "no headline" in without.headline.lower()


def test_z6_guided_by_a_mean_over_the_batch(tmp_path: Path) -> None:
    """Refused before anything is attacked, and the reason is the batch."""
    steps = uniform_steps(VP(), t_start=0.1, n_steps=2)
    guided = DiffusionPurifier(
        GaussianDenoiser(torch.zeros(1, 8, 8), torch.ones(1, 8, 8)), steps=steps, solver=Ancestral()
    )
    defence = depura.Defence(guided.with_(guidance=batch_mean), depura.digits_classifier())
    with pytest.raises(RefusedError, match="alone and in a batch"):
        judged(tmp_path, defence, digits())
    units = [unit.facts.row for unit in RunDirectory.open(tmp_path / "run").units()]
    assert units == ["audit"]


class Reseeded(Ancestral):
    """Noise of torch's global generator, which is set to the same seed in every step."""

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        torch.manual_seed(0)
        found = Euler().step(denoise, x, step, noise)
        return found._replace(x_next=found.x_next + step.sigma_next * torch.randn_like(x[:1]))


@pytest.mark.slow
def test_z7_a_generator_that_is_reseeded(tmp_path: Path) -> None:
    """It looks random and is not: the audit finds the generator touched, and the noise it is handed unused."""
    steps = uniform_steps(VP(), t_start=0.1, n_steps=2)
    gaussian = GaussianDenoiser(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
    purifier = DiffusionPurifier(gaussian, steps=steps, solver=Reseeded(), start=lambda x_in, step, noise: x_in)
    defence = depura.Defence(purifier, depura.digits_classifier())
    with pytest.raises(RefusedError, match="global random generators"):
        judged(tmp_path, defence, digits(8))
    rows = tuple(row for row in attack_suite(defence) if row.kind == "adaptive")
    found = judged(tmp_path / "b", defence, digits(8), rows, despite_audit=True)
    assert "deterministic" in found.flags
    assert found.headline.startswith("No headline: V16")


# --- wrong gradients ------------------------------------------------------------------------------------------------


def toy(purifier: DiffusionPurifier) -> tuple[depura.Defence, Tensor]:
    return depura.Defence(purifier, TanhClassifier(16)), rand(2, 1, 4, 4, seed=1)


def red(purifier: DiffusionPurifier) -> set[str]:
    """Names of the audit's red checks."""
    return {check.name for check in audit_gradient(*toy(purifier)).checks if check.light.name == "RED"}


def test_z8_noise_that_is_not_replayed() -> None:
    honest = purifier_of("Ancestral", solver=Jittered(), gradient=StoredState(1))
    assert red(honest) == set()
    assert red(honest.with_(solver=Private(), start=Private().begin)) & {"differences", "second way", "replay"}


@pytest.mark.slow
def test_z9_a_time_grid_of_its_own() -> None:
    steps, network = uniform_steps(VP(), t_start=0.1, n_steps=50, t_end=1e-5), TanhNet()
    grid = accumulated(steps)
    denoiser = EpsDenoiser(lambda x, label: network(x, label / 10), label=TruncatedLabel(VP()))
    honest = DiffusionPurifier(denoiser, steps=steps, solver=EulerMaruyamaVP(), gradient=StoredState(1))
    again = Rewound(again=lambda advance, x, x_in, step: advance((x,), x_in, grid[step.index])[0])
    assert red(honest) == set()
    assert "second way" in red(honest.with_(gradient=again))


def test_z10_a_surrogate_that_mixes_two_walks() -> None:
    fine = uniform_steps(VP(), t_start=0.3, n_steps=8, t_end=1e-3)
    coarse = depura.diffusion.schedules.coarser(fine, 4)
    surrogate = purifier_of("EulerMaruyamaVP", steps=coarse, gradient=StoredState(1))
    assert red(surrogate) == set()
    assert "second way" in red(surrogate.with_(gradient=MixedStates(fine=coarse)))


@pytest.mark.slow
def test_z11_the_adjoint_is_called_approximate(tmp_path: Path) -> None:
    """Its error falls with the step, and no report calls it exact."""
    image, noise = rand(2, 1, 4, 4, seed=1), Noise(0, (0, 1), stream=Stream.PROBE)

    def gradient(n: int, route: object) -> Tensor:
        steps = uniform_steps(VP(), t_start=0.1, n_steps=n, t_end=1e-3)
        defence, _ = toy(purifier_of("EulerMaruyamaVP", steps=steps, gradient=route))
        leaf = image.clone().requires_grad_()
        return torch.autograd.grad(defence(leaf, noise)[:, 0].sum(), leaf)[0]

    errors = []
    for n in (10, 30, 90):
        exact, found = gradient(n, StoredState(1)), gradient(n, Adjoint())
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    purifier = depura.digits_denoiser()
    walk = depura.diffpure(purifier, t_star=0.09, n_steps=5, gradient=Adjoint())
    defence = depura.Defence(walk, depura.digits_classifier())
    ball = depura.Ball("linf", EPS)
    rows = (SuiteRuns(defence, ball).adaptive(APGD(ball, n_steps=2, eot=2)),)
    found = judged(tmp_path, defence, digits(4), rows, draws=8)
    assert next(line.mode for line in found.lines if line.name == "adaptive") == "adjoint"
    assert "approximate gradient" in found.flags
    audit = RunDirectory.open(tmp_path / "run").load(f"audit_eps{EPS:g}_00000-00002").facts.audit
    assert audit is not None
    assert "adjoint" in " ".join(check.sentence for check in audit.checks)


# --- closed forms ---------------------------------------------------------------------------------------------------

GAIN, LEVEL = 0.6, 0.5
WEIGHTS = torch.linspace(-1, 1, 16, dtype=torch.float64)


def affine() -> tuple[depura.Defence, ImageSet]:
    """One step to a Gaussian's posterior mean, then a linear classifier: P(x) = g (x + sigma n / 2) + (1 - g) / 2."""
    std = math.sqrt(GAIN * LEVEL**2 / (1 - GAIN)) * torch.ones(1, 4, 4, dtype=torch.float64)
    steps = (single_step(LEVEL, 0.0),)
    gaussian = GaussianDenoiser(torch.zeros(1, 4, 4, dtype=torch.float64), std)
    images = 0.25 + 0.5 * rand(32, 1, 4, 4, seed=9)
    labels = (decision(images) > 0).long()
    return depura.Defence(DiffusionPurifier(gaussian, steps=steps, solver=Ancestral()), Linear(WEIGHTS, 0.0)), made_up(
        images, labels
    )


def decision(images: Tensor) -> Tensor:
    """Mean of the decision over the noise; the weights sum to zero, so constants fall out."""
    return GAIN * (images.flatten(1) @ WEIGHTS)


SPREAD = GAIN * LEVEL / 2 * float(WEIGHTS.norm())


def correct(images: Tensor, labels: Tensor) -> np.ndarray:
    """Probability that a draw is classified correctly."""
    return stats.norm.cdf(((2 * labels - 1) * decision(images) / SPREAD).numpy())


def test_z12_affine_purifier_and_linear_classifier(tmp_path: Path) -> None:
    """The attack finds eps sign(w), and accuracy is a Gaussian tail."""
    defence, data = affine()
    eps = 0.05
    ball = depura.Ball("linf", eps)
    rows = (SuiteRuns(defence, ball).adaptive(APGD(ball, n_steps=40, eot=4)),)
    found = judged(tmp_path, defence, data, rows, draws=256)
    units = [u for u in RunDirectory.open(tmp_path / "run").units() if u.facts.row == "adaptive"]
    x = torch.tensor(np.concatenate([u.arrays["adversarial"] for u in units]))
    side = (1 - 2 * data.labels)[:, None, None, None]
    best = data.images + eps * side * WEIGHTS.sign().reshape(1, 1, 4, 4)
    assert float((x - best).abs().max()) <= 1e-6
    line = next(line for line in found.lines if line.name == "adaptive")
    assert line.metrics.single.low <= correct(best, data.labels).mean() <= line.metrics.single.high
    assert line.metrics.single.value == pytest.approx(correct(best, data.labels).mean(), abs=0.02)
    assert line.null.single.value == pytest.approx(correct(data.images, data.labels).mean(), abs=0.02)


def test_z14_a_vote_is_a_binomial_tail(tmp_path: Path) -> None:
    """The deployed vote of 5, and the vote of 5 computed from single draws, both as the closed form says."""
    defence, data = affine()
    voted = defence.with_(rule=Vote(5))
    rows = (SuiteRuns(voted, depura.Ball("linf", 0.05)).unchanged(),)
    line = judged(tmp_path, voted, data, rows, draws=128).lines[0]
    p = correct(data.images, data.labels)
    expected = stats.binom.sf(2, 5, p).mean()
    assert line.null.single.value == pytest.approx(expected, abs=0.02)
    rows = (SuiteRuns(defence, depura.Ball("linf", 0.05)).unchanged(),)
    directory = tmp_path / "single"
    judged(directory, defence, data, rows, draws=640)
    null_units = [u for u in RunDirectory.open(directory / "run").units() if u.facts.row.startswith("null")]
    single = RowResults(tuple(null_units)).outcome()
    votes = depura.statistics.intervals.majority(single.predictions, single.labels, 5)
    assert votes.mean() == pytest.approx(expected, abs=0.02)


MEANS = torch.tensor([[-0.6, -0.4], [0.5, -0.3], [0.1, 0.7]], dtype=torch.float64).reshape(3, 1, 1, 2)


@pytest.mark.slow
def test_z13_two_pixels_and_a_mixture(tmp_path: Path) -> None:
    """What the attack leaves is within a point of the worst point of a grid, ten steps of the exact score."""
    steps = uniform_steps(VP(), t_start=0.3, n_steps=10)
    purifier = DiffusionPurifier(MixtureDenoiser(MEANS, std=0.15), steps=steps, solver=Ancestral())
    classifier = Linear(torch.tensor([1.0, 0.4], dtype=torch.float64), 0.75)
    defence = depura.Defence(purifier, classifier)
    images = torch.tensor([[0.35, 0.35], [0.75, 0.4], [0.5, 0.65]], dtype=torch.float64).reshape(3, 1, 1, 2)
    data = made_up(images, torch.tensor([0, 1, 1]))
    ball = depura.Ball("linf", 0.12)
    attack = APGD(ball, n_steps=30, eot=64, loss=BoundedMargin(), n_restarts=2)
    found = judged(tmp_path, defence, data, (SuiteRuns(defence, ball).adaptive(attack),), draws=4096)
    offsets = torch.linspace(-ball.eps, ball.eps, 9, dtype=torch.float64)
    grid = torch.cartesian_prod(offsets, offsets).reshape(-1, 1, 1, 1, 2)
    points = (images + grid).clamp(0, 1)
    noise = Streams(1).select(data.ids)
    errors = torch.stack([score(defence, p, data.labels, noise, draws=range(256)).errors(data.labels) for p in points])
    worst = points[errors.argmax(0), torch.arange(3)]
    left = (
        1
        - score(defence, worst, data.labels, Streams(1).report(data.ids), draws=range(4096)).errors(data.labels) / 4096
    )
    assert accuracy(found, "adaptive") <= float(left.double().mean()) + 0.01
    assert null(found) > accuracy(found, "adaptive") + 0.02


# --- attacks and judges ---------------------------------------------------------------------------------------------


def test_z15_an_attack_that_does_nothing_is_the_null(tmp_path: Path) -> None:
    defence, data = affine()
    ball = depura.Ball("linf", 0.05)
    row = depura.AttackRun("adaptive", "nothing", CleanImages(ball), defence, defence, "adaptive")
    found = judged(tmp_path, defence, data, (SuiteRuns(defence, ball).unchanged(), row), draws=128)
    assert status(found, "V3") is Status.PASS
    assert "nothing beyond noise" in found.flags
    low, high = found.lines[1].gain
    assert low <= 0 <= high


class Outside(PGD):
    """An attack that forgets its radius."""

    def __call__(self, model, images, labels, **noise):  # type: ignore[no-untyped-def]
        found = super().__call__(model, images, labels, **noise)
        return found._replace(images=(found.images + 0.05).clamp(0, 1))


def test_z16_an_attack_outside_its_ball(tmp_path: Path) -> None:
    defence = depura.Defence(nothing(), depura.digits_classifier())
    ball = depura.Ball("linf", 0.1)
    rows = (
        SuiteRuns(defence, ball).undefended(APGD(ball, n_steps=10, common=0)),
        depura.AttackRun("adaptive", "outside", Outside(ball, n_steps=5), defence, defence, "adaptive"),
    )
    found = judged(tmp_path, defence, digits(8), rows)
    assert status(found, "V15") is Status.FAIL
    assert "adaptive 0.15" in sentence(found, "V15")
    assert found.headline.startswith("No headline: V15")


def test_z17_intervals_and_any_of_n_on_known_error_rates() -> None:
    """2,000 simulated runs; more populations and metrics are in the coverage tests."""
    generator = np.random.default_rng(17)
    n, k, runs, many = 64, 32, 2000, 10
    p = generator.beta(0.5, 1.5, size=(runs, n))
    errors = generator.binomial(k, p)
    covered = 0
    estimates = np.empty(runs)
    labels = np.zeros(n, dtype=np.int64)
    for r in range(runs):
        drawn = (np.arange(k)[None] < errors[r][:, None]).astype(np.int64)
        estimates[r] = any_of(drawn, labels, many).mean()
        found = mean_with_interval(1 - errors[r] / k) if r < 400 else None
        covered += found is not None and found.low <= 1 - 0.25 <= found.high
    assert 0.92 <= covered / 400 <= 0.98
    truth = math.exp(math.lgamma(1.5 + many) + math.lgamma(2.0) - math.lgamma(1.5) - math.lgamma(2.0 + many))
    assert abs(estimates.mean() - truth) <= 3 * estimates.std(ddof=1) / math.sqrt(runs)


def test_z18_selecting_and_reporting_on_the_same_draws() -> None:
    """The best of 151 equal candidates on 10 draws, reported on these 10, is 59 % instead of 90 %; here it is 90 %."""
    weights = torch.full((64,), 1 / 8, dtype=torch.float64)
    margin = LOUD / 2 * stats.norm.ppf(0.9)
    images = torch.full((32, 1, 8, 8), (4.0 + margin) / 8)
    labels, defence, streams, ids = (
        torch.ones(32, dtype=torch.int64),
        noisy(Linear(weights, 4.0)),
        Streams(3),
        range(32),
    )
    # Equal candidates would see equal draws: give every one draws of its own by ids of its own.
    errors = torch.stack(
        [
            score(defence, images, labels, streams.select([i + 32 * c for i in ids]), draws=range(10)).errors(labels)
            for c in range(151)
        ]
    )
    assert 1 - float(errors.amax(0).double().mean()) / 10 == pytest.approx(0.59, abs=0.03)
    fresh = score(defence, images, labels, streams.report(list(ids)), draws=range(64)).errors(labels)
    assert 1 - float(fresh.double().mean()) / 64 == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("stream", [s for s in Stream if s not in SCORING])
def test_z18_scores_are_refused_on_draws_of_an_attack(stream: Stream) -> None:
    defence, data = affine()
    noise = Noise(0, data.ids, stream=stream)
    with pytest.raises(depura.InputError, match="draws that an attack has seen"):
        score(defence, data.images, data.labels, noise, draws=range(2))
    with pytest.raises(depura.InputError, match="draws that an attack has seen"):
        choose(defence, data.images[None], data.labels, noise, draws=range(2))


def test_z18_an_evaluation_keeps_its_streams_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All draws of a run, by who asked: attacks hear their own streams, scores only scoring ones, and no two meet."""
    heard: dict[str, set[Stream]] = {"attack": set(), "score": set(), "check": set()}
    who = ["score"]
    plain, checks = depura.Defence.forward, units.in_contexts

    def in_contexts(*its: Any) -> Any:
        who.append("check")  # whether answers differ between streams
        try:
            return checks(*its)
        finally:
            who.pop()

    def forward(self: depura.Defence, images: Tensor, noise: Noise | None = None) -> Tensor:
        if noise is not None:
            heard[who[-1]].add(noise.stream)
        return plain(self, images, noise)

    class Loud(APGD):
        def __call__(self, model, images, labels, **noise):  # type: ignore[no-untyped-def]
            who.append("attack")
            try:
                return super().__call__(model, images, labels, **noise)
            finally:
                who.pop()

    monkeypatch.setattr(depura.Defence, "forward", forward)
    monkeypatch.setattr(units, "in_contexts", in_contexts)
    defence, data = affine()
    ball = depura.Ball("linf", 0.05)
    row = SuiteRuns(defence, ball).adaptive(Loud(ball, n_steps=3, eot=2))
    study = depura.Study("streams", data, defence, (row,), select_draws=4, report_draws=8, pictures=0)
    for key in study.units():
        if key.row == "adaptive":
            run_unit(study, key)
    assert heard.pop("check") == {Stream.EOT, Stream.REPORT, Stream.PROBE}
    assert heard == {"attack": {Stream.EOT}, "score": {Stream.SELECT, Stream.REPORT, Stream.PROBE}}


@pytest.mark.slow
def test_z19_shards_in_any_order_make_the_same_record(tmp_path: Path) -> None:
    """Killing and many workers are tried in test_interruptions.py."""
    defence, data = affine()
    rows = tuple(r for r in attack_suite(defence, eps=0.05) if r.kind != "black-box")
    study = depura.Study(
        "shards",
        data.first(16),
        defence,
        rows,
        select_draws=4,
        report_draws=8,
        unit_images=8,
        pictures=0,
        reference=False,
    )
    run(study, tmp_path / "whole")
    for i in (2, 0, 1):
        run(study, tmp_path / "parts", shard=Shard(i, 3))
    for file in sorted((tmp_path / "whole" / "units").iterdir()):
        assert file.read_bytes() == (tmp_path / "parts" / "units" / file.name).read_bytes()


def test_z20_a_robust_model_is_not_broken(tmp_path: Path) -> None:
    """Margins of twice what the radius can move: all attacks leave everything, and the judge says so."""
    weights = torch.linspace(-1, 1, 64, dtype=torch.float64)
    eps = 0.05
    reach = eps * float(weights.abs().sum())
    side = torch.where(torch.arange(16) % 2 == 1, 1, -1) * (0.2 + 0.01 * torch.arange(16))  # no image twice
    images = 0.5 + side[:, None, None, None] * weights.sign().reshape(1, 1, 8, 8)
    labels = torch.arange(16) % 2
    assert float((images.flatten(1) @ weights).abs().min()) > 2 * reach
    defence = depura.Defence(nothing(), Linear(weights, 0.0))
    found = judged(tmp_path, defence, made_up(images.float(), labels), attack_suite(defence, eps=eps))
    assert all(line.metrics.single.value == 1.0 for line in found.lines)
    assert found.strongest is not None
    assert found.strongest.any.value == 1.0
    assert status(found, "V8") is Status.PASS
    assert status(found, "V11") is Status.PASS
    assert "nothing beyond noise" in found.flags


# --- studies that fooled the judge ----------------------------------------------------------------------------------
#
# Each prints a number that its defence does not have. Few-step DiffPure around the digits' denoiser keeps about 23 % of
# these twelve digits under a longer attack.


def walk(n_steps: int = 1) -> DiffusionPurifier:
    denoiser = depura.digits_denoiser()
    return depura.diffpure(denoiser, t_star=0.09, n_steps=n_steps, t_end=0.0, solver=Ancestral())


LINF = depura.Ball("linf", EPS)


def of_twelve(defence: depura.Defence, rows: tuple[depura.AttackRun, ...], **changed: object) -> depura.Study:
    """A study of twelve digits."""
    settings: dict[str, object] = {"data": digits(12), "select_draws": 6, "report_draws": 16, "pictures": 0, **changed}
    return depura.Study(name="fooled", defence=defence, rows=rows, **settings)  # type: ignore[arg-type]


def fooled(
    folder: Path,
    defence: depura.Defence,
    rows: tuple[depura.AttackRun, ...],
    *,
    known: Path | None = None,
    despite_audit: bool = False,
    **changed: object,
) -> Summary:
    """What is said of a study of twelve digits."""
    study = of_twelve(defence, rows, **changed)
    return recorded(study, folder, known=known, despite_audit=despite_audit)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Units that every study of twelve digits behind `walk()` has: the audit and depura's own attacks.

    By the name of the method: "" for a study of one defence.
    """

    @cache
    def of(method: str) -> Path:
        defence = depura.Defence(walk(), depura.digits_classifier())
        study = of_twelve(defence, depura.attack_suite(defence, PGD(LINF), method=method))
        directory = RunDirectory.create(tmp_path_factory.mktemp("walked") / "run", header(study, command=""))
        own = {*study.audits, *(row.name for row in study.references)}
        for key in study.units():
            if key.row in own:
                directory.commit(run_unit(study, key))
        return directory.path / "units"

    return of


@dataclass(frozen=True)
class Half(APGD):
    """An attack that returns every other image as it was."""

    def __call__(self, model, images, labels, **noise):  # type: ignore[no-untyped-def]
        found = super().__call__(model, images, labels, **noise)
        kept = torch.arange(len(images)) % 2 == 0
        return found._replace(images=torch.where(kept[None, :, None, None, None], images[None], found.images))


class Rounded(torch.nn.Module):
    """A classifier whose gradient says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = depura.digits_classifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 8).round() / 8 + 1e-2 * torch.sin(50 * x))


def test_rows_that_judge_another_defence_than_the_one_that_is_audited(tmp_path: Path) -> None:
    """18: rows built before the defence was built anew."""
    audited = depura.Defence(nothing(), depura.digits_classifier())
    rows = quick(depura.Defence(nothing(), Rounded()), LINF).rows
    found = fooled(tmp_path, audited, tuple(row for row in rows if row.kind in ("undefended", "adaptive")))
    assert found.refused
    assert found.headline == "No headline: No row judges the defence."


def test_an_attack_on_other_weights_is_a_transfer(tmp_path: Path, walked: Callable[[str], Path]) -> None:
    """19: the purifier is that of the defence, the classifier has weights of its own. It printed 87.2 %, as exact."""
    purifier, other = walk(), depura.digits_classifier()
    generator = torch.Generator().manual_seed(3)
    for weight in other.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * weight.std()
    defence = depura.Defence(purifier, depura.digits_classifier())
    attack = APGD(LINF, n_steps=10, eot=2)
    rows = (depura.AttackRun("adaptive", "adaptive", attack, depura.Defence(purifier, other), defence, "adaptive"),)
    found = fooled(tmp_path, defence, rows, known=walked(""))
    assert [(line.kind, line.mode) for line in found.lines] == [("transfer", "transfer")]
    assert found.refused
    assert {"no adaptive attack", "weaker than the reference attack"} <= set(found.flags)


@pytest.mark.slow
def test_an_adaptive_attack_on_one_image(tmp_path: Path, walked: Callable[[str], Path]) -> None:
    """20: the rest of the headline is that of transferred examples. It printed 44.8 %."""
    defence = depura.Defence(walk(), depura.digits_classifier())
    rows = depura.attack_suite(defence, APGD(LINF, n_steps=5, eot=2), without=("undefended",))
    rows = tuple(replace(row, images=1) if row.kind in ("adaptive", "bpda") else row for row in rows)
    found = fooled(tmp_path, defence, rows, known=walked(""))
    assert found.refused
    assert "adaptive attacks the defence that is judged on 1 of 12 images" in found.headline
    assert "adaptive attack on some images only" in found.flags


@pytest.mark.slow
def test_three_tiny_steps(tmp_path: Path, walked: Callable[[str], Path]) -> None:
    """21: nothing else is run that could say so but depura's own attack. It printed 84.6 %."""
    defence = depura.Defence(walk(), depura.digits_classifier())
    weak = PGD(LINF, n_steps=3, step_size=EPS / 10, eot=1, random_start=False)
    rows = (depura.AttackRun("adaptive", "adaptive attack", weak, defence, defence, "adaptive"),)
    found = fooled(tmp_path, defence, rows, known=walked(""))
    assert found.refused
    assert "weaker than the reference attack" in found.flags
    # Without that attack nothing says whether three steps are enough: no number either.
    alone = fooled(tmp_path / "alone", defence, rows, known=tmp_path / "run" / "units", reference=False)
    assert alone.refused
    assert alone.headline.startswith("Unchecked: ")


@pytest.mark.slow
def test_an_attack_that_returns_half_of_the_images(tmp_path: Path, walked: Callable[[str], Path]) -> None:
    """22: it printed 52.1 %."""
    defence = depura.Defence(walk(), depura.digits_classifier())
    rows = (depura.AttackRun("adaptive", "adaptive", Half(LINF, n_steps=10, eot=4), defence, defence, "adaptive"),)
    found = fooled(tmp_path, defence, rows, known=walked(""))
    assert found.refused
    assert "examples equal to the clean image" in found.flags
    assert "6 of 11 in row adaptive" in sentence(found, "V19")


@dataclass(frozen=True)
class Labels:
    """A rule of somebody's own: counts of labels, without a gradient; with `sliver`, with next to none."""

    sliver: float = 0.0
    n_draws: int = 5

    def scores(self, logits: Tensor) -> Tensor:
        counts = torch.nn.functional.one_hot(logits.argmax(2), logits.shape[2]).to(logits).mean(1)
        return counts + self.sliver * torch.tanh(logits[:, 0]) if self.sliver else counts


def test_a_hard_vote_of_ones_own_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """32: it has no gradient, and an attack would end in a traceback."""
    defence = depura.Defence(walk(), depura.digits_classifier(), rule=Labels())
    with pytest.raises(RefusedError, match="To blame: rule Labels") as said:
        fooled(tmp_path, defence, depura.attack_suite(defence, PGD(LINF, n_steps=2, eot=2)))
    assert "Give the rule's scores a gradient, as depura.Vote does" in str(said.value)


@pytest.mark.slow
def test_a_vote_with_a_sliver_of_gradient(tmp_path: Path) -> None:
    """33: the gradient is the derivative, and leads nowhere. depura's own attack goes by the mean probability."""
    defence = depura.Defence(walk(), depura.digits_classifier(), rule=Labels(sliver=1e-3, n_draws=3))
    study = depura.Study(
        name="sliver", data=digits(8), defence=defence, rows=depura.attack_suite(defence, PGD(LINF)), pictures=0
    )

    def through(defence: depura.Defence, ball: depura.Ball, **sizes: int) -> AttackSuite:
        suite = smoke(defence, ball, **sizes)
        return replace(suite, rows=tuple(row for row in suite.rows if row.kind == "adaptive"))

    found = summarise(run(under(study, through), tmp_path / "run"))
    assert found.refused
    assert found.headline.startswith("No headline: V12 (gradients)")
    assert sentence(found, "V20").startswith("On 8 images depura's own short attack leaves ")
    own = next(row for row in found.header.rows if row.kind == "reference")
    assert own.mode == "transfer", "through another rule than the one that is judged"


@pytest.mark.slow
def test_honest_studies_keep_their_numbers(tmp_path: Path) -> None:
    """Few-step DiffPure; a robust classifier behind it; a linear one whose margins the whole ball cannot cross."""
    full = {"select_draws": 16, "report_draws": 32}
    plain = depura.Defence(walk(3), depura.digits_classifier())
    found = fooled(
        tmp_path / "plain", plain, depura.attack_suite(plain, PGD(LINF, n_steps=10, eot=2)), data=digits(16), **full
    )
    assert not found.refused
    assert found.headline.startswith(
        "robust accuracy at most 35.2 % (95 % CI 20.2–55.9), null 92.4 %; 16 images, the first of"
    )
    small = depura.Ball("linf", 0.1)
    robust = depura.Defence(walk(), depura.digits_guide())
    found = fooled(tmp_path / "robust", robust, depura.attack_suite(robust, PGD(small, n_steps=10, eot=2)), **full)
    assert not found.refused
    assert found.headline.startswith("robust accuracy at most 78.6 % ")
    assert "the classifier is robust by itself" in sentence(found, "V1")
    assert found.flags == ()
    weights = torch.linspace(-1, 1, 64)
    labels = torch.arange(12) % 2
    side = (2 * labels - 1) * (0.25 + 0.01 * torch.arange(12))
    images = 0.5 + side[:, None, None, None] * weights.sign().reshape(1, 1, 8, 8)
    linear = depura.Defence(nothing(), Linear(weights, 0.5 * float(weights.sum())))
    found = fooled(
        tmp_path / "linear",
        linear,
        depura.attack_suite(linear, PGD(small, n_steps=10, eot=2)),
        data=made_up(images.float(), labels),
        **full,
    )
    assert not found.refused
    assert found.headline.startswith("robust accuracy at most 100.0 % ")
    assert "the classifier is robust by itself" in sentence(found, "V1")
    assert found.flags == ("deterministic",)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["weak", "strong"])
def test_a_study_is_judged_the_same_with_and_without_the_name_of_its_method(
    tmp_path: Path, walked: Callable[[str], Path], other: str
) -> None:
    """One judge: a comparison of one method is held to the checks of a study of one defence."""
    defence = depura.Defence(walk(), depura.digits_classifier())
    attack = (
        PGD(LINF, n_steps=1, step_size=1e-4, random_start=False) if other == "weak" else PGD(LINF, n_steps=8, eot=2)
    )
    blind = PGD(LINF, n_steps=8)
    plain, few = (depura.attack_suite(defence, attack, blind=blind, method=method) for method in ("", "few"))
    alone = fooled(tmp_path / "alone", defence, plain, known=walked(""))
    named = fooled(tmp_path / "named", defence, few, known=walked("few"))
    assert [(v.id, v.status, v.flags) for v in named.verdicts] == [(v.id, v.status, v.flags) for v in alone.verdicts]
    assert [v.sentence.replace("few-", "") for v in named.verdicts] == [v.sentence for v in alone.verdicts]
    assert [c.status for c in named.conclusions] == [c.status for c in alone.conclusions]
    assert named.refused is alone.refused is (other == "weak")
    if other == "weak":
        assert named.ranking is not None
        assert [entry.method for entry in named.ranking.apart] == ["few"]
        assert "V7" in named.headline
        assert "robust accuracy" not in named.headline


class Broken(torch.nn.Module):
    """A classifier that gives NaN for images whose class is 0 and that an attack has moved a little."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = depura.digits_classifier()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        lost = (x.flatten(1).sum(1) * 50).long() % 3 == 0
        return torch.where(lost[:, None], torch.nan, logits)


def test_predictions_that_are_not_numbers_are_never_right(tmp_path: Path) -> None:
    """They used to be class 0, and robust on images of class 0."""
    zeros = depura.load_digits("test")
    zeros = zeros.take([k for k, label in enumerate(zeros.labels.tolist()) if label == 0][:12])
    defence = depura.Defence(None, Broken())
    rows = depura.bare_suite(defence, PGD(LINF, n_steps=3), method="broken")
    study = depura.Study(name="nan", data=zeros, defence=defence, rows=rows, report_draws=4, pictures=0)
    directory = run(study, tmp_path / "run", despite_audit=True)
    found = summarise(directory)
    assert found.refused
    assert status(found, "V21") is Status.FAIL
    assert "predictions that are not finite" in found.flags_of("broken")
    null = next(unit for unit in directory.units() if unit.facts.row.startswith("null-"))
    lost = null.arrays["predictions"] == -1
    assert lost.any()
    assert not lost.all()
    assert np.array_equal(null.arrays["not_finite"], lost.sum(1))


# --- defences that change under attack, and gradients that change where nobody looked --------------------------------


class Fused(torch.autograd.Function):
    """The identity, as a fused operation whose derivative has lost its signs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return g * torch.sin(997.0 * x).sign()


class FusedInSingle(torch.nn.Module):
    """It takes the fused operation in float32 alone, for calls of more than so many images."""

    def __init__(self, beyond: int = 0) -> None:
        super().__init__()
        self.inner, self.beyond = depura.digits_classifier(), beyond

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(Fused.apply(x) if x.dtype == torch.float32 and len(x) > self.beyond else x)


def test_a_derivative_that_is_wrong_in_single_precision_is_refused(tmp_path: Path) -> None:
    """06: in float64, which the audit used to compute in alone, it is right. It printed 66.7 %, the truth is 22.9 %."""
    defence = depura.Defence(walk(), FusedInSingle())
    with pytest.raises(RefusedError, match="deployed gradient") as said:
        fooled(tmp_path, defence, depura.attack_suite(defence, PGD(LINF, n_steps=10, eot=2)))
    assert "in float32, which attacks follow" in str(said.value)


def test_a_derivative_that_is_wrong_in_large_calls_has_no_headline(tmp_path: Path) -> None:
    """As 06, but for calls of more than two images: the audit, which has two, sees nothing."""
    defence = depura.Defence(walk(), FusedInSingle(beyond=2))
    rows = depura.attack_suite(defence, PGD(LINF, n_steps=5, eot=2))
    found = fooled(tmp_path, defence, rows, reference=False)
    assert found.refused
    assert status(found, "V23") is Status.FAIL
    assert "gradient is wrong at examples" in found.flags


class LookedUp(torch.nn.Module):
    """Images far from the training set are blended with their nearest training image, which has no gradient."""

    def __init__(self, farthest: float = 1.4) -> None:
        super().__init__()
        self.inner, self.farthest = depura.digits_classifier(), farthest
        self.known = depura.load_digits("train").images.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        known = self.known.to(x.dtype)
        distance, which = torch.cdist(x.detach().flatten(1), known).min(1)
        near = known[which].reshape(x.shape)
        return self.inner(torch.where((distance > self.farthest)[:, None, None, None], near + 1e-3 * x, x))


def test_a_detector_that_looks_images_up_has_no_headline(tmp_path: Path) -> None:
    """08: the gradient is exact, and leads to where the answer jumps back. It printed 33.3 %; small attacks leave 0."""
    defence = depura.Defence(nothing(), LookedUp())
    found = fooled(tmp_path, defence, depura.attack_suite(defence, PGD(LINF, n_steps=10, eot=2)))
    assert found.refused
    assert status(found, "V1") is Status.WARN
    assert "Square, without gradients" in sentence(found, "V1")
    assert status(found, "V24") is Status.WARN
    assert {"masked gradient", "outputs jump"} <= set(found.flags)


class Cached(torch.nn.Module):
    """A query cache: an image near one seen earlier is answered as that one was."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = depura.digits_classifier()
        self.seen = torch.full((1, 1, 8, 8), 1e6)  # which no image is near

    def forward(self, x: Tensor) -> Tensor:
        answered: list[Tensor] = []
        for row in x:
            distances = (self.seen - row.detach()).flatten(1).norm(dim=1)
            nearest = float(distances.min())
            hit = self.seen[distances.argmin()].to(row) + 1e-3 * row if 1e-3 < nearest < 1.8 else row
            if nearest > 1.8 and len(self.seen) <= 200:
                self.seen = torch.cat([self.seen, row.detach()[None]])
            answered.append(hit)
        return self.inner(torch.stack(answered))


@pytest.mark.parametrize("profile", [None, smoke])
def test_a_query_cache_has_no_headline(tmp_path: Path, profile: Callable[..., object] | None) -> None:
    """13: clean images fill it, and attacks meet their answers. It printed 91.7 %, the truth is 0."""
    defence = depura.Defence(nothing(), Cached())
    rows = depura.attack_suite(defence, PGD(LINF, n_steps=10, eot=2))
    study = depura.Study(name="cache", data=digits(12), defence=defence, rows=rows, pictures=0, report_draws=8)
    found = summarise(run(study if profile is None else under(study, profile), tmp_path / "run"))  # type: ignore[arg-type]
    assert found.headline.startswith("No headline: V22 (state and context)")
    assert "history" in found.headline
    assert "depends on state or context" in found.flags


def test_a_deterministic_purifier_is_not_suspected(tmp_path: Path) -> None:
    """H2: two Euler steps from the input itself. One image of 12 that a transferred example breaks is no sign."""
    ode = walk(2).with_(solver=Euler(), start=lambda x_in, step, noise: x_in)
    defence = depura.Defence(ode, depura.digits_classifier())
    found = fooled(tmp_path, defence, depura.attack_suite(defence, PGD(LINF, n_steps=10)))
    assert not found.refused, found.headline
    assert found.headline.startswith("robust accuracy at most ")
    assert "deterministic" in found.flags
    assert not any(v.withholds and v.status is Status.WARN for v in found.verdicts)


class Constant(torch.nn.Module):
    """The same class for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e-3 * x.flatten(1)[:, :10] + 5.0 * torch.eye(10, dtype=x.dtype, device=x.device)[3]


def test_advice_on_a_constant_classifier_is_about_the_classifier(tmp_path: Path) -> None:
    defence = depura.Defence(nothing(), Constant())
    found = fooled(tmp_path, defence, depura.attack_suite(defence, PGD(LINF, n_steps=3)))
    assert status(found, "V1") is Status.WARN
    assert "gives all 12 images the class 3" in sentence(found, "V1")
    assert "Mend the classifier" in sentence(found, "V1")


# --- images that were chosen, or memorised --------------------------------------------------------------------------
#
# Honest images of the same study leave 25 to 44 % by the same attack, dozen by dozen.


def glance(
    folder: Path,
    purifier: DiffusionPurifier,
    data: ImageSet,
    *,
    without: tuple[str, ...] = ("bpda", "transfer"),
    despite_audit: bool = False,
) -> Summary:
    """What is said of the images of a study whose attack is next to none."""
    defence = depura.Defence(purifier, depura.digits_classifier())
    rows = depura.attack_suite(defence, PGD(LINF, n_steps=2), without=without)
    return fooled(folder, defence, rows, data=data, report_draws=4, reference=False, despite_audit=despite_audit)


def picked(rows: list[int]) -> ImageSet:
    """Test digits by their positions, put into a set by hand, as somebody may."""
    data = depura.load_digits("test")
    return ImageSet("mine", data.images[rows], data.labels[rows], tuple(range(len(rows))), data.classes)


def leads(data: ImageSet) -> Tensor:
    """By how much the bare classifier's logit of the right class leads, (B,)."""
    logits = depura.digits_classifier()(data.images).detach()
    own = logits.gather(1, data.labels[:, None])[:, 0]
    return own - logits.scatter(1, data.labels[:, None], -1e9).amax(1)


def surviving() -> list[int]:
    """The 12 of 200 that an attack tried beforehand leaves right most often."""
    pool, defence = digits(200), depura.Defence(walk(), depura.digits_classifier())
    noise = Streams(5)
    tried = PGD(LINF, n_steps=5, eot=2)(
        defence, pool.images, pool.labels, init=noise.init(pool.ids), eot=noise.eot(pool.ids)
    )
    errors = score(defence, tried.images[-1], pool.labels, noise.select(pool.ids), draws=range(8)).errors(pool.labels)
    return sorted(errors.argsort(stable=True)[:12].tolist())


def bright() -> list[int]:
    """Of each class the images of 200 that are nearest to its mean: prototypes."""
    pool, train = digits(200), depura.load_digits("train")
    found: list[int] = []
    for k in range(10):
        own = torch.nonzero(pool.labels == k)[:, 0]
        mean = train.images[train.labels == k].mean(0)
        found += own[(pool.images[own] - mean).flatten(1).norm(dim=1).argsort()[:3]].tolist()
    return sorted(found)


@pytest.mark.parametrize(
    "choose",
    [
        pytest.param(lambda: sorted(leads(digits(200)).topk(12).indices.tolist()), id="largest margins"),
        slow(surviving, id="survivors of an attack"),
        pytest.param(bright, id="prototypes"),
    ],
)
def test_chosen_images_are_withheld(tmp_path: Path, choose: Callable[[], list[int]]) -> None:
    """16: the largest margins printed 68.2 %. What a set is called and its ids do not matter."""
    data = picked(choose())
    found = glance(tmp_path, walk(), data)
    assert status(found, "V26") is Status.WARN, sentence(found, "V26")
    assert f"{len(data.ids)} images of the study and of 400 others of the data set" in sentence(found, "V26")
    assert found.headline.startswith("Headline withheld: ")
    assert "V26 (chosen images)" in found.headline
    assert "chosen images" in found.flags
    assert found.header.data.choice is not None
    assert (found.header.data.choice.kind, found.header.data.choice.size) == ("other", 500)


@dataclass(frozen=True)
class Nearest:
    """A denoiser that returns the nearest of some images; where that is farther than `within`, what a network says."""

    images: Tensor
    within: float = math.inf

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        distance, which = torch.cdist(x.flatten(1), self.images.flatten(1)).min(1)
        near = (distance < self.within)[:, None, None, None]
        honest = x if self.within == math.inf else depura.digits_denoiser()(x, sigma)
        return torch.where(near, self.images[which] + 0 * x, honest)


def mirrored_too(images: Tensor) -> MixtureDenoiser:
    shifted = torch.cat([images[..., 1:], images[..., -1:]], dim=3)
    return MixtureDenoiser(torch.cat([images, images.flip(3), shifted]), std=0.1)


def all_of_them(images: Tensor) -> MixtureDenoiser:
    del images
    return MixtureDenoiser(2 * depura.load_digits("test").images - 1, std=0.05)


@pytest.mark.parametrize(
    "memory",
    [
        lambda x: MixtureDenoiser(x, std=0.05),
        lambda x: Nearest(x),
        lambda x: Nearest(x[:8], within=5.0),
        mirrored_too,
        all_of_them,
    ],
    ids=["posterior mean", "nearest neighbour", "eight of them, else honest", "with their mirror images", "all images"],
)
def test_a_denoiser_that_knows_the_images_is_withheld(tmp_path: Path, memory: Callable[[Tensor], object]) -> None:
    """23: the posterior mean over the test images printed 84.9 %, where 15.1 % are left of images that it lacks."""
    purifier = walk().with_(denoiser=memory(2 * digits(12).images - 1))
    found = glance(tmp_path, purifier, digits(12), despite_audit=True)
    assert status(found, "V25") is Status.WARN, sentence(found, "V25")
    assert found.refused
    assert "memorised images" in found.flags


@pytest.mark.parametrize("seed", [None, slow(0), slow(1), slow(2)])
def test_honest_images_and_denoisers_are_not_warned_of(tmp_path: Path, seed: int | None) -> None:
    """The first 16 digits, and three draws of 24."""
    data = digits(16) if seed is None else depura.load_digits("test").draw(24, seed)
    found = glance(tmp_path, walk(3), data, without=("bpda", "adaptive"))
    assert {status(found, id) for id in ("V25", "V26")} == {Status.PASS}
    said = "16 images, the first of 500" if seed is None else f"24 images drawn at random of 500 (seed {seed})"
    assert images_text(len(data.ids), found.header.data.choice) == said
