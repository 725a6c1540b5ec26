"""Checks of the pipeline itself: V1 to V3, V11 to V17, V19 and V21. Do its parts do what they are taken to do?"""

from __future__ import annotations

import numpy as np

from depura.analysis.results import GRADIENT_KINDS, Results, longest, percent
from depura.analysis.verdicts import (
    AGREEMENT,
    BROKEN,
    CHANCE,
    EXPLODING,
    MASKED,
    NOT_FINITE_SHARE,
    UNMOVED,
    Flag,
    Status,
    Verdict,
)
from depura.records.kinds import NOT_FINITE, AttackKind
from depura.records.schema import AuditLight, RowFacts
from depura.statistics.intervals import mean_with_interval, paired_difference

ROUNDING = 1e-4
SLACK = 1e-6


def undefended(at: Results) -> Verdict:
    """V1: the attack breaks the bare classifier."""
    id, name = "V1", "undefended"
    rows = at.rows(AttackKind.UNDEFENDED)
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row attacks the classifier by itself.", "Add one.")
    left = at.accuracies(rows[0])
    said = f"The attack leaves the undefended classifier {percent(mean_with_interval(left))} accurate"
    if left.mean() <= BROKEN:
        return Verdict(id, name, Status.PASS, f"{said}.")
    return Verdict(
        id,
        name,
        Status.WARN,
        f"{said} (row {rows[0].name}); an attack that does not break the classifier says little about the defence.",
        "Unless the classifier is robust by itself, mend the attack; V4 tells the two apart.",
    )


def identity(at: Results) -> Verdict:
    """V2: a purifier that does nothing changes nothing."""
    id, name = "V2", "identity"
    if not at.audits:
        return Verdict(id, name, Status.NOT_RUN, "The run has no audit.")
    its = [identity for _, identity in at.audits]
    changed, largest = sum(i.predictions for i in its), max(i.logits for i in its)
    said = (
        f"Behind a purifier that does nothing {changed} of {sum(i.images for i in its)} predictions change and "
        f"logits by at most {largest:.1g} of the largest"
    )
    if changed == 0 and largest <= ROUNDING:
        return Verdict(id, name, Status.PASS, f"{said}.")
    return Verdict(
        id, name, Status.FAIL, f"{said}; expected none.", "Look at ranges and at the classifier's own state."
    )


def unchanged(at: Results) -> Verdict:
    """V3: at radius 0 an attack's numbers are the null's."""
    id, name = "V3", "radius 0"
    rows = at.rows(AttackKind.UNCHANGED)
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row returns images unchanged.", "Profiles from smoke on have one.")
    found = at.accuracies(rows[0])
    difference = paired_difference(at.null(rows[0], len(found)), found)
    said = f"Images as they are, scored like attacked ones, differ from the null by {_points(difference.value)}"
    if difference.p >= CHANCE:
        return Verdict(id, name, Status.PASS, f"{said} (p {difference.p:.2f}).")
    return Verdict(id, name, Status.FAIL, f"{said} (p {difference.p:.1g}).", "The judge itself is biased: report this.")


def rises(at: Results) -> Verdict:
    """V11: on draws that the attack never saw, its examples are worse than the images were."""
    id, name = "V11", "loss rises"
    rows = at.rows(*GRADIENT_KINDS)
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row differentiates the defence.")
    flat: list[str] = []
    for row in rows:
        margins = at.array(row, "select_margins")
        clean = at.null_of(row)
        if margins is None or not clean.has("margins"):
            continue
        before = clean.array("margins")[: len(margins)]
        if not paired_rise(before, margins):
            flat.append(row.name)
    if not flat:
        return Verdict(id, name, Status.PASS, "Every attack raises the mean margin on draws that it never saw.")
    return Verdict(
        id,
        name,
        Status.WARN,
        f"The mean margin on unseen draws does not detectably rise in {', '.join(flat)}.",
        "The gradient is masked, or too noisy: take more draws, or a route that sees through.",
    )


