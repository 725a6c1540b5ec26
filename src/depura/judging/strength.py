"""Checks of how strong the attacks are: V4 to V10 and V14. Would a better attack find more?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

from depura.evaluation.statistics import Difference, holm, mean_with_interval, paired_difference
from depura.judging.evidence import GRADIENT_KINDS, Evidence, Floats
from depura.judging.thresholds import ALONE, BROKEN, CHANCE
from depura.judging.verdicts import Status, Verdict

HALF = 0.5
"""An image counts as broken when more of its draws than these are wrong."""


def radii(at: Evidence) -> Verdict:
    """V4: accuracy falls with the radius, to nothing where any image can become any other."""
    id, name = "V4", "radius"
    rows = [row for row in at.rows("adaptive") if row["name"] in at.header["curve"]["rows"]]
    further = at.header["curve"]["eps"]
    if not rows or not further:
        return Verdict(id, name, Status.NOT_RUN, "The adaptive attack was run at one radius.", "Give curve_eps.")
    row, n = rows[0], at.header["curve"]["images"]
    found = {eps: at.accuracies(row, eps)[:n] for eps in sorted({at.eps, *further})}
    said = "Accuracy by radius: " + ", ".join(f"{eps:g} {100 * a.mean():.1f} %" for eps, a in found.items())
    whole = _whole_box(at.header)
    chance = 1 / len(at.header["data"]["classes"])
    for eps, accuracies in found.items():
        if whole is not None and eps >= 0.999 * whole and accuracies.mean() > BROKEN:
            text = f"{said}. At {eps:g} any image can become any other, so nothing may be left"
            advice = (
                "What is left does not depend on the image, or the attack does not work: do not read its other numbers."
            )
            return Verdict(id, name, Status.FAIL, f"{text}.", advice)
        if at.header["threat_model"]["norm"] == "linf" and eps >= 128 / 255:
            low = mean_with_interval(accuracies).low
            if low > chance:
                text = f"{said}. At {eps:g} no more than chance ({100 * chance:.1f} %) may be left"
                return Verdict(id, name, Status.FAIL, f"{text}.", "The attack does not work at large radii.")
    pairs = list(zip(found, list(found)[1:], strict=False))
    rising = [
        (a, b) for (a, b), d in zip(pairs, _corrected([(found[b], found[a]) for a, b in pairs]), strict=True) if d
    ]
    if rising:
        text = f"{said}; it rises from {rising[0][0]:g} to {rising[0][1]:g}"
        return Verdict(
            id, name, Status.WARN, f"{text}.", "A larger ball holds the smaller one: the attack is too weak."
        )
    reached = "" if whole is not None and max(found) >= 0.999 * whole else "; the whole box was not tried"
    return Verdict(id, name, Status.PASS, f"{said}{reached}.")


def iterated(at: Evidence) -> Verdict:
    """V5: many steps are no worse than one."""
    id, name = "V5", "one step"
    rows, own = at.rows("one-step"), at.rows("adaptive")
    if not rows or not own:
        return Verdict(id, name, Status.NOT_RUN, "No row takes a single step.")
    single = at.accuracies(rows[0])
    difference = paired_difference(at.accuracies(own[0])[: len(single)], single)
    said = f"One step leaves {100 * single.mean():.1f} %, many steps {100 * (single.mean() + difference.value):.1f} %"
    if difference.value > 0 and difference.detectable:
        return Verdict(id, name, Status.FAIL, f"{said}.", "A symptom of masked gradients or of a broken optimiser.")
    return Verdict(id, name, Status.PASS, f"{said}.")


def budget(at: Evidence) -> Verdict:
    """V6: twice the steps, twice the draws or a restart would not change the number."""
    id, name = "V6", "budget"
    rows, own = at.rows("budget"), at.rows("adaptive")
    if not rows or not own:
        return Verdict(id, name, Status.NOT_RUN, "The attack was not tried with more steps, draws or restarts.")
    said: list[str] = []
    short: list[str] = []
    for row in rows:
        more = at.accuracies(row)
        gain = paired_difference(at.accuracies(own[0])[: len(more)], more)
        said.append(
            f"{row['name']} takes {100 * gain.value:.1f} points more ({100 * gain.low:.1f} to {100 * gain.high:.1f})"
        )
        if gain.value > ALONE:
            short.append(row["name"])
    text = f"On {len(at.accuracies(rows[0]))} images: {'; '.join(said)}."
    if short:
        return Verdict(
            id,
            name,
            Status.WARN,
            text,
            f"The budget is too small ({', '.join(short)}): take the next stronger profile.",
        )
    return Verdict(id, name, Status.PASS, text)


def ladder(at: Evidence) -> Verdict:
    """V7: the more an attack knows, the less is left."""
    id, name = "V7", "ladder"
    own = at.rows("adaptive", "relaxed")
    if not own:
        return Verdict(id, name, Status.NOT_RUN, "No adaptive attack was run.", "A number from transfer alone is none.")
    white = at.strongest(own)
    rungs: list[tuple[str, Floats]] = [("null", at.null(own[0], len(white)))]
    rungs.append(("random corners", at.null(own[0], len(white), "random_predictions")))
    rungs += [(row["name"], at.accuracies(row)) for row in at.rows("transfer", "bpda", "surrogate", "black-box")]
    few = [f" of the first {len(found)}" if len(found) < len(white) else "" for _, found in rungs]
    pairs = zip(rungs, few, strict=True)
    said = ", ".join(f"{label} {100 * found.mean():.1f} %{part}" for (label, found), part in pairs)
    said = f"{said}, through the whole defence {100 * white.mean():.1f} %"
    above = _corrected([(white[: len(found)], found) for _, found in rungs])
    inverted = [label for (label, _), worse in zip(rungs, above, strict=True) if worse]
    if inverted:
        return Verdict(
            id,
            name,
            Status.WARN,
            f"{said}. The adaptive attack is weaker than {', '.join(inverted)}: the gradient or the attack is broken.",
            "Audit the gradient; attack through Relaxed; take more steps and draws.",
        )
    return Verdict(id, name, Status.PASS, f"{said}.")


def without_gradients(at: Evidence) -> Verdict:
    """V8: attacks without the defence's gradient break hardly an image that those with it do not."""
    return _alone(at, "V8", "black box", ("black-box", "transfer"), ALONE)


