"""How often the intervals of a report cover the truth: simulated runs of populations whose truth is known.

    python -m experiments.coverage [--runs 2000] [--images 16 64 256] [--draws 64]

Every run draws its images anew from a population of error rates, and the recorded draws of each image; the truth is of
the population. Printed, in per cent: the runs whose 95 % interval holds the truth, and the mean width in points; and,
of an image by itself, what a majority of two classes makes of an error rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from depura.statistics.error_rates import error_shares, submissions
from depura.statistics.intervals import any_of, majority, mean_with_interval, paired_gain, single_draw

Floats = NDArray[np.float64]
N_ANY, N_VOTE = 10, 21
GRID = (np.arange(20_000) + 0.5) / 20_000
IMAGES_AT_ONCE = 40_000
"""Images of all runs of a batch together: a batch's draws fit into some 20 MB."""


class Part(NamedTuple):
    """Images whose error rates are distributed as Beta(a, b); a point where b is 0 (at a)."""

    weight: float
    a: float
    b: float

    def quantiles(self, q: Floats) -> Floats:
        """Error rates at these probabilities."""
        return stats.beta.ppf(q, self.a, self.b) if self.b else np.full(len(q), self.a)


POPULATIONS: dict[str, tuple[Part, ...]] = {
    "right or wrong": (Part(0.6, 0, 0), Part(0.4, 1, 0)),
    "Beta(0.5, 1.5)": (Part(1.0, 0.5, 1.5),),
    "robust, borderline, broken": (Part(0.45, 1, 99), Part(0.3, 4, 4), Part(0.25, 30, 1)),
    "nearly all robust": (Part(0.92, 1, 199), Part(0.08, 2, 2)),
    "all but 3 % robust": (Part(0.97, 1, 199), Part(0.03, 2, 2)),
    "nearly all broken": (Part(0.9, 40, 1), Part(0.1, 1, 1)),
    "all alike": (Part(1.0, 20, 60),),
}
"""Error rates of images, from those of a deterministic defence to those of one that errs everywhere by itself."""


class Cell(NamedTuple):
    """What was found of one interval.

    Attributes:
        population: where images come from.
        metric: whose interval.
        images: in each run.
        truth: of the population.
        mean: of the estimates.
        error: standard error of that mean.
        covered: share of runs whose interval holds the truth.
        below: share of runs whose interval lies below it.
        width: mean width.
    """

    population: str
    metric: str
    images: int
    truth: float
    mean: float
    error: float
    covered: float
    below: float
    width: float


