"""The checks V1 to V26 of an evaluation, in order: of each its rule, its threshold and its sentences.

V1 to V3, V11 to V17, V19 and V21 to V23 are of the pipeline: do its parts do what they are taken to do? V4 to V10, V14,
V18, V20 and V24 are of the attacks: would a better one find more? V25 and V26 are of the images: are they like others?
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from depura.analysis.results import GRADIENT_KINDS, Floats, Results, longest
from depura.analysis.verdicts import Flag, Status, Verdict
from depura.analysis.words import percent
from depura.records.kinds import NOT_FINITE, AttackKind, GradientMode
from depura.records.schema import AuditLight, Header, Judged, RowFacts
from depura.statistics.intervals import holm, mean_with_interval, paired_difference

BROKEN = 0.02
"""Accuracy up to which a defence counts as broken."""

CHANCE = 0.01
"""A difference between two draws of the same thing must be less likely than this to be called one."""

ALONE = 0.02
"""Share of images that a cheaper or another attack may break alone."""

MASKED = 0.01
"""Share of gradients that are exactly zero from which on an attack's gradient is called masked."""

Check = Callable[[Results], Verdict]

CHECKS: list[Check] = []
"""All of them, in order."""


def verdicts(results: Results) -> tuple[Verdict, ...]:
    """All checks of the defence of a run; of a comparison, of each method, one method after another."""
    return tuple(check(its)._replace(method=method.name) for method, its in results.each() for check in CHECKS)


def _check(id: str, name: str, passes: str, *, withholds: bool = False) -> Callable[[Check], Check]:
    """Give a check its id, its name and what it takes to pass, and put it into `CHECKS`.

    With `withholds` its warning takes the headline away; a rule may decide that by itself.
    """

    def register(rule: Check) -> Check:
        @functools.wraps(rule)
        def check(results: Results) -> Verdict:
            verdict = rule(results)
            return verdict._replace(id=id, name=name, passes=passes, withholds=withholds or verdict.withholds)

        CHECKS.append(check)
        return check

    return register


def _passed(sentence: str) -> Verdict:
    return Verdict("", "", Status.PASS, sentence)


def _warned(sentence: str, advice: str = "", *flags: Flag) -> Verdict:
    return Verdict("", "", Status.WARN, sentence, advice, flags)


def _failed(sentence: str, advice: str, *flags: Flag) -> Verdict:
    return Verdict("", "", Status.FAIL, sentence, advice, flags)


def _not_run(reason: str, advice: str = "") -> Verdict:
    return Verdict("", "", Status.NOT_RUN, reason, advice)


@_check(
    "V1",
    "undefended",
    "at most 2 % is left of the classifier alone, or an attack without gradients leaves no less of it",
)
def classifier_breaks(results: Results) -> Verdict:
    """The attack breaks the classifier without a purifier, or the classifier is robust by itself."""
    rows = _bare_by_gradients(results)
    if not rows:
        return _not_run("No row attacks the classifier by itself.", "Add one.")
    null, accuracies = results.null_of(rows[0]), results.accuracies(rows[0])
    clean, chance = mean_with_interval(null.accuracies), 1 / len(results.header.data.classes)
    classes = np.unique(null.array("predictions"))
    if len(classes) == 1 and len(null.array("predictions")) > 1 and len(np.unique(null.array("labels"))) > 1:
        name = results.header.data.class_name(int(classes[0]))
        text = f"The classifier gives all {null.n_images} images the class {name}, without any attack"
        return _warned(f"{text}: no attack can change that.", "Mend the classifier, not the attack.")
    if clean.low <= chance and clean.value < (1 + chance) / 2:
        text = f"Without an attack the classifier alone is {percent(clean)} accurate, which may be chance"
        return _not_run(f"{text} ({100 * chance:.0f} %): that an attack breaks it says nothing.")
    text = f"The attack leaves the undefended classifier {percent(mean_with_interval(accuracies))} accurate"
    if accuracies.mean() <= BROKEN:
        return _passed(f"{text}.")
    queries = _bare_queries(results)
    if not queries:
        verdict = _warned(
            f"{text} (row {rows[0].name}), and no attack without gradients says whether the classifier is so robust.",
            "Add Square on the classifier; profiles and depura's own attacks have it.",
        )
        return verdict._replace(withholds=True)
    n, alone = _broken_alone(results, queries, rows)[queries[0].name]
    said = (
        f"{text}; Square, without gradients, leaves {100 * results.accuracies(queries[0]).mean():.1f} % of {n} images"
    )
    if _more_than(ALONE, alone, n):
        verdict = _warned(
            f"{said} and breaks {alone} that the attack by gradients does not.",
            "The gradient through the classifier is masked or wrong, for the attacks on the defence as well.",
            Flag.MASKED,
        )
        return verdict._replace(withholds=True)
    return _passed(f"{said}: the classifier is robust by itself.")


def _bare_by_gradients(results: Results) -> list[RowFacts]:
    """Rows that attack the classifier by itself by its gradient."""
    return [row for row in results.rows(AttackKind.UNDEFENDED) if row.mode is not GradientMode.NONE]


def _bare_queries(results: Results) -> list[RowFacts]:
    """Rows that attack the classifier by itself without gradients."""
    return [row for row in results.all_rows if row.judged is Judged.BARE and row.mode is GradientMode.NONE]


