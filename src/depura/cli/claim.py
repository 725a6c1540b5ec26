"""The command claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depura.analysis.claims import claims
from depura.analysis.summary import summarise
from depura.cli.console import door, err
from depura.records.directory import RunDirectory
from depura.reports.prose import COLUMNS, bibtex, latex, paragraph


@door
def claim(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    method: Annotated[str, typer.Option(help="Of a comparison of methods, only this one.")] = "",
) -> None:
    """Print what a paper may claim of a finished run: a paragraph, a LaTeX row, BibTeX, and what was not tested."""
    summary = summarise(RunDirectory.open(directory))
    if summary.refused:
        err.print(f"No claim. {summary.headline}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    found = claims(summary, method=method)
    for each in found:
        typer.echo(f"{paragraph(summary, each)}\n")
    typer.echo(f"% {COLUMNS}")
    for each in found:
        typer.echo(latex(summary, each))
    typer.echo(f"\n{bibtex(summary)}")
    typer.echo("\nCite the paper of every method, attack, network and data set that you used, too.")
    for each in found:
        typer.echo(f"\nNot tested{f' of {each.method}' if len(found) > 1 else ''}:")
        for text in each.untested:
            typer.echo(f"- {text}")
    if summary.warnings:
        typer.echo("\nWhat speaks against it:")
        for text in summary.warnings:
            typer.echo(f"- {text}")
