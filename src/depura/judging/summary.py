"""The numbers of a report, computed from the records of a run and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depura.evaluation.records import RunDirectory, Unit
from depura.evaluation.statistics import Estimate, errors_of, mean_with_interval, paired_gain
from depura.judging import checks, ranking
from depura.judging.details import NOTHING, Details, details
from depura.judging.evidence import Evidence
from depura.judging.metrics import Metrics, accuracy, at_most, joined, outcome, strongest
from depura.judging.progress import Progress, progress
from depura.judging.ranking import Ranking
from depura.judging.thresholds import AGREEMENT, BROKEN, EXPLODING, MASKED
from depura.judging.verdicts import Status, Verdict

PICTURES = 6
"""Pictures of the worst images, and as many of the luckiest."""

PICTURES_OF_METHOD = 4
"""Pictures of each method, where methods are compared."""


class GradientFacts(NamedTuple):
    """What the gradients of an attack told about themselves. NaN where there is nothing to tell.

    Attributes:
        zero: share of draws (over steps and images) whose gradient was exactly zero.
        bad: share of draws whose gradient was not finite.
        zero_pixels: share of the mean gradients' entries that were exactly zero.
        agreement: cosine between the mean gradients of two halves of the draws, median over images, at the first, the
            middle and the last step.
        spread: largest over median norm of a draw's gradient, the worst image and step.
        bpda: cosine of the BPDA gradient to the exact one, median over images.
        surrogate: the same of a walk of a fifth of the steps.
    """

    zero: float
    bad: float
    zero_pixels: float
    agreement: tuple[float, float, float]
    spread: float
    bpda: float
    surrogate: float


class Examples(NamedTuple):
    """What an attack made, and what it cost it.

    Attributes:
        largest: largest perturbation, in the ball's norm.
        exact: accuracy of one draw on the draws that `rounded` is measured on.
        rounded: accuracy of one draw after rounding the examples to 8 bits.
        finished: images that the attack was content with before its budget was spent.
        gradients: evaluations of what was attacked with a gradient, mean per image.
        forwards: evaluations without, mean per image.
    """

    largest: float
    exact: Estimate
    rounded: Estimate
    finished: int
    gradients: float
    forwards: float


class Line(NamedTuple):
    """One line of the table.

    Attributes:
        name: row name.
        title: for people.
        kind: what sort of attack, or empty.
        method: the one that is judged, where methods are compared.
        route: gradient route's code.
        images: how many it was run on; the nulls below are of the same ones.
        metrics: under attack.
        null: without an attack, as many draws.
        random: under random corners of the ball, chosen as candidates are.
        examples: what the attack made.
        gradients: what the attack's gradients told about themselves; None of an attack without gradients.
        evaluations: denoiser evaluations (forward, backward) of attack and scoring together.
        gain: 95 % interval of what the attack takes from the null's accuracy, paired by image.
    """

    name: str
    title: str
    kind: str
    method: str
    route: str
    images: int
    metrics: Metrics
    null: Metrics
    random: Metrics
    examples: Examples
    gradients: GradientFacts | None
    evaluations: tuple[int, int]
    gain: tuple[float, float]


class Point(NamedTuple):
    """A point of the accuracy-against-eps curve.

    Attributes:
        eps: radius; 0 for the null baseline.
        accuracy: of one draw.
        images: how many it is measured on.
    """

    eps: float
    accuracy: Estimate
    images: int


class Picture(NamedTuple):
    """One image of the theatre.

    Attributes:
        row: name of the row it was attacked in.
        image: its id.
        label: its class.
        seen_as: the class given by the pictured draw.
        errors: wrong report draws.
        draws: report draws.
        titles: of the frames.
        frames: (F, C, H, W) uint8.
        votes: names of the classes that the report draws gave and how often, the most frequent first.
        lucky: whether it is shown for its few errors, not for its many.
        most: wrong report draws under the attack that left most of them wrong, of all attacks on what is judged.
    """

    row: str
    image: int
    label: str
    seen_as: str
    errors: int
    draws: int
    titles: tuple[str, ...]
    frames: NDArray[np.uint8]
    votes: tuple[tuple[str, int], ...] = ()
    lucky: bool = False
    most: int = 0


@dataclass(frozen=True)
class Summary:
    """Everything a report shows.

    Attributes:
        header: contents of study.json.
        done: units done.
        total: units in the study.
        headline: the sentence.
        lines: the table; empty while the run is not complete.
        strongest: the defended rows together, the strongest attack chosen per image on the select draws; None where
            methods are compared.
        curve: points by row name; "null" is the judged defence without attack. Where methods are compared, the
            strongest attack for each image, by method.
        pictures: the worst images first, then the luckiest.
        warnings: what speaks against the numbers, in sentences.
        devices: kinds of device that the units were computed on.
        ranking: of the methods, where methods are compared.
        verdicts: of the checks V1 to V17 (see `depura.judging.verdicts`).
        flags: what a reader must know first, a few words each, such as "masked gradient".
        refused: whether the failure of a check stands in the headline's place.
        details: what lies behind the table.
        progress: of the rows, while the run is not complete.
    """

    header: dict[str, Any]
    done: int
    total: int
    headline: str
    lines: tuple[Line, ...]
    strongest: Metrics | None
    curve: dict[str, tuple[Point, ...]]
    pictures: tuple[Picture, ...]
    warnings: tuple[str, ...]
    devices: tuple[str, ...]
    ranking: Ranking | None = None
    verdicts: tuple[Verdict, ...] = ()
    flags: tuple[str, ...] = ()
    refused: bool = False
    details: Details = NOTHING
    progress: tuple[Progress, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every unit is done."""
        return self.done == self.total


