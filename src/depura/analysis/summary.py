"""The numbers of a report, computed from the records of a run and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depura.analysis.checks import verdicts
from depura.analysis.details import Details, details
from depura.analysis.progress import Progress, run_progress
from depura.analysis.ranking import Ranking, rank, ranking_headline, ranking_warnings
from depura.analysis.results import Floats, Metrics, Results, RowResults, finite_median, longest, strongest
from depura.analysis.verdicts import (
    Conclusion,
    Flag,
    HeadlineStatus,
    Status,
    Verdict,
    conclusion,
    of_method,
    raised_flags,
)
from depura.analysis.words import at_most, attack_text, images_text, threat_text
from depura.records.directory import RunDirectory
from depura.records.kinds import AttackKind, GradientMode
from depura.records.schema import Header, RowFacts
from depura.statistics.intervals import Proportion, errors_of, mean_with_interval, paired_gain

PICTURES = 6
"""Pictures of the worst images, and as many of the luckiest."""

PICTURES_OF_METHOD = 4
"""Pictures of each method, where methods are compared."""


class GradientFacts(NamedTuple):
    """Norms and agreement of the gradients of an attack. NaN where there is none.

    Attributes:
        zero: share of draws (over steps and images) whose gradient was exactly zero.
        bad: share of draws whose gradient was not finite.
        zero_pixels: share of the mean gradients' entries that were exactly zero.
        agreement: cosine between the mean gradients of two halves of the draws, median over images, at the first, the
            middle and the last step.
        spread: largest over median norm of a draw's gradient, the worst image and step.
        bpda: cosine of the BPDA gradient to the exact one, median over images.
        surrogate: the same of a reverse process of a fifth of the steps.
    """

    zero: float
    bad: float
    zero_pixels: float
    agreement: tuple[float, float, float]
    spread: float
    bpda: float
    surrogate: float


class Examples(NamedTuple):
    """The adversarial examples of an attack, and what they cost.

    Attributes:
        largest: largest perturbation, in the ball's norm.
        exact: accuracy of one draw on the draws that `rounded` is measured on.
        rounded: accuracy of one draw after rounding the examples to 8 bits.
        finished: images that the attack was content with before its budget was spent.
        gradients: evaluations of what was attacked with a gradient, mean per image.
        forwards: evaluations without, mean per image.
    """

    largest: float
    exact: Proportion
    rounded: Proportion
    finished: int
    gradients: float
    forwards: float


class Line(NamedTuple):
    """One line of the table.

    Attributes:
        name: row name.
        title: for people.
        kind: what sort of attack.
        method: the one that is judged, where methods are compared.
        mode: how the attack differentiates what is judged.
        images: how many it was run on; the nulls below are of the same ones.
        metrics: under attack.
        null: without an attack, as many draws.
        random: under random corners of the ball, chosen as candidates are.
        examples: the adversarial examples.
        gradients: their norms and agreement; None of an attack without gradients.
        evaluations: denoiser evaluations (forward, backward) of attack and scoring together.
        gain: 95 % interval of what the attack takes from the null's accuracy, paired by image.
    """

    name: str
    title: str
    kind: AttackKind
    method: str
    mode: GradientMode
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
    accuracy: Proportion
    images: int


class Picture(NamedTuple):
    """One image of the gallery.

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
        warnings: what a reader must know that no check says, in sentences.
        devices: kinds of device that the units were computed on.
        ranking: of the methods, where methods are compared.
        verdicts: of the checks, of each method (see `depura.analysis.verdicts`).
        conclusions: whether each defence has a headline.
        flagged: what a reader must know first, by method; see `flags`.
        details: what lies behind the table.
        progress: of the rows, while the run is not complete.
    """

    header: Header
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
    conclusions: tuple[Conclusion, ...] = ()
    flagged: Mapping[str, tuple[Flag, ...]] = field(default_factory=dict[str, tuple[Flag, ...]])
    details: Details = field(default_factory=Details)
    progress: tuple[Progress, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every unit is done."""
        return self.done == self.total

    @property
    def refused(self) -> bool:
        """Whether a reason stands in the headline's place; in a comparison, of the best method that is ranked."""
        if not self.complete:
            return False
        if self.ranking is not None:
            return self.ranking.best is None or self.ranking.best.unchecked
        return self.conclusions[0].status is not HeadlineStatus.GIVEN

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What a reader of a study of one defence must know first."""
        return self.flags_of("")

    def flags_of(self, method: str) -> tuple[Flag, ...]:
        """What a reader must know first of a method."""
        return self.flagged.get(method, ())


def summarise(directory: RunDirectory) -> Summary:
    """The numbers of a run's report; while units are missing, only the accuracies so far, and the headline says so."""
    header = directory.header
    done, total = directory.done, len(header.units)
    units = list(directory.units())
    devices = tuple(sorted({unit.facts.device for unit in units}))
    if done < total:
        text = f"No headline: {done} of {total} units are done. Give the same 'depura run' command again to go on."
        progress = run_progress(header, units)
        return Summary(header, done, total, text, (), None, {}, (), (), devices, progress=progress)
    results = Results.of(header, units)
    checked = verdicts(results)
    methods = [(its, of_method(checked, method.name)) for method, its in results.each()]
    conclusions = tuple(conclusion(its_verdicts, its) for its, its_verdicts in methods)
    ranking = rank(results, conclusions)
    if ranking is None:
        metrics = results.strongest(results.attacks).metrics if results.attacks else None
        headline = _headline(results, metrics, checked, conclusions[0])
        curve, pictures = _curve(results), _with_frames(_extremes(_pictures(results)), results)
    else:
        metrics = None
        headline = _comparison_headline(results, ranking)
        curve, pictures = _curve_by_method(results), _pictures_by_method(results)
    rescored = header.rescored_from
    return Summary(
        header=header,
        done=total,
        total=total,
        headline=headline,
        lines=tuple(_line(row, results) for row in results.all_rows if row.kind is not AttackKind.REFERENCE),
        strongest=metrics,
        curve=curve,
        pictures=pictures,
        warnings=(
            *(f"{method.note}." for method in header.methods if method.note and not method.name),
            *([rescored.warning] if rescored is not None and rescored.warning else []),
            *(ranking_warnings(ranking) if ranking is not None else []),
        ),
        devices=devices,
        ranking=ranking,
        verdicts=checked,
        conclusions=conclusions,
        flagged={
            its.method or "": raised_flags(its_verdicts, its, conclusion)
            for (its, its_verdicts), conclusion in zip(methods, conclusions, strict=True)
        },
        details=details(results),
    )


