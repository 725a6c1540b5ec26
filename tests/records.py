"""Records of runs made by hand: a typed header, facts of units and units, from few arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depura.records.directory import RunDirectory, Unit
from depura.records.kinds import AttackKind, GradientMode
from depura.records.schema import (
    Audit,
    AuditCheck,
    AuditFault,
    AuditLight,
    CleanCost,
    Curve,
    Data,
    DrawCounts,
    Evaluations,
    Header,
    Identity,
    Judged,
    Method,
    RowFacts,
    ThreatModel,
    UnitEntry,
    UnitFacts,
)

SINGLE = {"type": "depura.Single", "n_draws": 1}
PGD = {"type": "depura.PGD", "n_steps": 20, "n_restarts": 1, "eot": 5}
DEFENCE = {
    "type": "depura.Defence",
    "classifier": {"type": "depura.SmallClassifier", "weights_sha256": "aa"},
    "purifier": {"type": "depura.DiffusionPurifier", "t_star": 0.1},
    "rule": SINGLE,
}

MODES = {
    AttackKind.UNCHANGED: GradientMode.NONE,
    AttackKind.RANDOM: GradientMode.NONE,
    AttackKind.BLACK_BOX: GradientMode.NONE,
    AttackKind.TRANSFER: GradientMode.TRANSFER,
    AttackKind.BPDA: GradientMode.BPDA,
    AttackKind.SURROGATE: GradientMode.SURROGATE,
    AttackKind.RELAXED: GradientMode.RELAXED,
}
"""Gradient modes of kinds of attack; those of all others are exact."""

JUDGED = {AttackKind.UNDEFENDED: Judged.BARE, AttackKind.PINNED: Judged.OTHER, AttackKind.TINY: Judged.OTHER}
"""What kinds of attack are judged on, if not on the defence."""

Errors = int | Sequence[int] | np.ndarray
"""Wrong draws of each image; a number is that of all images."""


def row(name: str, kind: str | None = None, *, method: str = "", images: int, **changed: Any) -> RowFacts:
    """A row of a header.

    Args:
        name: of the row.
        kind: of the attack; none given, the name.
        method: the method that is judged.
        images: how many it is run on.
        **changed: other fields; none given, they are those of a row of that kind.

    Returns:
        The row.
    """
    its = AttackKind(name if kind is None else kind)
    judged = changed.get("judged", JUDGED.get(its, Judged.DEFENCE))
    own = {Judged.BARE: "bare", Judged.DEFENCE: method or "defence", Judged.OTHER: name}[judged]
    made = {
        "title": f"title of {name}",
        "mode": MODES.get(its, GradientMode.EXACT),
        "null": f"null-{own}",
        "judged": judged,
        "attack": PGD,
    }
    return RowFacts(name=name, kind=its, method=method, images=images, **{**made, **changed})


def method(name: str = "", *, baseline: bool = False, note: str = "", **changed: Any) -> Method:
    """A method of a header, or its one defence."""
    return Method(name=name, baseline=baseline, note=note, **{"defence": DEFENCE, "rule": SINGLE, **changed})


def edited(header: Header, *path: str | int, to: Any) -> Header:
    """The same header with one value of its JSON set.

    Args:
        header: the header.
        *path: keys and positions that lead to the value.
        to: the new value.

    Returns:
        The header, checked anew.
    """
    raw: Any = header.as_json()
    part = raw
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    return Header.model_validate(raw)


def named(unit: Unit, row: str) -> Unit:
    """The same unit of another row."""
    old = unit.facts
    name = f"{row}{old.unit.removeprefix(old.row)}"
    return unit._replace(facts=old.model_copy(update={"row": row, "unit": name}))


@dataclass(frozen=True)
class ByHand:
    """What the records of a file of tests have in common.

    Attributes:
        labels: of the images.
        draws: report draws of each image.
        eps: radius of the table.
        ids: of the images; none given, 0, 1 and so on.
        wrong: the class that wrong draws give.
    """

    labels: Sequence[int]
    draws: int = 4
    eps: float = 0.1
    ids: Sequence[int] = ()
    wrong: int = 9

    @property
    def n(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def predictions(self, errors: Errors, draws: int | None = None, *, first: int = 0) -> np.ndarray:
        """Labels of the draws of each image, the first `errors` of them wrong, (n, draws).

        Args:
            errors: wrong draws.
            draws: how many draws; none given, the report draws.
            first: position of the first image.

        Returns:
            The labels.
        """
        wrong = self._errors(errors)
        labels = np.array(self.labels)[first : first + len(wrong), None]
        k = np.arange(self.draws if draws is None else draws)
        return np.where(k < wrong[:, None], self.wrong, labels).astype(np.int32)

    def row(self, name: str, kind: str | None = None, *, images: int | None = None, **changed: Any) -> RowFacts:
        """A row, run on all images unless said otherwise; see `row`."""
        return row(name, kind, images=self.n if images is None else images, **changed)

    def header(
        self,
        rows: Sequence[RowFacts],
        *,
        methods: Sequence[Method] = (),
        audits: Sequence[str] = (),
        curve: Curve | None = None,
        **changed: Any,
    ) -> Header:
        """A header with one unit for each audit, clean baseline, row and further radius.

        Args:
            rows: the attacks.
            methods: what is judged; none given, one of the default defence for each that the rows name.
            audits: names of the audits.
            curve: further radii.
            **changed: other fields.

        Returns:
            The header.
        """
        judged = dict.fromkeys(its.method for its in rows if its.method)
        own = tuple(its.name for its in rows if its.kind is not AttackKind.REFERENCE)
        curve = curve or Curve(images=self.n, rows=own)
        units = [self._entry(name, self.eps, 0, min(2, self.n)) for name in audits]
        units += [self._entry(name, self.eps, 0, self.n) for name in dict.fromkeys(its.null for its in rows)]
        units += [self._entry(its.name, self.eps, 0, its.images) for its in rows]
        units += [
            self._entry(its.name, eps, 0, min(its.images, curve.images))
            for eps in curve.eps
            for its in rows
            if its.name in curve.rows
        ]
        made: dict[str, Any] = {
            "command": "depura run study.py --out DIR",
            "name": "by-hand",
            "seed": 7,
            "data": Data(
                name="by hand",
                ids=tuple(self.ids or range(self.n)),
                labels=tuple(int(label) for label in self.labels),
                classes=tuple("abcdefghij"),
                shape=(1, 8, 8),
                images={"type": "Tensor", "sha256": "00"},
            ),
            "threat_model": ThreatModel(
                norm="linf",
                eps=self.eps,
                knows="all",
                family="l_p",
                queries="no limit",
                resubmissions="no limit",
                time_per_image="no limit",
            ),
            "methods": tuple(methods) or tuple(method(name) for name in judged or ("",)),
            "rows": tuple(rows),
            "draws": DrawCounts(select=2, report=self.draws),
            "memory": 1,
            "curve": curve,
            "units": tuple(units),
            "versions": {"depura": "0"},
            "code": "00",
        }
        return Header(**{**made, **changed})

    def facts(
        self, row: str, *, eps: float | None = None, first: int = 0, last: int | None = None, **more: Any
    ) -> UnitFacts:
        """Facts of a unit.

        Args:
            row: of the unit.
            eps: its radius; none given, that of the table.
            first: position of its first image.
            last: position after its last image; none given, after the last of all.
            **more: other fields.

        Returns:
            The facts.
        """
        entry = self._entry(row, self.eps if eps is None else eps, first, self.n if last is None else last)
        made = {"device": "cpu", "evaluations": Evaluations(attack=(10, 4), score=(5, 0))}
        return UnitFacts(**{**entry.model_dump(), **made, **more})

    def attacked(
        self,
        row: str,
        errors: Errors,
        select: Errors | None = None,
        *,
        eps: float | None = None,
        first: int = 0,
        at_examples: Sequence[AuditCheck] = (),
        **arrays: Any,
    ) -> Unit:
        """What an attack made of the images.

        Args:
            row: whose attack.
            errors: wrong report draws.
            select: wrong select draws of the chosen candidate; none given, as many. Another candidate had none.
            eps: radius; none given, that of the table.
            first: position of the first image.
            at_examples: checks of the defence at the examples.
            **arrays: other arrays; None leaves one out.

        Returns:
            The unit.
        """
        wrong = self._errors(errors)
        chosen = wrong if select is None else self._errors(select)
        n, radius = len(wrong), self.eps if eps is None else eps
        predictions = self.predictions(wrong, first=first)
        made = {
            **self._images(first, n),
            "predictions": predictions,
            "rounded_predictions": predictions[:, : self.draws // 2],
            "select_errors": np.stack([np.zeros_like(chosen), chosen], axis=1),
            "chosen": np.ones(n, dtype=np.int32),
            "select_margins": np.ones(n),
            "margins": np.ones(n),
            "distance": np.full(n, radius),
            "farthest": np.full(n, radius),
            "spent": np.full((n, 2), 10),
            "finished": np.full(n, -1),
            "zero_gradients": np.zeros(n),
            "bad_gradients": np.zeros(n),
            "zero_pixels": np.zeros(n),
            "agreement": np.full((n, 3), 0.9),
            "spread": np.full((n, 3), 1.5),
            **arrays,
        }
        kept = {name: np.asarray(values) for name, values in made.items() if values is not None}
        return Unit(kept, self.facts(row, eps=eps, first=first, last=first + n, at_examples=tuple(at_examples)))

    def null(
        self, row: str, errors: Errors = 0, random: Errors | None = None, *, evaluations: int = 0, **arrays: Any
    ) -> Unit:
        """A clean baseline.

        Args:
            row: its name.
            errors: wrong draws without an attack.
            random: wrong draws under random corners; none given, as many.
            evaluations: of the denoiser for all predictions.
            **arrays: other arrays.

        Returns:
            The unit.
        """
        wrong = self._errors(errors)
        made = {
            **self._images(0, len(wrong)),
            "predictions": self.predictions(wrong),
            "random_predictions": self.predictions(wrong if random is None else random),
            "margins": np.full(len(wrong), -1.0),
            **arrays,
        }
        cost = CleanCost(predictions=len(wrong) * self.draws, evaluations=evaluations)
        return Unit(made, self.facts(row, last=len(wrong), clean=cost))

    def audit(
        self,
        row: str = "audit",
        light: str = "GREEN",
        *,
        checks: Sequence[AuditCheck] = (),
        faults: Sequence[AuditFault] = (),
        verdict: str | None = None,
        changed: int = 0,
        logits: float = 1e-7,
    ) -> Unit:
        """An audit of a gradient.

        Args:
            row: its name.
            light: the worst of its checks.
            checks: its checks.
            faults: the parts to blame.
            verdict: a sentence; none given, the light.
            changed: predictions that change behind a purifier that does nothing.
            logits: by how much logits change there.

        Returns:
            The unit.
        """
        said = f"{light}." if verdict is None else verdict
        found = Audit(light=AuditLight(light), verdict=said, checks=tuple(checks), faults=tuple(faults))
        identity = Identity(images=self.n, predictions=changed, logits=logits)
        return Unit({}, self.facts(row, last=min(2, self.n), audit=found, identity=identity))

    def run(self, path: Path, header: Header, units: Sequence[Unit]) -> RunDirectory:
        """A run directory with these units."""
        directory = RunDirectory.create(path, header)
        for unit in units:
            directory.commit(unit)
        return directory

    def _entry(self, row: str, eps: float, first: int, last: int) -> UnitEntry:
        return UnitEntry(unit=f"{row}_eps{eps:.6g}_{first:05d}-{last:05d}", row=row, eps=eps, first=first, last=last)

    def _errors(self, errors: Errors) -> np.ndarray:
        return np.full(self.n, errors) if isinstance(errors, int) else np.asarray(errors)

    def _images(self, first: int, n: int) -> dict[str, np.ndarray]:
        """Ids and labels of some images."""
        at = slice(first, first + n)
        return {"ids": np.array(self.ids or range(self.n))[at], "labels": np.array(self.labels)[at]}
