"""More of the same study on the same record: what was recorded stays, and only units that are new are computed."""

from __future__ import annotations

from typing import Any

from depura.evaluation.header import header
from depura.evaluation.study import Study
from depura.evaluation.study_file import StudySource
from depura.records.describe import describe
from depura.records.directory import RecordError, RunDirectory, difference
from depura.records.schema import Extension, Header

SAME = ("name", "seed", "threat_model", "methods", "draws", "memory", "versions", "code")
"""Parts of a header that an extension leaves as they are."""


def extended(directory: RunDirectory, study: Study, *, source: StudySource, command: str) -> Header:
    """What a run directory will say of its study once it is extended.

    Args:
        directory: a run.
        study: with more images, rows or radii; it keeps the units of the run (`Study.kept`).
        source: where it comes from.
        command: what extends it.

    Returns:
        The header; the run's own where there is nothing new.

    Raises:
        RecordError: another study, a rescored run, or one that lacks something that was recorded.
    """
    old, new = directory.header, header(study, command="", source=source)
    where = f"extend {directory.path}"
    if old.rescored_from is not None:
        raise RecordError(f"{where}: expected a run with attacks, got one rescored. Extend that, and rescore it again.")
    if old.left_out:
        raise RecordError(f"{where}: expected a run with its images, got one published without. Extend the run itself.")
    reason = _other(old, new, study)
    if reason:
        raise RecordError(
            f"{where}: expected the same study with more to it, got another one ({reason}). "
            "Start a new run, by depura run; other draws of the same examples are made by depura rescore."
        )
    if new.units == old.units and new.rows == old.rows and new.data == old.data and new.curve == old.curve:
        return old
    step = Extension(
        command=command, source=old.source, images=len(old.data.ids), rows=len(old.rows), units=len(old.units)
    )
    return new.model_copy(update={"command": f"{old.command}\n    {command}", "extensions": (*old.extensions, step)})


def _other(old: Header, new: Header, study: Study) -> str:
    """The first thing that the recorded study has otherwise, in words; empty if the new one only has more."""
    before, now = old.as_json(), new.as_json()
    for part in SAME:
        differing = difference(before[part], now[part], part)
        if differing:
            return differing
    n = len(old.data.ids)
    first: dict[str, Any] = {
        "ids": new.data.ids[:n],
        "labels": new.data.labels[:n],
        "images": describe(study.data.images[:n]),
    }
    first["choice"] = old.data.choice  # of as many images as there were then
    if new.data.model_copy(update=first) != old.data:
        return difference(before["data"], new.data.model_copy(update=first).as_json(), "data")
    rows = {row.name: row for row in new.rows}
    for row in old.rows:
        if row.name not in rows:
            return f"row {row.name} is there and not here"
        same = rows[row.name].model_copy(update={"images": row.images})
        if same != row:
            return difference(row.as_json(), same.as_json(), f"row {row.name}")
    order = [row.name for row in new.rows if row.name in {row.name for row in old.rows}]
    if order != [row.name for row in old.rows]:
        return "rows are in another order"
    units = {unit.unit for unit in new.units}
    return next((f"unit {unit.unit} is there and not here" for unit in old.units if unit.unit not in units), "")
