"""The numbers of a report, from records made by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depura.evaluation.records import RunDirectory, Unit
from depura.judging.metrics import Outcome
from depura.judging.summary import summarise
from depura.reports import markdown, page, tables

LABELS = [0, 1, 2, 3]
ROWS = (("undefended", "bare"), ("transfer", "defence"), ("adaptive", "defence"))
NULLS = {"bare": "null-undefended", "defence": "null-transfer"}
K = 4


def predictions(errors: list[int]) -> np.ndarray:
    """K draws per image, the first `errors` of them wrong (class 9)."""
    return np.array([[9] * e + [y] * (K - e) for e, y in zip(errors, LABELS, strict=True)], dtype=np.int32)


def header() -> dict[str, Any]:
    names = [name for name, _ in ROWS]
    units = ("null-undefended", "null-transfer", *names)
    return {
        "command": "depura run study.py --out DIR",
        "name": "by-hand",
        "seed": 7,
        "data": {"name": "four", "ids": [10, 11, 12, 13], "labels": LABELS, "classes": list("abcdefghij")},
        "threat_model": {
            "norm": "linf", "eps": 0.1, "box": [0, 1], "targeted": False, "quantised": False, "knows": "all",
            "class": "l_p", "queries": "no limit",
            "resubmissions": "no limit", "stateful_detection": False, "time_per_image": "no limit",
        },
        "rule": {"type": "depura.rules.Vote", "n_draws": 5},
        "note": "",
        "methods": [],
        "rows": [
            {"name": n, "title": n, "kind": n, "method": "", "route": "G0", "judged": j, "null": NULLS[j]}
            for n, j in ROWS
        ],
        "draws": {"select": 2, "report": K},
        "curve": {"eps": [], "images": 4, "rows": ["undefended", "transfer", "adaptive"]},
        "units": [
            {"unit": f"{n}_eps0.1_00000-00004", "row": n, "eps": 0.1, "first": 0, "last": 4} for n in units
        ],
        "versions": {"depura": "0"},
    }  # fmt: skip


def attacked(row: str, errors: list[int], select: list[int], margins: list[float], **more: Any) -> Unit:
    arrays = {
        "ids": np.array([10, 11, 12, 13]),
        "labels": np.array(LABELS),
        "predictions": predictions(errors),
        "select_errors": np.array([[0, s] for s in select]),
        "chosen": np.ones(4, dtype=np.int32),
        "select_margins": np.array(margins),
        "distance": np.array([0.1, 0.05, 0.1, 0.1]),
        "rounded_predictions": predictions([min(e + 1, K) for e in errors])[:, :2],
        "spent": np.array([[10, 2], [20, 0], [20, 2], [30, 0]]),
        "finished": np.array([3, -1, 0, -1]),
        "zero_gradients": np.zeros(4),
        "bad_gradients": np.zeros(4),
        "zero_pixels": np.zeros(4),
        "agreement": np.array([[0.1, 0.2, 0.3], [0.3, 0.4, 0.5], [0.5, np.nan, 0.6], [0.9, np.nan, np.nan]]),
        "spread": np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 2.0], [1.5, 1.5, 1.5], [1.0, 1.0, 1.0]]),
        **more,
    }
    return Unit(arrays, meta(row))


def null(row: str, errors: list[int], random: list[int]) -> Unit:
    arrays = {"ids": np.array([10, 11, 12, 13]), "labels": np.array(LABELS), "predictions": predictions(errors)}
    return Unit({**arrays, "random_predictions": predictions(random)}, meta(row))


def meta(row: str) -> dict[str, Any]:
    counts = {"attack": [10, 4], "score": [5, 0]}
    return {"unit": f"{row}_eps0.1_00000-00004", "row": row, "eps": 0.1, "device": "cpu", "evaluations": counts}


def made(tmp_path: Path, **changed: Unit) -> RunDirectory:
    units = {
        "null-undefended": null("null-undefended", [0, 0, 0, 0], [0, 0, 0, 0]),
        "null-transfer": null("null-transfer", [0, 0, 1, 0], [0, 1, 1, 0]),
        "undefended": attacked("undefended", [4, 4, 4, 4], [2, 2, 2, 2], [1, 1, 1, 1]),
        # On the select draws transfer is worse for image 0, adaptive for 1 and 2; image 3 is tied and goes by margin.
        "transfer": attacked("transfer", [3, 0, 1, 2], [2, 0, 0, 1], [0.5, -1, -1, 0.9]),
        "adaptive": attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2]),
        **changed,
    }
    run = RunDirectory.create(tmp_path / "run", header())
    for name, unit in units.items():
        run.commit(f"{name}_eps0.1_00000-00004", unit)
    return run


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
    right = Outcome(predictions([1, 4, 3, 4]).astype(np.int64), np.array(LABELS))
    assert right.spread.within == pytest.approx((1 / 4 + 0 + 1 / 4 + 0) / 4)
    assert right.spread.half_width() == pytest.approx(1.959964 * np.std(right.accuracies, ddof=1) / 2)


def test_the_strongest_attack_is_chosen_on_select_and_reported_on_report(tmp_path: Path) -> None:
    """Image 3 goes to transfer by margin though adaptive has more wrong report draws: reports do not choose."""
    summary = summarise(made(tmp_path))
    assert summary.strongest is not None
    assert summary.strongest.single.value == pytest.approx(1 - (3 + 4 + 3 + 2) / 16)
    assert summary.headline.startswith("robust accuracy at most 25.0 % (95 % CI ")
    assert ", null 93.8 %" in summary.headline


def test_a_missing_unit_takes_the_headline_away(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.file("adaptive_eps0.1_00000-00004").unlink()
    summary = summarise(run)
    assert summary.headline.startswith("No headline: 4 of 5 units are done")
    assert not summary.lines
    assert "robust accuracy" not in markdown.markdown(summary) + page.html(summary)


def test_what_attacks_made_and_spent(tmp_path: Path) -> None:
    """Image by image 1, 4, 3, 4 of four draws are wrong, the first ones; after rounding one more."""
    made_of = {line.name: line.examples for line in summarise(made(tmp_path)).lines}["adaptive"]
    assert made_of.exact.value == pytest.approx(1 / 8)
    assert made_of.rounded.value == 0
    assert (made_of.finished, made_of.gradients, made_of.forwards) == (2, 20.0, 1.0)


def test_an_attack_without_gradients_has_none_to_show(tmp_path: Path) -> None:
    unit = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2])
    for name in ("zero_gradients", "bad_gradients", "zero_pixels", "agreement", "spread"):
        del unit.arrays[name]
    summary = summarise(made(tmp_path, adaptive=unit))
    assert [cells[0] for cells in tables.gradient_rows(summary)] == ["undefended", "transfer"]
    assert [cells[0] for cells in tables.example_rows(summary)] == ["undefended", "transfer", "adaptive"]
    assert not any("row adaptive are exactly zero" in w for w in summary.warnings)
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
    shown = {cells[0]: cells for cells in tables.gradient_rows(summary)}
    assert shown["adaptive"][2:] == ("0.00 %", "0.00 %", "0.00 %", "0.40 / 0.30 / 0.50", "3.00", "0.20", "0.75")
    assert shown["transfer"][-2:] == ("–", "–")


def test_no_draws_to_compare_is_shown_as_nothing(tmp_path: Path) -> None:
    silent = {"agreement": np.full((4, 3), np.nan), "spread": np.full((4, 3), np.nan)}
    adaptive = attacked("adaptive", [1, 4, 3, 4], [1, 2, 1, 1], [0.1, 2, 0.3, 0.2], **silent)
    summary = summarise(made(tmp_path, adaptive=adaptive))
    assert tables.gradient_rows(summary)[2][5:7] == ("– / – / –", "–")
    assert not any("more draws" in w for w in summary.warnings)


def test_approximate_routes_are_called_so(tmp_path: Path) -> None:
    run = made(tmp_path)
    for row, code in zip(run.header["rows"], ("G5", "G7", "G2"), strict=True):
        row["route"] = code
    summary = summarise(run)
    for text in (markdown.markdown(summary), page.html(summary)):
        assert "G5 continuous adjoint (approximate)" in text
        assert "G7 grafted, one Jacobian for all draws (approximate)" in text
        assert "G2 BPDA (approximate)" in text


def test_both_texts_hold_the_same_numbers(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    text, web = markdown.markdown(summary), page.html(summary)
    for cells in tables.rows(summary):
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
