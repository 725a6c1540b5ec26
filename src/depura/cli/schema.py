"""The command schema."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from depura import _check
from depura.cli.console import door
from depura.records.schema import PARTS, json_schema


@door
def schema(part: Annotated[str, typer.Argument(help=f"One of {', '.join(PARTS)}; default: all of them.")] = "") -> None:
    """Print the layout of records as JSON Schema: of study.json, of a unit's facts, of an audit and of a plan."""
    whole = json_schema()
    if part and part not in PARTS:
        _check.fail("schema", f"a part among {', '.join(PARTS)}", repr(part))
    typer.echo(json.dumps(whole[part] if part else whole, indent=1))
