"""`depura status`: how far a run is, while it goes on or after it was stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from depura.analysis.progress import run_progress
from depura.cli.console import compact, door, duration, out
from depura.records.directory import UNDER_WAY, RunDirectory, Unit
from depura.reports.table import terminal
from depura.reports.tables import progress_table

RECENT = 20
"""Of so many units, the last ones, the pace is taken."""
SHOWN = 3
"""How many of the last errors are shown."""


@door
def status(directory: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Say how far a run is: units done and missing for each row, evaluations, time left, units under way, errors.

    Nothing is written, so any number of readers may look while a run goes on.
    """
    run = RunDirectory.open(directory)
    units = list(run.units())
    out.print(terminal(progress_table(run_progress(run.header, units))))
    total = len(run.header.units)
    out.print(f"{len(units):,} of {total:,} units are done; {_evaluations(run, units)}", soft_wrap=True)
    if len(units) < total:
        out.print(_pace(run, units), soft_wrap=True)
    for folder in sorted((directory / UNDER_WAY).glob("*")):
        ages = [time.time() - file.stat().st_mtime for file in folder.glob("*.npz")]
        if ages:
            out.print(f"under way  {folder.name}, last kept {duration(min(ages))} ago", markup=False, soft_wrap=True)
    for error in run.errors[-SHOWN:]:
        text = f"error    {error.unit}, {duration(time.time() - error.at)} ago: {error.sentence}"
        out.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def _spent(unit: Unit) -> int:
    counts = unit.facts.evaluations
    return counts.attack[0] + counts.score[0] + counts.checks[0]


def _evaluations(run: RunDirectory, units: Sequence[Unit]) -> str:
    """Evaluations of the denoiser; of what is left, by the mean of the row's units, or of all where it has none yet."""
    of_row: dict[str, list[int]] = {}
    for unit in units:
        of_row.setdefault(unit.facts.row, []).append(_spent(unit))
    everything = [count for counts in of_row.values() for count in counts]
    if not everything:
        return "no evaluation of the denoiser yet"
    done, left = {unit.facts.unit for unit in units}, 0.0
    for entry in run.header.units:
        if entry.unit not in done:
            known = of_row.get(entry.row, everything)
            left += sum(known) / len(known)
    said = f"; about {compact(round(left))} are left" if len(units) < len(run.header.units) else ""
    return f"{compact(sum(everything))} evaluations of the denoiser{said}"


def _pace(run: RunDirectory, units: Sequence[Unit]) -> str:
    """Time left, by the time between the last units."""
    files = [run.file(unit.facts.unit) for unit in units]
    moments = sorted(file.stat().st_mtime for file in files if file.exists())[-RECENT:]  # of those that are not packed
    missing = len(run.header.units) - len(units)
    if len(moments) < 2 or moments[-1] == moments[0]:
        return "time left: not known before two units are done"
    each = (moments[-1] - moments[0]) / (len(moments) - 1)
    ago = duration(time.time() - moments[-1])
    return (
        f"time left: about {duration(missing * each)}, by the {duration(each)} between each of the last {len(moments)} "
        f"units; the last was done {ago} ago"
    )