def paired_rise(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a number per image has risen, beyond two standard errors of the mean difference."""
    difference = after.astype(np.float64) - before
    difference = difference[np.isfinite(difference)]
    if not len(difference):
        return True
    spread = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return bool(difference.mean() > 2 * spread)


def gradients(at: Results) -> Verdict:
    """V12: gradients are not zero, and halves of the draws agree."""
    id, name = "V12", "gradients"
    rows = [row for row in at.rows(*GRADIENT_KINDS) if at.array(row, "zero_gradients") is not None]
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row differentiates the defence.")
    masked = {row.name: _share(at, row, "zero_gradients") for row in rows}
    masked = {row: share for row, share in masked.items() if share > MASKED}
    own = [row.name for row in rows if row.kind is AttackKind.ADAPTIVE]
    seeing = [row.name for row in rows if row.kind is AttackKind.RELAXED and row.name not in masked]
    if masked and all(row in masked for row in own):
        which = ", ".join(f"{row} {100 * share:.1f} %" for row, share in masked.items())
        said = f"Of the gradients, so many are exactly zero: {which}. What these rows leave is no robustness"
        if seeing:
            text = f"{said}; the row to read is {', '.join(seeing)}."
            return Verdict(id, name, Status.WARN, text, flags=(Flag.MASKED,))
        advice = "Attack through the gradients Relaxed or StraightThrough, and without gradients."
        return Verdict(id, name, Status.FAIL, f"{said}.", advice, (Flag.MASKED,))
    said = [f"{100 * share:.1f} % of the gradients in row {row} are exactly zero" for row, share in masked.items()]
    for row in rows:
        spread = at.array(row, "spread")
        largest = float(np.max(spread[np.isfinite(spread)], initial=0.0)) if spread is not None else 0.0
        if largest > EXPLODING:
            said.append(f"a gradient in row {row.name} is {largest:.0f} times as long as the median: exploding")
        agreement = at.array(row, "agreement")
        last = agreement[:, -1] if agreement is not None and agreement.shape[1] else np.array([np.nan])
        middle = float(np.median(last[np.isfinite(last)])) if np.isfinite(last).any() else 1.0
        if middle < AGREEMENT:
            said.append(
                f"halves of the draws in row {row.name} point different ways (median cosine {middle:.2f} at the "
                "last step): more draws per step would make the attack stronger"
            )
    if said:
        flag = Flag.MASKED if masked else Flag.GRADIENTS
        return Verdict(id, name, Status.WARN, _sentence(said), "See the table of gradients.", (flag,))
    return Verdict(id, name, Status.PASS, "Gradients are not zero, and halves of the draws agree.")


def clean(at: Results) -> Verdict:
    """V13: what purification costs images that nobody attacked."""
    id, name = "V13", "clean accuracy"
    if not at.attacks:
        return Verdict(id, name, Status.NOT_RUN, "No row judges the defence.")
    row = longest(at.attacks)
    said = f"Under the deployed rule {percent(mean_with_interval(at.null(row, row.images)))} without an attack"
    bare = at.rows(AttackKind.UNDEFENDED)
    if not bare:
        return Verdict(id, name, Status.PASS, f"{said}.")
    n = min(row.images, at.null_of(bare[0]).n_images)
    raw = at.null(bare[0], n)
    gap = paired_difference(raw, at.null(row, n))
    said += f"; the classifier alone {percent(mean_with_interval(raw))}: purification costs {_points(gap.value)}"
    return Verdict(id, name, Status.PASS, f"{said}.")


def within(at: Results) -> Verdict:
    """V15: examples are within the radius, and survive a file of 8 bits."""
    id, name = "V15", "constraint"
    outside: list[str] = []
    largest = 0.0
    for row in at.all_rows:
        for (unit_row, eps), its in at.by_row.items():
            if unit_row != row.name:
                continue
            far = float(np.max(its.array("farthest" if its.has("farthest") else "distance")))
            largest = max(largest, far / eps if eps else 0.0)
            if far > eps + SLACK * max(1.0, eps):
                outside.append(f"{row.name} {far:.6g} where {eps:.6g} is allowed")
    if outside:
        said = f"Examples leave the ball: {', '.join(outside)}."
        advice = "Mend the attack; its numbers are of another threat model."
        return Verdict(id, name, Status.FAIL, said, advice, (Flag.OUTSIDE,))
    saved = [text for row in at.all_rows for text in _saved_by_rounding(at, row)]
    if saved:
        said = f"An 8-bit file undoes part of the attack: {', '.join(saved)}."
        advice = "Say whether the attacker sends files or floating-point numbers."
        return Verdict(id, name, Status.WARN, said, advice, (Flag.ROUNDED,))
    return Verdict(
        id,
        name,
        Status.PASS,
        f"No example is farther than {largest:.4f} of the radius, and rounding to 8 bits saves none.",
    )


def audited(at: Results) -> Verdict:
    """V16: the gradient is the derivative, and does not depend on batch, order or draws."""
    id, name = "V16", "gradient audit"
    if not at.audits:
        return Verdict(id, name, Status.NOT_RUN, "The run has no audit.")
    audits = [audit for audit, _ in at.audits]
    red = [audit for audit in audits if audit.light is AuditLight.RED]
    if red:
        checks = [check for audit in red for check in audit.checks if check.light is AuditLight.RED]
        said = " ".join([*(audit.verdict for audit in red), *(check.sentence for check in checks[:2])])
        batch = any(check.name in ("batch", "order") for check in checks)
        flag = Flag.BATCH if batch else Flag.WRONG_GRADIENT
        return Verdict(id, name, Status.FAIL, said, "Run depura audit-gradient and mend the part.", (flag,))
    amber = [audit for audit in audits if audit.light is AuditLight.AMBER]
    if amber:
        return Verdict(id, name, Status.WARN, " ".join(audit.verdict for audit in amber))
    return Verdict(id, name, Status.PASS, audits[0].verdict)


def tiny(at: Results) -> Verdict:
    """V17: with next to no purification the attack breaks the defence as it breaks the classifier."""
    id, name = "V17", "tiny walk"
    rows, bare = at.rows(AttackKind.TINY), at.rows(AttackKind.UNDEFENDED)
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row attacks the defence with its walk cut to the last step.")
    left = at.accuracies(rows[0])
    null = at.null(rows[0], len(left))
    if bare and null.mean() < at.null(bare[0], len(left)).mean() - 0.2:
        said = f"The last step alone classifies {100 * null.mean():.1f} % of clean images: it is no small purification."
        return Verdict(id, name, Status.NOT_RUN, said)
    said = f"With the last step alone {percent(mean_with_interval(left))} is left"
    if left.mean() <= BROKEN:
        return Verdict(id, name, Status.PASS, f"{said}.")
    advice = "Expected next to nothing: look at the gradient of one step, and at what else shields the classifier."
    return Verdict(id, name, Status.WARN, f"{said}.", advice)


def moved(at: Results) -> Verdict:
    """V19: attacks move the images."""
    id, name = "V19", "moved examples"
    rows = [row for row in at.rows(*GRADIENT_KINDS) if row.attacks_defence]
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row differentiates the defence.")
    said: list[str] = []
    for row in rows:
        distance = at.of_row(row).array("distance")
        right = at.null(row, len(distance)) > 0.5  # an attack may leave an image that is wrong without one
        still = int((right & (distance == 0)).sum())
        if still > UNMOVED * max(1, int(right.sum())):
            said.append(f"{still} of {int(right.sum())} in row {row.name}")
    if not said:
        return Verdict(id, name, Status.PASS, "Examples differ from their images.")
    text = f"Examples that are the clean image itself, of images that are right without an attack: {', '.join(said)}."
    advice = "Let the attack return its strongest candidate, also where it is not sure of it."
    return Verdict(id, name, Status.WARN, text, advice, (Flag.UNMOVED,))


def finite(at: Results) -> Verdict:
    """V21: predictions and gradients are finite. One that is not is never right, and an attack does not follow it."""
    id, name = "V21", "finite numbers"
    said: list[str] = []
    worst = 0.0
    for row in at.all_rows:
        bad = {
            "predictions": at.of_row(row).array("predictions") == NOT_FINITE,
            "predictions without an attack": at.null_of(row).array("predictions") == NOT_FINITE,
        }
        for what, them in bad.items():
            if them.any():
                said.append(f"{100 * them.mean():.2f} % of the {what} in row {row.name}, on {them.any(1).sum()} images")
                worst = max(worst, float(them.mean()))
        gradients = _share(at, row, "bad_gradients")
        if gradients > 0:
            said.append(f"{100 * gradients:.2f} % of the gradients in row {row.name}")
            worst = max(worst, gradients)
    if not said:
        return Verdict(id, name, Status.PASS, "All predictions and gradients are finite.")
    text = f"Not finite: {'; '.join(said)}."
    advice = "Find the part that gives NaN or infinity; depura audit-gradient names it."
    if worst > NOT_FINITE_SHARE:
        text += f" No more than {100 * NOT_FINITE_SHARE:g} % is allowed."
        return Verdict(id, name, Status.FAIL, text, advice, (Flag.NOT_FINITE,))
    return Verdict(id, name, Status.WARN, text, advice, (Flag.NOT_FINITE,))


def _saved_by_rounding(at: Results, row: RowFacts) -> list[str]:
    rounded = at.array(row, "rounded_predictions")
    exact, labels = at.array(row, "predictions"), at.array(row, "labels")
    if rounded is None or exact is None or labels is None:
        return []
    k = rounded.shape[1]
    after, before = ((found[:, :k] == labels[:, None]).mean(1) for found in (rounded, exact))
    gain = paired_difference(after.astype(np.float64), before.astype(np.float64))
    if gain.value > BROKEN and gain.p < CHANCE:
        return [f"{row.name} {_points(gain.value)}"]
    return []


def _share(at: Results, row: RowFacts, name: str) -> float:
    found = at.array(row, name)
    return 0.0 if found is None else float(found.mean())


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