def summarise(directory: RunDirectory) -> Summary:
    """Compute a report's numbers.

    Args:
        directory: a run.

    Returns:
        The summary; while units are missing it has only the accuracies so far, and its headline says so.
    """
    header = directory.header
    done, total = directory.done, len(header["units"])
    units = list(directory.units())
    devices = tuple(sorted({unit.meta["device"] for unit in units}))
    if done < total:
        text = f"No headline: {done} of {total} units are done. Give the same 'depura run' command again to go on."
        so_far = progress(header, units)
        return Summary(header, done, total, text, (), None, {}, (), (), devices, progress=so_far)
    eps = header["threat_model"]["eps"]
    by_row: dict[tuple[str, float], list[Unit]] = {}
    for unit in units:
        by_row.setdefault((unit.meta["row"], unit.meta["eps"]), []).append(unit)
    lines = tuple(_line(row, by_row[row["name"], eps], by_row[row["null"], eps]) for row in header["rows"])
    defended = [row for row in header["rows"] if row["judged"] == "defence" and row["kind"] != "unchanged"]
    evidence = Evidence(header, by_row)
    found = checks.verdicts(evidence)
    refused = checks.refusal(found)
    ranked = ranking.rank(header, {name: its for (name, radius), its in by_row.items() if radius == eps})
    if ranked is not None:
        return Summary(
            header=header,
            done=total,
            total=total,
            headline=refused or ranking.headline(ranked),
            lines=lines,
            strongest=None,
            curve=_curve_by_method(header, by_row),
            pictures=_pictures_by_method(header, by_row),
            warnings=(*_remarks(header), *ranking.warnings(ranked), *_warnings(lines, defended)),
            devices=devices,
            ranking=ranked,
            verdicts=found,
            flags=checks.flags(found, evidence),
            refused=bool(refused),
            details=details(header, by_row, units),
        )
    together = strongest([by_row[row["name"], eps] for row in defended]).metrics if defended else None
    null = next((line.null for line, row in zip(lines, header["rows"], strict=True) if row in defended), None)
    return Summary(
        header=header,
        done=total,
        total=total,
        headline=refused or _headline(together, null, found),
        lines=lines,
        strongest=together,
        curve=_curve(header, by_row, defended),
        pictures=_extremes(_pictures(header, [unit for row in defended for unit in by_row[row["name"], eps]])),
        warnings=_remarks(header),
        devices=devices,
        verdicts=found,
        flags=checks.flags(found, evidence),
        refused=bool(refused),
        details=details(header, by_row, units),
    )


