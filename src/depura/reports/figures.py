"""Figures of a report, drawn from a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from depura.analysis.details import Budget, ErrorRates, Trace
from depura.analysis.ranking import Ranking
from depura.analysis.results import percent
from depura.analysis.summary import Line, Summary
from depura.records.kinds import AttackKind
from depura.records.schema import Judged
from depura.reports import charts
from depura.statistics.intervals import Estimate

ORDER = (
    AttackKind.RANDOM,
    AttackKind.TRANSFER,
    AttackKind.ONE_STEP,
    AttackKind.BPDA,
    AttackKind.BLACK_BOX,
    AttackKind.SURROGATE,
    AttackKind.ADAPTIVE,
    AttackKind.RELAXED,
    AttackKind.TARGETED,
    AttackKind.SELECTIVE,
    AttackKind.OTHER,
)
"""Kinds of rows from blind to well informed; others are no rungs."""

HEADINGS = ("rung", "images", "accuracy of one draw (95 % CI)")
ALT = (
    "Accuracy of one draw with its interval, one line per attack, from blind to exact, beside a band for the accuracy "
    "without attack; the numbers are in the table of attacks"
)


class Rung(NamedTuple):
    """One step of the ladder.

    Attributes:
        name: of the attack.
        images: on how many it was run.
        accuracy: of one draw.
    """

    name: str
    images: int
    accuracy: Estimate


def rungs(summary: Summary) -> tuple[Rung, ...]:
    """The ladder of a study of one defence.

    Args:
        summary: of a run.

    Returns:
        Null, random corner, then the attacks on the defence from blind to exact, the strongest for each image last;
        nothing where methods are compared or nothing judges the defence.
    """
    lines = _lines(summary)
    if summary.strongest is None or not lines:
        return ()
    widest = max(lines, key=lambda line: line.images)
    first = (
        Rung("null", widest.images, widest.null.single),
        Rung("random corner", widest.images, widest.random.single),
    )
    ordered = sorted(lines, key=lambda line: ORDER.index(line.kind))
    last = Rung("strongest", widest.images, summary.strongest.single)
    return (*first, *(Rung(line.name, line.images, line.metrics.single) for line in ordered), last)


def _lines(summary: Summary) -> list[Line]:
    judged = {row.name for row in summary.header.rows if row.judged is Judged.DEFENCE}
    return [line for line in summary.lines if line.name in judged and line.kind in ORDER]


def rows(summary: Summary) -> tuple[tuple[str, ...], ...]:
    """The ladder as lines of `HEADINGS`."""
    return tuple((rung.name, f"{rung.images}", percent(rung.accuracy)) for rung in rungs(summary))


def svg(summary: Summary) -> str | None:
    """The ladder as a figure; None where there is none, or no matplotlib."""
    found = rungs(summary)
    if not found:
        return None
    null, steps = found[0].accuracy, found[1:]

    def draw(axes: Any) -> None:
        axes.axvspan(100 * null.low, 100 * null.high, color=charts.COLOURS["green"], alpha=0.18, linewidth=0)
        axes.axvline(100 * null.value, color=charts.COLOURS["green"], linestyle=":", linewidth=1.2)
        middle, spread = charts.spread([rung.accuracy for rung in steps])
        for k, rung in enumerate(steps):
            colour = charts.COLOURS["red" if rung.name == "strongest" else "blue"]
            axes.errorbar(middle[k], k, xerr=spread[:, k : k + 1], marker="o", markersize=5, capsize=3, color=colour)
            axes.annotate(
                f"{middle[k]:.1f}", (middle[k], k), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
            )
        axes.set_yticks(range(len(steps)), [_label(rung, found[0].images) for rung in steps])
        axes.set_ylim(len(steps) - 0.5, -0.7)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("accuracy of one draw, %; band: without attack")
        axes.grid(axis="x", alpha=0.2)

    return charts.svg("ladder", draw, height=0.8 + 0.34 * len(steps))


def _label(rung: Rung, images: int) -> str:
    return rung.name if rung.images == images else f"{rung.name} ({rung.images})"


NAMED = {"undefended": "grey", "transfer": "orange", "adaptive": "red", "bpda": "blue"}
"""Colours of rows that most studies have; others take the cycle's."""

WIDE = 20
"""Radii that span more than this factor are drawn on a logarithmic axis."""


