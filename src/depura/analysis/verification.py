"""Verdicts on whether a record holds, in words; `depura.evaluation.verification` computes what they are of."""

from __future__ import annotations

from collections.abc import Sequence

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


def file_verdict(directory: RunDirectory) -> tuple[Verdict, tuple[Unit, ...]]:
    """Whether every unit that is there can be read and is of this study, without other files among them.

    The sound units are returned too.
    """
    sound: list[Unit] = []
    broken: list[str] = []
    try:
        broken += [f"foreign file {file}" for file in directory.foreign()]
    except RecordError as error:  # a file of packed units that cannot be read
        broken.append(str(error))
    for entry in directory.header.units:
        try:
            if directory.has(entry.unit):
                sound.append(directory.load(entry.unit))
        except RecordError as error:
            broken.append(str(error))
    broken = [*dict.fromkeys(broken)]
    if broken:
        return Verdict("digest", "files", Status.FAIL, _some(broken), "Nothing else is lost."), tuple(sound)
    text = f"all {len(sound)} units can be read, with the contents that their digests were taken of"
    return Verdict("digest", "files", Status.PASS, text), tuple(sound)


def completeness_verdict(done: int, total: int) -> Verdict:
    """Whether all units of a study are there; a warning if not, as a run that was stopped is no wrong one."""
    text, complete = f"{done} of {total} units are there", done == total
    advice = "" if complete else "Give the command that made the run again."
    return Verdict("complete", "all units", Status.PASS if complete else Status.WARN, text, advice)


def report_verdict(present: Sequence[str], stale: Sequence[str]) -> Verdict:
    """Whether the reports that are present are those of the record; stale ones differ from it."""
    if not present:
        return Verdict("report", "reports", Status.NOT_RUN, "no report is in the folder")
    if stale:
        text = f"{' and '.join(stale)} stale: made anew from the record it differs"
        return Verdict("report", "reports", Status.FAIL, text, "`depura report` writes it from the record.")
    return Verdict("report", "reports", Status.PASS, f"{' and '.join(present)}: made anew from the record, equal bytes")


def study_verdicts(differences: Sequence[tuple[str, str]]) -> tuple[Verdict, ...]:
    """Whether the study, built anew, is the one that was recorded, from parts of the header that differ, each with a
    sentence.

    There is a verdict on each of the parts that decide the numbers, and a warning at most on what computed them.
    """
    differing = dict(differences)
    verdicts: list[Verdict] = []
    for name, parts in PARTS.items():
        wrong = [differing.pop(part) for part in parts if part in differing]
        status = Status.FAIL if wrong else Status.PASS
        advice = "With --study another file is taken, with -S other settings." if wrong else ""
        text = _some(wrong) if wrong else f"{', '.join(parts)}: equal to those of the study built anew"
        verdicts.append(Verdict("hash", name, status, text, advice))
    if differing:
        text = f"computed by another code: {_some(list(differing.values()))}"
        verdicts.append(Verdict("hash", "code", Status.WARN, text, "Numbers may differ in their last bits, or more."))
    else:
        verdicts.append(Verdict("hash", "code", Status.PASS, "the code and the versions that computed it are these"))
    return tuple(verdicts)


def without_study(why: str) -> tuple[Verdict, ...]:
    """Verdicts of the checks that are not run where the study cannot be built anew; the first has the reason."""
    names = (("hash", "study"), ("bounds", "examples"), ("rescore", "fresh draws"), ("remake", "the attack"))
    reasons = (why, *["without the study this cannot be checked"] * 3)
    return tuple(Verdict(id, name, Status.NOT_RUN, text) for (id, name), text in zip(names, reasons, strict=True))


def bounds_verdict(faults: Sequence[str], n_units: int) -> Verdict:
    """Whether the arrays of some units can be true; faults are sentences on what cannot."""
    if faults:
        return Verdict("bounds", "examples", Status.FAIL, _some(faults), "Delete these units and run again.")
    text = f"{n_units} units: examples in their balls and in [0, 1], at the distances recorded; counts in range"
    return Verdict("bounds", "examples", Status.PASS, text)


def rescore_verdicts(recounts: Sequence[Recount]) -> tuple[Verdict, ...]:
    """Whether fresh draws agree with recorded ones, row by row; p-values are corrected for their number (Holm)."""
    verdicts: list[Verdict] = []
    for recount, p in zip(recounts, holm([r.p for r in recounts]), strict=True):
        n = len(recount.recorded)
        draws = n * recount.draws
        text = (
            f"{n} image{'s' if n > 1 else ''}: {100 * recount.again.sum() / draws:.1f} % of {draws} fresh draws wrong, "
            f"{100 * recount.recorded.sum() / draws:.1f} % of as many recorded (p = {p:.2g})"
        )
        advice = "What was recorded is not what this defence says of these examples." if p < LEVEL else ""
        verdicts.append(Verdict("rescore", recount.row, Status.FAIL if p < LEVEL else Status.PASS, text, advice))
    return tuple(verdicts)


def remake_verdict(units: Sequence[Remade], why_none: str) -> Verdict:
    """Whether attacks that were made again gave what is on record; `why_none` is the reason where none was.

    PASS where the bytes are equal; FAIL where the examples are not equally strong; a warning where they are and some
    bits differ, as sums are rounded otherwise on another machine or by other versions.
    """
    id, name = "remake", "the attack"
    if not units:
        return Verdict(id, name, Status.NOT_RUN, why_none)
    other = [unit for unit in units if unit.differing]
    if not other:
        return Verdict(id, name, Status.PASS, f"{', '.join(unit.unit for unit in units)}: made again, equal bytes")
    worst = min(other, key=lambda unit: unit.recount.p)
    count = worst.recount
    draws = len(count.recorded) * count.draws
    text = (
        f"{worst.unit}: made again, {100 * count.again.sum() / draws:.1f} % of {draws} draws are wrong, "
        f"{100 * count.recorded.sum() / draws:.1f} % on record (p = {count.p:.2g}); {_some(worst.differing)} differ"
    )
    if count.p < LEVEL / len(units):
        return Verdict(id, name, Status.FAIL, text, "The examples on record are not those of this attack.")
    return Verdict(id, name, Status.WARN, text, "On another machine, or by other versions, sums are rounded otherwise.")


class Verification(Word):
    """What all checks of a record come to."""

    HOLDS = "holds"
    NOT_CHECKED = "files hold, numbers not checked"
    DOES_NOT_HOLD = "does not hold"


def required(verdict: Verdict, ids: Sequence[str]) -> Verdict:
    """The verdict of a check, which fails if the check is among the required ones and did not pass."""
    if verdict.id not in ids or verdict.status in (Status.PASS, Status.FAIL):
        return verdict
    return verdict._replace(status=Status.FAIL, sentence=f"required, and {verdict.status.value}: {verdict.sentence}")


def verification(verdicts: Sequence[Verdict]) -> tuple[Verification, str]:
    """What all checks come to, and the last line of the command.

    The numbers are checked where the study could be built and examples were scored again.
    """
    failed = sum(verdict.status is Status.FAIL for verdict in verdicts)
    if failed:
        text = f"The record does not hold: {failed} check{'s' if failed > 1 else ''} failed."
        return Verification.DOES_NOT_HOLD, text
    if any(v.id == "rescore" and v.status is Status.PASS for v in verdicts):
        return Verification.HOLDS, "The record holds."
    return Verification.NOT_CHECKED, "The files hold; the numbers were not checked."


def _some(sentences: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more."""
    more = f" (and {len(sentences) - most} more)" if len(sentences) > most else ""
    return "; ".join(sentences[:most]) + more
