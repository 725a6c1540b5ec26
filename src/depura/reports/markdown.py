"""The report in Markdown: what the page says, with tables in the place of figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from depura.analysis.results import percent
from depura.analysis.summary import Summary
from depura.reports import background, standings, tables
from depura.reports import figures as ladder
from depura.reports import pictures as theatre
from depura.reports import prose as limits
from depura.reports.background import Table


def markdown(summary: Summary) -> str:
    """The report in Markdown.

    Args:
        summary: of a run.

    Returns:
        The text.
    """
    header = summary.header
    out = [f"# {header.name}", "", f"**{'⚠ ' if summary.refused else ''}{summary.headline}**", ""]
    if summary.complete:
        out += [f"Flags: {', '.join(map(str, summary.flags))}.", ""] if summary.flags else []
        out += [tables.conditions(summary), ""]
        out += ["## Warnings", "", *(f"- {w}" for w in summary.warnings), ""] if summary.warnings else []
    else:
        out += _section("So far", background.progress(summary))
    out += ["## Threat model", "", *(f"- {name}: {value}" for name, value in tables.threat_model(summary)), ""]
    if summary.complete:
        out += _numbers(summary)
    out += ["## Repeat it", "", f"    {header.command}", ""]
    if summary.complete:
        out += ["## Limits", "", " ".join(limits.sentences(summary)), ""]
    out += ["## Versions", "", *(f"- {name} {version}" for name, version in tables.versions(summary)), ""]
    return "\n".join(out)


def _numbers(summary: Summary) -> list[str]:
    """The sections of a complete run."""
    out: list[str] = []
    if summary.ranking is not None:
        out += ["## Ranking", "", *standings.markdown(summary, summary.ranking)]
    out += _section("Ladder", Table(ladder.HEADINGS, ladder.rows(summary)))
    names = tables.columns(summary)
    rows = [[getattr(cells, name) for name in names] for cells in tables.rows(summary)]
    out += ["## Rows", "", *_table([getattr(tables.headings(summary), name) for name in names], rows), ""]
    out += [f"Accuracy in %; in brackets without attack. {tables.modes(summary)}", ""]
    out += _section("Published", background.published(summary))
    out += _section("Errors image by image", background.error_rates(summary))
    out += [text for rates in _single(summary) for text in (background.error_sentence(rates), "")]
    out += _section("While the attacks searched", background.searches(summary))
    out += _section("Without gradients", background.indicators(summary))
    out += _section("More budget", background.budgets(summary), missing="Not run.")
    out += _section("Loss", background.losses(summary))
    out += _curve(summary)
    out += _section("Checks", background.checks(summary))
    out += _section("Gradient tests", background.audits(summary))
    out += _section("Gradients", Table(tables.GRADIENT_HEADINGS, tables.gradient_rows(summary), tables.GRADIENT_NOTE))
    out += _section("Price of a prediction", background.prices(summary))
    examples = Table(tables.EXAMPLE_HEADINGS, tables.example_rows(summary), tables.EXAMPLE_NOTE)
    out += _section("Adversarial examples and their cost", examples)
    return out + _section("Picture theatre", Table(theatre.HEADINGS, theatre.rows(summary)))


def _single(summary: Summary) -> tuple[background.ErrorRates, ...]:
    return summary.details.error_rates if summary.ranking is None else ()


def _curve(summary: Summary) -> list[str]:
    names = [name for name in summary.curve if name != "null"]
    if not names:
        return []
    rows = [
        [f"{point.eps:g}", str(point.images), *(percent(summary.curve[name][k].accuracy) for name in names)]
        for k, point in enumerate(summary.curve[names[0]])
    ]
    return ["## Accuracy against eps", "", *_table(["eps", "images", *names], rows), ""]


def _section(title: str, table: Table, *, missing: str = "") -> list[str]:
    """A heading, a table and its note; where the table is empty, what is said instead, or nothing at all."""
    if not table.rows:
        return [f"## {title}", "", missing, ""] if missing else []
    return [f"## {title}", "", *_table(table.headings, table.rows), "", *([table.note, ""] if table.note else [])]


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table, line by line."""
    top = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return top + ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines]
