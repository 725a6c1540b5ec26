"""The command claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depura.analysis.beside import runs_beside
from depura.analysis.claims import claims
from depura.analysis.summary import summarise
from depura.cli.console import door, err
from depura.records.directory import RunDirectory
from depura.reports.prose import LATEX_COLUMNS, bibtex, latex, paragraph


@door
def claim(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    method: Annotated[str, typer.Option(help="Of a comparison of methods, only this one.")] = "",
) -> None:
    """Print what a paper may claim of a finished run: a paragraph, a LaTeX row, BibTeX, and what was not tested."""
    run = RunDirectory.open(directory)
    summary = summarise(run)
    if summary.refused:
        err.print(f"No claim. {summary.headline}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    defences = claims(summary, method=method)
    lines = [f"{paragraph(summary, each)}\n" for each in defences]
    lines += [f"% {LATEX_COLUMNS}", *(latex(summary, each) for each in defences), f"\n{bibtex(summary)}"]
    lines.append("\nCite the paper of every method, attack, network and data set that you used, too.")
    for each in defences:
        lines.append(f"\nNot tested{f' of {each.method}' if len(defences) > 1 else ''}:")
        lines += [f"- {text}" for text in each.untested]
    if summary.warnings:
        lines += ["\nWhat speaks against it:", *(f"- {text}" for text in summary.warnings)]
    beside = runs_beside(run)
    if beside:
        lines += ["\nOther runs of this study beside it:", *(f"- {other.text}" for other in beside)]
    typer.echo("\n".join(lines))
