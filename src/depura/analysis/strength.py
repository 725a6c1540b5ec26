"""Checks of how strong the attacks are: V4 to V10, V14, V18 and V20. Would a better attack find more?"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from depura.analysis.results import GRADIENT_KINDS, Floats, Results, longest
from depura.analysis.verdicts import ALONE, BROKEN, CHANCE, Flag, Status, Verdict
from depura.records.kinds import AttackKind
from depura.records.schema import Header
from depura.statistics.intervals import Difference, holm, mean_with_interval, paired_difference

HALF = 0.5
"""An image counts as broken when more of its draws than these are wrong."""


def radii(at: Results) -> Verdict:
    """V4: accuracy falls with the radius, to nothing where any image can become any other."""
    id, name = "V4", "radius"
    rows = [row for row in at.rows(AttackKind.ADAPTIVE) if row.name in at.header.curve.rows]
    further = at.header.curve.eps
    if not rows or not further:
        return Verdict(id, name, Status.NOT_RUN, "The adaptive attack was run at one radius.", "Give curve_eps.")
    row, n = rows[0], at.header.curve.images
    found = {eps: at.accuracies(row, eps)[:n] for eps in sorted({at.eps, *further})}
    said = "Accuracy by radius: " + ", ".join(f"{eps:g} {100 * a.mean():.1f} %" for eps, a in found.items())
    whole = _whole_box(at.header)
    chance = 1 / len(at.header.data.classes)
    for eps, accuracies in found.items():
        if whole is not None and eps >= 0.999 * whole and accuracies.mean() > BROKEN:
            text = f"{said}. At {eps:g} any image can become any other, so nothing may be left"
            advice = (
                "What is left does not depend on the image, or the attack does not work: do not read its other numbers."
            )
            return Verdict(id, name, Status.FAIL, f"{text}.", advice, (Flag.RADIUS,))
        if at.header.threat_model.norm == "linf" and eps >= 128 / 255:
            low = mean_with_interval(accuracies).low
            if low > chance:
                text = f"{said}. At {eps:g} no more than chance ({100 * chance:.1f} %) may be left"
                advice = "The attack does not work at large radii."
                return Verdict(id, name, Status.FAIL, f"{text}.", advice, (Flag.RADIUS,))
    pairs = list(zip(found, list(found)[1:], strict=False))
    rising = [
        (a, b) for (a, b), d in zip(pairs, _corrected([(found[b], found[a]) for a, b in pairs]), strict=True) if d
    ]
    if rising:
        text = f"{said}; it rises from {rising[0][0]:g} to {rising[0][1]:g}"
        advice = "A larger ball holds the smaller one: the attack is too weak."
        return Verdict(id, name, Status.WARN, f"{text}.", advice, (Flag.RADIUS,))
    reached = "" if whole is not None and max(found) >= 0.999 * whole else "; the whole box was not tried"
    return Verdict(id, name, Status.PASS, f"{said}{reached}.")


def iterated(at: Results) -> Verdict:
    """V5: many steps are no worse than one."""
    id, name = "V5", "one step"
    rows, own = at.rows(AttackKind.ONE_STEP), at.rows(AttackKind.ADAPTIVE)
    if not rows or not own:
        return Verdict(id, name, Status.NOT_RUN, "No row takes a single step.")
    many, single = _shared(at.accuracies(own[0]), at.accuracies(rows[0]))
    difference = paired_difference(many, single)
    said = f"One step leaves {100 * single.mean():.1f} %, many steps {100 * (single.mean() + difference.value):.1f} %"
    if difference.value > 0 and difference.detectable:
        return Verdict(id, name, Status.FAIL, f"{said}.", "A symptom of masked gradients or of a broken optimiser.")
    return Verdict(id, name, Status.PASS, f"{said}.")


def budget(at: Results) -> Verdict:
    """V6: twice the steps, twice the draws or a restart would not change the number."""
    id, name = "V6", "budget"
    rows, own = at.rows(AttackKind.BUDGET), at.rows(AttackKind.ADAPTIVE)
    if not rows or not own:
        return Verdict(id, name, Status.NOT_RUN, "The attack was not tried with more steps, draws or restarts.")
    said: list[str] = []
    short: list[str] = []
    n = 0
    for row in rows:
        less, more = _shared(at.accuracies(own[0]), at.accuracies(row))
        n = max(n, len(more))
        gain = paired_difference(less, more)
        said.append(
            f"{row.name} takes {100 * gain.value:.1f} points more ({100 * gain.low:.1f} to {100 * gain.high:.1f})"
        )
        if gain.value > ALONE:
            short.append(row.name)
    text = f"On {n} images: {'; '.join(said)}."
    if short:
        advice = f"The budget is too small ({', '.join(short)}): take the next stronger profile."
        return Verdict(id, name, Status.WARN, text, advice, (Flag.NOT_CONVERGED,))
    return Verdict(id, name, Status.PASS, text)


def ladder(at: Results) -> Verdict:
    """V7: the more an attack knows, the less is left."""
    id, name = "V7", "ladder"
    own = at.rows(AttackKind.ADAPTIVE, AttackKind.RELAXED)
    if not own:
        return Verdict(id, name, Status.NOT_RUN, "No adaptive attack was run.", "A number from transfer alone is none.")
    white = at.strongest(own).accuracies
    cheaper = (AttackKind.TRANSFER, AttackKind.BPDA, AttackKind.SURROGATE, AttackKind.BLACK_BOX)
    rungs: list[tuple[str, Floats]] = [("null", at.null(longest(own), len(white)))]
    rungs.append(("random corners", at.null(longest(own), len(white), "random_predictions")))
    rungs += [(row.name, at.accuracies(row)[: len(white)]) for row in at.rows(*cheaper)]
    few = [f" of the first {len(found)}" if len(found) < len(white) else "" for _, found in rungs]
    pairs = zip(rungs, few, strict=True)
    said = ", ".join(f"{label} {100 * found.mean():.1f} %{part}" for (label, found), part in pairs)
    said = f"{said}, through the whole defence {100 * white.mean():.1f} %"
    above = _corrected([(white[: len(found)], found) for _, found in rungs])
    inverted = [label for (label, _), worse in zip(rungs, above, strict=True) if worse]
    if inverted:
        text = (
            f"{said}. The adaptive attack is weaker than {', '.join(inverted)}: the gradient or the attack is broken."
        )
        advice = "Audit the gradient; attack through Relaxed; take more steps and draws."
        return Verdict(id, name, Status.WARN, text, advice, (Flag.WEAK,))
    return Verdict(id, name, Status.PASS, f"{said}.")


def without_gradients(at: Results) -> Verdict:
    """V8: attacks without the defence's gradient break hardly an image that those with it do not."""
    return _alone(at, "V8", "black box", (AttackKind.BLACK_BOX, AttackKind.TRANSFER), ALONE, Flag.WEAK)


