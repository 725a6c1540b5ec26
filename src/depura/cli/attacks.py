"""The command attacks, which lists them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from depura.attacks.catalogue import CATALOGUE, at_default
from depura.cli.doors import door, out


@door
def attacks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the attacks: what each needs of a model, its norms, its price per image, and where it is from."""
    lines = [
        {
            "name": entry.name,
            "title": entry.title,
            "needs": entry.needs,
            "norms": ", ".join(entry.norms),
            "cost": entry.formula,
            "default": str(at_default(entry).cost),
            "source": entry.source,
        }
        for entry in CATALOGUE
    ]
    if as_json:
        typer.echo(json.dumps(lines, indent=1))
        return
    for line in lines:
        out.print(f"[bold]{line['name']}[/bold]  {line['title']}", highlight=False)
        for key in ("source", "needs", "norms"):
            out.print(f"  {key:<8} {line[key]}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"  {'cost':<8} {line['cost']}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"  {'default':<8} {line['default']}", highlight=False, markup=False, soft_wrap=True)
    out.print("\nCost: evaluations of the model per image, at most; eot: draws of a randomised model per question.")
