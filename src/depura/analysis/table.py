"""A finished run as one table: a line for each image, attack and radius."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depura.analysis.results import Results, RowResults
from depura.records.directory import RunDirectory
from depura.records.kinds import NOT_FINITE
from depura.records.schema import RowFacts
from depura.statistics.intervals import errors_of

Table = dict[str, list[Any]]
"""Columns of equal length; None where there is nothing to tell."""

COLUMNS = {
    "run": "name of the study",
    "row": "name of the attack's row",
    "kind": "what sort of attack",
    "method": "the one that is judged, where methods are compared",
    "mode": "gradient mode: how the attack differentiates what is judged",
    "eps": "radius",
    "image": "id of the image",
    "label": "its class, by number",
    "draws": "report draws",
    "errors": "wrong ones among them",
    "error_rate": "errors / draws",
    "not_finite": "draws whose prediction is not finite, counted as errors",
    "null_draws": "draws without an attack",
    "null_errors": "wrong ones among them",
    "random_errors": "of as many draws, under random corners of the ball; at the study's own radius only",
    "select_draws": "draws on which candidates were compared",
    "select_errors": "wrong ones of the chosen candidate",
    "select_margin": "its mean margin there",
    "margin": "mean margin over the report draws",
    "chosen": "number of the chosen candidate",
    "distance": "size of its perturbation, in the norm of the threat model",
    "rounded_draws": "draws on which the example was judged after rounding to 8 bits",
    "rounded_errors": "wrong ones among them",
    "gradients": "evaluations with a gradient that the attack spent on the image",
    "forwards": "evaluations without",
    "finished": "step after which the attack was content with the image; -1 for never",
    "zero_gradients": "share of gradients that were exactly zero; none of attacks without gradients",
    "predicted": "labels of the report draws with their counts, the most frequent first, as in 7:60 1:4",
}
"""Names of the columns, and what they hold."""


def table(directory: RunDirectory) -> Table:
    """All attacks of a finished run, image by image.

    Args:
        directory: the run.

    Returns:
        The columns of `COLUMNS`, in the order of rows, radii and images.

    Raises:
        RecordError: units are missing or damaged.
    """
    results = Results.read(directory)
    found: Table = {name: [] for name in COLUMNS}
    for row in results.all_rows:
        for eps in sorted(radius for name, radius in results.by_row if name == row.name):
            columns = _columns(results, row, eps)
            for name in COLUMNS:
                found[name] += columns[name]
    return found


def _columns(results: Results, row: RowFacts, eps: float) -> Table:
    """The columns of one row at one radius; clean baselines do not depend on the radius, random corners do."""
    its, header = results.of_row(row, eps), results.header
    attacked = its.outcome()
    n, draws = attacked.predictions.shape
    clean: RowResults = results.null_of(row)
    null, random = clean.outcome().first(n), clean.outcome("random_predictions").first(n)
    rounded = its.outcome("rounded_predictions")
    chosen, spent = its.array("chosen"), its.array("spent")
    errors = errors_of(attacked.predictions, attacked.labels)
    same: dict[str, Any] = {
        "run": header.name,
        "kind": row.kind.value,
        "method": row.method,
        "mode": row.mode.value,
        "row": row.name,
        "eps": eps,
        "draws": draws,
        "null_draws": null.predictions.shape[1],
        "select_draws": header.draws.select,
        "rounded_draws": rounded.predictions.shape[1],
    }
    zero = its.array("zero_gradients").reshape(n, -1).mean(1) if its.has("zero_gradients") else None
    each: dict[str, NDArray[Any]] = {
        "image": its.array("ids"),
        "label": attacked.labels,
        "errors": errors,
        "error_rate": errors / draws,
        "not_finite": (attacked.predictions == NOT_FINITE).sum(1),
        "null_errors": errors_of(null.predictions, null.labels),
        "select_errors": its.array("select_errors")[np.arange(n), chosen],
        "select_margin": its.array("select_margins"),
        "margin": its.array("margins"),
        "chosen": chosen,
        "distance": its.array("distance"),
        "rounded_errors": errors_of(rounded.predictions, rounded.labels),
        "gradients": spent[:, 0],
        "forwards": spent[:, 1],
        "finished": its.array("finished"),
    }
    return {
        **{name: [value] * n for name, value in same.items()},
        **{name: values.tolist() for name, values in each.items()},
        "random_errors": errors_of(random.predictions, random.labels).tolist() if eps == results.eps else [None] * n,
        "zero_gradients": [None] * n if zero is None else zero.tolist(),
        "predicted": [_counts(labels) for labels in attacked.predictions],
    }


def _counts(labels: NDArray[np.int64]) -> str:
    """Labels with their counts, the most frequent first, then by number."""
    counts = Counter(int(label) for label in labels)
    return " ".join(f"{label}:{count}" for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