def random_search(at: Results) -> Verdict:
    """V9: random points break nothing new."""
    return _alone(at, "V9", "random search", (AttackKind.RANDOM,), 0.0)


def pinned(at: Results) -> Verdict:
    """V10: without its randomness next to nothing is left."""
    id, name = "V10", "fixed tape"
    rows = at.rows(AttackKind.PINNED)
    if not rows:
        return Verdict(id, name, Status.NOT_RUN, "The defence was not attacked with its noise pinned.")
    left = at.accuracies(rows[0])
    keeps = f"{100 * left.mean():.1f} %"
    if left.mean() <= BROKEN:
        return Verdict(id, name, Status.PASS, f"With its noise pinned the defence keeps {keeps} of {len(left)} images.")
    return Verdict(
        id,
        name,
        Status.WARN,
        f"With its noise pinned the defence keeps {keeps} (row {rows[0].name}). It is deterministic then, and the "
        "attacker knows all of it: a stronger attack should leave next to nothing, unless images really are so robust.",
        "Take more steps, targets or restarts.",
    )


def beyond_null(at: Results) -> Verdict:
    """V14: the attack takes something from the defence that its own errors do not."""
    id, name = "V14", "beyond the null"
    judged = at.attacks
    if not judged:
        return Verdict(id, name, Status.NOT_RUN, "No row judges the defence.")
    left = at.strongest(judged).accuracies
    found = paired_difference(at.null(longest(judged), len(left)), left)
    said = (
        f"The attacks together take {100 * found.value:.1f} points from the null ({100 * found.low:.1f} to "
        f"{100 * found.high:.1f}, paired by image)"
    )
    if found.low > 0:
        return Verdict(id, name, Status.PASS, f"{said}.")
    return Verdict(
        id,
        name,
        Status.WARN,
        f"The attack found nothing beyond noise: {said[0].lower()}{said[1:]}.",
        "What is printed is the defence's own error rate, with or without an attack.",
        (Flag.NOISE,),
    )


