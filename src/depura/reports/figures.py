"""Figures of a report, drawn from a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from depura.evaluation.statistics import Estimate
from depura.judging.details import Budget, ErrorRates, Trace
from depura.judging.ranking import Ranking
from depura.judging.summary import Summary
from depura.reports import charts

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
