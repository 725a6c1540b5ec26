"""Whether a record holds: what can be recomputed of it without attacking anything again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from depura import _check
from depura.evaluation.imageless import LEFT_OUT, examples_of
from depura.evaluation.records import Unit, difference
from depura.evaluation.scoring import score
from depura.evaluation.statistics import Recount
from depura.evaluation.streams import Streams
from depura.evaluation.study import Study, with_eps

CODE = ("versions", "code")
"""Parts of a header that say what computed a record; the others say what was computed."""

NOT_OF_THE_STUDY = ("schema", "command", "source", "extensions", LEFT_OUT)
"""Parts of a header that a study rebuilt says nothing of."""


class Difference(NamedTuple):
    """A part of a header that a study rebuilt has otherwise.

    Attributes:
        part: its name.
        sentence: the first place, and both values.
    """

    part: str
    sentence: str


def differences(recorded: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Where the header of a run and the one of its study, built anew, differ.

    Args:
        recorded: of the run.
        rebuilt: of the study.

    Returns:
        One difference for each part that differs, by name of the part.
    """
    parts = sorted({*recorded, *rebuilt} - set(NOT_OF_THE_STUDY))
    found = ((part, difference(recorded.get(part), rebuilt.get(part), part)) for part in parts)
    return tuple(Difference(part, sentence) for part, sentence in found if sentence)


def faults(unit: Unit, study: Study) -> tuple[str, ...]:
    """What cannot be true in the record of a unit.

    Args:
        unit: as it was read.
        study: what it is a unit of.

    Returns:
        Sentences, none of a sound record: images, labels and ids are the study's; labels said are classes; counts are
        counts of the draws; examples lie in their ball and in [0, 1], at the distance that was recorded.
    """
    arrays, meta = unit.arrays, unit.meta
    part = slice(meta["first"], meta["last"])
    try:
        checks = [
            ("ids", np.array_equal(arrays["ids"], np.asarray(study.data.ids[part]))),
            ("labels", np.array_equal(arrays["labels"], study.data.labels[part].numpy())),
        ]
        if meta["row"] not in study.audits:
            checks += _said(arrays, study)
            if not meta["row"].startswith("null-"):
                checks += _made(unit, study)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        return (f"{meta['unit']}: its arrays do not fit together ({type(error).__name__}: {error})",)
    return tuple(f"{meta['unit']}: {what}" for what, holds in checks if not holds)


def _said(arrays: Mapping[str, NDArray[Any]], study: Study) -> Iterator[tuple[str, bool]]:
    """That labels are classes, and that there are as many as there were draws."""
    n, classes = len(arrays["ids"]), len(study.data.classes)
    draws = {"predictions": study.first_draws, "random_predictions": study.first_draws}
    draws["rounded_predictions"] = len(study.rounded_draws)
    for name, k in draws.items():
        if name in arrays or name == "predictions":
            found = arrays[name]
            yield f"{name} are not of {n} images and {k} draws", found.shape == (n, k)
            yield f"{name} are not all among the {classes} classes", bool(((found >= 0) & (found < classes)).all())


def _made(unit: Unit, study: Study) -> Iterator[tuple[str, bool]]:
    """That candidates were counted on the draws there were, and that examples are where they may be."""
    arrays, meta = unit.arrays, unit.meta
    errors, chosen = arrays["select_errors"], arrays["chosen"]
    row = with_eps(study.row(meta["row"]), meta["eps"])
    counted = (errors >= 0) & (errors <= study.select_draws)
    yield f"select_errors are not all from 0 to {study.select_draws} draws", bool(counted.all())
    yield "chosen is not one of the candidates", bool(((chosen >= 0) & (chosen < errors.shape[1])).all())
    most = errors[np.arange(len(chosen)), np.clip(chosen, 0, errors.shape[1] - 1)]
    yield "chosen is not a candidate of the most errors", np.array_equal(most, errors.max(1))
    images, examples = study.data.images[meta["first"] : meta["last"]], examples_of(unit, study)
    allowed = row.attack.ball.contains(examples, images)
    out = ", ".join(str(i) for i in arrays["ids"][~allowed.numpy()][:5])
    yield f"examples of image {out} are not within {row.attack.ball} and [0, 1]", bool(allowed.all())
    again = row.attack.ball.distance(examples, images).numpy()
    yield "distance is not that of the examples", np.allclose(again, arrays["distance"], rtol=1e-5, atol=1e-6)


def picked(n: int, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """A share of n images, at least one: distinct positions, in order."""
    return np.sort(rng.choice(n, size=max(1, math.ceil(share * n)), replace=False))


def recount(study: Study, units: Sequence[Unit], *, share: float = 0.05, seed: int = 0, device: str = "cpu") -> Recount:
    """Score a random share of a row's recorded examples once more, on draws that nothing else has used.

    Args:
        study: the study.
        units: of one row, or of one null baseline (whose examples are the clean images), at one radius.
        share: of the images, in (0, 1]; at least one is taken.
        seed: of the choice of images. The draws are those of the study's verify stream.
        device: where to compute.

    Returns:
        Wrong draws of each image taken, as recorded and now.

    Raises:
        InputError: a share outside (0, 1].
    """
    _check.number("verify", "share", share, low=0.0, high=1.0, low_open=True)
    name = units[0].meta["row"]
    judged = study.row(name).judged.to(device)
    joined = {key: np.concatenate([unit.arrays[key] for unit in units]) for key in ("ids", "labels", "predictions")}
    if name.startswith("null-"):
        examples = torch.cat([study.data.images[unit.meta["first"] : unit.meta["last"]] for unit in units])
    else:
        examples = torch.cat([examples_of(unit, study) for unit in units])
    which = picked(len(examples), share, np.random.default_rng(seed))
    ids, predictions = [int(i) for i in joined["ids"][which]], joined["predictions"][which]
    labels = torch.from_numpy(joined["labels"][which]).to(device)
    draws = range(predictions.shape[1])
    again = score(judged, examples[which].to(device), labels, Streams(study.seed).verify(ids), draws=draws)
    return Recount(
        row=name,
        draws=len(draws),
        recorded=(predictions != joined["labels"][which][:, None]).sum(1),
        again=again.errors(labels).cpu().numpy(),
    )
