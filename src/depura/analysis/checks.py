"""All checks of every defence of a run, in order, and what follows: flags, and whether there is a headline."""

from __future__ import annotations

from collections.abc import Sequence

from depura.analysis import soundness, strength
from depura.analysis.results import Results
from depura.analysis.verdicts import Conclusion, Flag, HeadlineStatus, Status, Verdict
from depura.analysis.words import APPROXIMATE
from depura.records.kinds import AttackKind
from depura.records.schema import Audit

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
    strength.coverage,
    soundness.moved,
    strength.reference,
    soundness.finite,
)
"""V1 to V21."""

WITHHOLDING = ("V6", "V7", "V8", "V18", "V19", "V20")
"""Checks whose warning says that the attack was not strong enough for its number to be printed."""


def verdicts(at: Results) -> tuple[Verdict, ...]:
    """Every check of every defence of a run.

    Args:
        at: its results.

    Returns:
        V1 to V21 of the defence; of a comparison, of each method, one method after another.
    """
    return tuple(check(its)._replace(method=method.name) for method, its in at.each() for check in CHECKS)


def of_method(verdicts: Sequence[Verdict], method: str) -> tuple[Verdict, ...]:
    """Verdicts of one method; of a study of one defence, whose name is empty, all."""
    return tuple(verdict for verdict in verdicts if verdict.method == method)


def flags(verdicts: Sequence[Verdict], at: Results, of: Conclusion | None = None) -> tuple[Flag, ...]:
    """What a reader must know first, each once, in a study of one defence or of one method.

    Args:
        verdicts: of its checks.
        at: its results.
        of: what follows from the checks, where that is known.

    Returns:
        The flags.
    """
    raised = [f for v in verdicts if v.status in (Status.WARN, Status.FAIL) for f in v.flags]
    if at.audits and all(_deterministic(audit) for audit, _ in at.audits):
        raised.append(Flag.DETERMINISTIC)
    own = at.rows(AttackKind.ADAPTIVE, AttackKind.RELAXED)
    if own and all(row.mode in APPROXIMATE for row in own):
        raised.append(Flag.APPROXIMATE)
    if of is not None and of.status is HeadlineStatus.UNCHECKED:
        raised.append(Flag.UNCHECKED)
    return tuple(dict.fromkeys(raised))


def conclusion(verdicts: Sequence[Verdict], at: Results) -> Conclusion:
    """Whether a defence has a headline, and why it has none.

    Args:
        verdicts: of its checks.
        at: its results.

    Returns:
        Failed where a check failed or nothing judges it; withheld where the attack was not strong enough; unchecked
        where nothing says whether it was; else given.
    """
    method = at.method or ""
    if not at.attacks:
        return Conclusion(method, HeadlineStatus.FAILED, "No row judges the defence.")
    failed = [v for v in verdicts if v.status is Status.FAIL]
    if failed:
        return Conclusion(method, HeadlineStatus.FAILED, _said(failed))
    weak = [v for v in verdicts if v.status is Status.WARN and v.id in WITHHOLDING]
    if weak:
        return Conclusion(method, HeadlineStatus.WITHHELD, _said(weak))
    absent = {v.id for v in verdicts if v.status is Status.NOT_RUN}
    if {"V4", "V20"} <= absent and not at.rows(AttackKind.BLACK_BOX):
        reason = (
            "The attack was run at one radius, with no attack of depura's own and none without gradients beside it: "
            "nothing says whether it is strong."
        )
        return Conclusion(method, HeadlineStatus.UNCHECKED, reason)
    return Conclusion(method, HeadlineStatus.GIVEN)


def refusal(of: Conclusion) -> str:
    """What stands in the headline's place; empty where there is a headline.

    Args:
        of: the conclusion on a defence.

    Returns:
        A sentence.
    """
    begin = {
        HeadlineStatus.FAILED: "No headline: ",
        HeadlineStatus.WITHHELD: "Headline withheld: ",
        HeadlineStatus.UNCHECKED: "Unchecked: ",
        HeadlineStatus.GIVEN: "",
    }[of.status]
    return f"{begin}{of.reason}"


def _deterministic(audit: Audit) -> bool:
    """Whether the defence answered the same whatever noise it was handed."""
    check = audit.check("randomness")
    return check is not None and check.measured == 0


def _said(verdicts: Sequence[Verdict]) -> str:
    return " ".join(f"{v.id} ({v.name}): {v.sentence} {v.advice}".rstrip() for v in verdicts)