def _robust_by_itself(results: Results) -> float | None:
    """What is left of the classifier alone, where an attack without gradients agrees; None where it is broken."""
    rows = _bare_by_gradients(results)
    if not rows or results.accuracies(rows[0]).mean() <= BROKEN:
        return None
    verdict = classifier_breaks(results)
    return float(results.accuracies(rows[0]).mean()) if verdict.status is Status.PASS else None


@_check("V2", "identity", "behind a purifier that does nothing no prediction changes, and logits by at most 1e-4")
def identity_changes_nothing(results: Results) -> Verdict:
    """Behind an identity purifier no prediction changes, and logits by at most 1e-4 of the largest."""
    if not results.audits:
        return _not_run("The run has no audit.")
    identities = [identity for _, identity in results.audits]
    changed, largest = sum(i.predictions for i in identities), max(i.logits for i in identities)
    text = (
        f"Behind a purifier that does nothing {changed} of {sum(i.images for i in identities)} predictions change and "
        f"logits by at most {largest:.1g} of the largest"
    )
    if changed == 0 and largest <= 1e-4:
        return _passed(f"{text}.")
    return _failed(f"{text}; expected none.", "Look at ranges and at the classifier's own state.")


@_check("V3", "radius 0", "images scored like attacked ones have the null's accuracy (p at least 0.01)")
def clean_images_equal_null(results: Results) -> Verdict:
    """Clean images, scored as attacked ones are, have the accuracy of the null."""
    rows = results.rows(AttackKind.UNCHANGED)
    if not rows:
        return _not_run("No row returns images unchanged.", "Profiles from smoke on have one.")
    accuracies = results.accuracies(rows[0])
    difference = paired_difference(results.null(rows[0], len(accuracies)), accuracies)
    text = f"Images as they are, scored like attacked ones, differ from the null by {_points(difference.value)}"
    if difference.p >= CHANCE:
        return _passed(f"{text} (p {difference.p:.2f}).")
    return _failed(f"{text} (p {difference.p:.1g}).", "The judge itself is biased: report this.")


@_check(
    "V4",
    "radius",
    "accuracy does not rise with the radius, and at most 2 % is left where any image can become any other",
)
def accuracy_falls_with_radius(results: Results) -> Verdict:
    """Accuracy falls with the radius: to chance at 128/255, to nothing where any image can become any other."""
    header = results.header
    rows = [row for row in results.rows(AttackKind.ADAPTIVE) if row.name in header.curve.rows]
    if not rows or not header.curve.eps:
        return _not_run("The adaptive attack was run at one radius.", "Give curve_eps.")
    by_radius = {
        eps: results.accuracies(rows[0], eps)[: header.curve.images] for eps in sorted({results.eps, *header.curve.eps})
    }
    text = "Accuracy by radius: " + ", ".join(f"{eps:g} {100 * a.mean():.1f} %" for eps, a in by_radius.items())
    whole_box, chance = _whole_box(header), 1 / len(header.data.classes)
    for eps, accuracies in by_radius.items():
        if whole_box is not None and eps >= 0.999 * whole_box and accuracies.mean() > BROKEN:
            return _failed(
                f"{text}. At {eps:g} any image can become any other, so nothing may be left.",
                "What is left does not depend on the image, or the attack does not work: do not read its other "
                "numbers.",
                Flag.RADIUS,
            )
        large = header.threat_model.norm == "linf" and eps >= 128 / 255
        if large and mean_with_interval(accuracies).low > chance:
            return _failed(
                f"{text}. At {eps:g} no more than chance ({100 * chance:.1f} %) may be left.",
                "The attack does not work at large radii.",
                Flag.RADIUS,
            )
    pairs = list(zip(by_radius, list(by_radius)[1:], strict=False))
    higher = _detectably_higher([(by_radius[larger], by_radius[smaller]) for smaller, larger in pairs])
    rising = [pair for pair, rises in zip(pairs, higher, strict=True) if rises]
    if rising:
        return _warned(
            f"{text}; it rises from {rising[0][0]:g} to {rising[0][1]:g}.",
            "A larger ball holds the smaller one: the attack is too weak.",
            Flag.RADIUS,
        )
    reached = whole_box is not None and max(by_radius) >= 0.999 * whole_box
    return _passed(f"{text}{'' if reached else '; the whole box was not tried'}.")


def _whole_box(header: Header) -> float | None:
    """The radius from which on any image can become any other; None where no radius says so."""
    n, norm = math.prod(header.data.shape) if header.data.shape else None, header.threat_model.norm
    if norm == "linf":
        return 1.0
    if n is None or norm not in ("l1", "l2"):
        return None
    return float(n) if norm == "l1" else float(np.sqrt(n))


@_check("V5", "one step", "many steps leave no more than one step, detectably")
def steps_beat_one_step(results: Results) -> Verdict:
    """An attack of many steps is no weaker than one of a single step."""
    rows, adaptive = results.rows(AttackKind.ONE_STEP), results.rows(AttackKind.ADAPTIVE)
    if not rows or not adaptive:
        return _not_run("No row takes a single step.")
    many, single = _shared(results.accuracies(adaptive[0]), results.accuracies(rows[0]))
    difference = paired_difference(many, single)
    text = f"One step leaves {100 * single.mean():.1f} %, many steps {100 * (single.mean() + difference.value):.1f} %."
    if difference.value > 0 and difference.detectable:
        return _failed(text, "A symptom of masked gradients or of a broken optimiser.")
    return _passed(text)


