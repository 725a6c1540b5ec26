"""Checks of the pipeline itself: V1 to V3 and V11 to V17. Do its parts do what they are taken to do?"""

from __future__ import annotations

import numpy as np

from depura.evaluation.statistics import mean_with_interval, paired_difference
from depura.judging.evidence import GRADIENT_KINDS, Evidence
from depura.judging.metrics import percent
from depura.judging.thresholds import AGREEMENT, BROKEN, CHANCE, EXPLODING, MASKED
from depura.judging.verdicts import Status, Verdict

ROUNDING = 1e-4
SLACK = 1e-6


def undefended(at: Evidence) -> Verdict:
    """V1: the attack breaks the bare classifier."""
    id, name = "V1", "undefended"
    rows = at.rows("undefended")
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
        f"{said} (row {rows[0]['name']}); an attack that does not break the classifier says little about the defence.",
        "Unless the classifier is robust by itself, mend the attack; V4 tells the two apart.",
    )


def identity(at: Evidence) -> Verdict:
    """V2: a purifier that does nothing changes nothing."""
    id, name = "V2", "identity"
    if not at.audits:
        return Verdict(id, name, Status.NOT_RUN, "The run has no audit.")
    found = [unit.meta["identity"] for unit in at.audits]
    changed, largest = sum(f["predictions"] for f in found), max(f["logits"] for f in found)
    said = (
        f"Behind a purifier that does nothing {changed} of {sum(f['images'] for f in found)} predictions change and "
        f"logits by at most {largest:.1g} of the largest"
    )
    if changed == 0 and largest <= ROUNDING:
        return Verdict(id, name, Status.PASS, f"{said}.")
    return Verdict(
        id, name, Status.FAIL, f"{said}; expected none.", "Look at ranges and at the classifier's own state."
    )


def unchanged(at: Evidence) -> Verdict:
    """V3: at radius 0 an attack's numbers are the null's."""
    id, name = "V3", "radius 0"
    rows = at.rows("unchanged")
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row returns images unchanged.", "Profiles from smoke on have one.")
    found = at.accuracies(rows[0])
    difference = paired_difference(at.null(rows[0], len(found)), found)
    said = f"Images as they are, scored like attacked ones, differ from the null by {_points(difference.value)}"
    if difference.p >= CHANCE:
        return Verdict(id, name, Status.PASS, f"{said} (p {difference.p:.2f}).")
    return Verdict(id, name, Status.FAIL, f"{said} (p {difference.p:.1g}).", "The judge itself is biased: report this.")


def rises(at: Evidence) -> Verdict:
    """V11: on draws that the attack never saw, its examples are worse than the images were."""
    id, name = "V11", "loss rises"
    rows = at.rows(*GRADIENT_KINDS)
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row differentiates the defence.")
    flat: list[str] = []
    for row in rows:
        margins = at.told(row, "select_margins")
        clean = at.units[row["null"], at.eps]
        if margins is None or "margins" not in clean[0].arrays:
            continue
        before = np.concatenate([unit.arrays["margins"] for unit in clean])[: len(margins)]
        if not paired_rise(before, margins):
            flat.append(row["name"])
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
    spread = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return bool(difference.mean() > 2 * spread)


def gradients(at: Evidence) -> Verdict:
    """V12: gradients are finite, not zero, and halves of the draws agree."""
    id, name = "V12", "gradients"
    rows = [row for row in at.rows(*GRADIENT_KINDS) if at.told(row, "zero_gradients") is not None]
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "No row differentiates the defence.")
    masked = {row["name"]: _share(at, row, "zero_gradients") for row in rows}
    masked = {row: share for row, share in masked.items() if share > MASKED}
    own = [row["name"] for row in rows if row["kind"] == "adaptive"]
    seeing = [row["name"] for row in rows if row["kind"] == "relaxed" and row["name"] not in masked]
    if masked and all(row in masked for row in own):
        which = ", ".join(f"{row} {100 * share:.1f} %" for row, share in masked.items())
        said = f"Of the gradients, so many are exactly zero: {which}. What these rows leave is no robustness"
        if seeing:
            return Verdict(id, name, Status.WARN, f"{said}; the row to read is {', '.join(seeing)}.")
        return Verdict(
            id,
            name,
            Status.FAIL,
            f"{said}.",
            "Attack through the route Relaxed or StraightThrough, and without gradients.",
        )
    said = [f"{100 * share:.1f} % of the gradients in row {row} are exactly zero" for row, share in masked.items()]
    for row in rows:
        bad = _share(at, row, "bad_gradients")
        if bad > 0:
            said.append(f"{100 * bad:.2f} % of the gradients in row {row['name']} are not finite")
        spread = at.told(row, "spread")
        largest = float(np.max(spread[np.isfinite(spread)], initial=0.0)) if spread is not None else 0.0
        if largest > EXPLODING:
            said.append(f"a gradient in row {row['name']} is {largest:.0f} times as long as the median: exploding")
        agreement = at.told(row, "agreement")
        last = agreement[:, -1] if agreement is not None and agreement.shape[1] else np.array([np.nan])
        middle = float(np.median(last[np.isfinite(last)])) if np.isfinite(last).any() else 1.0
        if middle < AGREEMENT:
            said.append(
                f"halves of the draws in row {row['name']} point different ways (median cosine {middle:.2f} at the "
                "last step): more draws per step would make the attack stronger"
            )
    if said:
        return Verdict(id, name, Status.WARN, _sentence(said), "See the table of gradients.")
    return Verdict(id, name, Status.PASS, "Gradients are finite, not zero, and halves of the draws agree.")


