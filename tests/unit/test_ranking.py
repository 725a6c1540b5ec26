"""Methods compared, from records made by hand: 12 images, 4 report draws, two purifications and a bare baseline."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.records import DEFENCE, ByHand, Errors, edited, method

from depura.analysis.ranking import Ranking
from depura.analysis.summary import Summary, summarise
from depura.analysis.verdicts import Flag, HeadlineStatus, Status, Verdict
from depura.analysis.words import count
from depura.records.directory import RunDirectory, Unit
from depura.records.schema import Curve, Header
from depura.reports import figures, markdown, page, prose, tables
from depura.reports.table import Table, terminal
from depura.statistics.intervals import mean_with_interval

N, K = 12, 4
BY_HAND = ByHand(np.arange(N) % 10, draws=K, wrong=10)
METHODS = (
    method("new", note="a toy"),
    method("old"),
    method("at", baseline=True, defence={**DEFENCE, "purifier": None}),
)
ROWS = (
    ("new-undefended", "undefended", ""),
    ("new-transfer", "transfer", "new"),
    ("new-adaptive", "adaptive", "new"),
    ("new-relaxed", "relaxed", "new"),
    ("old-transfer", "transfer", "old"),
    ("old-adaptive", "adaptive", "old"),
    ("at-adaptive", "adaptive", "at"),
    ("new-reference", "reference", "new"),
    ("old-reference", "reference", "old"),
    ("at-reference", "reference", "at"),
)
FAR = np.full(N, 0.2)
"""Distances outside the ball."""


def header(rows: Sequence[tuple[str, str, str]] = ROWS, **changed: Any) -> Header:
    made = [BY_HAND.row(name, kind, method=method, title=kind) for name, kind, method in rows]
    curve = Curve(images=4, rows=tuple(name for name, kind, _ in rows if kind != "reference"))
    return BY_HAND.header(made, **{"methods": METHODS, "curve": curve, **changed})


def attacked(row: str, errors: Errors, select: Errors, *, zero: float = 0.0, **arrays: Any) -> Unit:
    return BY_HAND.attacked(row, errors, select, zero_gradients=np.full(N, zero), **arrays)


RIGHT_ON_FOUR = [0] * 4 + [4] * 8


def made(tmp_path: Path, head: Header | None = None, **changed: Unit) -> RunDirectory:
    units = {
        "null-bare": BY_HAND.null("null-bare"),
        "null-new": BY_HAND.null("null-new", [1] + [0] * 11, evaluations=20 * N * K),
        "null-old": BY_HAND.null("null-old", evaluations=7 * N * K // 2),
        "null-at": BY_HAND.null("null-at", [4] + [0] * 11),
        "new-undefended": attacked("new-undefended", 4, 2),
        "new-transfer": attacked("new-transfer", [0] * 11 + [4], [0] * 11 + [2]),
        "new-adaptive": attacked("new-adaptive", 1, 1, zero=0.9),
        "new-relaxed": attacked("new-relaxed", [2] * 11 + [0], [2] * 11 + [1]),
        "old-transfer": attacked("old-transfer", 0, 0),
        "old-adaptive": attacked("old-adaptive", 3, 2),
        "at-adaptive": attacked("at-adaptive", RIGHT_ON_FOUR, 1),
        **{f"{name}-reference": attacked(f"{name}-reference", 0, 2) for name in ("new", "old", "at")},
        **{name.replace("_", "-"): unit for name, unit in changed.items()},
    }
    head = header() if head is None else head
    return BY_HAND.run(tmp_path / "run", head, [units[entry.row] for entry in head.units])


def ranked(tmp_path: Path, head: Header | None = None, **changed: Unit) -> Ranking:
    ranking = summarise(made(tmp_path, head, **changed)).ranking
    assert ranking is not None
    return ranking


def verdict(summary: Summary, id: str, method: str) -> Verdict:
    """What a check says of a method."""
    (found,) = (v for v in summary.verdicts if (v.id, v.method) == (id, method))
    return found


def ranking_of(summary: Summary) -> Table:
    assert summary.ranking is not None
    return tables.ranking_table(summary, summary.ranking)


def printed(summary: Summary, width: int = 100) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    console.print(terminal(ranking_of(summary), tight=True))
    console.print(terminal(tables.attack_table(summary)))
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
    ranking = ranked(tmp_path)
    assert [(s.rank, s.method) for s in ranking.entries] == [(1, "new"), (2, "at"), (3, "old")]
    assert ranking.apart == ()
    assert ranking.all == ranking.entries
    new, at, old = ranking.entries
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
    assert {s.conclusion.status for s in ranking.entries} == {HeadlineStatus.GIVEN}


def test_rows_of_one_kind_are_taken_together(tmp_path: Path) -> None:
    best = ranked(tmp_path, edited(header(), "rows", 3, "kind", to="adaptive")).best
    assert best is not None
    assert best.kinds["adaptive"].value == pytest.approx((11 * 0.5 + 0.75) / 12)
    assert "relaxed" not in best.kinds


def test_the_price_is_counted_on_clean_images_alone(tmp_path: Path) -> None:
    entries = ranked(tmp_path).entries
    assert {s.method: s.nfe for s in entries} == {"new": 20, "old": 3.5, "at": 0}
    assert {s.method: count(s.nfe) for s in entries} == {"new": "20", "old": "3.5", "at": "0"}


def test_p_values_are_of_paired_tests_and_corrected_for_all_of_them(tmp_path: Path) -> None:
    ranking = ranked(tmp_path)
    assert ranking.comparisons == 3
    new, at, old = ranking.entries
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


CONDITIONS = "12 images, linf ball of radius 0.1, the strongest attack on each method"


def test_a_baseline_that_is_not_detectably_worse_is_told(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    assert summary.headline.startswith("new is the first of 3 methods: robust accuracy at most 45.8 % (95 % CI ")
    assert summary.headline.endswith(
        f"null 97.9 %; but the baseline at alone, at most 33.3 %, is not detectably worse; {CONDITIONS}"
    )
    assert "The baseline at alone is not detectably worse than any purification here." in summary.warnings
    assert "No detectable difference from the first, new: at." in summary.warnings


def test_a_baseline_that_is_best_takes_the_headline(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path, at_adaptive=attacked("at-adaptive", 0, 0)))
    assert summary.headline.startswith(
        "no purification here is better than the baseline at alone: robust accuracy at most 100.0 %"
    )
    assert summary.headline.endswith(f"the best purification, new, at most 45.8 % (detectably worse); {CONDITIONS}")
    assert "The baseline at alone is not detectably worse than any purification here." in summary.warnings
    assert "Detectably worse than the baseline at alone: new, old." in summary.warnings
    assert summary.ranking is not None
    assert summary.ranking.comparisons == 2
    text = ranking_of(summary).rows
    assert [len(cells) for cells in text] == [len(ranking_of(summary).headings)] * 3
    assert not any("(baseline)" in heading for heading in ranking_of(summary).headings)


def test_a_baseline_that_is_beaten_is_only_named(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path, at_adaptive=attacked("at-adaptive", 4, 2)))
    assert summary.headline.endswith(f"null 97.9 %; the strongest baseline, at, at most 0.0 %; {CONDITIONS}")
    assert not any("baseline" in w for w in summary.warnings)


def test_some_methods_may_beat_the_baseline_and_others_not(tmp_path: Path) -> None:
    weak = attacked("old-adaptive", 4, 2)
    summary = summarise(made(tmp_path, at_adaptive=attacked("at-adaptive", 4, 2), old_adaptive=weak))
    assert "Not detectably better than the baseline at alone: old." in summary.warnings


def test_without_baselines_there_is_nothing_to_beat(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path, edited(header(), "methods", 2, "baseline", to=False)))
    assert "baseline" not in summary.headline + " ".join(summary.warnings)
    assert summary.ranking is not None
    assert summary.ranking.comparisons == 2
    assert ranking_of(summary).headings[-1] == "minus new (first)"


def test_a_masked_row_is_not_taken_for_robustness(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    said = verdict(summary, "V12", "new")
    assert said.status is Status.WARN
    assert "exactly zero: new-adaptive 90.0 %" in said.sentence
    assert said.sentence.endswith("What these rows leave is no robustness; the row to read is new-relaxed.")
    assert [verdict(summary, "V12", name).status for name in ("old", "at")] == [Status.PASS, Status.PASS]
    assert Flag.MASKED in summary.flags_of("new")
    assert Flag.MASKED not in summary.flags_of("old") + summary.flags_of("at")
    assert summary.ranking is not None
    assert "75.0†" in ranking_of(summary).rows[0]
    for text in (markdown.markdown(summary), page.html(summary), printed(summary)):
        assert "75.0†" in text
        assert "no measure of robustness" in " ".join(text.split())


def test_a_relaxed_row_stands_in_for_a_masked_one(tmp_path: Path) -> None:
    """The transferred examples beat the exact gradient, but not the relaxed one."""
    weak = attacked("new-adaptive", 0, 0, zero=1.0)
    strong = attacked("new-transfer", 2, 1)
    summary = summarise(made(tmp_path, new_adaptive=weak, new_transfer=strong))
    assert verdict(summary, "V7", "new").status is Status.PASS
    assert summary.ranking is not None
    assert summary.ranking.apart == ()


def test_an_adaptive_attack_weaker_than_transfer_is_told_by_method(tmp_path: Path) -> None:
    """Its method is not ranked, and the others are; the p-value is of the one comparison that is left."""
    weak = attacked("old-adaptive", 0, 0)
    strong = attacked("old-transfer", 4, 2)
    summary = summarise(made(tmp_path, old_adaptive=weak, old_transfer=strong))
    assert [v.method for v in summary.verdicts if v.id == "V7" and v.status is Status.WARN] == ["old"]
    assert "weaker than old-transfer" in verdict(summary, "V7", "old").sentence
    assert summary.flags_of("old") == (Flag.WEAK,)
    ranking = summary.ranking
    assert ranking is not None
    assert [(s.rank, s.method) for s in ranking.all] == [(1, "new"), (2, "at"), (0, "old")]
    (old,) = ranking.apart
    assert old.conclusion.status is HeadlineStatus.WITHHELD
    assert old.strongest.single.value == 0
    assert (old.to_best, old.to_baseline) == (None, None)
    assert ranking.comparisons == 1
    at = ranking.entries[1]
    assert at.to_best is not None
    assert at.to_best.p == pytest.approx(swaps([a - b for a, b in zip(AT, NEW, strict=True)]))
    assert not any("old" in warning for warning in summary.warnings)


def test_a_method_whose_checks_fail_stands_apart_with_its_reason(tmp_path: Path) -> None:
    """The best of all leaves the ball with its examples: the next is the first, and nothing is compared with it."""
    far = attacked("new-adaptive", 1, 1, farthest=FAR)
    summary = summarise(made(tmp_path, new_adaptive=far))
    ranking = summary.ranking
    assert ranking is not None
    assert [(s.rank, s.method) for s in ranking.all] == [(1, "at"), (2, "old"), (0, "new")]
    assert ranking.comparisons == 1
    assert ranking.best is not None
    assert ranking.best.method == "at"
    assert not summary.refused
    assert summary.headline.startswith("no purification here is better than the baseline at alone: robust accuracy at ")
    assert summary.headline.endswith(f"; 1 more without a rank, as checks do not pass; {CONDITIONS}")
    cells = ranking_of(summary).rows
    heads = ranking_of(summary).headings
    assert [line[0] for line in cells] == ["1", "2", "apart"]
    assert [len(line) for line in cells] == [len(heads)] * 3
    assert "minus at (first)" in heads
    assert cells[2][-1] == "–"
    notes = ranking_of(summary).remarks
    assert notes[0] == "* new: a toy"
    assert notes[1].startswith("Apart: new. No headline: V15 (constraint): Examples leave the ball: new-adaptive 0.2 ")
    for text in (markdown.markdown(summary).replace("\\*", "*"), page.html(summary), printed(summary)):
        assert notes[1] in " ".join(text.split())
        assert "apart: its checks do not pass" in " ".join(text.split())
    drawn = figures.ranking_svg(ranking)
    assert drawn is not None
    assert "new (apart)" in drawn


def test_a_baseline_that_stands_apart_is_none_to_beat(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path, at_adaptive=attacked("at-adaptive", RIGHT_ON_FOUR, 1, farthest=FAR)))
    assert summary.ranking is not None
    assert summary.ranking.baseline is None
    assert summary.ranking.comparisons == 1
    assert summary.headline.startswith("new is the first of 2 methods: robust accuracy at most 45.8 %")
    assert "baseline" not in summary.headline + " ".join(summary.warnings)
    assert not any("(baseline)" in heading for heading in ranking_of(summary).headings)


def test_where_all_stand_apart_there_is_no_headline(tmp_path: Path) -> None:
    far = {
        "new_adaptive": attacked("new-adaptive", 1, 1, farthest=FAR),
        "old_adaptive": attacked("old-adaptive", 3, 2, farthest=FAR),
        "at_adaptive": attacked("at-adaptive", RIGHT_ON_FOUR, 1, farthest=FAR),
    }
    summary = summarise(made(tmp_path, **far))
    reasons = "new: V15 (constraint); at: V15 (constraint); old: V15 (constraint)"
    assert summary.headline == f"No headline: none of 3 methods passed its checks ({reasons})"
    assert summary.refused
    assert summary.warnings == ()
    assert summary.ranking is not None
    assert summary.ranking.entries == ()
    assert [s.method for s in summary.ranking.apart] == ["new", "at", "old"]
    assert not any("(first)" in heading for heading in ranking_of(summary).headings)
    for text in (markdown.markdown(summary), page.html(summary), printed(summary)):
        assert "apart" in text


def test_methods_whose_attack_nothing_tries_are_ranked_and_marked(tmp_path: Path) -> None:
    """Without a reference attack nothing tries the attack on "new", which is the first; then that on "at"."""
    summary = summarise(made(tmp_path, header([row for row in ROWS if row[0] != "new-reference"])))
    assert summary.ranking is not None
    assert [s.unchecked for s in summary.ranking.all] == [True, False, False]
    assert summary.headline.startswith(
        "Unchecked: new is the first of 3 methods, but nothing says whether the attack on it is strong"
    )
    assert summary.refused
    assert [line[0] for line in ranking_of(summary).rows] == ["1?", "2", "3"]
    unsure = "Unchecked, as nothing says whether their attacks are strong: new."
    assert unsure in summary.warnings
    assert "?: unchecked, as nothing says whether its attack is strong." in ranking_of(summary).paragraphs[0]
    other = summarise(made(tmp_path / "b", header(ROWS[:-1])))
    assert other.ranking is not None
    assert [line[0] for line in ranking_of(other).rows] == ["1", "2?", "3"]
    assert not other.refused
    assert other.headline.startswith("new is the first of 3 methods")
    none = summarise(made(tmp_path / "c", header(ROWS[:7])))
    assert none.refused
    assert not any("Unchecked" in warning for warning in none.warnings)  # the headline says so of all


def test_methods_are_compared_on_the_images_that_both_were_attacked_on(tmp_path: Path) -> None:
    """The baseline is attacked on the first 8 images alone; the p-value is that of these."""
    few = BY_HAND.attacked("at-adaptive", RIGHT_ON_FOUR[:8], 1 + np.zeros(8, dtype=int))
    rows = [
        BY_HAND.row(name, kind, method=method, images=8 if name == "at-adaptive" else N) for name, kind, method in ROWS
    ]
    ranking = ranked(tmp_path, BY_HAND.header(rows, methods=METHODS), at_adaptive=few)
    assert [(s.rank, s.method) for s in ranking.entries] == [(1, "at"), (2, "new"), (3, "old")]
    new, old = ranking.entries[1:]
    plain = [swaps([a - b for a, b in zip(other, AT[:8], strict=True)]) for other in (NEW[:8], OLD[:8])]
    assert new.to_best is not None
    assert old.to_best is not None
    assert new.to_best.value == pytest.approx(0.5 - 0.5)
    assert old.to_best.value == pytest.approx(0.25 - 0.5)
    # Holm: the smaller p of two twice, the larger once, and no smaller than that.
    low, high = sorted(plain)
    corrected = [min(1, 2 * low), max(high, min(1, 2 * low))]
    assert sorted([new.to_best.p, old.to_best.p]) == pytest.approx(corrected)


def test_all_texts_hold_the_ranking(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path))
    assert summary.ranking is not None
    ranks = ranking_of(summary).rows
    assert ranks[0][:7] == ("1", "new*", "20", "97.9", "91.7", "75.0†", "54.2")
    assert ranks[0][7].startswith("45.8 % (")
    assert ranks[0][8:10] == ("0.0", "–")
    heads = ranking_of(summary).headings
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
    for name, *_ in tables.attack_table(summary).rows:
        assert name in text
        assert name in web
    assert page.html(summarise(made(tmp_path / "again"))) == web


def test_rows_are_grouped_by_method_with_the_strongest_last(tmp_path: Path) -> None:
    names = [name for name, *_ in tables.attack_table(summarise(made(tmp_path, header(ROWS[::-1])))).rows]
    assert names == [
        "new-undefended", "new-relaxed", "new-adaptive", "new-transfer", "new-strongest", "at-adaptive",
        "old-adaptive", "old-transfer", "old-strongest",
    ]  # fmt: skip
    table = tables.attack_table(summarise(made(tmp_path / "b")))
    strongest = dict(zip(table.headings, next(row for row in table.rows if row[0] == "new-strongest"), strict=True))
    assert strongest["one draw (95 % CI)"].startswith("45.8 %")
    assert strongest["null"].startswith("97.9 %")


def test_approximate_adaptive_rows_are_not_called_exact(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path, edited(header(), "rows", 5, "mode", to="adjoint")))
    assert summary.ranking is not None
    assert "adaptive" in ranking_of(summary).headings
    assert "exact" not in ranking_of(summary).headings


def test_the_terminal_table_keeps_to_its_width(tmp_path: Path) -> None:
    said = printed(summarise(made(tmp_path)))
    assert max(len(line) for line in said.splitlines()) <= 100
    assert "…" not in said + printed(summarise(made(tmp_path / "b")), width=80)
    (first,) = (line for line in said.splitlines() if line.strip().startswith("1 new*"))
    assert first.split()[:7] == ["1", "new*", "20", "97.9", "91.7", "75.0†", "54.2"]
    assert "≈ -12.5, " in said


def test_rules_are_named_by_method_where_they_differ(tmp_path: Path) -> None:
    head = header()
    assert "Deployed rule: one draw. Linf ball" in prose.conditions(summarise(made(tmp_path, head)))
    head = edited(head, "methods", 1, "rule", to={"type": "depura.Vote", "n_draws": 5})
    assert (
        prose.deployed_rules(summarise(made(tmp_path / "b", head)))
        == "new: one draw, old: vote of 5 draws, at: one draw"
    )


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
    head = header([row for row in ROWS if row[0].startswith("new-")], methods=METHODS[:1])
    summary = summarise(made(tmp_path, head))
    assert summary.headline.startswith("new: robust accuracy at most 45.8 %")
    assert summary.ranking is not None
    assert summary.ranking.comparisons == 0
