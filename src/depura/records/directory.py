"""Run directories: `study.json` says what, `units/NAME.npz` hold the results, and nothing else is the truth.

A unit is written to a temporary file, flushed to disk and renamed, so it is there whole or not at all. Equal results
give equal bytes. Nothing is unpickled, and nothing that a record names is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from depura import _atomic
from depura.records.older import OLDEST, further_draws
from depura.records.schema import Header, LayoutError, UnitFacts, layout_of, read_facts, read_header

_NOT_COMPARED = ("command", "source")

_DECISIVE = {
    OLDEST: ("schema", "seed", "threat_model", "defence", "rule", "methods", "draws", "memory", "versions", "code"),
    6: ("schema", "seed", "threat_model", "methods", "draws", "memory", "versions", "code"),
}
"""By layout, parts of a header that decide the numbers of all rows."""

_ABSENT: Any = object()
"""Stands for what one of two compared values lacks."""

UNDER_WAY = "under-way"
"""Folder of what units that are being computed keep; it is no part of the record."""

_AGAIN = "Delete this file and give the same command again; only it will be made anew."


class RecordError(ValueError):
    """A run directory that cannot be used as asked; the message says what to do."""


class Unit(NamedTuple):
    """Results of one piece of work.

    Attributes:
        arrays: per image, by name.
        facts: small facts (row, eps, counts).
    """

    arrays: dict[str, NDArray[Any]]
    facts: UnitFacts


@dataclass(frozen=True)
class RunDirectory:
    """A run on disk.

    Attributes:
        path: its folder.
        header: contents of study.json, in the layout that is written now.
        raw: contents of study.json as they are in the file.
    """

    path: Path
    header: Header
    raw: Mapping[str, Any]

    @classmethod
    def create(cls, path: Path, header: Header) -> RunDirectory:
        """Open the directory of a study, making it if it is not there.

        Args:
            path: folder.
            header: what the study is; must equal what the folder says, if it says anything.

        Returns:
            The directory.

        Raises:
            RecordError: the folder holds another study, or other files, or cannot be written.
        """
        file = path / "study.json"
        try:
            if not file.exists():
                names = [p.name for p in path.iterdir()] if path.is_dir() else []
                foreign = any(name != "units" and not name.endswith(".partial") for name in names)
                if path.exists() and (foreign or not path.is_dir()):
                    raise RecordError(
                        f"run directory {path}: expected a new or empty folder or a run of this study, got a folder of "
                        "other files. Choose another --out."
                    )
                (path / "units").mkdir(parents=True, exist_ok=True)
                _atomic.write(file, _text(header), replace=False)
        except OSError as error:
            raise RecordError(
                f"run directory {path}: expected a folder that can be written, got {error.strerror}. "
                "Choose another --out."
            ) from error
        there = cls.open(path)
        recorded, wanted = (
            {k: v for k, v in its.as_json().items() if k not in _NOT_COMPARED} for its in (there.header, header)
        )
        differing = difference(recorded, wanted)
        if differing:
            raise RecordError(
                f"run directory {path}: expected a run of this study, got another one ({differing}). "
                "Choose another --out, or give the command and settings that made it."
            )
        return there

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open a directory that is there. Nothing that the record names is run.

        A `RecordError`: no run there, or one of a layout that is not known.
        """
        try:
            raw = json.loads((path / "study.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(
                f"run directory {path}: expected a folder with a readable study.json, got {_reason(error)}. "
                "Check the path, or make a run with 'depura run'."
            ) from error
        try:
            header = read_header(raw)
        except LayoutError as error:
            raise RecordError(f"run directory {path}: {error}.") from error
        return cls(path, header, raw)

    def extend(self, header: Header) -> RunDirectory:
        """Let the directory speak of a larger study, in one move; whatever was recorded stays where it is."""
        _atomic.write(self.path / "study.json", _text(header))
        return self.open(self.path)

    def file(self, name: str) -> Path:
        """Where the unit of a name is kept; a name that would lead to another folder is a `RecordError`."""
        if "/" in name or "\\" in name:
            raise RecordError(
                f"run directory {self.path}: expected names of units without / and \\, got {name!r}. "
                "Ask for the record again where it was made."
            )
        return self.path / "units" / f"{name}.npz"

    def has(self, name: str) -> bool:
        """Whether a unit is done."""
        return self.file(name).exists()

    def commit(self, unit: Unit) -> None:
        """Keep a unit, whole or not at all, under its name."""
        buffer = io.BytesIO()
        meant = {**unit.facts.model_dump(mode="json", exclude_none=True), "study": self._identity(unit.facts.row)}
        signed = {**meant, "sha256": _digest(unit.arrays, meant)}
        facts = np.frombuffer(json.dumps(signed, sort_keys=True).encode(), dtype=np.uint8)
        arrays: dict[str, Any] = {"meta": facts, **dict(sorted(unit.arrays.items()))}
        np.savez_compressed(buffer, **arrays)
        _atomic.write(self.file(unit.facts.unit), buffer.getvalue())

    def load(self, name: str) -> Unit:
        """Read a unit back (see `read`); of layout 5, with further draws of its examples if its whole row has them."""
        unit = self.read(name)
        if layout_of(self.raw) != OLDEST:
            return unit
        facts = unit.facts
        starts = [entry.first for entry in self.header.units if (entry.row, entry.eps) == (facts.row, facts.eps)]
        more = {first: further_draws(self.raw, facts.row, facts.eps, first) for first in starts}
        if not more.get(facts.first) or not all(self.has(other) for names in more.values() for other in names):
            return unit
        return _joined([unit, *(self.read(other) for other in more[facts.first])])

    def read(self, name: str) -> Unit:
        """Read a unit as it was committed, by its name.

        A `RecordError`: missing, truncated or damaged, or filed under another name.
        """
        file = self.file(name)
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
            meta = json.loads(arrays.pop("meta").tobytes())
            signed, study = meta.pop("sha256", None), meta.get("study")
            there = meta.get("unit")
        except Exception as error:  # a damaged archive raises whatever its damage leads to
            raise RecordError(f"unit {file}: expected a complete record, got {_reason(error)}. {_AGAIN}") from error
        if there != name:
            raise RecordError(f"unit {file}: expected the record of {name}, got that of {there}. Remove it.")
        if signed != _digest(arrays, meta):
            raise RecordError(f"unit {file}: expected the contents that its digest was taken of, got others. {_AGAIN}")
        if study != self._identity(meta.get("row")):
            raise RecordError(f"unit {file}: expected a record of this study, got that of another one. {_AGAIN}")
        del meta["study"]
        try:
            return Unit(arrays, read_facts(meta, layout=layout_of(self.raw)))
        except LayoutError as error:
            raise RecordError(f"unit {file}: {error}. {_AGAIN}") from error

    def _identity(self, row: Any) -> str:
        """Digest of what decides the numbers of a row, or of a clean baseline: studies that agree in it share units."""
        raw = self.raw
        decisive = {key: raw.get(key) for key in _DECISIVE[layout_of(raw)]}
        if raw.get("rescored_from") is not None:
            decisive["rescored_from"] = raw["rescored_from"]
        draws = decisive["draws"]
        if isinstance(draws, dict) and "kept" in draws:
            decisive["draws"] = {"select": draws["select"], "report": draws["kept"][0]}
        rows = [entry for entry in raw.get("rows", []) if row in (entry.get("name"), entry.get("null"))]
        decisive["row"] = [(entry.get("name"), entry.get("attack")) for entry in rows[:1]]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def identity(self, row: str) -> str:
        """Digest of what decides the numbers of a row, or of a clean baseline: studies that agree in it share units."""
        return self._identity(row)

    def under_way(self, name: str) -> Path:
        """Where a unit that is being computed keeps what it must not ask for twice."""
        return self.path / UNDER_WAY / self.file(name).stem

    def note_error(self, unit: str, sentence: str) -> None:
        """Add an error of a unit to those that `depura status` shows."""
        line = json.dumps({"unit": unit, "at": round(time.time()), "error": sentence})
        with (self.path / "errors.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def foreign(self) -> tuple[Path, ...]:
        """Files that do not belong to this run: anything in the folder of units that is none of its units."""
        own = {f"{entry['unit']}.npz" for entry in self.raw["units"]}
        there = sorted((self.path / "units").iterdir()) if (self.path / "units").is_dir() else []
        return tuple(file for file in there if file.name not in own and not file.name.endswith(".partial"))

    def units(self) -> Iterator[Unit]:
        """Every unit that is done, in the study's order."""
        for entry in self.header.units:
            if self.has(entry.unit):
                yield self.load(entry.unit)

    @property
    def done(self) -> int:
        """How many units are there, of those that the header lists."""
        return sum(self.has(entry.unit) for entry in self.header.units)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the units that the header lists and that are not there."""
        return tuple(entry.unit for entry in self.header.units if not self.has(entry.unit))


def _joined(units: Sequence[Unit]) -> Unit:
    """A unit of layout 5 and the further draws of its examples: predictions side by side, margins their mean."""
    arrays = dict(units[0].arrays)
    draws = [unit.arrays["predictions"].shape[1] for unit in units]
    for name in ("predictions", "random_predictions"):
        if name in arrays:
            arrays[name] = np.concatenate([unit.arrays[name] for unit in units], axis=1)
    arrays["margins"] = np.average([unit.arrays["margins"] for unit in units], axis=0, weights=draws)
    counts = [unit.facts.evaluations.score for unit in units]
    score = (sum(count[0] for count in counts), sum(count[1] for count in counts))
    evaluations = units[0].facts.evaluations.model_copy(update={"score": score})
    return Unit(arrays, units[0].facts.model_copy(update={"evaluations": evaluations}))


def _digest(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> str:
    """Of all arrays, with their names, dtypes and shapes, and of the facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _text(header: Header) -> bytes:
    return (json.dumps(header.as_json(), indent=1, sort_keys=True) + "\n").encode()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return getattr(error, "strerror", None) or "a truncated, damaged or foreign file"


def difference(found: Any, wanted: Any, where: str = "") -> str:
    """The first place where two JSON values differ, and both values, in words; empty where they do not differ."""
    first = next(differences(found, wanted, where), None)
    return "" if first is None else f"{first.where} is {first.found} there and {first.wanted} here"


class Differing(NamedTuple):
    """A place where two JSON values differ.

    Attributes:
        where: its path, such as "attack.n_steps" or "rows[2].name".
        found: what is in the one, as JSON, shortened.
        wanted: what is in the other.
    """

    where: str
    found: str
    wanted: str


def differences(found: Any, wanted: Any, where: str = "") -> Iterator[Differing]:
    """Every place where two JSON values differ, in the order of their keys; `where` is the path to both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        a, b = cast("dict[str, Any]", found), cast("dict[str, Any]", wanted)
        for key in sorted({*a, *b}):
            yield from differences(a.get(key, _ABSENT), b.get(key, _ABSENT), f"{where}.{key}" if where else key)
    elif isinstance(found, list) and isinstance(wanted, list):
        c, d = cast("list[Any]", found), cast("list[Any]", wanted)
        for i, (x, y) in enumerate(zip_longest(c, d, fillvalue=_ABSENT)):
            yield from differences(x, y, f"{where}[{i}]")
    elif found != wanted:
        yield Differing(where, _short(found), _short(wanted))


def _short(value: Any) -> str:
    text = "missing" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