def curve_svg(summary: Summary) -> str | None:
    """Accuracy of one draw against eps, with intervals, and the null baseline.

    Args:
        summary: of a complete run.

    Returns:
        An <svg> element, equal text for equal summaries; None where matplotlib (the extra "report") is not installed.
    """
    radii = sorted({p.eps for name, points in summary.curve.items() if name != "null" for p in points if p.eps > 0})
    logarithmic = bool(radii) and radii[-1] > WIDE * radii[0]

    def draw(axes: Any) -> None:
        for name, points in summary.curve.items():
            if name != "null":
                middle, spread = charts.spread([p.accuracy for p in points])
                colour = charts.COLOURS.get(NAMED.get(name, ""))
                eps = [p.eps for p in points]
                axes.errorbar(eps, middle, yerr=spread, marker="o", markersize=4, capsize=3, color=colour, label=name)
        for point in summary.curve.get("null", ()):
            axes.axhline(100 * point.accuracy.value, color=charts.COLOURS["green"], linestyle=":", label="no attack")
        _accuracy_axis(axes, "y")
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xticks(radii, [f"{eps:.3g}" for eps in radii], fontsize=7)
            axes.set_xticks([], minor=True)
        else:
            axes.set_xlim(left=0)
        axes.set_xlabel(f"eps ({summary.header.threat_model.norm})")
        axes.figure.legend(loc="outside upper left", ncols=3, fontsize=8)

    return charts.svg("curve", draw, height=3.1 + 0.16 * ((len(summary.curve) - 1) // 3))


def ranking_svg(ranking: Ranking) -> str | None:
    """Accuracy of each method without an attack and under the strongest one for each image, with intervals.

    Args:
        ranking: of the methods.

    Returns:
        As `curve_svg`.
    """
    entries = ranking.all

    def draw(axes: Any) -> None:
        _dots(axes, [s.clean for s in entries], -0.14, "green", "no attack")
        _dots(axes, [s.strongest.single for s in entries], 0.14, "red", "strongest attack for each image")
        names = [f"{s.method}{' (baseline)' if s.baseline else ''}{'' if s.rank else ' (apart)'}" for s in entries]
        axes.set_yticks(range(len(entries)), names)
        axes.invert_yaxis()
        _accuracy_axis(axes, "x")
        axes.figure.legend(loc="outside upper left", ncols=2, fontsize=8)

    return charts.svg("ranking", draw, height=1.0 + 0.34 * len(entries))


def errors_svg(rates: ErrorRates) -> str | None:
    """How many images have which error rate, without an attack and under the strongest one.

    Args:
        rates: of the images.

    Returns:
        As `curve_svg`.
    """
    edges = np.linspace(0, 1, 11)

    def draw(axes: Any) -> None:
        for values, colour, label, shift in (
            (rates.clean, "green", "no attack", -0.022),
            (rates.attacked, "red", "strongest attack for each image", 0.022),
        ):
            counts, _ = np.histogram(values, edges)
            axes.bar(edges[:-1] + 0.05 + shift, counts, width=0.042, color=charts.COLOURS[colour], label=label)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("share of wrong draws of an image")
        axes.set_ylabel("images")
        axes.figure.legend(loc="outside upper left", ncols=2, fontsize=8)

    return charts.svg("errors", draw, height=2.5)


def budgets_svg(budgets: Sequence[Budget]) -> str | None:
    """Accuracy under an attack and under the same attack with more of something, on the same images.

    Args:
        budgets: what was tried.

    Returns:
        As `curve_svg`; None where nothing was tried.
    """
    if not budgets:
        return None

    def draw(axes: Any) -> None:
        _dots(axes, [b.before for b in budgets], -0.14, "blue", "less")
        _dots(axes, [b.after for b in budgets], 0.14, "red", "more")
        axes.set_yticks(range(len(budgets)), [f"{b.what}\n{b.less:g} → {b.more:g}" for b in budgets])
        axes.set_ylim(len(budgets) - 0.5, -0.5)
        _accuracy_axis(axes, "x")
        axes.figure.legend(loc="outside upper left", ncols=2, fontsize=8)

    return charts.svg("budgets", draw, height=1.0 + 0.5 * len(budgets))


def trace_svg(trace: Trace, number: int) -> str | None:
    """An attack's mean loss against its step, small.

    Args:
        trace: of the row.
        number: of the row, to tell its figure from others.

    Returns:
        As `curve_svg`.
    """

    def draw(axes: Any) -> None:
        axes.plot(trace.steps, trace.loss, color=charts.COLOURS["blue"], linewidth=1.4)
        axes.set_title(trace.row, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel("loss", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)

    return charts.svg(f"loss{number}", draw, height=1.5, width=2.2)


def _dots(axes: Any, estimates: Sequence[Estimate], offset: float, colour: str, label: str) -> None:
    """A column of accuracies with intervals, one per height."""
    middle, spread = charts.spread(estimates)
    axes.errorbar(
        middle,
        [height + offset for height in range(len(estimates))],
        xerr=spread,
        linestyle="",
        marker="o",
        markersize=4,
        capsize=3,
        color=charts.COLOURS[colour],
        label=label,
    )


def _accuracy_axis(axes: Any, which: str) -> None:
    axes.set(**{f"{which}lim": (-3, 103), f"{which}label": "accuracy of one draw, %"})
    axes.grid(axis=which, alpha=0.2)
