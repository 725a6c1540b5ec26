"""Methods compared, from records made by hand: 12 images, 4 report draws, two purifications and a bare baseline."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from depura.evaluation.records import RunDirectory, Unit
from depura.evaluation.statistics import mean_with_interval
from depura.judging.summary import Summary, summarise
from depura.reports import figures, markdown, page, standings, tables

N, K = 12, 4
LABELS = np.arange(N) % 10
METHODS = {"new": (False, "a toy"), "old": (False, ""), "at": (True, "")}
ROWS = (
    ("new-undefended", "undefended", "", "G0"),
    ("new-transfer", "transfer", "new", "G0"),
    ("new-adaptive", "adaptive", "new", "G6"),
    ("new-relaxed", "relaxed", "new", "G8"),
    ("old-transfer", "transfer", "old", "G0"),
    ("old-adaptive", "adaptive", "old", "G6"),
    ("at-adaptive", "adaptive", "at", "G0"),
)
NULLS = {"": "null-new-undefended", "new": "null-new-transfer", "old": "null-old-transfer", "at": "null-at-adaptive"}
SINGLE = {"type": "depura.rules.Single", "n_draws": 1}


def predictions(errors: list[int]) -> np.ndarray:
    """K draws per image, the first `errors` of them wrong (class 10)."""
    return np.array([[10] * e + [y] * (K - e) for e, y in zip(errors, LABELS, strict=True)], dtype=np.int32)


def header(**changed: Any) -> dict[str, Any]:
    units = [f"{n}_eps0.1_00000-00012" for n in (*NULLS.values(), *(row[0] for row in ROWS))]
    return {
        "command": "depura run study.py --out DIR",
        "name": "by-hand",
        "seed": 7,
        "data": {"name": "twelve", "ids": list(range(N)), "labels": LABELS.tolist(), "classes": list("abcdefghijk")},
        "threat_model": {
            "norm": "linf", "eps": 0.1, "box": [0, 1], "targeted": False, "quantised": False, "knows": "all",
            "class": "l_p", "queries": "no limit",
            "resubmissions": "no limit", "stateful_detection": False, "time_per_image": "no limit",
        },
        "defence": None,
        "rule": None,
        "note": "",
        "methods": [
            {"name": name, "baseline": baseline, "note": note, "defence": {}, "rule": SINGLE}
            for name, (baseline, note) in METHODS.items()
        ],
        "rows": [
            {"name": name, "title": kind, "kind": kind, "method": method, "route": route,
             "judged": "defence" if method else "bare", "null": NULLS[method]}
            for name, kind, method, route in ROWS
        ],
        "draws": {"select": 2, "report": K},
        "curve": {"eps": [], "images": 4, "rows": [row[0] for row in ROWS]},
        "units": [{"unit": u} for u in units],
        "versions": {"depura": "0"},
        **changed,
    }  # fmt: skip


def attacked(row: str, errors: list[int], select: list[int], *, zero: float = 0.0) -> Unit:
    arrays = {
        "ids": np.arange(N),
        "labels": LABELS,
        "predictions": predictions(errors),
        "select_errors": np.array([[0, s] for s in select]),
        "chosen": np.ones(N, dtype=np.int32),
        "select_margins": np.zeros(N),
        "distance": np.full(N, 0.1),
        "rounded_predictions": predictions(errors)[:, :2],
        "spent": np.full((N, 2), 10),
        "finished": np.full(N, -1),
        "zero_gradients": np.full(N, zero),
        "bad_gradients": np.zeros(N),
        "zero_pixels": np.zeros(N),
        "agreement": np.full((N, 3), 0.9),
        "spread": np.full((N, 3), 1.5),
    }
    return Unit(arrays, meta(row))


def null(row: str, errors: list[int], evaluations: int) -> Unit:
    arrays = {"ids": np.arange(N), "labels": LABELS, "predictions": predictions(errors)}
    clean = {"clean": {"predictions": N * K, "evaluations": evaluations}}
    return Unit({**arrays, "random_predictions": predictions(errors)}, {**meta(row), **clean})


def meta(row: str) -> dict[str, Any]:
    counts = {"attack": [10, 4], "score": [9999, 0]}
    return {"unit": f"{row}_eps0.1_00000-00012", "row": row, "eps": 0.1, "device": "cpu", "evaluations": counts}


RIGHT_ON_FOUR = [0] * 4 + [4] * 8


def made(tmp_path: Path, head: dict[str, Any] | None = None, **changed: Unit) -> RunDirectory:
    units = {
        "null-new-undefended": null("null-new-undefended", [0] * N, 0),
        "null-new-transfer": null("null-new-transfer", [1] + [0] * 11, 20 * N * K),
        "null-old-transfer": null("null-old-transfer", [0] * N, 7 * N * K // 2),
        "null-at-adaptive": null("null-at-adaptive", [4] + [0] * 11, 0),
        "new-undefended": attacked("new-undefended", [4] * N, [2] * N),
        "new-transfer": attacked("new-transfer", [0] * 11 + [4], [0] * 11 + [2]),
        "new-adaptive": attacked("new-adaptive", [1] * N, [1] * N, zero=0.9),
        "new-relaxed": attacked("new-relaxed", [2] * 11 + [0], [2] * 11 + [1]),
        "old-transfer": attacked("old-transfer", [0] * N, [0] * N),
        "old-adaptive": attacked("old-adaptive", [3] * N, [2] * N),
        "at-adaptive": attacked("at-adaptive", RIGHT_ON_FOUR, [1] * N),
        **{name.replace("_", "-"): unit for name, unit in changed.items()},
    }
    run = RunDirectory.create(tmp_path / "run", head or header())
    for name, unit in units.items():
        run.commit(f"{name}_eps0.1_00000-00012", unit)
    return run


def printed(summary: Summary, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(tables.terminal(summary))
    return stream.getvalue()


def swaps(differences: list[float]) -> float:
    """The permutation test by enumeration."""
    d = np.array(differences)
    signs = np.array(list(itertools.product([-1, 1], repeat=len(d))))
    return float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12))


NEW, OLD = [0.5] * 11 + [0.0], [0.25] * N
AT = [1.0] * 4 + [0.0] * 8


def test_methods_are_ranked_under_the_strongest_attack_on_each_image(tmp_path: Path) -> None:
    """For the last image that is the transferred example, by select draws: it counts with all its report draws."""
    ranking = summarise(made(tmp_path)).ranking
    assert ranking is not None
    assert [(s.rank, s.method) for s in ranking.standings] == [(1, "new"), (2, "at"), (3, "old")]
    new, at, old = ranking.standings
    assert new.strongest.single == mean_with_interval(np.array(NEW))
    assert at.strongest.single.value == pytest.approx(1 / 3)
    assert old.strongest.single.value == 0.25
    assert new.clean.value == pytest.approx(1 - 1 / (N * K))
    assert at.clean.value == pytest.approx(11 / 12)
    assert {kind: e.value for kind, e in new.kinds.items()} == pytest.approx(
        {"transfer": 11 / 12, "adaptive": 0.75, "relaxed": (11 * 0.5 + 1) / 12}
    )
    assert new.masked == {"adaptive"}
    assert not old.masked
    assert set(at.kinds) == {"adaptive"}
    assert (at.baseline, new.baseline, new.note) == (True, False, "a toy")


def test_rows_of_one_kind_are_taken_together(tmp_path: Path) -> None:
    head = header()
    head["rows"][3]["kind"] = "adaptive"
    ranking = summarise(made(tmp_path, head)).ranking
    assert ranking is not None
    assert ranking.best.kinds["adaptive"].value == pytest.approx((11 * 0.5 + 0.75) / 12)
    assert "relaxed" not in ranking.best.kinds


def test_the_price_is_counted_on_clean_images_alone(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    assert summary.ranking is not None
    assert {s.method: s.nfe for s in summary.ranking.standings} == {"new": 20, "old": 3.5, "at": 0}
    assert {s.method: standings.nfe(s) for s in summary.ranking.standings} == {"new": "20", "old": "3.5", "at": "0"}


def test_p_values_are_of_paired_tests_and_corrected_for_all_of_them(tmp_path: Path) -> None:
    ranking = summarise(made(tmp_path)).ranking
    assert ranking is not None
    assert ranking.comparisons == 3
    new, at, old = ranking.standings
    plain = [swaps([a - b for a, b in zip(*pair, strict=True)]) for pair in ((AT, NEW), (OLD, NEW), (OLD, AT))]
    order = np.argsort(plain)
    expected = np.empty(3)
    expected[order] = np.minimum(1, np.maximum.accumulate(np.array([3, 2, 1]) * np.array(plain)[order]))
    found = [at.to_best.p, old.to_best.p, old.to_baseline.p]
    assert found == pytest.approx(expected.tolist())
    assert old.to_best.value == pytest.approx(0.25 - 5.5 / 12)
    assert old.to_best.detectable
    assert old.to_baseline.value == pytest.approx(0.25 - 1 / 3)
    assert not old.to_baseline.detectable
    assert new.to_best is None
    assert at.to_baseline is None
    assert new.to_baseline is not None
    assert new.to_baseline.value == pytest.approx(5.5 / 12 - 1 / 3)
    assert new.to_baseline.p == at.to_best.p
    assert (new.to_baseline.low, new.to_baseline.high) == (-at.to_best.high, -at.to_best.low)


def test_a_baseline_that_is_not_detectably_worse_is_told(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    assert summary.headline.startswith("new is the first of 3 methods: robust accuracy at most 45.8 % (95 % CI ")
    assert summary.headline.endswith("null 97.9 %; but the baseline at alone, at most 33.3 %, is not detectably worse")
    assert "The baseline at alone is not detectably worse than any purification here." in summary.warnings
    assert "No detectable difference from the first, new: at." in summary.warnings


def test_a_baseline_that_is_best_takes_the_headline(tmp_path: Path) -> None:
    strong = attacked("at-adaptive", [0] * N, [0] * N)
    summary = summarise(made(tmp_path, at_adaptive=strong))
    assert summary.headline.startswith(
        "no purification here is better than the baseline at alone: robust accuracy at most 100.0 %"
    )
    assert summary.headline.endswith("the best purification, new, at most 45.8 % (detectably worse)")
    assert "The baseline at alone is not detectably worse than any purification here." in summary.warnings
    assert "Detectably worse than the baseline at alone: new, old." in summary.warnings
    assert summary.ranking is not None
    assert summary.ranking.comparisons == 2
    text = standings.rows(summary, summary.ranking)
    assert [len(cells) for cells in text] == [len(standings.headings(summary, summary.ranking))] * 3
    assert not any("(baseline)" in heading for heading in standings.headings(summary, summary.ranking))


def test_a_baseline_that_is_beaten_is_only_named(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path, at_adaptive=attacked("at-adaptive", [4] * N, [2] * N)))
    assert summary.headline.endswith("null 97.9 %; the strongest baseline, at, at most 0.0 %")
    assert not any("baseline" in w for w in summary.warnings)


def test_some_methods_may_beat_the_baseline_and_others_not(tmp_path: Path) -> None:
    weak = attacked("old-adaptive", [4] * N, [2] * N)
    summary = summarise(made(tmp_path, at_adaptive=attacked("at-adaptive", [4] * N, [2] * N), old_adaptive=weak))
    assert "Not detectably better than the baseline at alone: old." in summary.warnings


def test_without_baselines_there_is_nothing_to_beat(tmp_path: Path) -> None:
    head = header()
    head["methods"][2]["baseline"] = False
    summary = summarise(made(tmp_path, head))
    assert "baseline" not in summary.headline + " ".join(summary.warnings)
    assert summary.ranking is not None
    assert summary.ranking.comparisons == 2
    assert standings.headings(summary, summary.ranking)[-1] == "minus new (first)"


def test_a_masked_row_is_not_taken_for_robustness(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    (said,) = (w for w in summary.warnings if "exactly zero" in w)
    assert said.startswith(
        "The exact-gradient row of new (new-adaptive) says nothing: 90.0 % of its gradients are exactly zero."
    )
    assert "not robustness; the relaxed row (new-relaxed) is the one to read" in said
    assert summary.ranking is not None
    assert "75.0†" in standings.rows(summary, summary.ranking)[0]
    for text in (markdown.markdown(summary), page.html(summary), printed(summary)):
        assert "75.0†" in text
        assert "no measure of robustness" in " ".join(text.split())


def test_an_adaptive_attack_weaker_than_transfer_is_told_by_method(tmp_path: Path) -> None:
    weak = attacked("old-adaptive", [0] * N, [0] * N)
    strong = attacked("old-transfer", [4] * N, [2] * N)
    found = [w for w in summarise(made(tmp_path, old_adaptive=weak, old_transfer=strong)).warnings if "weaker" in w]
    assert found == [
        "The adaptive attack on old is weaker than the transferred one: the gradient or the attack is broken."
    ]


def test_a_relaxed_row_stands_in_for_a_masked_one(tmp_path: Path) -> None:
    """The transferred examples beat the exact gradient, but not the relaxed one."""
    weak = attacked("new-adaptive", [0] * N, [0] * N, zero=1.0)
    strong = attacked("new-transfer", [2] * N, [1] * N)
    assert not any("weaker" in w for w in summarise(made(tmp_path, new_adaptive=weak, new_transfer=strong)).warnings)


def test_all_texts_hold_the_ranking(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    assert summary.ranking is not None
    ranks = standings.rows(summary, summary.ranking)
    assert ranks[0][:7] == ("1", "new*", "20", "97.9", "91.7", "75.0†", "54.2")
    assert ranks[0][7].startswith("45.8 % (")
    assert ranks[0][8:10] == ("0.0", "–")
    heads = standings.headings(summary, summary.ranking)
    assert heads == (
        "rank", "method", "NFE", "clean", "transfer", "exact", "relaxed", "strongest (95 % CI)", "any of 4",
        "minus new (first)", "minus at (baseline)",
    )  # fmt: skip
    assert [cells[1] for cells in ranks] == ["new*", "at (baseline)", "old"]
    assert ranks[2][4] == "100.0"
    assert ranks[1][4] == "–"
    assert ranks[1][9].endswith(": no detectable difference")
    assert "no detectable" not in ranks[2][9]
    text, web = markdown.markdown(summary), page.html(summary)
    for cells in ranks:
        for cell in cells:
            assert cell.replace("*", "\\*") in text
            assert cell in web.replace("&lt;", "<").replace("&#43;", "+")
    for said in (text.replace("\\*", "*"), web, printed(summary)):
        assert "* new: a toy" in said
    for cells in tables.rows(summary):
        assert cells.name in text
        assert cells.name in web
    assert page.html(summarise(made(tmp_path / "again"))) == web


def test_rows_are_grouped_by_method_with_the_strongest_last(tmp_path: Path) -> None:
    head = header()
    head["rows"] = head["rows"][::-1]
    names = [cells.name for cells in tables.rows(summarise(made(tmp_path, head)))]
    assert names == [
        "new-undefended", "new-relaxed", "new-adaptive", "new-transfer", "new-strongest", "at-adaptive",
        "old-adaptive", "old-transfer", "old-strongest",
    ]  # fmt: skip
    strongest = next(c for c in tables.rows(summarise(made(tmp_path / "b"))) if c.name == "new-strongest")
    assert strongest.single.startswith("45.8 %")
    assert strongest.null.startswith("97.9 %")


def test_approximate_adaptive_rows_are_not_called_exact(tmp_path: Path) -> None:
    head = header()
    head["rows"][5]["route"] = "G5"
    summary = summarise(made(tmp_path, head))
    assert summary.ranking is not None
    assert "adaptive" in standings.headings(summary, summary.ranking)
    assert "exact" not in standings.headings(summary, summary.ranking)


def test_the_terminal_table_keeps_to_its_width(tmp_path: Path) -> None:
    said = printed(summarise(made(tmp_path)))
    assert max(len(line) for line in said.splitlines()) <= 100
    assert "…" not in said + printed(summarise(made(tmp_path / "b")), width=80)
    (first,) = (line for line in said.splitlines() if line.strip().startswith("1 new*"))
    assert first.split()[:7] == ["1", "new*", "20", "97.9", "91.7", "75.0†", "54.2"]
    assert "≈ -12.5, " in said


def test_rules_are_named_by_method_where_they_differ(tmp_path: Path) -> None:
    head = header()
    assert "Deployed rule: one draw. linf ball" in tables.conditions(summarise(made(tmp_path, head)))
    head["methods"][1]["rule"] = {"type": "depura.rules.Vote", "n_draws": 5}
    assert tables.rule(summarise(made(tmp_path / "b", head))) == "new: one draw, old: vote of 5 draws, at: one draw"


def test_the_curve_has_one_line_per_method(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    assert set(summary.curve) == {"new", "old", "at"}
    (point,) = summary.curve["at"]
    assert (point.accuracy.value, point.images) == (1.0, 4)


def test_the_ranking_is_drawn(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    assert summary.ranking is not None
    drawn = figures.ranking_svg(summary.ranking)
    assert drawn is not None
    assert all(label in drawn for label in ("new", "at (baseline)", "strongest attack for each image"))
    assert drawn in page.html(summary)


def test_a_single_method_is_not_compared(tmp_path: Path) -> None:
    head = header()
    head["methods"], head["rows"] = head["methods"][:1], head["rows"][:4]
    summary = summarise(made(tmp_path, head))
    assert summary.headline.startswith("new: robust accuracy at most 45.8 %")
    assert summary.ranking is not None
    assert summary.ranking.comparisons == 0
