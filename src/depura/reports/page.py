"""The HTML page: one file that needs no network, and JavaScript for nothing but the slider of its pictures."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from depura import _atomic, _check
from depura.analysis.summary import Summary, summarise
from depura.records.directory import RunDirectory
from depura.reports import prose, tables
from depura.reports.figures import figures
from depura.reports.markdown import markdown
from depura.reports.pictures import gallery
from depura.reports.sections import LONG, sections


def html(summary: Summary) -> str:
    """The page of a run, a complete HTML document; equal summaries give equal text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file("page.html.j2")).render(
        summary=summary,
        css=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
        prose=prose,
        long=LONG,
        progress=None if summary.complete else tables.progress_table(summary.progress),
        sections=sections(summary) if summary.complete else (),
        figures=figures(summary) if summary.complete else {},
        galleries=(
            (
                "Worst images" + (", a few of each method" if summary.ranking is not None else ""),
                gallery(summary, lucky=False),
            ),
            ("Luckiest images", gallery(summary, lucky=True)),
        ),
    )


def reports(summary: Summary) -> dict[str, str]:
    """The reports of a run, texts by file name; equal summaries give equal ones."""
    return {"report.md": markdown(summary), "report.html": html(summary)}


def write_reports(directory: RunDirectory) -> tuple[Summary, tuple[Path, ...]]:
    """Write report.md and report.html into a run directory, each in one move; the summary, and the files written."""
    _check.writable_folder("report", directory.path)
    summary = summarise(directory)
    texts = {directory.path / name: text for name, text in reports(summary).items()}
    for file, text in texts.items():
        _atomic.write(file, text.encode())
    return summary, tuple(texts)


def _file(name: str) -> str:
    return files("depura.reports").joinpath(name).read_text(encoding="utf-8")
