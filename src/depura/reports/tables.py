"""The table of a report, for the terminal (rich) and formatted for the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from depura.analysis.results import Metrics, n_draws, percent
from depura.analysis.summary import Examples, GradientFacts, Line, Summary
from depura.analysis.words import MODES, changes, rule
from depura.records.schema import Judged
from depura.reports import standings
from depura.statistics.intervals import Estimate

ALL = "all"
"""Stands for the gradients of several attacks together."""

BALLS = "l_p ball; spatial and perceptual changes are not covered"
FLOWS = "spatial: pixels move by a bounded flow; changes of their values are not covered"

GRADIENT_HEADINGS = (
    "row",
    "gradient",
    "zero",
    "zero entries",
    "not finite",
    "halves agree",
    "largest norm",
    "BPDA",
    "surrogate",
)
GRADIENT_NOTE = (
    "zero, not finite: share of draws over steps and images. zero entries: of the mean gradients. halves agree: "
    "cosine of the mean gradients of two halves of the draws, median over images, at the first, middle and last step. "
    "largest norm: over the median of its image. BPDA, surrogate (a walk of a fifth of the steps): cosine to the exact "
    "gradient on clean images, median; near 1 means that this cheaper gradient would do for this defence."
)

EXAMPLE_HEADINGS = (
    "row",
    "largest change",
    "as made",
    "after 8-bit rounding",
    "finished early",
    "gradients",
    "forwards",
    "denoiser",
    "pulled back",
)
EXAMPLE_NOTE = (
    "largest change: in the norm of the threat model, over all images. as made, after 8-bit rounding: accuracy of one"
    " draw of the examples as they are and as an 8-bit file would keep them, on the same draws (the first of those "
    "reported). finished early: images that the attack was content with before its budget was spent. gradients, "
    "forwards: evaluations of what is attacked with and without a gradient, mean per image. denoiser, pulled back: "
    "all evaluations of the denoiser, forward and backward, of the attack and the scores of the row together; those "
    "made again on the way back for want of memory are not in them."
)


class Cells(NamedTuple):
    """One printed line: name, explanation and formatted numbers."""

    name: str
    title: str
    mode: str
    single: str
    null: str
    random: str
    any: str
    vote: str
    images: str
    nfe: str


def headings(summary: Summary) -> Cells:
    """Column headings."""
    n_any, n_vote = n_draws(summary.header.draws.report)
    return Cells(
        name="row",
        title="what is attacked and judged",
        mode="gradient",
        single="one draw (95 % CI)",
        null="null",
        random="random corner",
        any=f"any of {n_any}",
        vote=f"vote of {n_vote}",
        images="images",
        nfe="NFE per image",
    )


def columns(summary: Summary) -> tuple[str, ...]:
    """Names of the columns that the page shows; how many images is left out where all rows have as many."""
    several = len({line.images for line in summary.lines}) > 1
    return tuple(name for name in Cells._fields if name != "images" or several)


def rows(summary: Summary, *, compact: bool = False) -> tuple[Cells, ...]:
    """The lines of the table, the strongest attack per image last; where methods are compared, grouped by method,
    the best first.

    Args:
        summary: of a complete run.
        compact: leave out all intervals but that of one draw, for narrow places.

    Returns:
        Formatted cells; any-of-N and vote are followed by their own null in brackets.
    """
    return tuple(cells for _, group in _groups(summary, compact=compact) for cells in group)


def _groups(summary: Summary, *, compact: bool) -> list[tuple[str, list[Cells]]]:
    """The lines of each method, under its name; those of no method, which are all in other studies, come first."""
    show = _value if compact else percent
    together = {"": summary.strongest}
    title = "purified; the strongest of these attacks for each image"
    if summary.ranking is not None:
        together = {entry.method: entry.strongest for entry in summary.ranking.all}
        title = "the strongest of a method's attacks for each image"
    judged = {row.name for row in summary.header.rows if row.judged is Judged.DEFENCE}
    groups: list[tuple[str, list[Cells]]] = []
    for method in sorted({line.method for line in summary.lines}, key=["", *together].index):
        lines = [line for line in summary.lines if line.method == method]
        cells = [_cells(line, line.name, line.title, line.mode, line.metrics, show) for line in lines]
        own = [line for line in lines if line.name in judged]
        metrics, first = together.get(method), max(own, key=lambda line: line.images, default=None)
        if metrics is not None and first is not None and not (method and len(lines) == 1):
            cells.append(_cells(first, f"{method}-strongest".strip("-"), title, ALL, metrics, show))
        groups.append((method, cells))
    return groups


def _cells(line: Line, name: str, title: str, mode: str, metrics: Metrics, show: Callable[[Estimate], str]) -> Cells:
    return Cells(
        name=name,
        title=title,
        mode=str(mode),
        single=percent(metrics.single),
        null=show(line.null.single),
        random=show(line.random.single),
        any=f"{show(metrics.any)} [{_value(line.null.any)}]",
        vote=f"{show(metrics.vote)} [{_value(line.null.vote)}]",
        images=f"{line.images}",
        nfe="" if mode == ALL else f"{sum(line.evaluations) / line.images:,.0f}",
    )


def _value(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}"


def terminal(summary: Summary) -> Group:
    """The table for a terminal of 80 columns (100 where methods are compared), with what the rows mean below it."""
    compared = summary.ranking is not None
    overflow = "fold" if compared else "ellipsis"
    kinds = {line.name: str(line.kind) or line.name for line in summary.lines}
    left_out = ("title", "random", "nfe", *(("vote",) if "images" in columns(summary) else ()))
    shown = [name for name in columns(summary) if name not in left_out]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        table.add_column(getattr(headings(summary), name), no_wrap=not compared, overflow=overflow)
    legend = Table.grid(padding=(0, 2))
    meanings: list[tuple[str, str]] = []
    for _, group in _groups(summary, compact=True):
        for cells in group:
            texts = [Text(getattr(cells, name)) for name in shown]
            table.add_row(*texts, style="bold" if cells.mode == ALL else "")
            meanings.append((kinds.get(cells.name, "strongest") if compared else cells.name, cells.title))
        table.add_section()
    for name, title in dict.fromkeys(meanings):
        legend.add_row(Text(name, style="dim"), Text(title, style="dim"))
    note = Text(f"Accuracy in %; in brackets without attack. {modes(summary)}", style="dim")
    above = () if summary.ranking is None else (standings.terminal(summary, summary.ranking),)
    return Group(*above, table, legend, note)


def modes(summary: Summary) -> str:
    """What the gradients in the table mean, a sentence; approximate ones are called so."""
    used = [mode for mode in MODES if any(line.mode is mode for line in summary.lines)]
    return "Gradients: " + ", ".join(f"{mode}: {MODES[mode]}" for mode in used) + "."


def gradient_rows(summary: Summary) -> tuple[tuple[str, ...], ...]:
    """One line of `GRADIENT_HEADINGS` per row."""
    return tuple(_gradient_cells(line, line.gradients) for line in summary.lines if line.gradients is not None)


def example_rows(summary: Summary) -> tuple[tuple[str, ...], ...]:
    """One line of `EXAMPLE_HEADINGS` per row."""
    return tuple(_example_cells(line, line.examples) for line in summary.lines)


def _example_cells(line: Line, made: Examples) -> tuple[str, ...]:
    return (
        line.name,
        f"{made.largest:.4g}",
        percent(made.exact),
        percent(made.rounded),
        f"{made.finished}",
        f"{made.gradients:,.0f}",
        f"{made.forwards:,.0f}",
        f"{line.evaluations[0]:,}",
        f"{line.evaluations[1]:,}",
    )


def _gradient_cells(line: Line, facts: GradientFacts) -> tuple[str, ...]:
    return (
        line.name,
        str(line.mode),
        f"{100 * facts.zero:.2f} %",
        f"{100 * facts.zero_pixels:.2f} %",
        f"{100 * facts.bad:.2f} %",
        " / ".join(_number(value) for value in facts.agreement),
        _number(facts.spread),
        _number(facts.bpda),
        _number(facts.surrogate),
    )


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def conditions(summary: Summary) -> str:
    """Under which conditions the headline holds, a sentence."""
    header = summary.header
    attacks = sum(row.attacks_defence for row in header.rows)
    hardest = f"the strongest of {attacks} attacks" if not header.compares else "the strongest attack on each method"
    return (
        f"Deployed rule: {rules(summary)}. {_capital(changes(header.threat_model))}, {len(header.data.ids)} images of "
        f"{header.data.name}; {hardest} for each image, chosen on {header.draws.select} draws and reported on "
        f"{header.draws.report} others. An upper bound: a better attack may exist."
    )


def rules(summary: Summary) -> str:
    """The deployed rule in words; of each method, where methods differ in it."""
    told = {method.name: rule(method.rule) for method in summary.header.methods}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return ", ".join(f"{name}: {text}" for name, text in told.items())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def versions(summary: Summary) -> tuple[tuple[str, str], ...]:
    """What the numbers were made with."""
    header = summary.header
    found = sorted(header.versions.items())
    return (*found, ("device", ", ".join(summary.devices)), ("seed", str(header.seed)))


def threat_model(summary: Summary) -> tuple[tuple[str, str], ...]:
    """The threat-model block: what the attacker may do and knows."""
    threat = summary.header.threat_model
    return (
        ("norm and radius", f"{threat.norm}, eps = {threat.eps:g}, images stay in [0, 1]"),
        ("goal", "targeted" if threat.targeted else "any wrong class"),
        ("the attacker knows", threat.knows),
        ("deployed rule", rules(summary)),
        ("input quantised to 8 bits", "yes" if threat.quantised else "no"),
        ("queries", threat.queries),
        ("resubmissions of an image", threat.resubmissions),
        ("stateful detection", "yes" if threat.stateful_detection else "no"),
        ("time per image", threat.time_per_image),
        ("class of threat", FLOWS if threat.family == "spatial" else BALLS),
    )
