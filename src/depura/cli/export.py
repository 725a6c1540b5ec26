"""The command export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depura.cli.console import door, out
from depura.data import files
from depura.records.directory import RunDirectory
from depura.reports.export import file_bytes, run_columns


@door
def export(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    to: Annotated[Path, typer.Option("--out", help="File to write: .csv or .parquet.")],
) -> None:
    """Write a finished run as one table, a line for each image, attack and radius."""
    columns = run_columns(RunDirectory.open(directory))
    files.write_all({to: file_bytes(columns, to)}, where="export")
    out.print(
        f"wrote    {to}: {len(columns['image']):,} lines of {len(columns)} columns", highlight=False, soft_wrap=True
    )
