"""What a check of an evaluation says: passed, to be read with care, failed, or not run; and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from depura.analysis.results import Results
from depura.analysis.words import APPROXIMATE
from depura.records.kinds import AttackKind, Word


class Status(Enum):
    """The outcome of a check. A failed one takes the headline's place."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    NOT_RUN = "not run"


class Flag(Word):
    """What a reader must know first."""

    RADIUS = "accuracy does not fall with the radius"
    NOT_CONVERGED = "not converged"
    WEAK = "weak white-box attack"
    MASKED = "masked gradient"
    GRADIENTS = "doubtful gradients"
    NOISE = "nothing beyond noise"
    FEW_IMAGES = "not distinguishable from noise"
    WRONG_GRADIENT = "gradient is not the derivative"
    BATCH = "batch-dependent"
    OUTSIDE = "examples outside the ball"
    ROUNDED = "undone by 8 bits"
    NOT_ADAPTIVE = "no adaptive attack"
    PARTIAL = "adaptive attack on some images only"
    UNMOVED = "examples equal to the clean image"
    REFERENCE = "weaker than the reference attack"
    NOT_FINITE = "predictions that are not finite"
    STATE = "depends on state or context"
    AT_EXAMPLES = "gradient is wrong at examples"
    JUMPS = "outputs jump"
    SHIELDED = "not broken with fixed noise and one step"
    MEMORISED = "memorised images"
    CHOSEN = "chosen images"
    APPROXIMATE = "approximate gradient"
    DETERMINISTIC = "deterministic"
    UNCHECKED = "unchecked"


class Verdict(NamedTuple):
    """The outcome of one check, in words.

    Attributes:
        id: V1 and so on, or what `depura verify` looks at.
        name: in two or three words.
        status: the outcome.
        sentence: what was expected and what was measured; of a check that was not run, why.
        advice: what to do about it; empty where nothing is to be done.
        flags: what a reader must know first.
        method: of a comparison, the method that was checked.
        passes: what it takes to pass, in words; empty for what `depura verify` looks at.
        withholds: whether a warning takes the headline away.
    """

    id: str
    name: str
    status: Status
    sentence: str
    advice: str = ""
    flags: tuple[Flag, ...] = ()
    method: str = ""
    passes: str = ""
    withholds: bool = False


class VerdictGroup(NamedTuple):
    """Verdicts of one check and one status, of one or several methods, as one line.

    Attributes:
        id: of the check.
        name: of the check.
        status: of all of them.
        methods: whose they are; empty in a study of one defence.
        sentence: of the first.
        advice: of the first.
        passes: what it takes to pass, in words.
    """

    id: str
    name: str
    status: Status
    methods: tuple[str, ...]
    sentence: str
    advice: str
    passes: str = ""

    @property
    def text(self) -> str:
        """The line, without its status."""
        text = f"{self.sentence} {self.advice}".rstrip()
        if self.passes:
            text += f" Passes where {self.passes}."
        if not self.methods:
            return f"{self.id} {self.name}: {text}"
        if len(self.methods) == 1:
            return f"{self.id} {self.name}, {self.methods[0]}: {text}"
        listed = ", ".join(self.methods)
        return f"{self.id} {self.name}, {len(self.methods)} methods ({listed}). {self.methods[0]}: {text}"


def grouped(verdicts: Sequence[Verdict], *statuses: Status) -> tuple[VerdictGroup, ...]:
    """Verdicts of some statuses, by default all: one group for each check and status, in the order of the checks."""
    groups: dict[tuple[str, Status], list[Verdict]] = {}
    for verdict in verdicts:
        if not statuses or verdict.status in statuses:
            groups.setdefault((verdict.id, verdict.status), []).append(verdict)
    order = list(dict.fromkeys(verdict.id for verdict in verdicts))
    return tuple(
        VerdictGroup(
            id,
            its[0].name,
            status,
            tuple(v.method for v in its if v.method),
            its[0].sentence,
            its[0].advice,
            its[0].passes,
        )
        for (id, status), its in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    )


class HeadlineStatus(Word):
    """Whether a defence has a headline."""

    GIVEN = "headline"
    UNCHECKED = "unchecked"
    WITHHELD = "withheld"
    FAILED = "failed"


class Conclusion(NamedTuple):
    """What follows from the checks of one defence.

    Attributes:
        method: of a comparison, which one.
        status: whether it has a headline.
        reason: why it has none, a sentence; empty where it has one.
    """

    method: str
    status: HeadlineStatus
    reason: str = ""

    @property
    def refusal(self) -> str:
        """What stands in the headline's place; empty where there is a headline."""
        begin = {
            HeadlineStatus.FAILED: "No headline: ",
            HeadlineStatus.WITHHELD: "Headline withheld: ",
            HeadlineStatus.UNCHECKED: "Unchecked: ",
            HeadlineStatus.GIVEN: "",
        }[self.status]
        return f"{begin}{self.reason}"


def of_method(verdicts: Sequence[Verdict], method: str) -> tuple[Verdict, ...]:
    """Verdicts of one method; of a study of one defence, whose name is empty, all."""
    return tuple(verdict for verdict in verdicts if verdict.method == method)


def conclusion(verdicts: Sequence[Verdict], results: Results) -> Conclusion:
    """Whether a defence has a headline by the verdicts of its checks, and why it has none.

    Failed where a check failed or nothing judges it; withheld where the attack was not strong enough; unchecked where
    nothing says whether it was; else given.
    """
    method = results.method or ""
    if not results.attacks:
        return Conclusion(method, HeadlineStatus.FAILED, "No row judges the defence.")
    failed = [v for v in verdicts if v.status is Status.FAIL]
    weak = [v for v in verdicts if v.status is Status.WARN and v.withholds]
    if failed or weak:
        reason = " ".join(f"{v.id} ({v.name}): {v.sentence} {v.advice}".rstrip() for v in failed or weak)
        return Conclusion(method, HeadlineStatus.FAILED if failed else HeadlineStatus.WITHHELD, reason)
    not_run = {v.id for v in verdicts if v.status is Status.NOT_RUN}
    queries = [row for row in results.rows(AttackKind.BLACK_BOX) if row.attacks_defence]
    if {"V4", "V20"} <= not_run and not queries:
        reason = (
            "The attack was run at one radius, with no attack of depura's own and none without gradients: "
            "nothing says whether it is strong."
        )
        return Conclusion(method, HeadlineStatus.UNCHECKED, reason)
    return Conclusion(method, HeadlineStatus.GIVEN)


def raised_flags(
    verdicts: Sequence[Verdict], results: Results, conclusion: Conclusion | None = None
) -> tuple[Flag, ...]:
    """What a reader of a defence's results must know first, each flag once."""
    flags = [f for v in verdicts if v.status in (Status.WARN, Status.FAIL) for f in v.flags]
    if results.deterministic:
        flags.append(Flag.DETERMINISTIC)
    adaptive = results.rows(AttackKind.ADAPTIVE, AttackKind.RELAXED)
    if adaptive and all(row.mode in APPROXIMATE for row in adaptive):
        flags.append(Flag.APPROXIMATE)
    if conclusion is not None and conclusion.status is HeadlineStatus.UNCHECKED:
        flags.append(Flag.UNCHECKED)
    return tuple(dict.fromkeys(flags))
