"""The commands about checkpoint files: what a file is, what is published, and a copy that carries no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from depura import _check
from depura.cli.console import door, out
from depura.models.checkpoints import PUBLISHED, Identified, convert, identify

app = typer.Typer(
    help="Say what a checkpoint file is, convert it, list the published ones. Nothing in a file is run.",
    no_args_is_help=True,
)

Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="What weights do not tell, e.g. class_index=3 or like=wrn-28-10."),
]


@app.command("identify")
@door
def identify_(
    file: Annotated[Path, typer.Argument(help="Checkpoint file: .pth, .pt, .ckpt, .th, .pkl or .safetensors.")],
    options: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file is: family, settings, parameters, moving averages, licence."""
    found = identify(file, **_options(options))
    if as_json:
        typer.echo(json.dumps({**found._asdict(), "path": str(found.path)}))
        return
    _tell(found)


@app.command("convert")
@door
def convert_(
    file: Annotated[Path, typer.Argument(help="Checkpoint file.")],
    to: Annotated[Path, typer.Option("--out", help="File to write, ending in .safetensors; JSON is put beside it.")],
    options: Options = None,
) -> None:
    """Write a file's network as safetensors, with what is known of it as JSON beside it."""
    _tell(convert(file, to, **_options(options)))
    out.print(f"written to {to} and {to.with_suffix('.json')}", highlight=False, soft_wrap=True)


@app.command("list")
@door
def list_() -> None:
    """List the published files that are known by name, with their addresses and licences."""
    for name, file in PUBLISHED.items():
        out.print(f"[bold]{name}[/bold]  {file.file}", highlight=False, soft_wrap=True)
        for line in (file.address, f"licence: {file.licence}", file.note):
            out.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)


def _tell(found: Identified) -> None:
    table = Table.grid(padding=(0, 2))
    average = ", moving averages" if found.averaged else ""
    rows = {
        "file": f"{found.path} ({found.kind})",
        "family": f"{found.family}: {found.title}",
        "use": "denoiser" if found.denoises else "classifier",
        "parameters": f"{found.parameters:,}",
        "weights": f"{found.entry}{average if 'average' not in found.entry else ''}",
        "settings": ", ".join(f"{name}={value}" for name, value in found.settings.items()),
        "options": ", ".join(f"{name}={value}" for name, value in found.options.items()),
        "same network as": ", ".join(found.like),
        "licence": f"{found.licence} (a hint: check where you got it)",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    out.print(table, highlight=False, markup=False)


def _options(texts: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE, with values as JSON where they are, else as texts."""
    found: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals):
            _check.fail("--set", "NAME=VALUE", repr(text))
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
