"""Records without images, for data that may not be passed on: what is kept of an example is how it differs.

An adversarial example is kept as the difference of the bits of its float32 values, read as whole numbers, from those of
the image it was made of. With the data at hand the example is had back to the bit; without, there is no image in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from depura.evaluation.study import Study
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.schema import LAYOUT, Header

WHOLE, KEPT = "adversarial", "adversarial_bits"
"""Names of the array of examples, and of what is kept of it."""

PICTURES = "picture_"
"""How names of arrays with pictures begin."""


def examples_of(unit: Unit, study: Study) -> Tensor:
    """The adversarial examples (B, C, H, W), float32, of a unit of an attack, whether its record has images or not."""
    if KEPT not in unit.arrays:
        return torch.from_numpy(unit.arrays[WHOLE])
    bits = _bits(study, unit) + unit.arrays[KEPT]
    return torch.from_numpy(bits.view(np.float32))


def without_images(unit: Unit, study: Study) -> Unit:
    """A unit of a study without adversarial images and pictures; null baselines and audits as they are."""
    arrays: dict[str, Any] = {name: a for name, a in unit.arrays.items() if not name.startswith(PICTURES)}
    if WHOLE in arrays:
        arrays[KEPT] = np.ascontiguousarray(arrays.pop(WHOLE)).view(np.int32) - _bits(study, unit)
    return Unit(arrays, unit.facts)


def publish(run: RunDirectory, study: Study, to: RunDirectory) -> None:
    """Copy a complete record, unit by unit, without its images, to a directory made with `published_header`."""
    if run.missing:
        got = f"one without {run.missing[0]}"
        raise RecordError(f"publish: expected a complete run, got {got}. Finish {run.path} first.")
    for unit in run.units():
        to.commit(without_images(unit, study))


def published_header(run: RunDirectory) -> Header:
    """The header of a record without images."""
    return run.header.model_copy(update={"layout": LAYOUT, "left_out": "adversarial images and pictures"})


def _bits(study: Study, unit: Unit) -> Any:
    images = study.data.images[unit.facts.first : unit.facts.last]
    return np.ascontiguousarray(images.numpy()).view(np.int32)
