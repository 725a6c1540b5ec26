"""How far a run is that still goes on: units done, and for each row the accuracy so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from depura.analysis.results import RowResults
from depura.records.directory import Unit
from depura.records.schema import Header, UnitEntry
from depura.statistics.intervals import Proportion, mean_with_interval


class Progress(NamedTuple):
    """A row at one radius while its run goes on.

    Attributes:
        name: of the row; null baselines and audits are rows too.
        eps: radius.
        done: units that are there.
        total: units that it has.
        images: how many images these units hold.
        of: how many images it is to be run on.
        so_far: accuracy of one draw on the images done; None where nothing is predicted yet.
    """

    name: str
    eps: float
    done: int
    total: int
    images: int
    of: int
    so_far: Proportion | None


def run_progress(header: Header, units: Sequence[Unit]) -> tuple[Progress, ...]:
    """Where a run is by the units that are done: a line for each row and radius, in the study's order."""
    groups: dict[tuple[str, float], list[UnitEntry]] = {}
    for entry in header.units:
        groups.setdefault((entry.row, entry.eps), []).append(entry)
    done = {unit.facts.unit: unit for unit in units}
    lines: list[Progress] = []
    for (row, eps), entries in groups.items():
        there = [entry for entry in entries if entry.unit in done]
        lines.append(
            Progress(
                name=row,
                eps=eps,
                done=len(there),
                total=len(entries),
                images=_images(there),
                of=_images(entries),
                so_far=accuracy_so_far([done[entry.unit] for entry in there]),
            )
        )
    return tuple(lines)


def accuracy_so_far(units: Sequence[Unit]) -> Proportion | None:
    """Accuracy of one draw over some units of a row, with its interval; None where nothing is predicted."""
    predicted = tuple(unit for unit in units if "predictions" in unit.arrays)
    return mean_with_interval(RowResults(predicted).accuracies) if predicted else None


def _images(entries: Sequence[UnitEntry]) -> int:
    return sum(entry.last - entry.first for entry in entries)
