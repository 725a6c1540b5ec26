"""The command compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from depura.analysis.comparison import compare_runs
from depura.cli.console import door, out
from depura.records.directory import RunDirectory
from depura.reports.prose import comparison_sentences
from depura.reports.table import terminal
from depura.reports.tables import comparison_table


@door
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run directory.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Run directory on the same images.")],
    method_a: Annotated[str, typer.Option(help="Of a comparison of methods, the one of A.")] = "",
    method_b: Annotated[str, typer.Option(help="Of a comparison of methods, the one of B.")] = "",
    as_text: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Compare two finished runs image by image, and say whether there is a difference to speak of."""
    comparison = compare_runs(RunDirectory.open(first), RunDirectory.open(second), methods=(method_a, method_b))
    if as_text:
        typer.echo(json.dumps(comparison.as_json(), indent=1))
        return
    for letter, path in zip("AB", (first, second), strict=True):
        out.print(f"{letter}  {path}", highlight=False, markup=False)
    out.print(terminal(comparison_table(comparison)))
    for warning in comparison.warnings:
        out.print(f"warning  {warning}", style="yellow", highlight=False, markup=False)
    for note in comparison.notes:
        out.print(f"note     {note}", highlight=False, markup=False)
    for sentence in comparison_sentences(comparison):
        out.print(f"\n{sentence}", style="bold", highlight=False, markup=False)
