"""Layouts of records before the one that is written, and how they are read: as if they had been written in it.

Layout 5 named objects by their files, had one defence outside the list of methods, codes of gradient routes, and
further draws of recorded examples in units of their own. What it did not record stays unknown. Layouts 5 and 6 kept
whole numbers in the types that they were computed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depura.records.kinds import AttackKind, GradientMode
from depura.records.names import name_of_path, renamed

OLDEST = 5
"""The oldest layout that is read."""

NARROWED = 7
"""The layout from which on whole numbers are kept in the smallest type that holds them."""

MODES = {
    "G2": GradientMode.BPDA,
    "G4": GradientMode.SURROGATE,
    "G5": GradientMode.ADJOINT,
    "G6": GradientMode.EXACT,
    "G6d": GradientMode.DEVIATED,
    "G7": GradientMode.GRAFTED,
    "G8": GradientMode.RELAXED,
}
"""Codes of layout 5 by gradient mode; G0, the bare classifier, depends on what was judged."""

NEVER_TRANSFERRED = (AttackKind.OTHER, AttackKind.UNDEFENDED, AttackKind.UNCHANGED, AttackKind.TRANSFER)
"""Kinds that a row keeps whatever it judges."""

UNIT = ("unit", "row", "eps", "first", "last")

WITHOUT_GRADIENTS = (AttackKind.UNCHANGED, AttackKind.RANDOM, AttackKind.BLACK_BOX)


def upgraded_header(raw: Mapping[str, Any], layout: int) -> dict[str, Any]:
    """The JSON value of study.json of an older layout, `OLDEST` or later, as it would be written now."""
    if layout != OLDEST:
        return dict(raw)
    threat = dict(raw["threat_model"])
    threat["family"] = threat.pop("class")
    draws = {"select": raw["draws"]["select"], "report": raw["draws"]["report"]}
    found: dict[str, Any] = {
        **{key: raw[key] for key in ("command", "name", "seed", "data", "memory", "curve", "versions", "code")},
        "source": _source(raw.get("source")),
        "threat_model": threat,
        "methods": _methods(raw),
        "rows": [_of_another_rule(_row(row, raw), raw) for row in raw["rows"]],
        "draws": draws,
        "units": [{key: entry[key] for key in UNIT} for entry in raw["units"] if not entry.get("since")],
        "published": raw.get("published", []),
        "left_out": raw.get("left_out", ""),
        "extensions": [{**step, "source": _source(step.get("source"))} for step in raw.get("extensions", [])],
    }
    if "rescored_from" in raw:
        its = raw["rescored_from"]
        found["rescored_from"] = {**its, "rules": renamed(its["rules"], name_of_path)}
    return found


def upgraded_facts(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a unit of layout 5, a JSON value without its digests, as they would be written now."""
    found = {key: value for key, value in raw.items() if key != "since"}
    if "audit" in found:
        audit = dict(found["audit"])
        names = ("name", "light", "sentence", "measured")
        audit["checks"] = [dict(zip(names, check, strict=True)) for check in audit["checks"]]
        audit["faults"] = [dict(zip(("part", "sentence"), fault, strict=True)) for fault in audit["faults"]]
        found["audit"] = audit
    return found


def further_draws(raw: Mapping[str, Any]) -> dict[tuple[str, float, int], list[str]]:
    """Names of the units of layout 5 that hold further draws of a unit's examples, in the order of the draws.

    `raw` is the JSON value of study.json; they are by the row of the unit, its radius and the position of its first
    image.
    """
    found: dict[tuple[str, float, int], list[str]] = {}
    for entry in sorted((e for e in raw["units"] if e.get("since")), key=lambda entry: entry["since"]):
        found.setdefault((entry["row"], entry["eps"], entry["first"]), []).append(entry["unit"])
    return found


def _source(raw: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if raw is None:
        return None
    added = [dict(zip(("name", "steps", "eot"), attack, strict=False)) for attack in raw.get("attacks", [])]
    draws = raw.get("draws") or [None]
    named = {key: raw[key] for key in ("file", "settings", "profile")}
    return {**named, "attacks": added, "draws": draws[-1]}


def _methods(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    methods = raw["methods"] or [{key: raw[key] for key in ("defence", "rule", "note")}]
    return [renamed_parts(method, ("defence", "rule")) for method in methods]


def _row(row: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    found = renamed_parts({key: value for key, value in row.items() if key != "route"}, ("attack",))
    found.setdefault("images", len(raw["data"]["ids"]))
    found["mode"] = _mode(row, raw)
    return found


def _of_another_rule(row: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """A row of rescored examples that were made against another rule than the one that is judged: a transfer."""
    if "rescored_from" not in raw or row["judged"] != "defence" or row["kind"] == AttackKind.UNCHANGED:
        return row
    names = [method["name"] for method in raw["methods"]]
    k = names.index(row["method"]) if names else 0
    if raw["rescored_from"]["rules"][k] == (raw["methods"][k] if names else raw)["rule"]:
        return row
    kind = row["kind"] if row["kind"] in NEVER_TRANSFERRED else AttackKind.TRANSFER
    return {**row, "kind": kind, "mode": GradientMode.TRANSFER}


def _mode(row: Mapping[str, Any], raw: Mapping[str, Any]) -> GradientMode:
    if row["kind"] in WITHOUT_GRADIENTS:
        return GradientMode.NONE
    if row["route"] != "G0":
        return MODES[row["route"]]
    judged = next((its for its in raw["methods"] if its["name"] == row["method"]), raw)["defence"]
    bare = row["judged"] == "bare" or (judged is not None and judged["purifier"] is None)
    return GradientMode.EXACT if bare else GradientMode.TRANSFER


def renamed_parts(value: Mapping[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object in which descriptions, under the keys `parts`, call things by the names that they have now."""
    return {key: renamed(its, name_of_path) if key in parts else its for key, its in value.items()}
