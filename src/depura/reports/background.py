"""Tables of what lies behind the numbers: error rates, budgets, losses, checks, audits, prices, and a run under way."""

from __future__ import annotations

import math
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from depura.analysis.details import ErrorRates, Trace
from depura.analysis.results import Metrics, percent
from depura.analysis.summary import Summary
from depura.analysis.verdicts import Status, VerdictGroup, grouped

MOMENTS = 5
"""Steps at which a loss is put into a table."""


class Table(NamedTuple):
    """A table and what is to be said of it.

    Attributes:
        headings: of the columns.
        rows: one text per column.
        note: what the columns mean; may be empty.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def error_rates(summary: Summary) -> Table:
    """How many images are hardly ever, sometimes, and mostly misclassified, and when to expect an error."""
    heads = ("", "nearly always right", "unsure", "mostly wrong", "submissions until an error")
    found: list[tuple[str, ...]] = []
    for method, null, attacked in _judged(summary):
        of = f"{method}, " if method else ""
        for what, metrics in (("no attack", null), ("strongest attack", attacked)):
            found.append((f"{of}{what}", *(percent(s) for s in metrics.shares), str(metrics.submissions)))
    note = (
        "Share of images, with 95 % intervals: wrong in fewer than 5 % of their report draws, in 5 % to 50 %, in more. "
        "Submissions until an error: how often the same image can be submitted until an error is as likely as not."
    )
    return Table(heads, tuple(found), note)


def _judged(summary: Summary) -> list[tuple[str, Metrics, Metrics]]:
    """What is judged: method, metrics without an attack and under the strongest attack for each image."""
    if summary.ranking is not None:
        together = {entry.method: entry.strongest for entry in summary.ranking.all}
    else:
        together = {} if summary.strongest is None else {"": summary.strongest}
    judged = {row.name for row in summary.header.rows if row.attacks_defence}
    lines = [line for line in summary.lines if line.name in judged]
    together = {method: its for method, its in together.items() if any(line.method == method for line in lines)}
    return [
        (method, max((its for its in lines if its.method == method), key=lambda its: its.images).null, metrics)
        for method, metrics in together.items()
    ]


def error_sentence(rates: ErrorRates) -> str:
    """The error profile in words."""
    broken, before = (sum(e > 0.5 for e in values) for values in (rates.attacked, rates.clean))
    between = sum(0.05 <= e <= 0.5 for e in rates.attacked)
    return (
        f"Under the strongest attack {broken} of {len(rates.attacked)} images are wrong in more than half of the draws "
        f"({before} without attack), and {between} are neither safe nor broken: of those any-of-N takes most."
    )


def published(summary: Summary) -> Table:
    """What others published of the same defence, and what this run found."""
    found = summary.header.published
    rows = [(_plain(its.clean), _plain(its.robust), its.attack, its.source, its.note) for its in found]
    if found:
        rows += [
            (percent(null.single), percent(attacked.single), "strongest attack of this run", "this run", method)
            for method, null, attacked in _judged(summary)
        ]
    heads = ("clean", "robust", "attack", "source", "note")
    return Table(heads, tuple(rows), "Accuracy in %. Published figures are by another protocol: compare with care.")


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def budgets(summary: Summary) -> Table:
    """What more steps, draws or restarts bought."""
    rows = tuple(
        (
            b.row,
            f"{b.what}: {b.less:g} → {b.more:g}",
            f"{b.images}",
            percent(b.before),
            percent(b.after),
            f"{100 * (b.before.value - b.after.value):.1f} ({100 * b.fall[0]:.1f} to {100 * b.fall[1]:.1f})",
        )
        for b in summary.details.budgets
    )
    note = (
        "Accuracy of one draw under an attack and under the same attack with more of one thing, on the same images; "
        "taken: points that the larger budget takes, with a 95 % interval paired by image."
    )
    return Table(("row", "more", "images", "less", "more of it", "taken"), rows, note)


def losses(summary: Summary) -> Table:
    """An attack's loss at some of its steps."""
    heads = ("row", "steps", "first", *(f"{100 * k // (MOMENTS - 1)} %" for k in range(1, MOMENTS - 1)), "last")
    rows = tuple((t.row, f"{t.steps[-1]}", *_moments(t)) for t in summary.details.traces)
    note = (
        "The attack's own loss, its mean over the images (one that was finished keeps its last); losses of different "
        "attacks are different functions. It should rise."
    )
    return Table(heads, rows, note)


def _moments(trace: Trace) -> tuple[str, ...]:
    last = len(trace.loss) - 1
    return tuple(f"{trace.loss[round(k * last / (MOMENTS - 1))]:.3g}" for k in range(MOMENTS))