def truths(parts: tuple[Part, ...], draws: int) -> dict[str, float]:
    """What the intervals are of, by integrals over the population: no simulation."""
    p = np.concatenate([part.quantiles(GRID) for part in parts])
    weight = np.repeat([part.weight for part in parts], len(GRID)) / len(GRID)
    survive = [float(weight @ (1 - p) ** n) for n in range(1, draws + 1)]
    mean_p = float(weight @ p)
    few, many = np.ceil(draws / 20) - 1, np.floor(draws / 2)
    return {
        "one draw": 1 - mean_p,
        f"any of {N_ANY}": float(weight @ (1 - p) ** N_ANY),
        f"vote of {N_VOTE}": float(weight @ stats.binom.sf(N_VOTE // 2, N_VOTE, 1 - p)),
        "share right": float(weight @ stats.binom.cdf(few, draws, p)),
        "share unsure": float(weight @ (stats.binom.cdf(many, draws, p) - stats.binom.cdf(few, draws, p))),
        "share wrong": float(weight @ stats.binom.sf(many, draws, p)),
        "submissions": next((float(n) for n, share in enumerate(survive, 1) if share <= 0.5), np.inf),
        "gain on some images": 0.2 * (1 - mean_p) - 0.1 * mean_p,
        "gain on all images": float(weight @ (1 - (1 - p) ** 1.3)) - mean_p,
    }


def simulate(name: str, n: int, *, runs: int, draws: int = 64, seed: int = 0) -> tuple[Cell, ...]:
    """Simulate runs of n images of a population.

    An attack that works on some images breaks a fifth of them wholly and heals a tenth; one that works on all makes
    the probability q to be right q^1.3.

    Args:
        name: of the population.
        n: images in each run.
        runs: how many.
        draws: K, for each image.
        seed: of the simulation.

    Returns:
        One cell for each interval.
    """
    parts, rng = POPULATIONS[name], np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float, float]]] = {metric: [] for metric in truths(parts, draws)}
    at_once = max(1, IMAGES_AT_ONCE // n)
    for start in range(0, runs, at_once):
        size = min(at_once, runs - start)
        for intervals in _runs(error_rates(parts, size * n, rng), n, draws, rng):
            for metric, interval in zip(found, intervals, strict=True):
                found[metric].append(interval)
    return tuple(_cell(name, m, n, truth, np.array(found[m])) for m, truth in truths(parts, draws).items())


def error_rates(parts: tuple[Part, ...], n: int, rng: np.random.Generator) -> Floats:
    """Error rates of n images of a population."""
    which = rng.choice(len(parts), n, p=[part.weight for part in parts])
    p = np.empty(n)
    for k, part in enumerate(parts):
        own = which == k
        p[own] = rng.beta(part.a, part.b, own.sum()) if part.b else part.a
    return p


def _runs(p: Floats, n: int, draws: int, rng: np.random.Generator) -> Iterator[tuple[tuple[float, float, float], ...]]:
    """Estimates and ends of every interval, for each run of n of the images."""
    labels = np.zeros(len(p), dtype=np.int64)
    drawn = _drawn(p, draws, rng)
    u = rng.random(len(p))
    some = single_draw(_drawn(np.where(u < 0.2, 1.0, np.where(u < 0.3, 0.0, p)), draws, rng), labels)
    every = single_draw(_drawn(1 - (1 - p) ** 1.3, draws, rng), labels)
    metrics = single_draw(drawn, labels), any_of(drawn, labels, N_ANY), majority(drawn, labels, N_VOTE)
    for k in range(0, len(p), n):
        run = slice(k, k + n)
        means = [mean_with_interval(values[run]) for values in metrics]
        shares = error_shares(drawn[run], labels[run])
        before = metrics[0][run]
        gains = [(float((before - after[run]).mean()), *paired_gain(before, after[run])) for after in (some, every)]
        yield *(e[:3] for e in (*means, *shares, submissions(drawn[run], labels[run]))), *gains


def _drawn(p: Floats, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Labels of the draws of each image: 1 (wrong) with its error rate, else 0 (right)."""
    return (rng.random((len(p), draws), dtype=np.float32) < p[:, None]).astype(np.int64)


def _cell(name: str, metric: str, n: int, truth: float, found: Floats) -> Cell:
    value, low, high = found.T
    slack = 1e-9  # a truth at an end of the interval is inside, whatever was rounded
    inside = (low <= truth + slack) & (truth <= high + slack)
    finite = bool(np.isfinite(found).all())
    error = value.std() / np.sqrt(len(value)) if finite else np.nan
    return Cell(
        population=name,
        metric=metric,
        images=n,
        truth=truth,
        mean=float(value.mean()),
        error=float(error),
        covered=float(inside.mean()),
        below=float((high < truth - slack).mean()),
        width=float((high - low).mean()) if finite else np.inf,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--images", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--draws", type=int, default=64)
    args = parser.parse_args()
    print(f"{args.runs} runs of {args.draws} draws: coverage in per cent (width in points) by number of images\n")
    print("| population | metric | truth |", *(f"{n} |" for n in args.images))
    print("|---|---|---|" + "---|" * len(args.images))
    for name in POPULATIONS:
        by_size = [simulate(name, n, runs=args.runs, draws=args.draws) for n in args.images]
        for cells in zip(*by_size, strict=True):
            shown = [f"{100 * c.covered:.1f}" + (f" ({100 * c.width:.1f}) |" if c.truth <= 1 else " |") for c in cells]
            print(f"| {name} | {cells[0].metric} | {cells[0].truth:.3f} |", *shown)
    print("\n| error rate | one draw | vote of 21 | vote of 129 |\n|---|---|---|---|")
    for p in (0.35, 0.45, 0.55):
        print(f"| {p:.2f} |", *(f"{100 * stats.binom.sf(k // 2, k, 1 - p):.0f} % |" for k in (1, 21, 129)))


if __name__ == "__main__":
    main()
