"""What may be claimed of a finished run, and what was not tested. Numbers and facts; the words are in reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from depura import _check
from depura.analysis.summary import Line, Summary
from depura.analysis.verdicts import Flag, Status, of_method
from depura.analysis.words import KINDS
from depura.records.kinds import AttackKind, GradientMode
from depura.records.schema import Description, Method, RowFacts
from depura.statistics.intervals import Proportion

IMAGES, DRAWS, STEPS = 512, 64, 50
"""What a claim is expected to rest on at least: images, report draws of each, gradient steps of an adaptive attack."""

EXACT = (GradientMode.EXACT, GradientMode.DEVIATED)
"""Modes whose gradient is that of the defence as it is run."""

OF_ANY_DEFENCE = (AttackKind.ADAPTIVE, AttackKind.TARGETED, AttackKind.BLACK_BOX)
OF_PURIFIERS = (AttackKind.UNDEFENDED, AttackKind.TRANSFER, AttackKind.BPDA, AttackKind.SELECTIVE, AttackKind.PINNED)
"""Kinds of attack whose absence a reader of a claim should know."""


class Claim(NamedTuple):
    """What may be claimed of one defence.

    Attributes:
        method: its name, where methods are compared; else the study's.
        rule: the deployed rule, as in the header.
        accuracy: of one draw under the strongest attack for each image: what it has at most.
        null: of one draw without an attack.
        images: how many.
        attacks: rows that attack it, of the header.
        untested: what was not done, each in a few words.
        flags: what a reader must know first.
    """

    method: str
    rule: Description
    accuracy: Proportion
    null: Proportion
    images: int
    attacks: tuple[RowFacts, ...]
    untested: tuple[str, ...]
    flags: tuple[Flag, ...]


def claims(summary: Summary, *, method: str = "") -> tuple[Claim, ...]:
    """What may be claimed of a run that has a headline: one claim for each defence, or for the named method, best
    first.

    An `InputError`: an unfinished run, one whose headline is refused or that judges no defence, or an unknown method.
    """
    header = summary.header
    names = [m.name for m in header.methods if m.name]
    if not summary.complete or summary.refused:
        _check.fail("claim", "a run that has a headline", f"one without ({summary.headline})")
    if method and method not in names:
        _check.fail("--method", f"a method of the run ({', '.join(names) or 'it has none'})", repr(method))
    if summary.ranking is not None:
        reasons = {e.method: e.conclusion.reason for e in summary.ranking.all if not e.rank or e.unchecked}
        if method in reasons:
            _check.fail("claim", "a method that has a headline", f"{method}, which has none ({reasons[method]})")
        return tuple(
            _claim(summary, header.method(e.method), e.strongest.single, e.clean)
            for e in summary.ranking.entries
            if method in ("", e.method) and e.method not in reasons
        )
    if summary.strongest is None:
        _check.fail("claim", "a run that judges a defence", "one of whose rows none does")
    whole = max(_lines(summary, ""), key=lambda line: line.images)
    return (_claim(summary, header.methods[0], summary.strongest.single, whole.null.single),)


def _claim(summary: Summary, of: Method, accuracy: Proportion, null: Proportion) -> Claim:
    lines = _lines(summary, of.name)
    names = [line.name for line in lines]
    untested = (*_missing(summary, lines, of), *_narrow(summary, lines), *_doubted(summary, of.name))
    return Claim(
        method=of.name or summary.header.name,
        rule=of.rule,
        accuracy=accuracy,
        null=null,
        images=max(line.images for line in lines),
        attacks=tuple(row for row in summary.header.rows if row.name in names),
        untested=untested,
        flags=summary.flags_of(of.name),
    )


def _lines(summary: Summary, method: str) -> list[Line]:
    """Lines of the attacks on a defence."""
    names = {row.name for row in summary.header.rows if row.attacks_defence and row.method == method}
    return [line for line in summary.lines if line.name in names]


def _missing(summary: Summary, lines: Sequence[Line], of: Method) -> list[str]:
    """Kinds of attack that were not run, or on some images only."""
    kinds = OF_ANY_DEFENCE if of.is_bare else (*OF_ANY_DEFENCE, *OF_PURIFIERS)
    images: dict[AttackKind, int] = {}
    for line in summary.lines:  # rows of no method are of the classifier, or of the defence made deterministic
        if line.method in ("", of.name):
            images[line.kind] = max(images.get(line.kind, 0), line.images)
    whole = max(line.images for line in lines)
    missing = [KINDS[kind] for kind in kinds if kind not in images]
    if not of.is_bare and not any(line.mode in EXACT for line in lines):
        missing.append("an attack by the exact gradient: every gradient is approximate")
    partial = [kind for kind in kinds if images.get(kind, whole) < whole]
    return [*missing, *(f"{KINDS[kind]}: on the first {images[kind]} of the images only" for kind in partial)]


def _narrow(summary: Summary, lines: Sequence[Line]) -> list[str]:
    """Where the run is smaller than claims are expected to rest on, and what its threat model leaves out."""
    header, adaptive = summary.header, (AttackKind.ADAPTIVE, AttackKind.RELAXED)
    names = {line.name for line in lines if line.kind in adaptive}
    counts = [row.setting("n_steps") for row in header.rows if row.name in names]
    steps = max((n for n in counts if isinstance(n, int)), default=STEPS)
    images, draws = max(line.images for line in lines), header.draws.report
    norm = header.threat_model.norm
    other = norm in ("flow", "perceptual")
    limits = (
        (steps < STEPS, f"adaptive attacks of more than {steps} steps ({STEPS} or more are expected)"),
        (images < IMAGES, f"more than {images} images ({IMAGES} or more are expected)"),
        (draws < DRAWS, f"more than {draws} report draws of each image ({DRAWS} or more are expected)"),
        (True, "another seed of attack and noise: one was run"),
        (not header.curve.eps, "other radii: there is no curve of accuracy against eps"),
        (norm == "flow", "changes of pixel values, and any other threat"),
        (norm == "perceptual", "threats other than a bounded dissimilarity: l_p balls and spatial changes"),
        (not other, "threats other than the l_p ball: spatial and perceptual changes"),
    )
    return [text for applies, text in limits if applies]


def _doubted(summary: Summary, method: str) -> list[str]:
    """Checks of the evaluation that did not pass."""
    verdicts = of_method(summary.verdicts, method)
    return [f"check {v.id} ({v.name}), {v.status.value}: {v.sentence}" for v in verdicts if v.status is not Status.PASS]
