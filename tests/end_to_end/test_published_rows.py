"""Studies of published rows: each has its figures and files, and is planned without any file."""

from __future__ import annotations

import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import depura
from depura.cli import app
from depura.evaluation.meta_device import is_weightless
from depura.evaluation.study_file import StudySource

FOLDER = Path(__file__).parents[2] / "studies" / "published"
QUICK = {("gdmp", "cifar10")}
"""Planned without being asked for: the smallest networks."""
ALL = pytest.mark.skipif("all" not in os.environ.get("DEPURA_PLANS", ""), reason="minutes: set DEPURA_PLANS=all")
N_STEPS = {
    ("diffpure", "cifar10-linf-wrn28"): 100,
    ("diffpure", "cifar10-linf-wrn70"): 100,
    ("diffpure", "cifar10-l2-wrn28"): 75,
    ("diffpure", "cifar10-l2-wrn70"): 75,
    ("diffpure", "cifar10-linf-resnet50"): 125,
    ("diffpure", "cifar10-l2-resnet50"): 125,
    ("diffpure", "cifar10-stadv-resnet50"): 125,
    ("diffpure", "imagenet-resnet50"): 150,
    ("diffpure", "imagenet-wrn50"): 150,
    ("diffpure", "imagenet-deit"): 150,
    ("diffpure", "celebahq"): 500,
    ("mimicdiffusion", "cifar10"): 100,
    ("mimicdiffusion", "cifar100"): 100,
    ("mimicdiffusion", "imagenet"): 100,
    ("agdm", "cifar10-linf"): 70,
    ("agdm", "cifar10-l2"): 70,
    ("agdm", "cifar100"): 70,
    ("agdm", "imagenet"): 70,
    ("gdmp", "cifar10"): 144,
    ("gdmp", "imagenet"): 45,
    ("gradual", "cifar10-linf"): 470,
    ("gradual", "cifar10-l2"): 470,
    ("gradual", "imagenet"): 620,
}
"""Evaluations of one purification, from the papers' settings."""


def source(row: tuple[str, str], *settings: tuple[str, str]) -> StudySource:
    return StudySource(FOLDER / f"{row[0]}.py", (("row", row[1]), *settings))


@pytest.mark.parametrize("row", N_STEPS, ids="-".join)
def test_studies_are_of_the_published_settings(row: tuple[str, str]) -> None:
    study = source(row).load()
    assert study.name == "-".join(row)
    purifier = study.defence.purifier
    assert purifier is not None
    assert purifier.n_steps == N_STEPS[row]
    assert is_weightless(study)
    assert study.published
    parameters = {needed.parameter for needed in study.files}
    assert {"data", "denoiser", "classifier"} <= parameters
    for needed in study.files:
        assert needed.name
        assert needed.address.startswith("https://") or needed.note
    for published in study.published:
        assert published.source
        assert published.robust is None or 0 < published.robust < 100


def test_every_row_is_listed_here() -> None:
    found = {(file.stem, row) for file in FOLDER.glob("*.py") for row in runpy.run_path(str(file))["ROWS"]}
    assert found == set(N_STEPS)


@pytest.mark.parametrize(
    ("paper", "row"),
    [
        ("diffpure", "cifar10-linf-wrn28"),
        ("mimicdiffusion", "cifar10"),
        ("agdm", "cifar10-linf"),
        ("gdmp", "cifar10"),
        ("gradual", "cifar10-linf"),
    ],
)
def test_the_main_row_is_the_default(paper: str, row: str) -> None:
    assert StudySource(FOLDER / f"{paper}.py").load().name == f"{paper}-{row}"


@pytest.mark.parametrize("paper", sorted({paper for paper, _ in N_STEPS}))
def test_an_unknown_row_is_refused_with_the_names(paper: str) -> None:
    names = ", ".join(runpy.run_path(str(FOLDER / f"{paper}.py"))["ROWS"])
    with pytest.raises(depura.InputError, match=re.escape(f"-S row: expected one of {names}, got 'mnist'.")):
        source((paper, "mnist")).load()


def test_an_attribute_is_of_celeba_hq_only() -> None:
    assert source(("diffpure", "celebahq"), ("attribute", "Smiling")).load().name == "diffpure-celebahq"
    with pytest.raises(depura.InputError, match="expected it with -S row=celebahq, got row imagenet-deit"):
        source(("diffpure", "imagenet-deit"), ("attribute", "Smiling")).load()


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.slow if row in QUICK else ALL, id="-".join(row)) for row in N_STEPS],
)
def test_studies_are_planned_without_files(row: tuple[str, str]) -> None:
    """Evaluations, memory and price are printed; the evaluations of the null by hand."""
    file = FOLDER / f"{row[0]}.py"
    result = CliRunner().invoke(app, ["plan", str(file), "-S", f"row={row[1]}"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for words in ("denoiser evaluations", "MiB", "estimated from operations", "published, by another", "needs -S"):
        assert words in text
    study = source(row).load()
    null = study.defence.rule.n_draws * N_STEPS[row] * (2 * study.select_draws + study.report_draws)
    total = int(re.search(r"([\d,]+) denoiser evaluations", text)[1].replace(",", ""))  # type: ignore[index]
    assert total > 4 * null * len(study.data.images)


def test_a_run_of_shapes_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(FOLDER / "agdm.py"), "--out", str(tmp_path / "run"), "--yes"])
    assert result.exit_code == 2
    assert "Give the files" in " ".join(result.output.split())


def test_files_take_the_place_of_shapes(tmp_path: Path) -> None:
    """Images of a file, with networks that stay shapes."""
    file = tmp_path / "images.npz"
    images = np.random.default_rng(0).random((10_000, 2, 2, 3)).astype(np.float32)
    np.savez(file, image=images, label=np.arange(10_000) % 10)
    study = source(("gdmp", "cifar10"), ("data", str(file)), ("images", "3")).load()
    rows = list(np.random.RandomState(0).choice(10_000, 512, replace=False)[:3])
    assert torch.equal(study.data.images, torch.from_numpy(images[rows]).movedim(3, 1))
    assert list(study.data.ids) == rows
    assert isinstance(study, depura.Study)
