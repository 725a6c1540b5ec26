"""What checks look at: the rows of one defence, by kind, with their nulls, on images that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depura.evaluation.records import Unit
from depura.judging.metrics import joined, outcome, strongest

Floats = NDArray[np.float64]

GRADIENT_KINDS = ("adaptive", "relaxed", "targeted", "selective", "budget")
"""Attacks that differentiate the defence that is judged, as it is or through smooth stand-ins."""


@dataclass(frozen=True)
class Evidence:
    """Records of a study of one defence.

    Attributes:
        header: contents of study.json.
        units: by name of the row (or null, or audit) and radius.
    """

    header: dict[str, Any]
    units: Mapping[tuple[str, float], Sequence[Unit]]

    @property
    def eps(self) -> float:
        """The radius of the table."""
        return self.header["threat_model"]["eps"]

    @property
    def audits(self) -> tuple[Unit, ...]:
        """Audits of gradients, one for each defence."""
        found = [its for (name, _), its in self.units.items() if name == "audit" or name.startswith("audit-")]
        return tuple(unit for units in found for unit in units)

    def rows(self, *kinds: str) -> list[dict[str, Any]]:
        """Rows of some kinds, in the order of the table."""
        return [row for row in self.header["rows"] if row["kind"] in kinds]

    def of(self, row: dict[str, Any], eps: float | None = None) -> Sequence[Unit]:
        """Units of a row."""
        return self.units[row["name"], self.eps if eps is None else eps]

    def accuracies(self, row: dict[str, Any], eps: float | None = None) -> Floats:
        """Single-draw accuracy of each image of a row, (n,)."""
        return outcome(self.of(row, eps)).accuracies

    def null(self, row: dict[str, Any], n: int, name: str = "predictions") -> Floats:
        """Accuracy of each of the first n images of a row without an attack, or of random corners."""
        return outcome(self.units[row["null"], self.eps], name).accuracies[:n]

    def strongest(self, rows: Sequence[dict[str, Any]]) -> Floats:
        """Single-draw accuracy of each image under the strongest of some rows that was run on it."""
        return strongest([self.of(row) for row in rows]).accuracies

    def errors(self, rows: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
        """Wrong report draws of each image under the strongest of some rows that was run on it."""
        found = strongest([self.of(row) for row in rows])
        return (found.predictions != found.labels[:, None]).sum(1)

    def told(self, row: dict[str, Any], name: str) -> NDArray[Any] | None:
        """An array of a row's units; None where its attack has none."""
        units = self.of(row)
        return joined(units, name) if name in units[0].arrays else None