def clean(at: Evidence) -> Verdict:
    """V13: what purification costs images that nobody attacked."""
    id, name = "V13", "clean accuracy"
    judged = [row for row in at.header["rows"] if row["judged"] == "defence"]
    if not judged:
        return Verdict(id, name, Status.NOT_RUN, "No row judges the defence.")
    n = judged[0]["images"] if "images" in judged[0] else len(at.header["data"]["ids"])
    said = f"Under the deployed rule {percent(mean_with_interval(at.null(judged[0], n)))} without an attack"
    bare = at.rows("undefended")
    if not bare:
        return Verdict(id, name, Status.PASS, f"{said}.")
    raw = at.null(bare[0], n)
    gap = paired_difference(raw, at.null(judged[0], n))
    said += f"; the classifier alone {percent(mean_with_interval(raw))}: purification costs {_points(gap.value)}"
    return Verdict(id, name, Status.PASS, f"{said}.")


def within(at: Evidence) -> Verdict:
    """V15: examples are within the radius, and survive a file of 8 bits."""
    id, name = "V15", "constraint"
    outside: list[str] = []
    largest = 0.0
    for row in at.header["rows"]:
        for (unit_row, eps), units in at.units.items():
            if unit_row != row["name"]:
                continue
            far = max(float(np.max(unit.arrays.get("farthest", unit.arrays["distance"]))) for unit in units)
            largest = max(largest, far / eps if eps else 0.0)
            if far > eps + SLACK * max(1.0, eps):
                outside.append(f"{row['name']} {far:.6g} where {eps:.6g} is allowed")
    if outside:
        said = f"Examples leave the ball: {', '.join(outside)}."
        return Verdict(id, name, Status.FAIL, said, "Mend the attack; its numbers are of another threat model.")
    saved = [text for row in at.header["rows"] for text in _saved_by_rounding(at, row)]
    if saved:
        said = f"An 8-bit file undoes part of the attack: {', '.join(saved)}."
        return Verdict(id, name, Status.WARN, said, "Say whether the attacker sends files or floating-point numbers.")
    return Verdict(
        id,
        name,
        Status.PASS,
        f"No example is farther than {largest:.4f} of the radius, and rounding to 8 bits saves none.",
    )


def audited(at: Evidence) -> Verdict:
    """V16: the gradient is the derivative, and does not depend on batch, order or draws."""
    id, name = "V16", "gradient audit"
    if not at.audits:
        return Verdict(id, name, Status.NOT_RUN, "The run has no audit.")
    red = [unit for unit in at.audits if unit.meta["audit"]["light"] == "RED"]
    if red:
        said = " ".join(f"{_of(unit.meta['row'])}{unit.meta['audit']['verdict']}" for unit in red)
        why = [c[2] for unit in red for c in unit.meta["audit"]["checks"] if c[1] == "RED"]
        return Verdict(
            id, name, Status.FAIL, " ".join([said, *why[:2]]), "Run depura audit-gradient and mend the part."
        )
    amber = [unit for unit in at.audits if unit.meta["audit"]["light"] == "AMBER"]
    if amber:
        said = " ".join(f"{_of(unit.meta['row'])}{unit.meta['audit']['verdict']}" for unit in amber)
        return Verdict(id, name, Status.WARN, said)
    return Verdict(id, name, Status.PASS, at.audits[0].meta["audit"]["verdict"])


def tiny(at: Evidence) -> Verdict:
    """V17: with next to no purification the attack breaks the defence as it breaks the classifier."""
    id, name = "V17", "tiny walk"
    rows, bare = at.rows("tiny"), at.rows("undefended")
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


def _saved_by_rounding(at: Evidence, row: dict[str, object]) -> list[str]:
    rounded = at.told(row, "rounded_predictions")
    exact, labels = at.told(row, "predictions"), at.told(row, "labels")
    if rounded is None or exact is None or labels is None:
        return []
    k = rounded.shape[1]
    after, before = ((found[:, :k] == labels[:, None]).mean(1) for found in (rounded, exact))
    gain = paired_difference(after.astype(np.float64), before.astype(np.float64))
    if gain.value > BROKEN and gain.p < CHANCE:
        return [f"{row['name']} {_points(gain.value)}"]
    return []


def _share(at: Evidence, row: dict[str, object], name: str) -> float:
    found = at.told(row, name)
    return 0.0 if found is None else float(found.mean())


def _of(unit: str) -> str:
    method = unit.removeprefix("audit").removeprefix("-")
    return f"{method}: " if method else ""


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
