"""The numbers of a report, from records made by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.records import ByHand, edited, method

from depura.analysis.results import Outcome
from depura.analysis.summary import summarise
from depura.analysis.verdicts import Flag, HeadlineStatus, Status
from depura.records.directory import RunDirectory, Unit
from depura.records.kinds import NOT_FINITE
from depura.records.schema import Header, RescoredFrom, Source
from depura.reports import markdown, page, tables

LABELS = [0, 1, 2, 3]
BY_HAND = ByHand(LABELS, ids=[10, 11, 12, 13])
ROWS = ("undefended", "transfer", "adaptive", "reference")
VOTE = {"type": "depura.Vote", "n_draws": 5}


def header(**changed: Any) -> Header:
    rows = [BY_HAND.row(name) for name in ROWS]
    return BY_HAND.header(rows, **{"methods": [method(rule=VOTE)], **changed})


def attacked(row: str, errors: list[int], select: list[int], select_margins: list[float], **more: Any) -> Unit:
    arrays = {
        "select_margins": select_margins,
        "distance": [0.1, 0.05, 0.1, 0.1],
        "rounded_predictions": BY_HAND.predictions([min(e + 1, 4) for e in errors])[:, :2],
        "spent": [[10, 2], [20, 0], [20, 2], [30, 0]],
        "finished": [3, -1, 0, -1],
        "agreement": [[0.1, 0.2, 0.3], [0.3, 0.4, 0.5], [0.5, np.nan, 0.6], [0.9, np.nan, np.nan]],
        "spread": [[1.0, 2.0, 3.0], [1.0, np.nan, 2.0], [1.5, 1.5, 1.5], [1.0, 1.0, 1.0]],
        **more,
    }
    return BY_HAND.attacked(row, errors, select, **arrays)


def made(tmp_path: Path, head: Header | None = None, **changed: Unit) -> RunDirectory:
    units = {
        "null-bare": BY_HAND.null("null-bare"),
        "null-defence": BY_HAND.null("null-defence", [0, 0, 1, 0], [0, 1, 1, 0]),
        "undefended": attacked("undefended", [4, 4, 4, 4], [2, 2, 2, 2], [1, 1, 1, 1]),
        # On the select draws transfer is worse for image 0, adaptive for 1 and 2; image 3 is tied and goes by margin.
        "transfer": attacked("transfer", [3, 0, 1, 2], [2, 0, 0, 1], [0.5, -1, -1, 0.9]),
        "adaptive": attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2]),
        "reference": attacked("reference", [1, 0, 0, 0], [2, 2, 2, 2], [9, 9, 9, 9]),
        **changed,
    }
    head = header() if head is None else head
    return BY_HAND.run(tmp_path / "run", head, [units[entry.row] for entry in head.units])


def test_every_number_of_the_table(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    values = {line.name: line for line in summary.lines}
    assert values["transfer"].metrics.single.value == pytest.approx(1 - 6 / 16)
    assert values["adaptive"].metrics.single.value == pytest.approx(1 - 12 / 16)
    assert values["adaptive"].null.single.value == pytest.approx(1 - 1 / 16)
    assert values["adaptive"].random.single.value == pytest.approx(1 - 2 / 16)
    assert values["undefended"].null.single.value == 1
    assert values["adaptive"].metrics.any.value == 0  # with as many submissions as draws one error is enough
    assert values["transfer"].metrics.any.value == pytest.approx(1 / 4)
    # A majority of the first three draws; of the wrong ones there are min(errors, 3).
    assert values["transfer"].metrics.vote.value == pytest.approx(2 / 4)
    assert values["adaptive"].evaluations == (15, 4)
    assert values["adaptive"].examples.largest == pytest.approx(0.1)


def test_every_row_says_how_its_errors_are_spread(tmp_path: Path) -> None:
    """Of 4 draws 1, 4, 3, 4 are wrong: 1/4 or 3/4 survive one submission, never more than half; the null does 4."""
    line = next(line for line in summarise(made(tmp_path)).lines if line.name == "adaptive")
    assert [share.value for share in line.metrics.shares] == [0, 1 / 4, 3 / 4]
    assert line.metrics.submissions.value == 1
    assert [share.value for share in line.null.shares] == [3 / 4, 1 / 4, 0]
    assert line.null.submissions.value == math.inf
    right = Outcome(BY_HAND.predictions([1, 4, 3, 4]).astype(np.int64), np.array(LABELS))
    assert right.spread.within == pytest.approx((1 / 4 + 0 + 1 / 4 + 0) / 4)
    assert right.spread.half_width() == pytest.approx(1.959964 * np.std(right.accuracies, ddof=1) / 2)


def test_the_strongest_attack_is_chosen_on_select_and_reported_on_report(tmp_path: Path) -> None:
    """Image 3 goes to transfer by margin though adaptive has more wrong report draws: reports do not choose."""
    summary = summarise(made(tmp_path))
    assert summary.strongest is not None
    assert summary.strongest.single.value == pytest.approx(1 - (3 + 4 + 3 + 2) / 16)
    assert summary.headline.startswith("robust accuracy at most 25.0 % (95 % CI ")
    assert ", null 93.8 %" in summary.headline


def test_an_image_without_a_finite_margin_is_as_wrong_as_can_be(tmp_path: Path) -> None:
    """Image 3 is tied on the select draws: a margin that is no number says that no draw was finite."""
    broken = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, math.nan])
    summary = summarise(made(tmp_path, adaptive=broken))
    assert summary.strongest is not None
    assert summary.strongest.single.value == pytest.approx(1 - (3 + 4 + 3 + 4) / 16)


def test_a_headline_says_on_what_and_by_what(tmp_path: Path) -> None:
    """Of the two attacks the adaptive one leaves less."""
    attack, end = "adaptive (PGD, 20 steps, 5 draws per gradient)", "; not distinguishable from noise with 4 images"
    both = f"the strongest of 2 attacks, most by {attack}"
    assert summarise(made(tmp_path)).headline.endswith(f"; 4 images, linf ball of radius 0.1, {both}{end}")
    quick = header(source=Source(file="study.py", profile="quick"))
    told = summarise(made(tmp_path / "b", quick)).headline
    assert told.endswith(f"; 4 images, linf ball of radius 0.1, profile quick, {both}{end}")
    flows = edited(edited(header(), "threat_model", "norm", to="flow"), "rows", 1, "kind", to="unchanged")
    told = summarise(made(tmp_path / "c", flows)).headline
    assert told.endswith(f"; 4 images, flows of at most 0.1 grid units, {attack}{end}")
    unlike = edited(flows, "threat_model", "norm", to="perceptual")
    told = summarise(made(tmp_path / "d", unlike)).headline
    assert told.endswith(f"; 4 images, perceptual dissimilarity of at most 0.1, {attack}{end}")


def test_the_reference_attack_is_no_line_and_no_part_of_the_headline(tmp_path: Path) -> None:
    """On the select draws it is the strongest for every image, and 15 of 16 of its report draws are right."""
    summary = summarise(made(tmp_path))
    assert summary.strongest is not None
    assert summary.strongest.single.value == pytest.approx(1 / 4)
    assert [line.name for line in summary.lines] == ["undefended", "transfer", "adaptive"]
    assert "null" in summary.curve
    assert "reference" not in summary.curve
    assert "reference" not in [trace.row for trace in summary.details.traces]


def test_without_anything_that_tries_the_attack_a_study_is_unchecked(tmp_path: Path) -> None:
    rows = [BY_HAND.row(name) for name in ROWS[:3]]
    head = BY_HAND.header(rows, methods=[method(rule=VOTE)])
    summary = summarise(made(tmp_path, head))
    assert [c.status for c in summary.conclusions] == [HeadlineStatus.UNCHECKED]
    assert summary.headline.startswith("Unchecked: The attack was run at one radius, ")
    assert summary.refused
    assert "robust accuracy" not in summary.headline
    assert not summarise(made(tmp_path / "b")).refused


def test_a_failed_check_takes_the_headlines_place(tmp_path: Path) -> None:
    far = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2], farthest=np.full(4, 0.11))
    summary = summarise(made(tmp_path, adaptive=far))
    assert summary.headline.startswith("No headline: V15 (constraint): Examples leave the ball: adaptive 0.11")
    assert summary.refused
    assert summary.flags == summary.flags_of("") == (Flag.FEW_IMAGES, Flag.OUTSIDE)
    assert summary.flags_of("another") == ()
    for text in (markdown.markdown(summary), page.html(summary)):
        assert "No headline: V15" in text
        assert "examples outside the ball" in text


def test_warnings_are_remarks_and_what_checks_say_is_not_among_them(tmp_path: Path) -> None:
    assert summarise(made(tmp_path)).warnings == ()
    noted = header(methods=[method(rule=VOTE, note="The gradient is masked")])
    rescored = RescoredFrom(report=4, rules=(VOTE,), warning="Another rule was attacked.")
    masked = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2], zero_gradients=np.ones(4))
    summary = summarise(made(tmp_path / "b", noted.model_copy(update={"rescored_from": rescored}), adaptive=masked))
    assert summary.warnings == ("The gradient is masked.", "Another rule was attacked.")
    (verdict,) = (v for v in summary.verdicts if v.id == "V12")
    assert verdict.status is Status.FAIL


def test_a_missing_unit_takes_the_headline_away(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.file("adaptive_eps0.1_00000-00004").unlink()
    summary = summarise(run)
    assert summary.headline.startswith("No headline: 5 of 6 units are done")
    assert not summary.lines
    assert not summary.refused
    assert "robust accuracy" not in markdown.markdown(summary) + page.html(summary)


def test_what_attacks_made_and_spent(tmp_path: Path) -> None:
    """Image by image 1, 4, 3, 4 of four draws are wrong, the first ones; after rounding one more."""
    made_of = {line.name: line.examples for line in summarise(made(tmp_path)).lines}["adaptive"]
    assert made_of.exact.value == pytest.approx(1 / 8)
    assert made_of.rounded.value == 0
    assert (made_of.finished, made_of.gradients, made_of.forwards) == (2, 20.0, 1.0)


def test_an_attack_without_gradients_has_none_to_show(tmp_path: Path) -> None:
    without = dict.fromkeys(("zero_gradients", "bad_gradients", "zero_pixels", "agreement", "spread"))
    unit = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2], **without)
    summary = summarise(made(tmp_path, adaptive=unit))
    assert [cells[0] for cells in tables.gradient_table(summary).rows] == ["undefended", "transfer"]
    assert [cells[0] for cells in tables.example_table(summary).rows] == ["undefended", "transfer", "adaptive"]
    assert next(v for v in summary.verdicts if v.id == "V12").status is Status.NOT_RUN
    page.html(summary)


def test_gradient_facts(tmp_path: Path) -> None:
    cosines = {"cosine_bpda": np.array([0.1, 0.2, 0.4, np.nan]), "cosine_surrogate": np.array([0.9, 0.8, 0.7, 0.6])}
    adaptive = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2], **cosines)
    summary = summarise(made(tmp_path, adaptive=adaptive))
    facts = {line.name: line.gradients for line in summary.lines}
    assert facts["adaptive"].agreement == pytest.approx((0.4, 0.3, 0.5))
    assert facts["adaptive"].spread == 3.0
    assert facts["adaptive"].bpda == pytest.approx(0.2)
    assert facts["adaptive"].surrogate == pytest.approx(0.75)
    assert np.isnan(facts["transfer"].bpda)
    shown = {cells[0]: cells for cells in tables.gradient_table(summary).rows}
    assert shown["adaptive"][1:] == (
        "exact", "0.00 %", "0.00 %", "0.00 %", "0.40 / 0.30 / 0.50", "3.00", "0.20", "0.75",
    )  # fmt: skip
    assert shown["transfer"][-2:] == ("–", "–")


def test_no_draws_to_compare_is_shown_as_nothing(tmp_path: Path) -> None:
    silent = {"agreement": np.full((4, 3), np.nan), "spread": np.full((4, 3), np.nan)}
    adaptive = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2], **silent)
    summary = summarise(made(tmp_path, adaptive=adaptive))
    assert tables.gradient_table(summary).rows[2][5:7] == ("– / – / –", "–")
    assert next(v for v in summary.verdicts if v.id == "V12").status is Status.PASS


def test_approximate_gradients_are_called_so(tmp_path: Path) -> None:
    head = header()
    for k, mode in enumerate(("adjoint", "grafted", "bpda")):
        head = edited(head, "rows", k, "mode", to=mode)
    summary = summarise(made(tmp_path, head))
    assert [line.mode for line in summary.lines] == ["adjoint", "grafted", "bpda"]
    for text in (markdown.markdown(summary), page.html(summary)):
        assert "adjoint: continuous adjoint (approximate)" in text
        assert "grafted: one Jacobian for all draws (approximate)" in text
        assert "bpda: BPDA (approximate)" in text
        assert "exact:" not in text


def test_pictures_call_classes_and_what_is_no_class(tmp_path: Path) -> None:
    """Of image 11 (class 1, "b") the draws say: not finite, 12 (there are 10 classes), 0, 12."""
    predictions = BY_HAND.predictions([1, 4, 3, 4])
    predictions[1] = [NOT_FINITE, 12, 0, 12]
    walk = {
        "picture_rows": np.array([1]),
        "picture_frames": np.zeros((1, 3, 1, 8, 8), dtype=np.uint8),
        "picture_titles": np.array(["clean", "adversarial", "purified"]),
    }
    unit = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2], predictions=predictions, **walk)
    summary = summarise(made(tmp_path, adaptive=unit))
    (picture,) = summary.pictures
    assert (picture.image, picture.label, picture.seen_as, picture.errors) == (11, "b", "not finite", 4)
    assert picture.votes == (("class 12", 2), ("not finite", 1), ("a", 1))
    for text in (markdown.markdown(summary), page.html(summary)):
        assert "not finite" in text
        assert "class 12" in text


def test_both_texts_hold_the_same_numbers(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    text, web = markdown.markdown(summary), page.html(summary)
    for cells in tables.attack_table(summary).rows:
        for cell in cells:
            assert cell in text
            assert cell in web.replace("\n(", " (").replace("\n[", " [")
    for needed in (summary.headline, "vote of 5 draws", "depura run study.py --out DIR", "linf, eps = 0.1"):
        assert needed in text
        assert needed in web
    assert page.html(summarise(made(tmp_path / "again"))) == web


def test_without_matplotlib_the_page_lacks_the_figure_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page.html(summarise(made(tmp_path)))
    assert "<svg" in whole
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = page.html(summarise(made(tmp_path / "again")))
    assert "<svg" not in without
    assert "depura[report]" in without
    assert "robust accuracy at most 25.0 %" in without
