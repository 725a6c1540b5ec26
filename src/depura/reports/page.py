"""The HTML page: one file that needs no network and no JavaScript."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from depura import _atomic, _check
from depura.evaluation.records import RunDirectory
from depura.judging.summary import Summary, summarise
from depura.reports import figures, standings, tables


def html(summary: Summary) -> str:
    """The page of a summary.

    Args:
        summary: of a run.

    Returns:
        A complete HTML document; equal summaries give equal text.
    """
    curve = figures.curve_svg(summary) if summary.complete else None
    ranking = summary.ranking
    chart = None if ranking is None else figures.ranking_svg(ranking)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("depura.reports").joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        summary=summary,
        headings=tables.headings(summary),
        rows=tables.rows(summary) if summary.complete else (),
        rank_headings=() if ranking is None else standings.headings(summary, ranking),
        ranks=() if ranking is None else standings.rows(summary, ranking),
        rank_note="" if ranking is None else standings.explanation(summary, ranking),
        notes=() if ranking is None else standings.notes(ranking),
        chart=None if chart is None else Markup(chart),
        conditions=tables.conditions(summary),
        routes=tables.routes(summary),
        example_headings=tables.EXAMPLE_HEADINGS,
        example_rows=tables.example_rows(summary),
        example_note=tables.EXAMPLE_NOTE,
        gradient_headings=tables.GRADIENT_HEADINGS,
        gradient_rows=tables.gradient_rows(summary),
        gradient_note=tables.GRADIENT_NOTE,
        threat=tables.threat_model(summary),
        versions=tables.versions(summary),
        curve=None if curve is None else Markup(curve),
        uri=figures.data_uri,
    )


def texts(summary: Summary) -> dict[str, str]:
    """The reports of a summary.

    Args:
        summary: of a run.

    Returns:
        Texts by file name; equal summaries give equal ones.
    """
    return {"report.md": tables.markdown(summary), "report.html": html(summary)}


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
