"""The command compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from depura.analysis.comparison import as_json
from depura.analysis.comparison import compare as compared
from depura.cli.console import door, out
from depura.records.directory import RunDirectory
from depura.reports.comparisons import sentences, terminal


@door
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run directory.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Run directory on the same images.")],
    method_a: Annotated[str, typer.Option(help="Of a comparison of methods, the one of A.")] = "",
    method_b: Annotated[str, typer.Option(help="Of a comparison of methods, the one of B.")] = "",
    as_text: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Compare two finished runs image by image, and say whether there is a difference to speak of."""
    found = compared(RunDirectory.open(first), RunDirectory.open(second), methods=(method_a, method_b))
    if as_text:
        typer.echo(json.dumps(as_json(found), indent=1))
        return
    out.print(terminal(found, names=(str(first), str(second))))
    for warning in found.warnings:
        out.print(f"warning  {warning}", style="yellow", highlight=False, markup=False)
    for note in found.notes:
        out.print(f"note     {note}", highlight=False, markup=False)
    for sentence in sentences(found):
        out.print(f"\n{sentence}", style="bold", highlight=False, markup=False)
