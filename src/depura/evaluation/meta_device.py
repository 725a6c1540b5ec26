"""Studies whose networks have no weights (torch's meta device): they can be priced, but not run."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain

from torch import Tensor

from depura import _check
from depura.defence import Defence
from depura.evaluation.study import Study

META = "meta"
"""Torch's device of tensors that have a shape and no values."""


def is_weightless(study: Study) -> bool:
    """Whether any weight of a study's networks, or its images, are on the meta device."""
    return study.data.images.is_meta or any(t.is_meta for defence in _defences(study) for t in _weights(defence))


def without_weights(study: Study) -> Study:
    """A copy of a study with all of its networks on the meta device; what they share stays shared."""
    empty: dict[int, object] = {}
    for defence in _defences(study):
        empty |= {id(weight): weight.to(META) for weight in _weights(defence)}
    defence, rows = copy.deepcopy((study.defence, study.rows), empty)
    return replace(study, defence=defence, rows=rows)


def refuse_weightless(study: Study) -> None:
    """Refuse to compute a study whose networks or images are on the meta device."""
    if is_weightless(study):
        _check.fail(
            f"Study {study.name!r}",
            "networks with weights, and images",
            "shapes alone, which can only be planned",
            "Give the files that the study asks for (-S NAME=PATH).",
        )


def _defences(study: Study) -> tuple[Defence, ...]:
    return (study.defence, *(defence for row in study.rows for defence in (row.attacked, row.evaluated)))


def _weights(defence: Defence) -> chain[Tensor]:
    return chain(defence.parameters(), defence.buffers())
