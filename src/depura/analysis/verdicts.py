"""What a check of an evaluation says: passed, to be read with care, failed, or not run; and what follows from them."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from depura.records.kinds import Word

BROKEN = 0.02
"""Accuracy up to which a defence counts as broken."""

MASKED = 0.01
"""Share of gradients that are exactly zero from which on a row's gradient is called masked."""

EXPLODING = 1000
"""How many times the median of its image's gradients one may be long."""

AGREEMENT = 0.2
"""Cosine between halves of the draws below which more draws per step would help."""

CHANCE = 0.01
"""A difference between two draws of the same thing must be less likely than this to be called one."""

ALONE = 0.02
"""Share of images that an attack without gradients may break alone."""

UNMOVED = 0.03
"""Share of the images that are right without an attack whose example may be the image itself."""

NOT_FINITE_SHARE = 0.01
"""Share of predictions or gradients that are not finite above which a defence has no headline."""


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
    WRONG_GRADIENT = "gradient is not the derivative"
    BATCH = "batch-dependent"
    OUTSIDE = "examples outside the ball"
    ROUNDED = "undone by 8 bits"
    NOT_ADAPTIVE = "no adaptive attack"
    PARTIAL = "adaptive attack on some images only"
    UNMOVED = "examples equal to the clean image"
    REFERENCE = "weaker than the reference attack"
    NOT_FINITE = "predictions that are not finite"
    APPROXIMATE = "approximate gradient"
    DETERMINISTIC = "deterministic"
    UNCHECKED = "unchecked"


class Verdict(NamedTuple):
    """The outcome of one check, in words.

    Attributes:
        id: V1 to V21, or what `depura verify` looks at.
        name: in two or three words.
        status: the outcome.
        sentence: what was expected and what was measured; of a check that was not run, why.
        advice: what to do about it; empty where nothing is to be done.
        flags: what a reader must know first.
        method: of a comparison, the method that was checked.
    """

    id: str
    name: str
    status: Status
    sentence: str
    advice: str = ""
    flags: tuple[Flag, ...] = ()
    method: str = ""


class VerdictGroup(NamedTuple):
    """Verdicts of one check and one status, of one or several methods, as one line.

    Attributes:
        id: of the check.
        name: of the check.
        status: of all of them.
        methods: whose they are; empty in a study of one defence.
        sentence: of the first.
        advice: of the first.
    """

    id: str
    name: str
    status: Status
    methods: tuple[str, ...]
    sentence: str
    advice: str

    @property
    def text(self) -> str:
        """The line, without its status."""
        said = f"{self.sentence} {self.advice}".rstrip()
        if not self.methods:
            return f"{self.id} {self.name}: {said}"
        if len(self.methods) == 1:
            return f"{self.id} {self.name}, {self.methods[0]}: {said}"
        listed = ", ".join(self.methods)
        return f"{self.id} {self.name}, {len(self.methods)} methods ({listed}). {self.methods[0]}: {said}"


def grouped(verdicts: tuple[Verdict, ...], *statuses: Status) -> tuple[VerdictGroup, ...]:
    """Verdicts of some statuses, those of one check and status together, in the order of the checks.

    Args:
        verdicts: of one or several methods.
        *statuses: which; none given, all.

    Returns:
        One group for each check and status.
    """
    groups: dict[tuple[str, Status], list[Verdict]] = {}
    for verdict in verdicts:
        if not statuses or verdict.status in statuses:
            groups.setdefault((verdict.id, verdict.status), []).append(verdict)
    order = list(dict.fromkeys(verdict.id for verdict in verdicts))
    return tuple(
        VerdictGroup(id, its[0].name, status, tuple(v.method for v in its if v.method), its[0].sentence, its[0].advice)
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