def random_search(at: Evidence) -> Verdict:
    """V9: random points break nothing new."""
    return _alone(at, "V9", "random search", ("random",), 0.0)


def pinned(at: Evidence) -> Verdict:
    """V10: without its randomness next to nothing is left."""
    id, name = "V10", "fixed tape"
    rows = at.rows("pinned")
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
        f"With its noise pinned the defence keeps {keeps} (row {rows[0]['name']}). It is deterministic then, and the "
        "attacker knows all of it: a stronger attack should leave next to nothing, unless images really are so robust.",
        "Take more steps, targets or restarts.",
    )


def beyond_null(at: Evidence) -> Verdict:
    """V14: the attack takes something from the defence that its own errors do not."""
    id, name = "V14", "beyond the null"
    judged = [r for r in at.header["rows"] if r["judged"] == "defence" and r["kind"] != "unchanged"]
    if not judged:
        return Verdict(id, name, Status.NOT_RUN, "No row judges the defence.")
    left = at.strongest(judged)
    found = paired_difference(at.null(judged[0], len(left)), left)
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
    )


def _alone(at: Evidence, id: str, name: str, kinds: tuple[str, ...], allowed: float) -> Verdict:
    """Images whose draws some rows turn wrong by more than half, detectably more than any gradient attack does."""
    rows, own = at.rows(*kinds), at.rows(*GRADIENT_KINDS)
    if not rows or not own:
        missing = "no adaptive attack" if rows else f"no row of kind {' or '.join(kinds)}"
        return Verdict(id, name, Status.NOT_RUN, f"There is {missing}.")
    k = int(at.header["draws"]["report"])
    white = at.errors(own)
    said: list[str] = []
    beyond: list[str] = []
    for row in rows:
        errors = at.errors([row])
        alone = sum(_only(int(b), int(w), k) for b, w in zip(errors, white, strict=False))
        said.append(f"{row['name']} {alone} of {len(errors)}")
        if alone > allowed * len(errors):
            beyond.append(row["name"])
    text = f"Images broken that no attack with the defence's gradient breaks: {', '.join(said)}."
    if beyond:
        return Verdict(
            id,
            name,
            Status.WARN,
            text,
            "The white-box attack misses something: masked gradients or too small a budget.",
        )
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


def _whole_box(header: dict[str, Any]) -> float | None:
    """The radius from which on any image can become any other; None where no radius says so."""
    n = math.prod(header["data"]["shape"]) if "shape" in header["data"] else None
    norm = header["threat_model"]["norm"]
    if norm == "linf":
        return 1.0
    if n is None or norm not in ("l1", "l2"):
        return None
    return float(n) if norm == "l1" else float(np.sqrt(n))