def _remarks(header: dict[str, Any]) -> tuple[str, ...]:
    """What the header says a reader must know."""
    notes = [f"{header['note']}."] if header["note"] else []
    return (*notes, *([header["rescored_from"]["warning"]] if "rescored_from" in header else []))


def _headline(together: Metrics | None, null: Metrics | None, found: Sequence[Verdict]) -> str:
    if together is None or null is None:
        return "No headline: no row judges the defence."
    nothing = any(v.id == "V14" and v.status is Status.WARN for v in found)
    return at_most(together.single, null.single) + ("; the attack found nothing beyond noise" if nothing else "")


def _line(row: dict[str, Any], units: Sequence[Unit], nulls: Sequence[Unit]) -> Line:
    counts = [unit.meta["evaluations"] for unit in units]
    found = outcome(units)
    n = len(found.labels)
    null, random = outcome(nulls).first(n), outcome(nulls, "random_predictions").first(n)
    return Line(
        name=row["name"],
        title=row["title"],
        kind=row["kind"],
        method=row["method"],
        route=row["route"],
        images=n,
        metrics=found.metrics,
        null=null.metrics,
        random=random.metrics,
        examples=_examples(units),
        gradients=_gradients(units) if "zero_gradients" in units[0].arrays else None,
        evaluations=(
            sum(c["attack"][0] + c["score"][0] for c in counts),
            sum(c["attack"][1] + c["score"][1] for c in counts),
        ),
        gain=paired_gain(null.accuracies, found.accuracies),
    )


def _examples(units: Sequence[Unit]) -> Examples:
    draws = units[0].arrays["rounded_predictions"].shape[1]
    spent = joined(units, "spent").mean(0)
    return Examples(
        largest=float(joined(units, "distance").max()),
        exact=accuracy(units, "predictions", draws),
        rounded=accuracy(units, "rounded_predictions", draws),
        finished=int((joined(units, "finished") >= 0).sum()),
        gradients=float(spent[0]),
        forwards=float(spent[1]),
    )


