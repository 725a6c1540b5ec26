"""How far a run is that still goes on: units done, and for each row the accuracy so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from depura.evaluation.records import Unit
from depura.evaluation.statistics import Estimate
from depura.judging.metrics import outcome


class Progress(NamedTuple):
    """A row at one radius while its run goes on.

    Attributes:
        name: of the row; null baselines and audits are rows too.
        title: for people; empty of what is no attack.
        eps: radius.
        done: units that are there.
        total: units that it has.
        images: how many images these units hold.
        of: how many images it is to be run on.
        so_far: accuracy of one draw on the images done; None where nothing is predicted yet.
    """

    name: str
    title: str
    eps: float
    done: int
    total: int
    images: int
    of: int
    so_far: Estimate | None


def progress(header: dict[str, Any], units: Sequence[Unit]) -> tuple[Progress, ...]:
    """Where a run is.

    Args:
        header: of the run.
        units: those that are done.

    Returns:
        One line for each row and radius, in the study's order.
    """
    titles = {row["name"]: row["title"] for row in header["rows"]}
    keys = [entry["unit"] for entry in header["units"]]
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.rpartition("_")[0], []).append(key)
    done = {unit.meta["unit"]: unit for unit in units}
    found: list[Progress] = []
    for group, names in groups.items():
        row, _, radius = group.rpartition("_eps")
        there = [done[name] for name in names if name in done]
        predicted = [unit for unit in there if "predictions" in unit.arrays]
        found.append(
            Progress(
                name=row,
                title=titles.get(row, ""),
                eps=float(radius),
                done=len(there),
                total=len(names),
                images=sum(_span(name) for name in names if name in done),
                of=sum(_span(name) for name in names),
                so_far=outcome(predicted).metrics.single if predicted else None,
            )
        )
    return tuple(found)


def _span(unit: str) -> int:
    """Images of a unit, read off its name."""
    first, _, last = unit.rpartition("_")[2].partition("-")
    return int(last) - int(first)
