"""All checks of a run, in order, and what follows from them: flags, and whether there is a headline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depura.judging import soundness, strength
from depura.judging.evidence import Evidence
from depura.judging.verdicts import Status, Verdict

CHECKS = (
    soundness.undefended,
    soundness.identity,
    soundness.unchanged,
    strength.radii,
    strength.iterated,
    strength.budget,
    strength.ladder,
    strength.without_gradients,
    strength.random_search,
    strength.pinned,
    soundness.rises,
    soundness.gradients,
    soundness.clean,
    strength.beyond_null,
    soundness.within,
    soundness.audited,
    soundness.tiny,
)
"""V1 to V17."""

OF_ALL = (soundness.identity, soundness.within, soundness.audited)
"""Those that a comparison of methods makes of all of them together."""

WITHHOLDING = ("V6", "V7", "V8")
"""Checks whose warning says that the attack was not strong enough for its number to be printed."""

FLAGS = {
    "V4": "accuracy does not fall with the radius",
    "V6": "not converged",
    "V7": "weak white-box attack",
    "V8": "weak white-box attack",
    "V12": "doubtful gradients",
    "V14": "nothing beyond noise",
    "V16": "gradient is not the derivative",
}
"""What a reader must know first, where a check is not passed."""


def verdicts(at: Evidence) -> tuple[Verdict, ...]:
    """Every check of a run.

    Args:
        at: its records.

    Returns:
        V1 to V17 of a study of one defence; of a comparison, V2, V15 and V16.
    """
    return tuple(check(at) for check in (OF_ALL if at.header["methods"] else CHECKS))


def flags(found: Sequence[Verdict], at: Evidence) -> tuple[str, ...]:
    """What a reader must know first, each once."""
    raised = [v for v in found if v.status in (Status.WARN, Status.FAIL)]
    said: list[str] = []
    for verdict in raised:
        if verdict.id == "V12" and "exactly zero" in verdict.sentence:
            said.append("masked gradient")
        elif verdict.id == "V16" and "batch" in verdict.sentence:
            said.append("batch-dependent")
        elif verdict.id == "V15":
            said.append("examples outside the ball" if verdict.status is Status.FAIL else "undone by 8 bits")
        elif verdict.id in FLAGS and not (verdict.id == "V16" and verdict.status is Status.WARN):
            said.append(FLAGS[verdict.id])
    if at.audits and all(_deterministic(unit.meta["audit"]) for unit in at.audits):
        said.append("deterministic")
    if not at.header["methods"]:
        own = at.rows("adaptive", "relaxed")
        if not own:
            said.append("no adaptive attack")
        elif all(row["route"] not in ("G0", "G6", "G6d", "G8") for row in own):
            said.append("approximate route")
    return tuple(dict.fromkeys(said))


def refusal(found: Sequence[Verdict]) -> str:
    """What stands in the headline's place; empty where nothing speaks against it."""
    failed = [v for v in found if v.status is Status.FAIL]
    if failed:
        return f"No headline: {_said(failed)}"
    weak = [v for v in found if v.status is Status.WARN and v.id in WITHHOLDING]
    if weak:
        return f"Headline withheld: {_said(weak)}"
    return ""


def _deterministic(audit: dict[str, Any]) -> bool:
    """Whether the defence answered the same whatever noise it was handed."""
    return any(check[0] == "randomness" and check[3] == 0 for check in audit["checks"])


def _said(found: Sequence[Verdict]) -> str:
    return " ".join(f"{v.id} ({v.name}): {v.sentence} {v.advice}".rstrip() for v in found)
