"""The HTML page: one file that needs no network, and JavaScript for nothing but the slider of its pictures."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from depura import _atomic, _check
from depura.analysis.summary import Summary, summarise
from depura.records.directory import RunDirectory
from depura.reports import background, figures, standings, tables
from depura.reports import figures as ladder
from depura.reports import pictures as theatre
from depura.reports import prose as limits
from depura.reports.background import Table
from depura.reports.markdown import markdown


class Figure(NamedTuple):
    """A figure of the page.

    Attributes:
        drawn: its <svg> element.
        alt: what it shows, in words.
    """

    drawn: Markup
    alt: str


def html(summary: Summary) -> str:
    """The page of a summary.

    Args:
        summary: of a run.

    Returns:
        A complete HTML document; equal summaries give equal text.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file("page.html.j2")).render(
        summary=summary,
        css=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
        tables=tables,
        background=background,
        threat=tables.threat_model(summary),
        versions=tables.versions(summary),
        **(_numbers(summary) if summary.complete else {}),
    )


def texts(summary: Summary) -> dict[str, str]:
    """The reports of a summary.

    Args:
        summary: of a run.

    Returns:
        Texts by file name; equal summaries give equal ones.
    """
    return {"report.md": markdown(summary), "report.html": html(summary)}


def write(directory: RunDirectory) -> tuple[Summary, tuple[Path, ...]]:
    """Write report.md and report.html into a run directory, each in one move.

    Args:
        directory: a run, complete or not.

    Returns:
        The summary, and the files written.
    """
    _check.writable_folder("report", directory.path)
    summary = summarise(directory)
    written: list[Path] = []
    for name, text in texts(summary).items():
        file = directory.path / name
        _atomic.write(file, text.encode())
        written.append(file)
    return summary, tuple(written)


def _numbers(summary: Summary) -> dict[str, Any]:
    """What the page of a complete run shows beside its texts."""
    ranking, rates = summary.ranking, summary.details.error_rates
    return {
        "figure": _figures(summary),
        "losses": tuple(
            Figure(Markup(drawn), f"Mean loss of the attack in row {trace.row}, step by step; numbers in the table")
            for k, trace in enumerate(summary.details.traces)
            if (drawn := figures.trace_svg(trace, k)) is not None
        ),
        "headings": tables.headings(summary),
        "columns": [name for name in tables.columns(summary) if name not in ("name", "title")],
        "rows": tables.rows(summary),
        "ranked": None
        if ranking is None
        else Table(
            standings.headings(summary, ranking),
            standings.rows(summary, ranking),
            standings.explanation(summary, ranking),
        ),
        "notes": () if ranking is None else standings.notes(summary, ranking),
        "profile": background.error_sentence(rates[0]) if ranking is None and rates else "",
        "gradients": Table(tables.GRADIENT_HEADINGS, tables.gradient_rows(summary), tables.GRADIENT_NOTE),
        "examples": Table(tables.EXAMPLE_HEADINGS, tables.example_rows(summary), tables.EXAMPLE_NOTE),
        "worst": theatre.shows(summary, lucky=False),
        "luckiest": theatre.shows(summary, lucky=True),
        "limits": limits.sentences(summary),
    }


def _figures(summary: Summary) -> dict[str, Figure]:
    """Figures by name; those that cannot be drawn are left out."""
    ranking, rates = summary.ranking, summary.details.error_rates
    each = "row" if ranking is None else "method"
    drawn = {
        "ladder": (ladder.svg(summary), ladder.ALT),
        "ranking": (
            None if ranking is None else figures.ranking_svg(ranking),
            "Accuracy of each method without an attack and under the strongest attack for each image; the numbers are "
            "in the table above",
        ),
        "errors": (
            figures.errors_svg(rates[0]) if len(rates) == 1 else None,
            "Histogram of the images' error rates, without an attack and under the strongest; shares in the table",
        ),
        "budgets": (
            figures.budgets_svg(summary.details.budgets),
            "Accuracy under an attack and under the same attack with a larger budget; the numbers are in the table",
        ),
        "curve": (
            figures.curve_svg(summary) if summary.curve else None,
            f"Accuracy of one draw against the attack radius, one line per {each}; the numbers are in the table",
        ),
    }
    return {name: Figure(Markup(svg), alt) for name, (svg, alt) in drawn.items() if svg is not None}


def _file(name: str) -> str:
    return files("depura.reports").joinpath(name).read_text(encoding="utf-8")