@_check(
    "V6",
    "budget",
    "twice the steps, twice the draws and one restart more take at most 2 points, or no detectable number",
    withholds=True,
)
def budget_suffices(results: Results) -> Verdict:
    """Twice the steps, twice the draws or a restart take at most 2 points, detectably."""
    rows, adaptive = results.rows(AttackKind.BUDGET), results.rows(AttackKind.ADAPTIVE)
    if not rows or not adaptive:
        return _not_run("The attack was not tried with more steps, draws or restarts.")
    pairs = [_shared(results.accuracies(adaptive[0]), results.accuracies(row)) for row in rows]
    gains = {row.name: paired_difference(less, more) for row, (less, more) in zip(rows, pairs, strict=True)}
    parts = [
        f"{row} takes {100 * gain.value:.1f} points more ({100 * gain.low:.1f} to {100 * gain.high:.1f})"
        for row, gain in gains.items()
    ]
    text = f"On {max(len(more) for _, more in pairs)} images: {'; '.join(parts)}."
    better = [row for row, gain in gains.items() if gain.value > ALONE and gain.low > 0]
    if better:
        advice = f"The budget is too small ({', '.join(better)}): take the next stronger profile."
        return _warned(text, advice, Flag.NOT_CONVERGED)
    return _passed(text)


@_check(
    "V7",
    "ladder",
    "the adaptive attack leaves no more than attacks that know less (paired by image, corrected for their number)",
    withholds=True,
)
def knowledge_helps(results: Results) -> Verdict:
    """The adaptive attack leaves detectably more than no attack that knows less."""
    adaptive = results.rows(AttackKind.ADAPTIVE, AttackKind.RELAXED)
    if not adaptive:
        return _not_run("No adaptive attack was run.", "A number from transfer alone is none.")
    white = results.strongest(adaptive).accuracies
    cheaper = results.rows(AttackKind.TRANSFER, AttackKind.BPDA, AttackKind.SURROGATE, AttackKind.BLACK_BOX)
    suite = {
        "null": results.null(longest(adaptive), len(white)),
        "random corners": results.null(longest(adaptive), len(white), "random_predictions"),
        **{row.name: results.accuracies(row)[: len(white)] for row in cheaper},
    }
    parts = [
        f"{name} {100 * a.mean():.1f} %{f' of the first {len(a)}' if len(a) < len(white) else ''}"
        for name, a in suite.items()
    ]
    text = f"{', '.join(parts)}, through the whole defence {100 * white.mean():.1f} %."
    higher = _detectably_higher([(white[: len(a)], a) for a in suite.values()])
    stronger = [name for name, weaker in zip(suite, higher, strict=True) if weaker]
    if stronger:
        return _warned(
            f"{text} The adaptive attack is weaker than {', '.join(stronger)}: the gradient or the attack is broken.",
            "Audit the gradient; attack through Relaxed; take more steps and draws.",
            Flag.WEAK,
        )
    return _passed(text)


@_check(
    "V8",
    "black box",
    "attacks without the defence's gradient break at most 2 % of images that those with it do not, detectably",
    withholds=True,
)
def no_gain_without_gradients(results: Results) -> Verdict:
    """Attacks without the defence's gradient break at most 2 % of the images alone."""
    return _found_alone(results, (AttackKind.BLACK_BOX, AttackKind.TRANSFER), ALONE, Flag.WEAK)


@_check("V9", "random search", "random points break no image that no gradient attack breaks")
def no_gain_at_random(results: Results) -> Verdict:
    """Random points break no image that no gradient attack breaks."""
    return _found_alone(results, (AttackKind.RANDOM,), 0.0)


def _found_alone(results: Results, kinds: tuple[AttackKind, ...], allowed: float, *flags: Flag) -> Verdict:
    """Whether rows of some kinds break images that no gradient attack breaks."""
    rows, white_box = [row for row in results.rows(*kinds) if row.attacks_defence], results.rows(*GRADIENT_KINDS)
    if not rows or not white_box:
        missing = "no adaptive attack" if rows else f"no row of kind {' or '.join(kinds)}"
        return _not_run(f"There is {missing}.")
    alone = _broken_alone(results, rows, white_box)
    parts = [f"{row} {broken} of {n}" for row, (n, broken) in alone.items()]
    text = f"Images broken that no attack with the defence's gradient breaks: {', '.join(parts)}."
    if any(_more_than(allowed, broken, n) for n, broken in alone.values()):
        return _warned(text, "The white-box attack misses something: masked gradients or too small a budget.", *flags)
    return _passed(text)


def _broken_alone(results: Results, rows: Sequence[RowFacts], others: Sequence[RowFacts]) -> dict[str, tuple[int, int]]:
    """By row, of how many images, and how many of them it breaks that no other row breaks.

    An image is broken where more than half of its draws are wrong, detectably more than under the others together.
    """
    draws, known = results.header.draws.report, results.errors(others)
    errors = {row.name: results.errors([row]) for row in rows}
    return {
        row: (
            min(len(its), len(known)),
            sum(_detectably_broken(int(wrong), int(w), draws) for wrong, w in zip(its, known, strict=False)),
        )
        for row, its in errors.items()
    }


SMALL_TAIL = 0.025
"""Probability of as many images by chance below which a count is more than a share allows."""


def _more_than(share: float, count: int, n: int) -> bool:
    """Whether `count` of n images are detectably more than a share: an exact binomial test of one side."""
    return count > 0 and float(stats.binom.sf(count - 1, n, share)) < SMALL_TAIL


