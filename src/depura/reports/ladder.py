"""The ladder of a defence: its accuracy under ever better informed attacks, from none to the strongest."""

from __future__ import annotations

from typing import Any, NamedTuple

from depura.evaluation.statistics import Estimate
from depura.judging.results import percent
from depura.judging.summary import Line, Summary
from depura.records.kinds import AttackKind
from depura.records.schema import Judged
from depura.reports import charts

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
