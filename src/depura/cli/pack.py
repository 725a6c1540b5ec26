"""The command pack: a run in few files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depura.cli.console import door, out
from depura.records import packing
from depura.records.directory import RunDirectory


@door
def pack(
    directory: Annotated[Path, typer.Argument(help="Run directory, complete or not.")],
    undo: Annotated[bool, typer.Option("--undo", help="Give every unit a file of its own again.")] = False,
) -> None:
    """Put the units of each attack into one file, smaller than they are together; all commands read it as before.

    Kill it at any time: no unit is lost. A packed run can go on; its new units are packed when the command is given
    again.
    """
    run = RunDirectory.open(directory)
    done = [*(packing.unpack(run) if undo else packing.pack(run))]
    if not done:
        out.print("nothing to do: no unit is packed" if undo else "nothing to do: every unit is packed")
        return
    before, after = (
        f"{sum(sizes) / 1e6:.1f} MB" for sizes in zip(*((its.before, its.after) for its in done), strict=True)
    )
    units, rows = sum(its.units for its in done), len(done)
    text = f"{units:,} units out of {rows} files" if undo else f"{units:,} units into {rows} files"
    out.print(
        f"{'unpacked' if undo else 'packed'}   {text}: {before} before, {after} now", highlight=False, soft_wrap=True
    )
