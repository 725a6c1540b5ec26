"""Verdicts on whether a record holds, in words. What they are of is found by `depura.evaluation.verification`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depura.analysis.verdicts import Status, Verdict
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.kinds import Word
from depura.statistics.intervals import Recount, Remade, holm

IDS = ("digest", "complete", "report", "hash", "bounds", "rescore", "remake")
"""What is checked, in order."""

LEVEL = 0.01
"""A re-scored row fails where its p-value, corrected for the number of rows, is below."""

PARTS = {
    "data": ("data",),
    "defence": ("methods",),
    "attacks": ("rows", "threat_model", "curve"),
    "study": ("name", "seed", "draws", "memory", "units", "rescored_from"),
}
"""Parts of a header that decide its numbers, by what they are about."""


def files(directory: RunDirectory) -> tuple[Verdict, tuple[Unit, ...]]:
    """Whether every unit that is there can be read and is of this study, and nothing else lies among them.

    Args:
        directory: a run.

    Returns:
        The verdict, and the units that are sound.
    """
    sound, read = list[Unit](), 0
    broken = [f"foreign file {file}" for file in directory.foreign()]
    for entry in directory.header.units:
        if directory.has(entry.unit):
            try:
                sound.append(directory.load(entry.unit))
                read += 1
            except RecordError as error:
                broken.append(str(error))
    if broken:
        return Verdict("digest", "files", Status.FAIL, _some(broken), "Nothing else is lost."), tuple(sound)
    words = f"all {read} units can be read, with the contents that their digests were taken of"
    return Verdict("digest", "files", Status.PASS, words), tuple(sound)


def complete(done: int, total: int) -> Verdict:
    """Whether all units of a study are there.

    Args:
        done: units that are there.
        total: units that there should be.

    Returns:
        The verdict; a warning where some are missing, as a run that was stopped is no wrong one.
    """
    words = f"{done} of {total} units are there"
    if done == total:
        return Verdict("complete", "all units", Status.PASS, words)
    return Verdict("complete", "all units", Status.WARN, words, "Give the command that made the run again.")


def report(present: Sequence[str], stale: Sequence[str]) -> Verdict:
    """Whether the reports in the folder are those of its record.

    Args:
        present: names of the reports that are there.
        stale: names of those that are not what the record gives now.

    Returns:
        The verdict.
    """
    if not present:
        return Verdict("report", "reports", Status.NOT_RUN, "no report is in the folder")
    if stale:
        words = f"{' and '.join(stale)} stale: made anew from the record it differs"
        return Verdict("report", "reports", Status.FAIL, words, "`depura report` writes it from the record.")
    return Verdict("report", "reports", Status.PASS, f"{' and '.join(present)}: made anew from the record, equal bytes")


def unreportable(why: str) -> Verdict:
    """What is said where no report can be made of a record.

    Args:
        why: the error.

    Returns:
        The verdict.
    """
    return Verdict("report", "reports", Status.FAIL, f"no report can be made of the record ({why})")


def study(differences: Sequence[tuple[str, str]]) -> tuple[Verdict, ...]:
    """Whether the study, built anew, is the one that was recorded.

    Args:
        differences: parts of the header that differ, each with a sentence.

    Returns:
        A verdict on each of the parts that decide the numbers, and a warning at most on what computed them.
    """
    found = dict(differences)
    verdicts: list[Verdict] = []
    for name, parts in PARTS.items():
        wrong = [found.pop(part) for part in parts if part in found]
        status = Status.FAIL if wrong else Status.PASS
        advice = "With --study another file is taken, with -S other settings." if wrong else ""
        words = _some(wrong) if wrong else f"{', '.join(parts)}: equal to those of the study built anew"
        verdicts.append(Verdict("hash", name, status, words, advice))
    if found:
        words = f"computed by another code: {_some(list(found.values()))}"
        verdicts.append(Verdict("hash", "code", Status.WARN, words, "Numbers may differ in their last bits, or more."))
    else:
        verdicts.append(Verdict("hash", "code", Status.PASS, "the code and the versions that computed it are these"))
    return tuple(verdicts)


def not_rebuilt(why: str) -> tuple[Verdict, ...]:
    """What is said where the study cannot be built anew.

    Args:
        why: the reason.

    Returns:
        Verdicts of checks that were not run; the first has the reason.
    """
    names = (("hash", "study"), ("bounds", "examples"), ("rescore", "fresh draws"), ("remake", "the attack"))
    reasons = (why, *["without the study this cannot be checked"] * 3)
    return tuple(Verdict(id, name, Status.NOT_RUN, text) for (id, name), text in zip(names, reasons, strict=True))


def bounds(faults: Sequence[str], n_units: int) -> Verdict:
    """Whether the arrays can be true.

    Args:
        faults: sentences on what cannot.
        n_units: units looked at.

    Returns:
        The verdict.
    """
    if faults:
        return Verdict("bounds", "examples", Status.FAIL, _some(faults), "Delete these units and run again.")
    words = f"{n_units} units: examples in their balls and in [0, 1], at the distances recorded; counts in range"
    return Verdict("bounds", "examples", Status.PASS, words)


def rescored(recounts: Sequence[Recount]) -> tuple[Verdict, ...]:
    """Whether fresh draws agree with those that were recorded.

    Args:
        recounts: one for each row and null baseline.

    Returns:
        A verdict for each, its p-value corrected for their number (Holm).
    """
    verdicts: list[Verdict] = []
    for recount, p in zip(recounts, holm([r.p for r in recounts]), strict=True):
        n = len(recount.recorded)
        draws = n * recount.draws
        words = (
            f"{n} image{'s' if n > 1 else ''}: {100 * recount.again.sum() / draws:.1f} % of {draws} fresh draws wrong, "
            f"{100 * recount.recorded.sum() / draws:.1f} % of as many recorded (p = {p:.2g})"
        )
        if p < LEVEL:
            advice = "What was recorded is not what this defence says of these examples."
            verdicts.append(Verdict("rescore", recount.row, Status.FAIL, words, advice))
        else:
            verdicts.append(Verdict("rescore", recount.row, Status.PASS, words))
    return tuple(verdicts)


def remade(units: Sequence[Remade]) -> Verdict:
    """Whether attacks that were made again gave what is on record.

    Args:
        units: made again, at least one.

    Returns:
        PASS where the bytes are equal; FAIL where the examples are not equally strong; a warning where they are and
        some bits differ, as sums are rounded otherwise on another machine or by other versions.
    """
    names, other = ", ".join(unit.unit for unit in units), [unit for unit in units if unit.differing]
    if not other:
        return Verdict("remake", "the attack", Status.PASS, f"{names}: made again, equal bytes")
    worst = min(other, key=lambda unit: unit.recount.p)
    count = worst.recount
    draws = len(count.recorded) * count.draws
    words = (
        f"{worst.unit}: made again, {100 * count.again.sum() / draws:.1f} % of {draws} draws are wrong, "
        f"{100 * count.recorded.sum() / draws:.1f} % on record (p = {count.p:.2g}); {_some(worst.differing)} differ"
    )
    if count.p < LEVEL / len(units):
        advice = "The examples on record are not those of this attack."
        return Verdict("remake", "the attack", Status.FAIL, words, advice)
    advice = "On another machine, or by other versions, sums are rounded otherwise."
    return Verdict("remake", "the attack", Status.WARN, words, advice)


def not_remade(why: str) -> Verdict:
    """What is said where no attack is made again.

    Args:
        why: the reason.

    Returns:
        The verdict.
    """
    return Verdict("remake", "the attack", Status.NOT_RUN, why)


class Outcome(Word):
    """What verification comes to."""

    HOLDS = "holds"
    NOT_CHECKED = "files hold, numbers not checked"
    DOES_NOT_HOLD = "does not hold"


def required(verdict: Verdict, ids: Sequence[str]) -> Verdict:
    """A verdict that fails if its check is required and did not pass.

    Args:
        verdict: of a check.
        ids: of checks that must pass.

    Returns:
        The verdict.
    """
    if verdict.id not in ids or verdict.status in (Status.PASS, Status.FAIL):
        return verdict
    return verdict._replace(status=Status.FAIL, sentence=f"required, and {verdict.status.value}: {verdict.sentence}")


def outcome(verdicts: Sequence[Verdict]) -> Outcome:
    """What all checks come to.

    Args:
        verdicts: of all.

    Returns:
        The outcome: numbers are checked where the study could be built and examples were scored again.
    """
    if any(verdict.status is Status.FAIL for verdict in verdicts):
        return Outcome.DOES_NOT_HOLD
    scored = any(v.id == "rescore" and v.status is Status.PASS for v in verdicts)
    return Outcome.HOLDS if scored else Outcome.NOT_CHECKED


def closing(outcome: Outcome, verdicts: Sequence[Verdict]) -> str:
    """The last line.

    Args:
        outcome: what the checks come to.
        verdicts: of all.

    Returns:
        A sentence.
    """
    failed = sum(verdict.status is Status.FAIL for verdict in verdicts)
    return {
        Outcome.HOLDS: "The record holds.",
        Outcome.NOT_CHECKED: "The files hold; the numbers were not checked.",
        Outcome.DOES_NOT_HOLD: f"The record does not hold: {failed} check{'s' if failed > 1 else ''} failed.",
    }[outcome]


def as_json(outcome: Outcome, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """For programs.

    Args:
        outcome: what the checks come to.
        verdicts: of all.

    Returns:
        {"outcome": ..., "checks": [{"id", "name", "status", "sentence", "advice"}, ...]}.
    """
    checks = [
        {"id": v.id, "name": v.name, "status": v.status.value, "sentence": v.sentence, "advice": v.advice}
        for v in verdicts
    ]
    return {"outcome": outcome.value, "checks": checks}


def _some(sentences: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more."""
    more = f" (and {len(sentences) - most} more)" if len(sentences) > most else ""
    return "; ".join(sentences[:most]) + more