def _detectably_broken(wrong: int, white: int, draws: int) -> bool:
    """Whether more than half of an image's draws are wrong, and not as many under the white-box attack (Fisher)."""
    if not wrong > draws / 2 >= white:
        return False
    table = np.array([[wrong, draws - wrong], [white, draws - white]])
    return bool(stats.fisher_exact(table, alternative="greater").pvalue < CHANCE)


@_check(
    "V10",
    "fixed noise",
    "no more than 2 % or than of a robust classifier is left under fixed, known noise, or detectably less than else",
)
def fixed_noise_breaks(results: Results) -> Verdict:
    """Under one fixed noise, which the attacker knows, next to nothing is left, or less than where it is not known."""
    rows, adaptive = results.rows(AttackKind.PINNED), results.rows(AttackKind.ADAPTIVE)
    if not rows:
        return _not_run("The defence was not attacked with its noise pinned.")
    if results.deterministic:
        return _not_run("The defence is deterministic: with its noise pinned it is the same.")
    accuracies = results.accuracies(rows[0])
    found = mean_with_interval(accuracies)
    keeps = f"With its noise pinned the defence keeps {percent(found)} of {len(accuracies)} images"
    if found.value <= BROKEN or found.low <= BROKEN:
        return _passed(f"{keeps}.")
    if _no_more_than_alone(results, accuracies):
        return _passed(f"{keeps}, no more than the classifier that is robust by itself.")
    if adaptive:
        open_noise, pinned = _shared(results.accuracies(adaptive[0]), accuracies)
        less = paired_difference(open_noise, pinned)
        if less.low > 0:
            return _passed(f"{keeps}, detectably less than {100 * open_noise.mean():.1f} % where it is drawn anew.")
    return _warned(
        f"{keeps} (row {rows[0].name}). The attacker knows all of it then: a stronger attack should leave next to "
        "nothing, unless images really are so robust.",
        "Take more steps, targets or restarts.",
    )


@_check("V11", "loss rises", "examples have a larger mean margin than their images, on draws that no attack saw")
def margin_rises(results: Results) -> Verdict:
    """On draws that an attack never saw, the mean margin of its examples is above that of the images."""
    rows = results.rows(*GRADIENT_KINDS)
    if not rows:
        return _not_run("No row differentiates the defence.")
    flat: list[str] = []
    for row in rows:
        margins, clean = results.array(row, "select_margins"), results.null_of(row)
        if margins is None or not clean.has("margins"):
            continue
        if not risen(clean.array("margins")[: len(margins)], margins):
            flat.append(row.name)
    if not flat:
        return _passed("Every attack raises the mean margin on draws that it never saw.")
    return _warned(
        f"The mean margin on unseen draws does not detectably rise in {', '.join(flat)}.",
        "The gradient is masked, or too noisy: take more draws, or a route that sees through.",
    )


