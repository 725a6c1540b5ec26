"""`depura audit-gradient` on study files: four planted faults are named, an honest study passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from depura.cli import app
from slow import slow

DIGITS = Path(__file__).parents[2] / "studies" / "digits.py"

STUDY = """
from dataclasses import dataclass, field
import torch
from torch.nn import functional as F
import depura
from depura import Ancestral, State, minus_gradient
from depura.evaluation.demo import digits_purifier, study as digits
from depura.models.networks.small import SmallUNet
from depura.diffusion.solvers import StepResult


@dataclass(frozen=True)
class Toward:
    strength: float = 0.02

    def __call__(self, at: State):
        return self.strength * minus_gradient((at.x0 - at.x_in).square().flatten(1).sum(1), at.x)

{plant}

def study(*, images: int = 4, strength: float = 0.02) -> depura.Study:
    purifier = digits_purifier(n_steps=2).with_(guidance=Toward(strength))
    {change}
    made = digits(images=images)
    defence = depura.Defence(purifier, depura.digits_classifier())
    rows = depura.attack_suite(defence, depura.PGD(made.ball, n_steps=1))
    return depura.Study(name="mine", data=made.data, defence=defence, rows=rows)
"""

DETACH = (
    """
class DetachedBlock(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, e):
        return x + (self.block(x.detach(), e) - x.detach())
""",
    """middle = purifier.denoiser.network.middle
    middle[1] = DetachedBlock(middle[1])
    purifier = purifier.with_()""",
)
NO_GRAD = (
    """
class NoGradGuidance:
    def __call__(self, at):
        with torch.no_grad():
            return 0.05 * torch.tanh(at.x_in - at.x0)
""",
    "purifier = purifier.with_(guidance=NoGradGuidance())",
)
BATCH_MEAN = (
    """
class BatchMeanGuidance:
    def __call__(self, at):
        return minus_gradient(F.mse_loss(at.x0, at.x_in)[None], at.x)
""",
    "purifier = purifier.with_(guidance=BatchMeanGuidance())",
)
GENERATOR = (
    """
@dataclass(frozen=True)
class OwnNoise:
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def step(self, denoise, x, step, noise):
        x_next, x0, _ = Ancestral(0.0).step(denoise, x, step, noise)
        return StepResult(x_next + 0.02 * torch.randn(x.shape, generator=self.generator).to(x), x0)
""",
    "purifier = purifier.with_(solver=OwnNoise())",
)


def audit(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["audit-gradient", *map(str, words)])


def written(tmp_path: Path, plant: str = "", change: str = "pass") -> Path:
    file = tmp_path / "mine.py"
    file.write_text(STUDY.format(plant=plant, change=change))
    return file


def lines(result: Result, word: str) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith(word)]


@pytest.mark.parametrize(
    ("plant", "failed", "said"),
    [
        slow(
            DETACH,
            {"differences"},
            "denoiser.network.middle.1 (DetachedBlock): expected the derivative that finite differences give",
            id="detach in the network",
        ),
        pytest.param(
            NO_GRAD,
            {"differences"},
            "guidance NoGradGuidance: expected the derivative that finite differences give, got one without the path "
            "through at.x and at.x_in (relative error 1). Look for a detach or no_grad there.",
            id="no_grad around guidance",
        ),
        slow(
            BATCH_MEAN,
            {"batch", "draws"},
            "guidance BatchMeanGuidance: expected an image's output to be the same alone and in a batch",
            id="mean over the batch",
        ),
        pytest.param(
            GENERATOR,
            {"replay"},
            "solver OwnNoise: expected the same output from the same input and noise",
            id="generator in the solver",
        ),
    ],
)
def test_planted_faults_fail_and_are_named(tmp_path: Path, plant: tuple[str, str], failed: set[str], said: str) -> None:
    result = audit(written(tmp_path, *plant))
    assert result.exit_code == 1, result.output
    assert {line.split()[1] for line in lines(result, "red")} == failed
    (guilty,) = lines(result, "guilty")
    assert guilty.startswith(f"guilty {said}")
    assert lines(result, "Red: ")[0].endswith(f"To blame: {said.partition(':')[0]}.")


@pytest.mark.parametrize(
    "options", [[], slow(["--images", 1]), slow(["-S", "strength=0.1", "--seed", 5, "--images", 3])]
)
def test_an_honest_guided_study_passes(tmp_path: Path, options: list[str]) -> None:
    result = audit(written(tmp_path), *options)
    assert result.exit_code == 0, result.output
    assert lines(result, "Green: the gradient is the derivative of the defence.")
    assert not lines(result, "amber")
    assert not lines(result, "red")
    assert not lines(result, "guilty")
    assert len(lines(result, "green")) == 16


def test_the_bundled_study_passes() -> None:
    result = audit(DIGITS)
    assert result.exit_code == 0, result.output
    assert "study      digits-diffpure: 2 of 64 images of digits-test" in result.output
    assert lines(result, "Green: ")


def test_an_approximate_route_is_amber_and_passes(tmp_path: Path) -> None:
    result = audit(written(tmp_path, change="purifier = purifier.with_(gradient=depura.StraightThrough())"))
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in lines(result, "amber")] == ["route"]
    assert lines(result, "Amber: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "0"], "images from 1 to 4, got 0"),
        (["--images", "5"], "images from 1 to 4, got 5"),
        (["--seed", "-1"], "seed"),
        (["--device", "abacus"], "--device"),
        (["-S", "colour=red"], "a name among images, strength"),
        (["-S", "strength"], "NAME=VALUE"),
        (["-S", "images=0"], "n at least 1"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_unusable_options(tmp_path: Path, options: list[str], said: str) -> None:
    result = audit(written(tmp_path), *options)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_unusable_studies(tmp_path: Path) -> None:
    result = audit(tmp_path / "none.py")
    assert (result.exit_code, "not there" in result.output) == (2, True)
    (tmp_path / "empty.py").write_text("")
    result = audit(tmp_path / "empty.py")
    assert (result.exit_code, "a function named study" in result.output) == (2, True)


COMPARED = """
import torch
import depura
from depura.evaluation.demo import digits_purifier


def hidden(at):
    with torch.no_grad():
        return 0.05 * torch.tanh(at.x_in - at.x0)


def study() -> depura.Study:
    classifier, attack = depura.digits_classifier(), depura.PGD(depura.Ball("linf", 0.2), n_steps=1)
    good = depura.Defence(digits_purifier(n_steps=2), classifier)
    bad = depura.Defence(digits_purifier(n_steps=2).with_(guidance=hidden), classifier)
    rows = (*depura.attack_suite(good, attack, method="good"), *depura.attack_suite(bad, attack, method="bad"))
    return depura.Study(name="two", data=depura.load_digits("test").first(4), defence=good, rows=rows)
"""


@pytest.mark.slow
def test_of_a_comparison_one_method_is_audited(tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text(COMPARED)
    assert audit(file).exit_code == 0
    assert audit(file, "--method", "good").output == audit(file).output
    faulty = audit(file, "--method", "bad")
    assert faulty.exit_code == 1
    assert "guidance hidden" in faulty.output
    unknown = audit(file, "--method", "worse")
    assert unknown.exit_code == 2
    assert "a method of the study (good, bad), got 'worse'" in unknown.output
