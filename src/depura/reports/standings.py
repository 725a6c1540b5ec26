"""The ranking of a comparison, for the terminal (rich), in Markdown and for the page."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from depura.analysis.checks import refusal
from depura.analysis.ranking import Entry, Ranking
from depura.analysis.results import n_draws, percent
from depura.analysis.summary import Summary
from depura.records.kinds import AttackKind, GradientMode
from depura.statistics.intervals import Difference, Estimate


def headings(summary: Summary, ranking: Ranking) -> tuple[str, ...]:
    """Column headings."""
    baseline = ranking.baseline
    return (
        "rank",
        "method",
        "NFE",
        "clean",
        *_kinds(summary, ranking).values(),
        "strongest (95 % CI)",
        _any(summary),
        *([f"minus {ranking.best.method} (first)"] if ranking.best else []),
        *([] if _is_best(baseline, ranking) else [f"minus {baseline.method} (baseline)"] if baseline else []),
    )


def rows(summary: Summary, ranking: Ranking) -> tuple[tuple[str, ...], ...]:
    """One line of `headings` per method, the best first; those that stand apart last, without a rank."""
    return tuple(
        (
            _rank(s),
            name(s),
            nfe(s),
            _value(s.clean),
            *(_kind(s, kind) for kind in _kinds(summary, ranking)),
            percent(s.strongest.single),
            _value(s.strongest.any),
            *([_difference(s.to_best)] if ranking.best else []),
            *([] if ranking.baseline is None or _is_best(ranking.baseline, ranking) else [_difference(s.to_baseline)]),
        )
        for s in ranking.all
    )


def name(entry: Entry) -> str:
    """A method as it is printed: baselines are called so, a star leads to its note."""
    star = "*" if entry.note else ""
    return f"{entry.method}{star}{' (baseline)' if entry.baseline else ''}"


def nfe(entry: Entry) -> str:
    """Denoiser evaluations per prediction, as printed."""
    return f"{entry.nfe:,.0f}" if entry.nfe == round(entry.nfe) else f"{entry.nfe:,.1f}"


def notes(summary: Summary, ranking: Ranking) -> tuple[str, ...]:
    """The notes that the stars lead to, why methods stand apart, and what to know of each method first."""
    starred = tuple(f"* {s.method}: {s.note}" for s in ranking.all if s.note)
    apart = tuple(f"Apart: {s.method}. {refusal(s.conclusion)}" for s in ranking.apart)
    named = ((s.method, ", ".join(map(str, summary.flags_of(s.method)))) for s in ranking.all)
    flags = "; ".join(f"{method}: {text}" for method, text in named if text)
    return (*starred, *apart, *([f"Flags. {flags}."] if flags else []))


def _rank(entry: Entry) -> str:
    """A method's place; in words where it has none, marked where nothing says whether its attack is strong."""
    if not entry.rank:
        return "apart"
    return f"{entry.rank}?" if entry.unchecked else str(entry.rank)


def explanation(summary: Summary, ranking: Ranking) -> str:
    """What the columns of the ranking mean, some sentences."""
    n_any, _ = n_draws(summary.header.draws.report)
    masked = (
        " †: some of this row's gradients are exactly zero, so that its accuracy is no measure of robustness."
        if any(s.masked for s in ranking.all)
        else ""
    )
    apart = " apart: its checks do not pass, so that it is not ranked; the reason is below." if ranking.apart else ""
    unsure = " ?: unchecked, as nothing says whether its attack is strong." if _unsure(ranking) else ""
    tests = ranking.comparisons
    corrected = f"corrected by Holm's method for {tests} comparisons" if tests > 1 else "of one comparison"
    return (
        "Ranked by the accuracy of one draw under the strongest of a method's attacks for each image. Accuracy in %. "
        f"NFE: denoiser evaluations per prediction. {_any(summary)}: {n_any} submissions of an image under its "
        "strongest attack are all classified correctly. minus: difference in points over the same images, with its "
        f"95 % interval; p of the paired test, {corrected}. The first is chosen by the same numbers, which flatters it "
        f"a little.{masked}{apart}{unsure}"
    )


def _unsure(ranking: Ranking) -> bool:
    return any(entry.unchecked for entry in ranking.entries)


def terminal(summary: Summary, ranking: Ranking) -> Group:
    """The ranking for a terminal of 100 columns."""
    kinds = _kinds(summary, ranking)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("")
    table.add_column("method", min_width=max(len(word) for s in ranking.all for word in name(s).split()))
    for heading in ("NFE", "clean", *kinds.values()):
        table.add_column(heading, justify="right", min_width=len(heading))
    table.add_column("strongest", min_width=len("(12.3–45.6)"))
    table.add_column(_any(summary), justify="right")
    table.add_column("minus first, p", min_width=len("<0.001"))
    for s in ranking.all:
        table.add_row(
            _rank(s),
            name(s),
            nfe(s),
            _value(s.clean),
            *(_kind(s, kind) for kind in kinds),
            percent(s.strongest.single).replace(" %", ""),
            _value(s.strongest.any),
            _short(s.to_best),
            style="italic" if s.baseline else "",
        )
    undetected = any(s.to_best is not None and not s.to_best.detectable for s in ranking.all)
    words = [
        *notes(summary, ranking),
        explanation(summary, ranking) + (" ≈: no detectable difference." if undetected else ""),
    ]
    return Group(table, *(Text(text, style="dim") for text in words))


def markdown(summary: Summary, ranking: Ranking) -> list[str]:
    """The ranking in Markdown, line by line."""
    heads = headings(summary, ranking)
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    out += ["| " + " | ".join(cells).replace("*", "\\*") + " |" for cells in rows(summary, ranking)]
    out += ["", explanation(summary, ranking), ""]
    out += [f"- {note}".replace("*", "\\*") for note in notes(summary, ranking)]
    return [*out, ""] if notes(summary, ranking) else out


def _kinds(summary: Summary, ranking: Ranking) -> dict[AttackKind, str]:
    """Headings of the kinds of attack that were made, in this order."""
    own = [line for line in summary.lines if line.kind is AttackKind.ADAPTIVE]
    known = {
        AttackKind.TRANSFER: "transfer",
        AttackKind.BPDA: "BPDA",
        AttackKind.ADAPTIVE: "exact" if all(line.mode is GradientMode.EXACT for line in own) else "adaptive",
        AttackKind.RELAXED: "relaxed",
    }
    return {kind: heading for kind, heading in known.items() if any(kind in s.kinds for s in ranking.all)}


def _any(summary: Summary) -> str:
    return f"any of {n_draws(summary.header.draws.report)[0]}"


def _is_best(entry: Entry | None, ranking: Ranking) -> bool:
    return entry is ranking.best


def _kind(entry: Entry, kind: AttackKind) -> str:
    if kind not in entry.kinds:
        return "–"
    return _value(entry.kinds[kind]) + ("†" if kind in entry.masked else "")


def _value(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    value, low, high = (100 * number for number in difference[:3])
    end = "" if difference.detectable else ": no detectable difference"
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}), {_p(difference.p)}{end}"


def _short(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    p = _p(difference.p).removeprefix("p ").replace("< ", "<")
    return f"{'' if difference.detectable else '≈ '}{100 * difference.value:+.1f}, {p}"