def coverage(at: Results) -> Verdict:
    """V18: an attack through the defence that is judged was run on every image of the headline."""
    id, name = "V18", "adaptive attack"
    own = [row for row in at.attacks if row.kind in GRADIENT_KINDS and row.kind is not AttackKind.BUDGET]
    n = max((row.images for row in at.attacks), default=0)
    if not own:
        text = "No attack differentiates the defence that is judged (its purifier, its classifier and its rule)"
        advice = "Add an adaptive attack on the same Defence; a number from other attacks alone is none."
        return Verdict(id, name, Status.WARN, f"{text}.", advice, (Flag.NOT_ADAPTIVE,))
    most = longest(own)
    said = f"Row {most.name} attacks the defence that is judged on {most.images} of {n} images"
    if most.images < n:
        advice = "Run it on all of them: on the others the headline would be that of weaker attacks."
        return Verdict(id, name, Status.WARN, f"{said}.", advice, (Flag.PARTIAL,))
    return Verdict(id, name, Status.PASS, f"{said}.")


def reference(at: Results) -> Verdict:
    """V20: a short attack of depura's own takes no more than the study's rows do."""
    id, name = "V20", "reference attack"
    rows = at.rows(AttackKind.REFERENCE)
    if not rows or not at.attacks:
        return Verdict(id, name, Status.NOT_RUN, "No attack of depura's own was run beside the rows.")
    left, own = _shared(at.accuracies(rows[0]), at.strongest(at.attacks).accuracies)
    gain = paired_difference(own, left)
    said = (
        f"On {len(own)} images depura's own short attack leaves {100 * left.mean():.1f} %, the study's rows together "
        f"{100 * own.mean():.1f} %"
    )
    if gain.value > ALONE and gain.low > 0 and gain.p < CHANCE:
        advice = "The study's attacks are too weak: take more steps and draws, or a profile."
        return Verdict(id, name, Status.WARN, f"{said} (p {gain.p:.1g}).", advice, (Flag.REFERENCE,))
    return Verdict(id, name, Status.PASS, f"{said}.")


def _shared(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Two accuracies image by image, of the images that both are of: the first ones."""
    n = min(len(a), len(b))
    return a[:n], b[:n]


def _alone(at: Results, id: str, name: str, kinds: tuple[AttackKind, ...], allowed: float, *flags: Flag) -> Verdict:
    """Images whose draws some rows turn wrong by more than half, detectably more than any gradient attack does."""
    rows, own = at.rows(*kinds), at.rows(*GRADIENT_KINDS)
    if not rows or not own:
        missing = "no adaptive attack" if rows else f"no row of kind {' or '.join(kinds)}"
        return Verdict(id, name, Status.NOT_RUN, f"There is {missing}.")
    k = at.header.draws.report
    white = at.errors(own)
    said: list[str] = []
    beyond: list[str] = []
    for row in rows:
        errors = at.errors([row])
        alone = sum(_only(int(b), int(w), k) for b, w in zip(errors, white, strict=False))
        said.append(f"{row.name} {alone} of {len(errors)}")
        if alone > allowed * len(errors):
            beyond.append(row.name)
    text = f"Images broken that no attack with the defence's gradient breaks: {', '.join(said)}."
    if beyond:
        advice = "The white-box attack misses something: masked gradients or too small a budget."
        return Verdict(id, name, Status.WARN, text, advice, flags)
    return Verdict(id, name, Status.PASS, text)


def _only(errors: int, white: int, draws: int) -> bool:
    """Whether an image is broken by the one and not by the other, beyond the noise of their draws."""
    if not (errors > HALF * draws >= white):
        return False
    table = np.array([[errors, draws - errors], [white, draws - white]])
    return bool(stats.fisher_exact(table, alternative="greater").pvalue < CHANCE)


def _corrected(pairs: list[tuple[Floats, Floats]]) -> list[bool]:
    """Whether the first of each pair is detectably higher than the second, all pairs taken together."""
    found: list[Difference] = [paired_difference(a, b) for a, b in pairs]
    return [d.value > 0 and d.low > 0 and p <= 0.05 for d, p in zip(found, holm([d.p for d in found]), strict=True)]


def _whole_box(header: Header) -> float | None:
    """The radius from which on any image can become any other; None where no radius says so."""
    n = math.prod(header.data.shape) if header.data.shape else None
    norm = header.threat_model.norm
    if norm == "linf":
        return 1.0
    if n is None or norm not in ("l1", "l2"):
        return None
    return float(n) if norm == "l1" else float(np.sqrt(n))
