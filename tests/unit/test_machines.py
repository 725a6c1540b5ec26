"""Rates of machines elsewhere: what the manual says of them, and the operations that the measured one rests on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import depura
from depura.evaluation.study_file import StudySource
from depura.planning.machines import A100, RATES, rate_named
from depura.planning.operations import operations

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", RATES)
def test_the_manual_has_the_table(name: str) -> None:
    rate = RATES[name]
    lines = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {name} |")]
    _, _, per_second, measured, _, _ = (cell.strip() for cell in line.split("|"))
    assert float(per_second) == pytest.approx(rate.per_second / 1e12, rel=0.005)
    assert measured.startswith("yes") == rate.measured


def test_a_rate_is_a_name_or_a_number() -> None:
    assert rate_named("A100").per_second == A100
    assert rate_named("12 TFLOP/s").per_second == 12e12
    assert rate_named("1.5GFLOP/s").per_second == 1.5e9
    for text in ("", "12", "0 TFLOP/s", "-1 TFLOP/s", "12 tflop"):
        with pytest.raises(depura.InputError, match="one of a100"):
            rate_named(text)


@pytest.mark.slow
def test_the_measured_rate_rests_on_counted_operations() -> None:
    study = StudySource(ROOT / "studies" / "published" / "diffpure.py", ()).load()
    purifier = study.defence.purifier
    assert isinstance(purifier, depura.DiffusionPurifier)
    x = torch.zeros(1, 3, 32, 32, device="meta")
    with torch.no_grad():
        counted = operations(lambda: purifier.denoiser(x, 0.5))
    assert counted / 2.07e-3 == pytest.approx(A100, rel=0.002)
