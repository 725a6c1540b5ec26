"""More of the same study on the same record: what was recorded stays, and only what is new is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depura.evaluation.describe import describe
from depura.evaluation.header import header
from depura.evaluation.imageless import LEFT_OUT
from depura.evaluation.records import RecordError, RunDirectory, difference
from depura.evaluation.source import StudySource
from depura.evaluation.study import Study

SAME = (
    "name",
    "seed",
    "threat_model",
    "defence",
    "rule",
    "note",
    "methods",
    "memory",
    "versions",
    "code",
)
"""Parts of a header that an extension leaves as they are."""


def extended(directory: RunDirectory, study: Study, *, source: StudySource, command: str) -> dict[str, Any]:
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
    if "rescored_from" in old:
        raise RecordError(f"{where}: expected a run with attacks, got one rescored. Extend that, and rescore it again.")
    if LEFT_OUT in old:
        raise RecordError(f"{where}: expected a run with its images, got one published without. Extend the run itself.")
    reason = _other(old, new, study)
    if reason:
        raise RecordError(
            f"{where}: expected the same study with more to it, got another one ({reason}). "
            "Start a new run, by depura run."
        )
    own = {key: value for key, value in old.items() if key not in ("command", "source", "schema", "extensions")}
    if not difference(own, {key: value for key, value in new.items() if key in own}):
        return old
    step = {
        "command": command,
        "source": old["source"],
        "images": len(old["data"]["ids"]),
        "rows": len(old["rows"]),
        "units": len(old["units"]),
    }
    return {
        **new,
        "schema": old["schema"],
        "command": f"{old['command']}\n    {command}",
        "extensions": [*old.get("extensions", []), step],
    }


def _other(old: Mapping[str, Any], new: Mapping[str, Any], study: Study) -> str:
    """The first thing that the recorded study has otherwise, in words; empty if the new one only has more."""
    for part in SAME:
        found = difference(old[part], new[part], part)
        if found:
            return found
    before, now = ([*its["draws"].get("kept", []), its["draws"]["report"]] for its in (old, new))
    if old["draws"]["select"] != new["draws"]["select"] or now[: len(before)] != before:
        return f"draws are {before} there and {now} here; --draws asks for further ones"
    data, n = dict(new["data"]), len(old["data"]["ids"])
    data |= {"ids": data["ids"][:n], "labels": data["labels"][:n], "images": describe(study.data.images[:n])}
    rows = {row["name"]: row for row in new["rows"]}
    kept = [rows.get(row["name"]) for row in old["rows"]]
    same = [
        None if its is None else {**its, "images": row["images"]} for its, row in zip(kept, old["rows"], strict=True)
    ]
    found = difference(old["data"], data, "data") or difference(old["rows"], same, "rows")
    if found:
        return found
    order = [row["name"] for row in new["rows"] if row["name"] in {row["name"] for row in old["rows"]}]
    if order != [row["name"] for row in old["rows"]]:
        return "rows are in another order"
    gone = [unit["unit"] for unit in old["units"] if unit["unit"] not in {unit["unit"] for unit in new["units"]}]
    return f"unit {gone[0]} is there and not here" if gone else ""
