"""Figures of a report, drawn from a summary; without matplotlib (the extra "report") there are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from depura.analysis.details import Budget, ErrorRates, Trace
from depura.analysis.ranking import Ranking
from depura.analysis.summary import Summary
from depura.records.kinds import AttackKind
from depura.records.schema import Judged
from depura.reports import charts
from depura.statistics.intervals import Proportion

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
"""Kinds of attack of the suite, from blind to well informed."""


class Figure(NamedTuple):
    """A figure of the page.

    Attributes:
        svg: its <svg> element; equal text for equal summaries.
        alt: what it shows, in words.
        small: whether several stand side by side.
    """

    svg: str
    alt: str
    small: bool = False


def figures(summary: Summary) -> dict[str, tuple[Figure, ...]]:
    """The figures of a complete run by the title of their section; those that cannot be drawn are left out."""
    ranking, details = summary.ranking, summary.details
    each = "row" if ranking is None else "method"
    drawn = (
        (
            "Attack suite",
            suite_svg(summary),
            "Accuracy of one draw with its interval, one line per attack, from blind to exact, on a band for the "
            "accuracy without attack; the numbers are in the table of attacks",
        ),
        (
            "Ranking",
            None if ranking is None else ranking_svg(ranking),
            "Accuracy of each method without an attack and under the strongest attack for each image; the numbers are "
            "in the table",
        ),
        (
            "Errors image by image",
            errors_svg(details.error_rates[0]) if len(details.error_rates) == 1 else None,
            "Histogram of the images' error rates, without an attack and under the strongest; shares in the table",
        ),
        (
            "More budget",
            budgets_svg(details.budgets),
            "Accuracy under an attack and under the same attack with a larger budget; the numbers are in the table",
        ),
        (
            "Accuracy against eps",
            curve_svg(summary) if summary.curve else None,
            f"Accuracy of one draw against the attack radius, one line per {each}; the numbers are in the table",
        ),
    )
    by_title = {title: (Figure(svg, alt),) for title, svg, alt in drawn if svg is not None}
    losses = tuple(
        Figure(svg, f"Mean loss of the attack in row {trace.row}, step by step; numbers in the table", small=True)
        for k, trace in enumerate(details.traces)
        if (svg := trace_svg(trace, k)) is not None
    )
    return {**by_title, "Loss": losses} if losses else by_title


class SuitePoint(NamedTuple):
    """The accuracy under one attack of the suite.

    Attributes:
        name: of the attack.
        images: on how many it was run.
        accuracy: of one draw.
    """

    name: str
    images: int
    accuracy: Proportion


def suite_points(summary: Summary) -> tuple[SuitePoint, ...]:
    """The attack suite of a study of one defence; nothing where methods are compared or nothing judges the defence.

    Null, random corner, then the attacks on the defence from blind to exact, the strongest for each image last.
    """
    on_defence = {row.name for row in summary.header.rows if row.judged is Judged.DEFENCE}
    lines = [line for line in summary.lines if line.name in on_defence and line.kind in ORDER]
    if summary.strongest is None or not lines:
        return ()
    longest = max(lines, key=lambda line: line.images)
    return (
        SuitePoint("null", longest.images, longest.null.single),
        SuitePoint("random corner", longest.images, longest.random.single),
        *(
            SuitePoint(line.name, line.images, line.metrics.single)
            for line in sorted(lines, key=lambda line: ORDER.index(line.kind))
        ),
        SuitePoint("strongest", longest.images, summary.strongest.single),
    )


def suite_svg(summary: Summary) -> str | None:
    """The attack suite, one line per attack; None where there is none, or no matplotlib."""
    points = suite_points(summary)
    if not points:
        return None
    null, attacks = points[0], points[1:]

    def draw(axes: Any) -> None:
        green = charts.COLOURS["green"]
        axes.axvspan(100 * null.accuracy.low, 100 * null.accuracy.high, color=green, alpha=0.18, linewidth=0)
        axes.axvline(100 * null.accuracy.value, color=green, linestyle=":", linewidth=1.2)
        middle, bars = charts.error_bars([point.accuracy for point in attacks])
        for k, point in enumerate(attacks):
            colour = charts.COLOURS["red" if point.name == "strongest" else "blue"]
            axes.errorbar(middle[k], k, xerr=bars[:, k : k + 1], marker="o", markersize=5, capsize=3, color=colour)
            axes.annotate(
                f"{middle[k]:.1f}", (middle[k], k), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
            )
        names = [p.name if p.images == null.images else f"{p.name} ({p.images})" for p in attacks]
        axes.set_yticks(range(len(attacks)), names)
        axes.set_ylim(len(attacks) - 0.5, -0.7)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("accuracy of one draw, %; band: without attack")
        axes.grid(axis="x", alpha=0.2)

    return charts.svg("ladder", draw, height=0.8 + 0.34 * len(attacks))


NAMED = {"undefended": "grey", "transfer": "orange", "adaptive": "red", "bpda": "blue"}
"""Colours of rows that most studies have; others take the cycle's."""

WIDE = 20
"""Radii that span more than this factor are drawn on a logarithmic axis."""


def curve_svg(summary: Summary) -> str | None:
    """Accuracy of one draw against eps, with intervals, and the null baseline."""
    radii = sorted({p.eps for name, points in summary.curve.items() if name != "null" for p in points if p.eps > 0})
    logarithmic = bool(radii) and radii[-1] > WIDE * radii[0]

    def draw(axes: Any) -> None:
        for name, points in summary.curve.items():
            if name != "null":
                middle, bars = charts.error_bars([p.accuracy for p in points])
                colour = charts.COLOURS.get(NAMED.get(name, ""))
                eps = [p.eps for p in points]
                axes.errorbar(eps, middle, yerr=bars, marker="o", markersize=4, capsize=3, color=colour, label=name)
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
    """Accuracy of each method without an attack and under the strongest one for each image, with intervals."""
    entries = ranking.all

    def draw(axes: Any) -> None:
        _dots(axes, [entry.clean for entry in entries], -0.14, "green", "no attack")
        _dots(axes, [entry.strongest.single for entry in entries], 0.14, "red", "strongest attack for each image")
        names = [
            f"{entry.method}{' (baseline)' if entry.baseline else ''}{'' if entry.rank else ' (apart)'}"
            for entry in entries
        ]
        axes.set_yticks(range(len(entries)), names)
        axes.invert_yaxis()
        _accuracy_axis(axes, "x")
        axes.figure.legend(loc="outside upper left", ncols=2, fontsize=8)

    return charts.svg("ranking", draw, height=1.0 + 0.34 * len(entries))


def errors_svg(rates: ErrorRates) -> str | None:
    """How many images have which error rate, without an attack and under the strongest one."""
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
    """Accuracy under an attack and under the same attack with more of something, on the same images."""
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
    """An attack's mean loss against its step, small. The number tells its ids from those of other figures."""

    def draw(axes: Any) -> None:
        axes.plot(trace.steps, trace.loss, color=charts.COLOURS["blue"], linewidth=1.4)
        axes.set_title(trace.row, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel("loss", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)

    return charts.svg(f"loss{number}", draw, height=1.5, width=2.2)


def _dots(axes: Any, estimates: Sequence[Proportion], offset: float, colour: str, label: str) -> None:
    """A column of accuracies with intervals, one per height."""
    middle, bars = charts.error_bars(estimates)
    axes.errorbar(
        middle,
        [height + offset for height in range(len(estimates))],
        xerr=bars,
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
