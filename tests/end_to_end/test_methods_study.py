"""The comparison of all methods, in miniature: every method runs, is ranked, and the masked gradient is flagged."""

from __future__ import annotations

from pathlib import Path

import pytest

from depura.analysis.ranking import LeaderboardEntry
from depura.analysis.summary import Summary, summarise
from depura.evaluation.runner import run
from depura.evaluation.study_file import StudySource
from depura.records.directory import RunDirectory
from depura.reports import markdown, page

STUDY = Path(__file__).parents[2] / "studies" / "digits_methods.py"
SMALL = (("images", "1"), ("attack_steps", "1"), ("eot", "1"), ("draws", "2"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(StudySource(STUDY, SMALL).load(), tmp_path_factory.mktemp("methods") / "run", command="depura run x")


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


def test_every_check_is_made_of_every_method(summary: Summary) -> None:
    assert {(v.id, v.method) for v in summary.verdicts} == {
        (f"V{k}", method.name) for k in range(1, 22) for method in summary.header.methods
    }


def test_notes_are_shown(summary: Summary) -> None:
    for text in (markdown.markdown(summary), page.html(summary)):
        assert "AGDM is reconstructed from abstracts" in text
