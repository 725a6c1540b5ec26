"""The committed records of claims hold, and docs/claims.md is what they say (its section of measured memory aside)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from depura.cli import app
from depura.reports.table import Table
from experiments import claims
from slow import slow_among

ROOT = Path(__file__).parents[2]
RECORDS = sorted(path.name for path in claims.FOLDER.glob("claim-*"))
HAS_DATA = "DEPURA_CIFAR10" in os.environ and "DEPURA_RESNET20" in os.environ
QUICK = "claim-diffpure-noise"


def without_memory(text: str) -> str:
    """The page without the section, and the line of the summary, that are measured."""
    number = len(claims.CLAIMS) + 1
    section = re.compile(rf"^## {number}\. .*?(?=^## )", re.MULTILINE | re.DOTALL)
    return re.sub(rf"^\| {number} \|.*$", "", section.sub("", text), flags=re.MULTILINE)


def test_the_page_is_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "memory", lambda: ("", Table(("",), ())))
    page = without_memory(claims.page())
    assert "| 1 |" in page
    assert without_memory((ROOT / "docs" / "claims.md").read_text(encoding="utf-8")) == page


@pytest.mark.parametrize("record", slow_among(RECORDS, {*RECORDS} - {QUICK}))
def test_a_record_of_a_claim_holds(record: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    whole = HAS_DATA or not record.endswith("-cifar10")
    words = ["--study", "studies/claims.py"] if whole else []
    done = CliRunner().invoke(app, ["verify", f"records/{record}", *words])
    assert done.exit_code == (0 if whole else 3), done.output
    assert "FAIL" not in done.output
