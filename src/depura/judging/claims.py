"""What may be claimed of a finished run, and what was not tested. Numbers and facts; the words are in reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from depura import _check
from depura.evaluation.statistics import Estimate
from depura.judging.kinds import WORDS
from depura.judging.summary import Line, Summary
from depura.judging.verdicts import Status

IMAGES, DRAWS, STEPS = 512, 64, 50
"""What a claim is expected to rest on at least: images, report draws of each, gradient steps of an adaptive attack."""

EXACT = ("G6", "G6d")
"""Routes whose gradient is that of the defence as it is run."""

OF_ANY_DEFENCE = ("adaptive", "targeted", "black-box")
OF_PURIFIERS = ("undefended", "transfer", "bpda", "selective", "pinned")
"""Kinds of attack whose absence a reader of a claim should be told of."""


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
    """

    method: str
    rule: dict[str, Any]
    accuracy: Estimate
    null: Estimate
    images: int
    attacks: tuple[dict[str, Any], ...]
    untested: tuple[str, ...]


def claims(summary: Summary, *, method: str = "") -> tuple[Claim, ...]:
    """What may be claimed of a run.

    Args:
        summary: of a run that has a headline.
        method: where methods are compared, only this one; empty: all, the best first.

    Returns:
        One claim for each defence.

    Raises:
        InputError: an unfinished run, one whose headline is refused or that judges no defence, or an unknown method.
    """
    header = summary.header
    names = [m["name"] for m in header["methods"]]
    if not summary.complete or summary.refused:
        _check.fail("claim", "a run that has a headline", f"one without ({summary.headline})")
    if method and method not in names:
        _check.fail("--method", f"a method of the run ({', '.join(names) or 'it has none'})", repr(method))
    if summary.ranking is not None:
        described = {m["name"]: m for m in header["methods"]}
        return tuple(
            _claim(summary, described[s.method], s.method, s.strongest.single, s.clean)
            for s in summary.ranking.standings
            if method in ("", s.method)
        )
    if summary.strongest is None:
        _check.fail("claim", "a run that judges a defence", "one of whose rows none does")
    whole = max(_lines(summary, ""), key=lambda line: line.images)
    return (_claim(summary, header, "", summary.strongest.single, whole.null.single),)


def _claim(summary: Summary, described: dict[str, Any], method: str, accuracy: Estimate, null: Estimate) -> Claim:
    lines = _lines(summary, method)
    names = [line.name for line in lines]
    purified = described["defence"]["purifier"] is not None
    return Claim(
        method=method or summary.header["name"],
        rule=described["rule"],
        accuracy=accuracy,
        null=null,
        images=max(line.images for line in lines),
        attacks=tuple(row for row in summary.header["rows"] if row["name"] in names),
        untested=(*_missing(summary, lines, method, purified=purified), *_narrow(summary, lines), *_doubted(summary)),
    )


def _lines(summary: Summary, method: str) -> list[Line]:
    """Lines of the attacks on a defence."""
    own = {
        row["name"]
        for row in summary.header["rows"]
        if row["judged"] == "defence" and row["method"] == method and row["kind"] != "unchanged"
    }
    return [line for line in summary.lines if line.name in own]


def _missing(summary: Summary, lines: Sequence[Line], method: str, *, purified: bool) -> list[str]:
    """Kinds of attack that were not made, or on some images only."""
    kinds = (*OF_ANY_DEFENCE, *OF_PURIFIERS) if purified else OF_ANY_DEFENCE
    wanted = {kind: WORDS[kind] for kind in kinds}
    made: dict[str, int] = {}
    for line in summary.lines:  # rows of no method are of the classifier, or of the defence made deterministic
        if line.method in ("", method):
            made[line.kind] = max(made.get(line.kind, 0), line.images)
    whole = max(line.images for line in lines)
    found = [words for kind, words in wanted.items() if kind not in made]
    if purified and not any(line.route in EXACT for line in lines):
        found.append("an attack by the exact gradient: every route is approximate")
    found += [
        f"{words}: on the first {made[kind]} of the images only"
        for kind, words in wanted.items()
        if kind in made and made[kind] < whole
    ]
    return found


def _narrow(summary: Summary, lines: Sequence[Line]) -> list[str]:
    """Where the run is smaller than claims are expected to rest on, and what its threat model leaves out."""
    header, found = summary.header, list[str]()
    own = {line.name for line in lines if line.kind in ("adaptive", "relaxed")}
    steps = [row["attack"].get("n_steps") for row in header["rows"] if row["name"] in own]
    longest = max((n for n in steps if isinstance(n, int)), default=STEPS)
    images, draws = max(line.images for line in lines), header["draws"]["report"]
    if longest < STEPS:
        found.append(f"adaptive attacks of more than {longest} steps ({STEPS} or more are expected)")
    if images < IMAGES:
        found.append(f"more than {images} images ({IMAGES} or more are expected)")
    if draws < DRAWS:
        found.append(f"more than {draws} report draws of each image ({DRAWS} or more are expected)")
    found.append("another seed of attack and noise: one was run")
    if not header["curve"]["eps"]:
        found.append("other radii: there is no curve of accuracy against eps")
    flow = header["threat_model"]["norm"] == "flow"
    found.append("changes of pixel values, and any other threat" if flow else "threats other than the l_p ball: "
                 "spatial and perceptual changes")  # fmt: skip
    return found


def _doubted(summary: Summary) -> list[str]:
    """Checks of the evaluation that did not pass."""
    open_ = [verdict for verdict in summary.verdicts if verdict.status is not Status.PASS]
    return [f"check {v.id} ({v.name}), {v.status.value}: {v.sentence}" for v in open_]