def checks(summary: Summary) -> Table:
    """The verdicts of the checks; of a comparison, those that want attention method by method, the others together."""
    counted = [f"{sum(v.status is s for v in summary.verdicts)} {s.value}" for s in Status]
    note = ", ".join(counted) + "." if summary.verdicts else ""
    if summary.ranking is None:
        rows = tuple((v.id, v.name, v.status.value, v.sentence, v.advice) for v in summary.verdicts)
        return Table(("", "check", "", "found", "what to do"), rows, note)
    groups = grouped(summary.verdicts)
    rows = tuple(row for group in groups for row in _of_group(summary, group))
    return Table(("", "check", "", "methods", "found", "what to do"), rows, note)


def _of_group(summary: Summary, group: VerdictGroup) -> list[tuple[str, ...]]:
    head = (group.id, group.name, group.status.value)
    if group.status in (Status.WARN, Status.FAIL):
        own = [v for v in summary.verdicts if (v.id, v.status) == (group.id, group.status)]
        return [(*head, v.method, v.sentence, v.advice) for v in own]
    first = group.sentence if len(group.methods) == 1 else f"{group.methods[0]}: {group.sentence}"
    return [(*head, ", ".join(group.methods), first, group.advice)]


def audits(summary: Summary) -> Table:
    """What the audit of each gradient tested."""
    several = len(summary.details.audits) > 1
    rows = tuple(
        (*((its.method,) if several else ()), check.name, check.light.value, check.sentence)
        for its in summary.details.audits
        for check in its.audit.checks
    )
    verdicts = " ".join(
        f"{its.method}: {its.audit.verdict}" if several else its.audit.verdict for its in summary.details.audits
    )
    return Table((*(("method",) if several else ()), "test", "light", "found"), rows, verdicts)


def searches(summary: Summary) -> Table:
    """Errors during the search, beside the null of as many draws."""
    rows = tuple(
        (s.row, f"{s.draws:,.0f}", percent(s.untouched), f"{s.n}", percent(s.first), percent(s.null))
        for s in summary.details.searches
    )
    note = (
        "Share of images of which no draw of the deployed rule was wrong while the attack searched: over the whole "
        "search, and over its first draws, as many as the null has. Without an attack draws are wrong too (null); over "
        "the whole search it is at most that. These are no accuracies of adversarial examples."
    )
    heads = ("row", "draws seen per image", "never wrong", "first draws", "not wrong in these", "null of as many")
    return Table(heads, rows, note)


def indicators(summary: Summary) -> Table:
    """What is told without gradients."""
    rows = tuple(
        (i.row, percent(i.pinned), percent(i.pinned_clean), _ratio(i.kept), _ratio(i.kept_random))
        for i in summary.details.indicators
    )
    note = (
        "one tape: accuracy when all randomness is pinned to one draw, the same for all images, of the examples and of "
        "the images themselves. left: distance after purification over distance before, with the same noise, median "
        "over images; of the attack's change and of a random one of the same length. Below 1 purification draws the "
        "two together (cf. arXiv:2505.22839)."
    )
    return Table(("row", "one tape", "one tape, clean", "left of the attack", "left of noise"), rows, note)


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def prices(summary: Summary) -> Table:
    """Evaluations of the denoiser per prediction."""
    rows = tuple((p.name, _count(p.evaluations)) for p in summary.details.prices)
    note = (
        "Evaluations of the denoiser per prediction of the deployed rule, counted; beside them a prediction runs the "
        "classifier. Times are not in the records, since equal studies give equal bytes on any machine: "
        "'depura plan' measures them on yours."
    )
    return Table(("what is judged", "NFE per prediction"), rows, note)


def _count(n: float) -> str:
    return f"{n:,.0f}" if n == round(n) else f"{n:,.1f}"


def progress(summary: Summary) -> Table:
    """How far a run is."""
    rows = tuple(
        (
            p.name,
            f"{p.eps:g}",
            "–" if p.so_far is None else percent(p.so_far),
            f"{p.images} of {p.of}",
            f"{p.done} of {p.total}",
        )
        for p in summary.progress
    )
    note = (
        "Accuracy of one draw on the images that are done; it moves until the last is. null-: without an attack. No "
        "headline is made of part of a run."
    )
    return Table(("row", "eps", "so far (95 % CI)", "images", "units"), rows, note)


def progress_terminal(summary: Summary) -> Group:
    """How far a run is, for a terminal of 80 columns."""
    table, found = RichTable(box=box.SIMPLE_HEAD, pad_edge=False), progress(summary)
    for heading in found.headings:
        table.add_column(heading, justify="left" if heading in ("row", found.headings[2]) else "right")
    for cells in found.rows:
        table.add_row(*cells)
    return Group(table, Text(found.note, style="dim"))
