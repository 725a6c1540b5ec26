"""The comparison of all methods, in miniature: every method runs, is ranked, and the masked gradient is flagged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest

import depura
from depura.analysis.ranking import LeaderboardEntry
from depura.analysis.summary import Summary, summarise
from depura.analysis.verdicts import Status
from depura.audit.audit import Audit, audit_gradient
from depura.defence import Defence
from depura.evaluation import study, units
from depura.evaluation.runner import run
from depura.evaluation.study_file import StudySource
from depura.records.directory import RunDirectory
from depura.records.kinds import AttackKind
from depura.reports import markdown, page
from toys import tanh_edm

pytestmark = pytest.mark.slow
STUDY = Path(__file__).parents[2] / "studies" / "digits_methods.py"
SMALL = (("images", "1"), ("attack_steps", "1"), ("eot", "1"), ("draws", "2"))


AUDITED_STEPS = 3
"""Steps of the parts of the copies that are audited, at most."""


def audited_in_few_steps(defence: Defence, *args: Any, **kwargs: Any) -> Audit:
    """The audit of a copy of fewer steps: the same code, differentiated less often."""
    most = max((len(part.steps) for part in defence.core.components), default=1) if defence.core else 1
    return audit_gradient(defence.coarser(ceil(most / AUDITED_STEPS)) if most > 1 else defence, *args, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    """A run around a denoiser of two layers, without the BPDA rows; the reference attack makes one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depura, "digits_denoiser", lambda: tanh_edm().float())
        patch.setattr(study, "REFERENCE_STEPS", 1)
        patch.setattr(study, "REFERENCE_EOT", 1)
        patch.setattr(study, "REFERENCE_COMMON", 1)
        patch.setattr(units, "audit_gradient", audited_in_few_steps)
        made = StudySource(STUDY, SMALL).load()
        made = replace(made, rows=tuple(row for row in made.rows if row.kind is not AttackKind.BPDA), pictures=0)
        yield run(made, tmp_path_factory.mktemp("methods") / "run", command="depura run x")


@pytest.fixture(scope="module")
def summary(finished: RunDirectory) -> Summary:
    return summarise(finished)


@pytest.fixture(scope="module")
def entries(summary: Summary) -> tuple[LeaderboardEntry, ...]:
    assert summary.complete
    assert summary.ranking is not None
    return summary.ranking.all


def test_every_method_is_ranked_or_stands_apart(entries: tuple[LeaderboardEntry, ...]) -> None:
    ranked = {entry.method for entry in entries}
    assert {"diffpure", "mimic", "mimic-released", "agdm", "gdmp", "gradual", "likelihood", "trades", "noise"} <= ranked
    assert len(ranked) == 16


def test_price_is_that_of_the_walk(entries: tuple[LeaderboardEntry, ...]) -> None:
    nfe = {entry.method: entry.nfe for entry in entries}
    expected = {"diffpure": 30, "mimic": 40, "agdm": 10, "gdmp": 20, "gradual": 28, "likelihood": 5, "one-step": 1}
    assert {name: nfe[name] for name in expected} == expected
    assert [nfe[name] for name in ("trades", "noise", "blur")] == [0, 0, 0]


def test_masked_gradients_are_flagged(summary: Summary) -> None:
    lines = {line.name: line for line in summary.lines}
    assert lines["mimic-adaptive"].gradients.zero == lines["mimic-released-adaptive"].gradients.zero == 1.0
    assert lines["mimic-relaxed"].gradients.zero == 0.0
    assert lines["diffpure-adaptive"].gradients.zero == 0.0
    for method in ("mimic", "mimic-released"):
        assert "masked gradient" in summary.flags_of(method)
        gradients = next(v for v in summary.verdicts if (v.id, v.method) == ("V12", method))
        assert "exactly zero" in gradients.sentence
    assert "masked gradient" not in summary.flags_of("diffpure")


def test_every_audit_is_green(summary: Summary) -> None:
    assert {v.status for v in summary.verdicts if v.id == "V1"} == {Status.PASS}


def test_every_check_is_made_of_every_method(summary: Summary) -> None:
    assert {(v.id, v.method) for v in summary.verdicts} == {
        (f"V{k}", method.name) for k in range(1, 27) for method in summary.header.methods
    }


@pytest.mark.usefixtures("without_figures")
def test_notes_are_shown(summary: Summary) -> None:
    for text in (markdown.markdown(summary), page.html(summary)):
        assert "AGDM is reconstructed from" in text
