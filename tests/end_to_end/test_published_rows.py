"""Studies of published rows: each has its figures and files, and is planned without any file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import depura
from depura.cli import app
from depura.evaluation.meta_device import is_weightless
from depura.evaluation.study_file import StudySource

STUDIES = sorted((Path(__file__).parents[2] / "studies" / "published").glob("*.py"))
QUICK = {"gdmp_cifar10"}
"""Planned in the default run: the smallest networks."""
ALL = pytest.mark.skipif("all" not in os.environ.get("DEPURA_PLANS", ""), reason="minutes: set DEPURA_PLANS=all")
N_STEPS = {
    "diffpure_cifar10_linf_wrn28": 100,
    "diffpure_cifar10_linf_wrn70": 100,
    "diffpure_cifar10_l2_wrn28": 75,
    "diffpure_cifar10_l2_wrn70": 75,
    "diffpure_cifar10_linf_resnet50": 125,
    "diffpure_cifar10_l2_resnet50": 125,
    "diffpure_cifar10_stadv_resnet50": 125,
    "diffpure_imagenet_resnet50": 150,
    "diffpure_imagenet_wrn50": 150,
    "diffpure_imagenet_deit": 150,
    "diffpure_celebahq": 500,
    "mimicdiffusion_cifar10": 100,
    "mimicdiffusion_cifar100": 100,
    "mimicdiffusion_imagenet": 100,
    "agdm_cifar10_linf": 70,
    "agdm_cifar10_l2": 70,
    "agdm_cifar100": 70,
    "agdm_imagenet": 70,
    "gdmp_cifar10": 144,
    "gdmp_imagenet": 45,
    "gradual_cifar10_linf": 470,
    "gradual_cifar10_l2": 470,
    "gradual_imagenet": 620,
}
"""Evaluations of one purification, from the papers' settings."""


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("file", STUDIES, ids=by_name)
def test_studies_are_of_the_published_settings(file: Path) -> None:
    study = StudySource(file).load()
    purifier = study.defence.purifier
    assert purifier is not None
    assert purifier.n_steps == N_STEPS[file.stem]
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


def test_every_study_is_listed_here() -> None:
    assert {file.stem for file in STUDIES} == set(N_STEPS)


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[] if file.stem in QUICK else ALL, id=file.stem) for file in STUDIES],
)
def test_studies_are_planned_without_files(file: Path) -> None:
    """Evaluations, memory and price are printed; the evaluations of the null by hand."""
    result = CliRunner().invoke(app, ["plan", str(file)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for words in ("denoiser evaluations", "MiB", "estimated from operations", "published, by another", "needs -S"):
        assert words in text
    study = StudySource(file).load()
    null = study.defence.rule.n_draws * N_STEPS[file.stem] * (2 * study.select_draws + study.report_draws)
    total = int(re.search(r"([\d,]+) denoiser evaluations", text)[1].replace(",", ""))  # type: ignore[index]
    assert total > 4 * null * len(study.data.images)


def test_a_run_of_shapes_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(STUDIES[0]), "--out", str(tmp_path / "run"), "--yes"])
    assert result.exit_code == 2
    assert "Give the files" in " ".join(result.output.split())


def test_files_take_the_place_of_shapes(tmp_path: Path) -> None:
    """Images of a file, with networks that stay shapes."""
    file = tmp_path / "images.npz"
    images = np.random.default_rng(0).random((10_000, 2, 2, 3)).astype(np.float32)
    np.savez(file, image=images, label=np.arange(10_000) % 10)
    study = StudySource(STUDIES[0].with_name("gdmp_cifar10.py"), (("data", str(file)), ("images", "3"))).load()
    rows = list(np.random.RandomState(0).choice(10_000, 512, replace=False)[:3])
    assert torch.equal(study.data.images, torch.from_numpy(images[rows]).movedim(3, 1))
    assert list(study.data.ids) == rows
    assert isinstance(study, depura.Study)
