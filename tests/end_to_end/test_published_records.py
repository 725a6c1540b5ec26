"""The committed records: they hold, and docs/results.md is what they say. With the data at hand all of `verify` runs.

DEPURA_CIFAR10 and DEPURA_RESNET20 name CIFAR-10's test images and the classifier's file; without them the study cannot
be built anew, and files and reports are what is checked.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from depura.cli import app
from experiments import results
from slow import slow_among

ROOT = Path(__file__).parents[2]
HAS_DATA = "DEPURA_CIFAR10" in os.environ and "DEPURA_RESNET20" in os.environ
records = pytest.mark.parametrize("record", results.RECORDS)


@pytest.mark.parametrize("record", slow_among(results.RECORDS, {*results.RECORDS} - {"cifar10-few", "cifar10-steps"}))
def test_a_record_holds(record: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = ["--study", "studies/cifar10.py"] if HAS_DATA else []
    done = CliRunner().invoke(app, ["verify", f"{results.FOLDER / record}", *words])
    assert done.exit_code == (0 if HAS_DATA else 3), done.output
    assert "FAIL" not in done.output
    said = {found[2]: found[1] for found in re.finditer(r"^(PASS|WARN|not run) +(\w+)", done.output, re.MULTILINE)}
    assert said["digest"] == "PASS"
    assert said["report"] == "PASS"
    assert said["bounds"] == ("PASS" if HAS_DATA else "not run")


@records
def test_a_record_holds_no_image(record: str) -> None:
    """Arrays of the shape of images are whole numbers: differences of bits."""
    header = json.loads((results.FOLDER / record / "study.json").read_text(encoding="utf-8"))
    assert header["left_out"]
    for file in (results.FOLDER / record / "units").rglob("*.npz"):
        with np.load(file) as arrays:
            for name in arrays.files:
                assert arrays[name].ndim < 4 or np.issubdtype(arrays[name].dtype, np.integer), (file, name)


def test_the_page_is_what_the_records_say() -> None:
    text = results.page(results.read(results.FOLDER / name for name in results.RECORDS))
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == text
