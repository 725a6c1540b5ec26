"""What a report does not say: attacks that were not run, and what its numbers do not cover. Read off the run."""

from __future__ import annotations

from depura.judging.summary import Summary
from depura.judging.words import APPROXIMATE, KINDS
from depura.records.kinds import AttackKind
from depura.records.schema import Judged


def sentences(summary: Summary) -> tuple[str, ...]:
    """The limits of a complete run.

    Args:
        summary: of the run.

    Returns:
        Sentences, the most important first.
    """
    return tuple(
        filter(None, (_attacks(summary), _gradient(summary), _budget(summary), _images(summary), *_rest(summary)))
    )


def _attacks(summary: Summary) -> str:
    kinds = {row.kind for row in summary.header.rows}
    missing = [words for kind, words in KINDS.items() if kind not in kinds]
    return f"Not run: {', '.join(missing)}." if missing else "Every kind of attack that depura knows was run."


def _gradient(summary: Summary) -> str:
    """Methods whose adaptive attack has no exact gradient."""
    rows = [r for r in summary.header.rows if r.kind is AttackKind.ADAPTIVE and r.judged is Judged.DEFENCE]
    named = [row.name for row in rows if row.mode in APPROXIMATE]
    if not named:
        return ""
    return f"The gradient of {', '.join(named)} is an approximation; with the exact one the attack may be stronger."


def _budget(summary: Summary) -> str:
    if not any(row.kind is AttackKind.BUDGET for row in summary.header.rows):
        return "Whether more steps, more draws per step or another restart would find more was not tried."
    return ""


def _images(summary: Summary) -> str:
    n = len(summary.header.data.ids)
    fewer = [f"{line.name} ({line.images})" for line in summary.lines if line.images < n]
    some = f" Run on the first images only: {', '.join(fewer)}." if fewer else ""
    return f"{n} images of {summary.header.data.name}; intervals are over images like these.{some}"


def _rest(summary: Summary) -> tuple[str, ...]:
    curve = () if summary.header.curve.eps else ("Other radii were not tried.",)
    return (
        *curve,
        f"One seed ({summary.header.seed}) for all noise and all attacks; how numbers differ between seeds is not "
        "known.",
        "Flags of the machine (deterministic algorithms, reduced precision of matrix products) are not recorded.",
        "An accuracy under attack is an upper bound, not a certificate; other threat models are not covered.",
    )