def _gradients(units: Sequence[Unit]) -> GradientFacts:
    agreement, spread = joined(units, "agreement"), joined(units, "spread")
    first, middle, last = (_median(agreement[:, i]) for i in (0, agreement.shape[1] // 2, -1))
    compared = "cosine_bpda" in units[0].arrays
    return GradientFacts(
        zero=ranking.zero_share(units),
        bad=float(joined(units, "bad_gradients").mean()),
        zero_pixels=float(joined(units, "zero_pixels").mean()),
        agreement=(first, middle, last),
        spread=float(np.max(spread[np.isfinite(spread)], initial=-np.inf)) if np.isfinite(spread).any() else np.nan,
        bpda=_median(joined(units, "cosine_bpda")) if compared else np.nan,
        surrogate=_median(joined(units, "cosine_surrogate")) if compared else np.nan,
    )


def _median(values: NDArray[Any]) -> float:
    """Median of the values that are there; NaN if none is."""
    there = values[np.isfinite(values)]
    return float(np.median(there)) if len(there) else np.nan


def _curve(
    header: dict[str, Any], by_row: dict[tuple[str, float], list[Unit]], defended: Sequence[dict[str, Any]]
) -> dict[str, tuple[Point, ...]]:
    curve: dict[str, tuple[Point, ...]] = {}
    for row in header["rows"]:
        if row["name"] not in header["curve"]["rows"]:
            continue
        points: list[Point] = []
        for eps in sorted({header["threat_model"]["eps"], *header["curve"]["eps"]}):
            metrics = outcome(by_row[row["name"], eps]).accuracies[: header["curve"]["images"]]
            points.append(Point(eps, mean_with_interval(metrics), len(metrics)))
        curve[row["name"]] = tuple(points)
    if defended:
        nulls = outcome(by_row[defended[0]["null"], header["threat_model"]["eps"]]).accuracies[
            : header["curve"]["images"]
        ]
        curve["null"] = (Point(0.0, mean_with_interval(nulls), len(nulls)),)
    return curve


def _curve_by_method(
    header: dict[str, Any], by_row: dict[tuple[str, float], list[Unit]]
) -> dict[str, tuple[Point, ...]]:
    """Each method under the strongest of its attacks for each image, at each radius."""
    curve: dict[str, tuple[Point, ...]] = {}
    for method in header["methods"]:
        own = [row["name"] for row in header["rows"] if row["method"] == method["name"]]
        names = [name for name in own if name in header["curve"]["rows"]]
        if not names:
            continue
        points: list[Point] = []
        for eps in sorted({header["threat_model"]["eps"], *header["curve"]["eps"]}):
            found = strongest([by_row[name, eps] for name in names]).accuracies[: header["curve"]["images"]]
            points.append(Point(eps, mean_with_interval(found), len(found)))
        curve[method["name"]] = tuple(points)
    return curve


def _pictures_by_method(header: dict[str, Any], by_row: dict[tuple[str, float], list[Unit]]) -> tuple[Picture, ...]:
    """A few of each method, the worst first."""
    found: list[Picture] = []
    for method in header["methods"]:
        rows = [row for row in header["rows"] if row["method"] == method["name"]]
        units = [unit for row in rows for unit in by_row[row["name"], header["threat_model"]["eps"]]]
        found += _extremes(_pictures(header, units), n=PICTURES_OF_METHOD // 2)
    return tuple(sorted(found, key=lambda p: (p.lucky, -p.errors / p.draws)))


def _extremes(pictures: Sequence[Picture], *, n: int = PICTURES) -> tuple[Picture, ...]:
    """Of many pictures those of the n worst images and of the n luckiest others, each image once.

    It is shown under the attack of the pictured ones that left most draws wrong; lucky is what is so under all attacks.
    Worst are only those that are mostly wrong, but for the first.
    """
    images: dict[int, Picture] = {}
    for picture in pictures:
        other = images.get(picture.image)
        if other is None or picture.errors > other.errors:
            images[picture.image] = picture
    order = sorted(images.values(), key=lambda p: -p.errors / p.draws)
    n = min(n, -(-len(order) // 2))
    worst = [p for k, p in enumerate(order[:n]) if k == 0 or 2 * p.errors > p.draws]
    lucky = sorted(order[len(worst) :], key=lambda p: (p.most, p.errors))[:n]
    return (*worst, *(p._replace(lucky=True) for p in lucky))


def _pictures(header: dict[str, Any], units: Sequence[Unit]) -> tuple[Picture, ...]:
    classes = header["data"]["classes"]
    found: list[Picture] = []
    most = _most_errors(units)
    for unit in units:
        if "picture_rows" not in unit.arrays:
            continue
        errors = errors_of(unit.arrays["predictions"].astype(np.int64), unit.arrays["labels"])
        for frames, row in zip(unit.arrays["picture_frames"], unit.arrays["picture_rows"], strict=True):
            predicted = unit.arrays["predictions"][row]
            found.append(
                Picture(
                    row=unit.meta["row"],
                    image=int(unit.arrays["ids"][row]),
                    label=classes[int(unit.arrays["labels"][row])],
                    seen_as=classes[int(predicted[0])],
                    errors=int(errors[row]),
                    draws=len(predicted),
                    titles=tuple(str(t) for t in unit.arrays["picture_titles"]),
                    frames=frames,
                    votes=tuple((classes[k], int((predicted == k).sum())) for k in _by_frequency(predicted)),
                    most=most[int(unit.arrays["ids"][row])],
                )
            )
    return tuple(found)


def _most_errors(units: Sequence[Unit]) -> dict[int, int]:
    """By image id, the wrong report draws under the attack that left most of them wrong."""
    most: dict[int, int] = {}
    for unit in units:
        errors = errors_of(unit.arrays["predictions"].astype(np.int64), unit.arrays["labels"])
        for image, wrong in zip(unit.arrays["ids"].tolist(), errors.tolist(), strict=True):
            most[image] = max(most.get(image, 0), wrong)
    return most


def _by_frequency(predicted: NDArray[Any]) -> list[int]:
    """Classes that were predicted, the most frequent first (ties: the lower class)."""
    values, counts = np.unique(predicted, return_counts=True)
    return [int(values[i]) for i in np.lexsort((values, -counts))]


def _warnings(lines: Sequence[Line], defended: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    found: list[str] = []
    names = {row["name"] for row in defended}
    for line in lines:
        if line.kind == "pinned" and line.metrics.single.value > BROKEN:
            found.append(
                f"With its noise pinned the defence keeps {100 * line.metrics.single.value:.1f} % (row {line.name}). "
                "It is deterministic then, and the attacker knows all of it: a stronger attack should leave next to "
                "nothing, unless images really are that robust."
            )
        elif line.name not in names and line.metrics.single.value > BROKEN:
            found.append(
                f"The attack leaves the undefended classifier {100 * line.metrics.single.value:.1f} % accurate (row "
                f"{line.name}); an attack that does not break the classifier says little about the defence."
            )
        stand_in = next((a for a in lines if line.kind == "adaptive" and _same_method(a, line, "relaxed")), None)
        found += _gradient_warnings(line, stand_in)
        if line.name in names and line.gain[0] <= 0:
            found.append(
                f"Row {line.name} found nothing detectable beyond the defence's own errors without attack (it takes "
                f"{100 * line.gain[0]:.1f} to {100 * line.gain[1]:.1f} points from the null, paired by image)."
            )
    for transfer in (line for line in lines if line.kind == "transfer"):
        own = [
            line
            for line in lines
            if _same_method(line, transfer, "adaptive") or _same_method(line, transfer, "relaxed")
        ]
        if own and min(line.metrics.single.low for line in own) > transfer.metrics.single.high:
            where = f" on {transfer.method}" if transfer.method else ""
            found.append(
                f"The adaptive attack{where} is weaker than the transferred one: the gradient or the attack is broken."
            )
    return tuple(found)


def _same_method(line: Line, other: Line, kind: str) -> bool:
    """Whether a row is of a kind and judges the same method as another."""
    return line.kind == kind and line.method == other.method


def _gradient_warnings(line: Line, stand_in: Line | None) -> list[str]:
    """What an attack's gradients say against it; `stand_in` is the relaxed row of the same defence."""
    facts, found = line.gradients, list[str]()
    if facts is None:
        return found
    zero = f"{100 * facts.zero:.1f} % of"
    if facts.zero > MASKED and stand_in is not None:
        which = "exact-gradient" if line.route == "G6" else "adaptive"
        of = f" of {line.method}" if line.method else ""
        says = "nothing" if facts.zero > 0.5 else "too little"
        found.append(
            f"The {which} row{of} ({line.name}) says {says}: {zero} its gradients are exactly zero. Its accuracy is "
            f"not robustness; the relaxed row ({stand_in.name}) is the one to read."
        )
    elif facts.zero > MASKED:
        found.append(
            f"{zero} the gradients in row {line.name} are exactly zero: the gradient is masked. "
            "Attack through the route Relaxed or StraightThrough too."
        )
    if facts.bad > 0:
        found.append(f"{100 * facts.bad:.2f} % of the gradients in row {line.name} are not finite.")
    if facts.spread > EXPLODING:
        found.append(
            f"A gradient in row {line.name} is {facts.spread:.0f} times as long as the median of its image: exploding."
        )
    if facts.agreement[2] < AGREEMENT:
        found.append(
            f"Halves of the draws in row {line.name} point different ways (median cosine {facts.agreement[2]:.2f} at "
            "the last step): more draws per step would make the attack stronger."
        )
    return found