def _headline(results: Results, metrics: Metrics | None, verdicts: Sequence[Verdict], conclusion: Conclusion) -> str:
    """The sentence on top of a study of one defence."""
    if conclusion.status is not HeadlineStatus.GIVEN or metrics is None:
        return conclusion.refusal
    attacks, source = results.attacks, results.header.source
    row = longest(attacks)
    null = results.null_of(row).outcome().first(row.images).metrics
    hardest = min(attacks, key=lambda row: float(results.accuracies(row).mean()))
    profile = f"profile {source.profile}, " if source is not None and source.profile else ""
    several = f"the strongest of {len(attacks)} attacks, most by " if len(attacks) > 1 else ""
    flags = {flag for v in verdicts if v.status is Status.WARN for flag in v.flags}
    noise = "; the attack found nothing beyond noise" if Flag.NOISE in flags else ""
    if Flag.FEW_IMAGES in flags:
        noise = f"; not distinguishable from noise with {row.images} images"
    return (
        f"{at_most(metrics.single, null.single)}; {images_text(row.images, results.header.data.choice)}, "
        f"{threat_text(results.header.threat_model)}, "
        f"{profile}{several}{hardest.name} ({attack_text(hardest)})"
        f"{noise}"
    )


def _comparison_headline(results: Results, ranking: Ranking) -> str:
    """The sentence on top of a comparison."""
    text = ranking_headline(ranking)
    if ranking.best is None:
        return text
    threat = threat_text(results.header.threat_model)
    images = images_text(longest(results.attacks).images, results.header.data.choice)
    return f"{text}; {images}, {threat}, the strongest attack on each method"


def _line(row: RowFacts, results: Results) -> Line:
    its, clean = results.of_row(row), results.null_of(row)
    counts = [unit.facts.evaluations for unit in its.units]
    outcome = its.outcome()
    n = len(outcome.labels)
    null, random = clean.outcome().first(n), clean.outcome("random_predictions").first(n)
    return Line(
        name=row.name,
        title=row.title,
        kind=row.kind,
        method=row.method,
        mode=row.mode,
        images=n,
        metrics=outcome.metrics,
        null=null.metrics,
        random=random.metrics,
        examples=_examples(its),
        gradients=_gradients(its) if its.has("zero_gradients") else None,
        evaluations=(sum(c.attack[0] + c.score[0] for c in counts), sum(c.attack[1] + c.score[1] for c in counts)),
        gain=paired_gain(null.accuracies, outcome.accuracies),
    )


def _examples(its: RowResults) -> Examples:
    draws = its.array("rounded_predictions").shape[1]
    spent = its.array("spent").mean(0)
    return Examples(
        largest=float(its.array("distance").max()),
        exact=its.accuracy("predictions", draws),
        rounded=its.accuracy("rounded_predictions", draws),
        finished=int((its.array("finished") >= 0).sum()),
        gradients=float(spent[0]),
        forwards=float(spent[1]),
    )