def risen(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a number per image, (n,), has risen on average, by more than two standard errors."""
    differences = after.astype(np.float64) - before
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return True
    error = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return bool(differences.mean() > 2 * error)


EXPLODING = 1000
"""How many times the median of its image's gradients one may be long."""

AGREEMENT = 0.2
"""Cosine between the mean gradients of two halves of the draws below which more draws per step would help."""


@_check(
    "V12",
    "gradients",
    "at most 1 % of the gradients are zero, none is 1,000 times as long as the median, halves of the draws agree (0.2)",
)
def gradients_inform(results: Results) -> Verdict:
    """Gradients are not zero, not exploding, and two halves of the draws agree."""
    rows = [row for row in results.rows(*GRADIENT_KINDS) if results.array(row, "zero_gradients") is not None]
    if not rows:
        return _not_run("No row differentiates the defence.")
    masked = {row.name: _mean(results, row, "zero_gradients") for row in rows}
    masked = {row: zeros for row, zeros in masked.items() if zeros > MASKED}
    relaxed = [row.name for row in rows if row.kind is AttackKind.RELAXED and row.name not in masked]
    if masked and all(row.name in masked for row in rows if row.kind is AttackKind.ADAPTIVE):
        which = ", ".join(f"{row} {100 * zeros:.1f} %" for row, zeros in masked.items())
        text = f"Of the gradients, so many are exactly zero: {which}. What these rows leave is no robustness"
        if relaxed:
            return _warned(f"{text}; the row to read is {', '.join(relaxed)}.", "", Flag.MASKED)
        advice = "Attack through the gradients Relaxed or StraightThrough, and without gradients."
        return _failed(f"{text}.", advice, Flag.MASKED)
    parts = [f"{100 * zeros:.1f} % of the gradients in row {row} are exactly zero" for row, zeros in masked.items()]
    for row in rows:
        norms, agreement = results.array(row, "spread"), results.array(row, "agreement")
        largest = float(np.max(norms[np.isfinite(norms)], initial=0.0)) if norms is not None else 0.0
        if largest > EXPLODING:
            parts.append(f"a gradient in row {row.name} is {largest:.0f} times as long as the median: exploding")
        last = agreement[:, -1] if agreement is not None and agreement.shape[1] else np.array([np.nan])
        cosine = float(np.median(last[np.isfinite(last)])) if np.isfinite(last).any() else 1.0
        if cosine < AGREEMENT:
            parts.append(
                f"halves of the draws in row {row.name} point different ways (median cosine {cosine:.2f} at the last "
                "step): more draws per step would make the attack stronger"
            )
    if parts:
        text = "; ".join(parts)
        flag = Flag.MASKED if masked else Flag.GRADIENTS
        return _warned(f"{text[0].upper()}{text[1:]}.", "See the table of gradients.", flag)
    return _passed("Gradients are not zero, and halves of the draws agree.")


@_check("V13", "clean accuracy", "always; it says what purification costs")
def clean_accuracy(results: Results) -> Verdict:
    """What purification costs images that nobody attacked; no rule."""
    if not results.attacks:
        return _not_run("No row judges the defence.")
    row, bare = longest(results.attacks), results.rows(AttackKind.UNDEFENDED)
    text = f"Under the deployed rule {percent(mean_with_interval(results.null(row, row.images)))} without an attack"
    if bare:
        n = min(row.images, results.null_of(bare[0]).n_images)
        alone = results.null(bare[0], n)
        cost = paired_difference(alone, results.null(row, n)).value
        text += f"; the classifier alone {percent(mean_with_interval(alone))}: purification costs {_points(cost)}"
    return _passed(f"{text}.")


@_check(
    "V14",
    "beyond the null",
    "the attacks take detectably something from the null, or nothing from a classifier that is robust by itself",
)
def beyond_null(results: Results) -> Verdict:
    """The attacks together take detectably more from the defence than its own errors do."""
    if not results.attacks:
        return _not_run("No row judges the defence.")
    accuracies = results.strongest(results.attacks).accuracies
    fall = paired_difference(results.null(longest(results.attacks), len(accuracies)), accuracies)
    text = (
        f"he attacks together take {100 * fall.value:.1f} points from the null ({100 * fall.low:.1f} to "
        f"{100 * fall.high:.1f}, paired by image)."
    )
    if fall.low > 0:
        return _passed(f"T{text}")
    bare = results.rows(AttackKind.UNDEFENDED)
    own = float(results.null(longest(results.attacks), len(accuracies)).mean())
    if _robust_by_itself(results) is not None and results.null_of(bare[0]).accuracies.mean() - own <= FREE:
        return _passed(f"T{text} The classifier is robust by itself.")
    if fall.value > BROKEN:
        return _warned(
            f"The fall under attack is not distinguishable from noise with {len(accuracies)} images: t{text}",
            "Take more images before anything is read into the difference.",
            Flag.FEW_IMAGES,
        )
    return _warned(
        f"The attack found nothing beyond noise: t{text}",
        "What is printed is the defence's own error rate, with or without an attack.",
        Flag.NOISE,
    )


FREE = 0.05
"""Accuracy on clean images that a purifier may cost where what is left is the classifier's own robustness."""


def _no_more_than_alone(results: Results, accuracies: Floats) -> bool:
    """Whether an attack leaves no more than what is left of a classifier that is robust by itself."""
    alone = _robust_by_itself(results)
    return alone is not None and mean_with_interval(accuracies).low <= alone


SLACK = 1e-6
"""How far outside a ball an example may be, for rounding: times eps, or as it is where eps is below 1."""


@_check("V15", "constraint", "every example is in the ball, and rounding to 8 bits saves at most 2 points")
def within_ball(results: Results) -> Verdict:
    """Examples are within the radius, and rounding them to 8 bits saves at most 2 % of the images."""
    outside: list[str] = []
    largest = 0.0
    # Of a flow the change of pixels is recorded, which its bound says nothing of.
    bounded = results.header.threat_model.norm != "flow"
    for row in results.all_rows if bounded else ():
        for (name, eps), its in results.by_row.items():
            if name == row.name:
                farthest = float(np.max(its.array("farthest" if its.has("farthest") else "distance")))
                largest = max(largest, farthest / eps if eps else 0.0)
                if farthest > eps + SLACK * max(1.0, eps):
                    outside.append(f"{row.name} {farthest:.6g} where {eps:.6g} is allowed")
    if outside:
        advice = "Mend the attack; its numbers are of another threat model."
        return _failed(f"Examples leave the ball: {', '.join(outside)}.", advice, Flag.OUTSIDE)
    saved = {row.name: _saved_by_rounding(results, row) for row in results.all_rows}
    parts = [f"{row} {_points(gain)}" for row, gain in saved.items() if gain]
    if parts:
        advice = "Say whether the attacker sends files or floating-point numbers."
        return _warned(f"An 8-bit file undoes part of the attack: {', '.join(parts)}.", advice, Flag.ROUNDED)
    if not bounded:
        return _passed("A flow cannot be read off a bent image; rounding to 8 bits saves none.")
    return _passed(f"No example is farther than {largest:.4f} of the radius, and rounding to 8 bits saves none.")


def _saved_by_rounding(results: Results, row: RowFacts) -> float:
    """What rounding to 8 bits gives back of the accuracy; 0 where that is not detectable."""
    rounded, exact, labels = (results.array(row, name) for name in ("rounded_predictions", "predictions", "labels"))
    if rounded is None or exact is None or labels is None:
        return 0.0
    k = rounded.shape[1]
    after, before = ((p[:, :k] == labels[:, None]).mean(1).astype(np.float64) for p in (rounded, exact))
    gain = paired_difference(after, before)
    return gain.value if gain.value > BROKEN and gain.p < CHANCE else 0.0


@_check("V16", "gradient audit", "every check of the audit is green")
def gradient_audited(results: Results) -> Verdict:
    """The gradient is the derivative, and does not depend on batch, order or draws."""
    audits = [audit for audit, _ in results.audits]
    if not audits:
        return _not_run("The run has no audit.")
    red, amber = ([a for a in audits if a.light is light] for light in (AuditLight.RED, AuditLight.AMBER))
    if red:
        checks = [check for audit in red for check in audit.checks if check.light is AuditLight.RED]
        text = " ".join([*(audit.verdict for audit in red), *(check.sentence for check in checks[:2])])
        batch = any(check.name in ("batch", "order") for check in checks)
        flag = Flag.BATCH if batch else Flag.WRONG_GRADIENT
        return _failed(text, "Run depura audit-gradient and mend the part.", flag)
    if amber:
        return _warned(" ".join(audit.verdict for audit in amber))
    return _passed(audits[0].verdict)


@_check(
    "V17",
    "tiny walk",
    "no more than 2 % or than of a robust classifier is left with the reverse process cut to its last step",
)
def last_step_breaks(results: Results) -> Verdict:
    """With the last step of the reverse process alone the attack breaks the defence as it breaks the classifier."""
    rows, bare = results.rows(AttackKind.TINY), results.rows(AttackKind.UNDEFENDED)
    if not rows:
        return _not_run("No row attacks the defence with its reverse process cut to the last step.")
    accuracies = results.accuracies(rows[0])
    null = results.null(rows[0], len(accuracies))
    if bare and null.mean() < results.null(bare[0], len(accuracies)).mean() - 0.2:
        clean = f"{100 * null.mean():.1f} %"
        return _not_run(f"The last step alone classifies {clean} of clean images: it is no small purification.")
    text = f"With the last step alone {percent(mean_with_interval(accuracies))} is left."
    if mean_with_interval(accuracies).low <= BROKEN or _no_more_than_alone(results, accuracies):
        return _passed(text)
    fixed = results.rows(AttackKind.PINNED)
    undefended = results.accuracies(bare[0]).mean() if bare else 1.0
    if fixed and undefended <= BROKEN and _far_more(accuracies) and _far_more(results.accuracies(fixed[0])):
        kept = f"{100 * results.accuracies(fixed[0]).mean():.1f} %"
        verdict = _warned(
            f"{text} Fixed noise leaves {kept}, the classifier alone {100 * undefended:.1f} %: neither noise nor steps "
            "explain what is left.",
            "The attack is stuck: look for a part that detects or looks up images, and attack it by itself.",
            Flag.SHIELDED,
        )
        return verdict._replace(withholds=True)
    advice = "Expected next to nothing: look at the gradient of one step, and at what else shields the classifier."
    return _warned(text, advice)


FAR = 0.1
"""Accuracy from which on far more than `BROKEN` is left."""


def _far_more(accuracies: Floats) -> bool:
    """Whether far more than 2 % is left, and 2 % are outside the interval."""
    found = mean_with_interval(accuracies)
    return found.value >= FAR and found.low > BROKEN


@_check(
    "V18",
    "adaptive attack",
    "an attack that differentiates the defence that is judged was run on every image of the headline",
    withholds=True,
)
def attacked_on_every_image(results: Results) -> Verdict:
    """An attack through the defence that is judged was run on every image of the headline."""
    adaptive = [row for row in results.attacks if row.kind in GRADIENT_KINDS and row.kind is not AttackKind.BUDGET]
    n = max((row.images for row in results.attacks), default=0)
    if not adaptive:
        return _warned(
            "No attack differentiates the defence that is judged (its purifier, its classifier and its rule).",
            "Add an adaptive attack on the same Defence; a number from other attacks alone is none.",
            Flag.NOT_ADAPTIVE,
        )
    row = longest(adaptive)
    text = f"Row {row.name} attacks the defence that is judged on {row.images} of {n} images."
    if row.images < n:
        advice = "Run it on all of them: on the others the headline would be that of weaker attacks."
        return _warned(text, advice, Flag.PARTIAL)
    return _passed(text)


UNMOVED = 0.03
"""Share of the images that are right without an attack whose example may be the image itself."""


@_check(
    "V19",
    "moved examples",
    "at most 3 % of the images that are right without an attack are their own adversarial examples",
    withholds=True,
)
def examples_moved(results: Results) -> Verdict:
    """Gradient attacks change the images that are right without an attack."""
    rows = [row for row in results.rows(*GRADIENT_KINDS) if row.attacks_defence]
    if not rows:
        return _not_run("No row differentiates the defence.")
    parts: list[str] = []
    for row in rows:
        distance = results.of_row(row).array("distance")
        right = results.null(row, len(distance)) > 0.5  # an attack may leave an image that is wrong without one
        still, n_right = int((right & (distance == 0)).sum()), int(right.sum())
        if still > UNMOVED * max(1, n_right):
            parts.append(f"{still} of {n_right} in row {row.name}")
    if not parts:
        return _passed("Examples differ from their images.")
    return _warned(
        f"Examples that are the clean image itself, of images that are right without an attack: {', '.join(parts)}.",
        "Let the attack return its strongest candidate, also where it is not sure of it.",
        Flag.UNMOVED,
    )


@_check(
    "V20",
    "reference attack",
    "depura's own short attack takes at most 2 points more than the study's rows, or no detectable number",
    withholds=True,
)
def reference_finds_no_more(results: Results) -> Verdict:
    """A short attack of depura's own breaks at most 2 % more of the images than the study's rows do."""
    rows = [row for row in results.rows(AttackKind.REFERENCE) if row.judged is Judged.DEFENCE]
    if not rows or not results.attacks:
        return _not_run("No attack of depura's own was run beside the rows.")
    left, study = _shared(results.accuracies(rows[0]), results.strongest(results.attacks).accuracies)
    gain = paired_difference(study, left)
    text = (
        f"On {len(study)} images depura's own short attack leaves {100 * left.mean():.1f} %, the study's rows together "
        f"{100 * study.mean():.1f} %"
    )
    advice = "The study's attacks are too weak: take more steps and draws, or a profile."
    if gain.value > ALONE and gain.low > 0 and gain.p < CHANCE:
        return _warned(f"{text} (p {gain.p:.1g}).", advice, Flag.REFERENCE)
    return _passed(f"{text}.")


NOT_FINITE_SHARE = 0.01
"""Share of predictions or gradients that are not finite above which a defence has no headline."""


@_check("V21", "finite numbers", "all predictions and gradients are finite")
def numbers_are_finite(results: Results) -> Verdict:
    """Predictions and gradients are finite. One that is not is never right, and an attack does not follow it."""
    parts: list[str] = []
    worst = 0.0
    for row in results.all_rows:
        for what, its in (
            ("predictions", results.of_row(row)),
            ("predictions without an attack", results.null_of(row)),
        ):
            bad = its.array("predictions") == NOT_FINITE
            if bad.any():
                parts.append(f"{100 * bad.mean():.2f} % of the {what} in row {row.name}, on {bad.any(1).sum()} images")
                worst = max(worst, float(bad.mean()))
        gradients = _mean(results, row, "bad_gradients")
        if gradients > 0:
            parts.append(f"{100 * gradients:.2f} % of the gradients in row {row.name}")
            worst = max(worst, gradients)
    if not parts:
        return _passed("All predictions and gradients are finite.")
    text = f"Not finite: {'; '.join(parts)}."
    advice = "Find the part that gives NaN or infinity; depura audit-gradient names it."
    if worst > NOT_FINITE_SHARE:
        return _failed(f"{text} No more than {100 * NOT_FINITE_SHARE:g} % is allowed.", advice, Flag.NOT_FINITE)
    return _warned(text, advice, Flag.NOT_FINITE)


CONTEXT = ("history", "recorded labels", "batch size", "order", "grad mode", "streams")
"""Checks at examples of what a defence's answers depend on."""


@_check(
    "V22",
    "state and context",
    "at examples the answers are the same before and after the run, alone, in any order, with a graph, on any stream",
)
def answers_without_context(results: Results) -> Verdict:
    """What a defence answers depends on images and noise alone."""
    checks = [check for check in results.at_examples if check.name in CONTEXT]
    if not checks:
        return _not_run("The defence was not looked at again at the examples of an attack.")
    red = [check for check in checks if check.light is AuditLight.RED]
    if red:
        names = ", ".join(dict.fromkeys(check.name for check in red))
        text = f"The answers depend on more than images and noise ({names}). {' '.join(c.sentence for c in red[:2])}"
        return _failed(text, "An attack met another defence than the one that is reported.", Flag.STATE)
    amber = [check.sentence for check in checks if check.light is AuditLight.AMBER]
    if amber:
        return _warned(" ".join(amber), "Make parts that can be copied, and asked in calls of any size.")
    return _passed("At examples the answers are the same before and after the run, alone, in any order, with a graph.")


@_check(
    "V23",
    "gradient at examples",
    "at examples, and at images drawn at random, the gradient is the derivative, also in the deployed dtype",
)
def gradient_holds_at_examples(results: Results) -> Verdict:
    """The gradient that an attack followed is the derivative where it led to."""
    checks = [c for c in results.at_examples if c.name in ("differences at examples", "deployed gradient")]
    if not checks:
        return _not_run("No gradient was measured at the examples of an attack.")
    red = [check for check in checks if check.light is AuditLight.RED]
    if red:
        text = " ".join(check.sentence for check in red)
        return _failed(text, "Mend the derivative; depura audit-gradient tries the parts.", Flag.AT_EXAMPLES)
    amber = [check.sentence for check in checks if check.light is AuditLight.AMBER]
    return _warned(" ".join(amber)) if amber else _passed(" ".join(check.sentence for check in checks))


@_check(
    "V24",
    "jumps",
    "the margin does not jump on the way from images to their examples, or an attack without gradients finds no more",
)
def outputs_do_not_jump(results: Results) -> Verdict:
    """On the way from an image to its example the margin changes steadily, so that a gradient can follow."""
    checks = [check for check in results.at_examples if check.name == "jumps"]
    if not checks:
        return _not_run("No way from an image to its example was looked at.")
    if checks[0].light is AuditLight.GREEN:
        return _passed(checks[0].sentence)
    queries = [row for row in results.rows(AttackKind.BLACK_BOX) if row.attacks_defence]
    advice = "Attack through smooth stand-ins (Relaxed), at smaller radii, and without gradients (Square)."
    verdict = _warned(checks[0].sentence, advice, Flag.JUMPS)
    return verdict if queries or results.rows(AttackKind.RELAXED) else verdict._replace(withholds=True)


VARIANTS = {
    "error_left": "the same moved left by a pixel",
    "error_up": "the same moved up",
    "error_mirrored": "the same mirrored",
    "error_others": "others of the data set",
}
"""What the purification error of a study's images is compared with, by the array that it is recorded as."""

FEWEST = 4
"""Images of which something can be said."""

FAMILIAR, ALIKE = 15.0, 2.0
"""How many times the squared error of the images that of two of their variants, or that of others, may surely be.

`python -m experiments.image_checks` prints what honest denoisers have, and such as know the images.
"""

KNOWN, KNOWN_SHARE = 200.0, 0.25
"""An image is known if two of its variants change so many times as much; so many of the images may be."""


@_check(
    "V25",
    "memorised images",
    "purification changes the study's images as it changes them moved or mirrored, and others of the data set",
    withholds=True,
)
def images_not_memorised(results: Results) -> Verdict:
    """Purification changes the study's images as it changes their neighbours and others of the data set."""
    if results.header.method(results.method or "").part("purifier") is None:
        return _not_run("There is no purifier whose purified images could be looked at.")
    own = results.of_images("error")
    if own is None:
        return _not_run("The run did not measure what purification changes.")
    compared = {name: its for name in VARIANTS if (its := results.of_images(name)) is not None}
    if min(np.isfinite(its).sum() for its in (own, *compared.values())) < FEWEST:
        return _not_run(f"There are fewer than {FEWEST} images that can be compared.")
    ratios = {name: surely_larger(its, own) for name, its in compared.items()}
    moved = [name for name in compared if name != "error_others"]
    second = np.sort([compared[name] for name in moved], axis=0)[-2]
    known = int((second > KNOWN * (np.abs(own) + ROUNDING)).sum())
    parts = [f"{_root(own)} in {len(own)} images of the study"]
    parts += [f"{_root(its)} in {VARIANTS[name]}" for name, its in compared.items()]
    text = f"Root mean square of the change that purification makes whatever noise it draws: {', '.join(parts)}"
    familiar = sorted(ratios[name] for name in moved)[-2] > FAMILIAR or ratios.get("error_others", 0.0) > ALIKE
    if familiar or known >= max(FEWEST - 1, KNOWN_SHARE * len(own)):
        some = "" if familiar else f", and next to nothing in {known} of them"
        advice = "Judge images that the denoiser was not trained on and that the purifier does not know."
        return _warned(f"{text}{some}: the purifier knows images of the study.", advice, Flag.MEMORISED)
    return _passed(f"{text}.")


ROUNDING = (1 / 255) ** 2 / 12
"""Mean squared error of rounding to 8 bits, below which an error is none."""


def surely_larger(values: Floats, than: Floats) -> float:
    """How many times as large as another a mean squared error surely is: lower over upper end of 95 % intervals."""
    return max(_bounds(values)[0], 0.0) / (max(_bounds(than)[1], 0.0) + ROUNDING)


def _bounds(values: Floats) -> tuple[float, float]:
    """Student's 95 % interval of the mean of the finite values, which are two at least."""
    values = values[np.isfinite(values)]
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def _root(squares: Floats) -> str:
    return f"{math.sqrt(max(float(np.nanmean(squares)), 0.0)):.2g}"


IMPROBABLE = 0.001
"""Each of the two tests of V26 warns below it: of honest choices at most one in 500 is warned of."""


@_check(
    "V26",
    "chosen images",
    "the bare classifier finds the study's images no easier than others of the data set (p at least 0.001, two tests)",
    withholds=True,
)
def images_no_easier(results: Results) -> Verdict:
    """The bare classifier finds the study's images no easier than others of the data set that were not chosen."""
    compared = {"as they are": "margin", "after a step of half the radius": "stepped_margin"}
    found = {
        when: (own[np.isfinite(own)], rest[np.isfinite(rest)])
        for when, name in compared.items()
        if (own := results.of_images(name)) is not None and (rest := results.of_images(f"{name}_others")) is not None
    }
    if not found:
        missing = "none are at hand, or there is no bare classifier"
        return _not_run(f"The bare classifier was not asked about other images of the data set: {missing}.")
    if min(len(values) for pair in found.values() for values in pair) < FEWEST:
        return _not_run(f"There are fewer than {FEWEST} images that can be compared.")
    p = {when: float(stats.mannwhitneyu(*pair, alternative="less").pvalue) for when, pair in found.items()}
    own, rest = next(iter(found.values()))
    parts = [
        f"{when} by {-np.median(own):.2f} and {-np.median(rest):.2f} (p {p[when]:.1g})"
        for when, (own, rest) in found.items()
    ]
    text = (
        f"By how much the bare classifier's logit of the right class leads, median of {len(own)} images of the study "
        f"and of {len(rest)} others of the data set: {'; '.join(parts)}"
    )
    if min(p.values()) < IMPROBABLE:
        advice = "Judge the first images, or a draw of them by a seed (ImageSet.first, ImageSet.draw)."
        return _warned(f"{text}: the images are easier than those they were chosen from.", advice, Flag.CHOSEN)
    return _passed(f"{text}.")


def _shared(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Two accuracies image by image, of the images that both are of: the first ones."""
    n = min(len(a), len(b))
    return a[:n], b[:n]


def _detectably_higher(pairs: Sequence[tuple[Floats, Floats]]) -> list[bool]:
    """Whether the first of each pair is detectably higher than the second, all pairs taken together (Holm)."""
    differences = [paired_difference(a, b) for a, b in pairs]
    corrected = holm([d.p for d in differences])
    return [d.value > 0 and d.low > 0 and p <= 0.05 for d, p in zip(differences, corrected, strict=True)]


def _mean(results: Results, row: RowFacts, name: str) -> float:
    """Mean of an array of a row; 0 where its attack has none."""
    values = results.array(row, name)
    return 0.0 if values is None else float(values.mean())


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"