def _gradients(its: RowResults) -> GradientFacts:
    agreement, spread = its.array("agreement"), its.array("spread")
    first, middle, last = (finite_median(agreement[:, i]) for i in (0, agreement.shape[1] // 2, -1))
    compared = its.has("cosine_bpda")
    return GradientFacts(
        zero=its.zero_share,
        bad=float(its.array("bad_gradients").mean()),
        zero_pixels=float(its.array("zero_pixels").mean()),
        agreement=(first, middle, last),
        spread=float(np.max(spread[np.isfinite(spread)], initial=-np.inf)) if np.isfinite(spread).any() else np.nan,
        bpda=finite_median(its.array("cosine_bpda")) if compared else np.nan,
        surrogate=finite_median(its.array("cosine_surrogate")) if compared else np.nan,
    )


def _curve(results: Results) -> dict[str, tuple[Point, ...]]:
    """Each row at each radius, and the clean baseline of what is judged."""
    asked = results.header.curve
    radii = sorted({results.eps, *asked.eps})
    curve = {
        row.name: tuple(_point(eps, results.accuracies(row, eps)[: asked.images]) for eps in radii)
        for row in results.all_rows
        if row.name in asked.rows
    }
    if results.attacks:
        curve["null"] = (_point(0.0, results.null(results.attacks[0], asked.images)),)
    return curve


def _curve_by_method(results: Results) -> dict[str, tuple[Point, ...]]:
    """Each method under the strongest of its attacks for each image, at each radius."""
    asked = results.header.curve
    curve: dict[str, tuple[Point, ...]] = {}
    for method, its in results.each():
        rows = [row for row in its.attacks if row.name in asked.rows]
        if rows:
            curve[method.name] = tuple(
                _point(eps, strongest([its.of_row(row, eps) for row in rows]).accuracies[: asked.images])
                for eps in sorted({its.eps, *asked.eps})
            )
    return curve


def _point(eps: float, accuracies: Floats) -> Point:
    return Point(eps, mean_with_interval(accuracies), len(accuracies))


def _pictures_by_method(results: Results) -> tuple[Picture, ...]:
    """A few of each method, the worst first."""
    shown = [p for _, its in results.each() for p in _extremes(_pictures(its), n=PICTURES_OF_METHOD // 2)]
    return _with_frames(sorted(shown, key=lambda p: (p.lucky, -p.errors / p.draws)), results)


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


def _pictures(results: Results) -> list[Picture]:
    """All pictures of the attacks on what is judged, without their frames and titles (see `_with_frames`)."""
    data = results.header.data
    rows = [(row, its) for row in results.attacks for its in [results.of_row(row)] if its.units]
    errors = [errors_of(*its.outcome()) for _, its in rows]
    most: dict[int, int] = {}
    for (_, its), counts in zip(rows, errors, strict=True):
        for image, wrong in zip(its.array("ids").tolist(), counts.tolist(), strict=True):
            most[image] = max(most.get(image, 0), wrong)
    pictures: list[Picture] = []
    for (row, its), counts in zip(rows, errors, strict=True):
        (labels, right), ids = its.outcome(), its.array("ids")
        for at in _pictured(its):
            pictures.append(
                Picture(
                    row=row.name,
                    image=int(ids[at]),
                    label=data.class_name(int(right[at])),
                    seen_as=data.class_name(int(labels[at, 0])),
                    errors=int(counts[at]),
                    draws=labels.shape[1],
                    titles=(),
                    frames=np.empty(0, dtype=np.uint8),
                    votes=tuple((data.class_name(c), int((labels[at] == c).sum())) for c in _by_frequency(labels[at])),
                    most=most[int(ids[at])],
                )
            )
    return pictures


def _pictured(its: RowResults) -> list[int]:
    """Positions of the images of a row that there are pictures of."""
    found: list[int] = []
    first = 0
    for unit in its.units:
        if "picture_rows" in unit.arrays:
            found += [first + int(k) for k in unit.arrays["picture_rows"]]
        first += unit.facts.last - unit.facts.first
    return found


def _with_frames(pictures: Sequence[Picture], results: Results) -> tuple[Picture, ...]:
    """The same pictures with their titles and frames, which are read of these alone."""
    found: list[Picture] = []
    rows = {row.name: row for row in results.all_rows}
    for picture in pictures:
        its = results.of_row(rows[picture.row])
        unit, place = its.unit_of(int(np.flatnonzero(its.array("ids") == picture.image)[0]))
        titles = tuple(str(title) for title in unit.arrays["picture_titles"])
        frames = unit.arrays["picture_frames"][unit.arrays["picture_rows"].tolist().index(place)]
        found.append(picture._replace(titles=titles, frames=frames))
    return tuple(found)


def _by_frequency(predicted: NDArray[Any]) -> list[int]:
    """Classes that were predicted, the most frequent first (ties: the lower class)."""
    values, counts = np.unique(predicted, return_counts=True)
    return [int(values[i]) for i in np.lexsort((values, -counts))]
