"""Run directories: `study.json` says what, `units/NAME.npz` hold the results, and nothing else is the truth.

A unit is written to a temporary file, flushed to disk and renamed, so it is there whole or not at all. Equal results
give equal bytes. Nothing is unpickled. This module knows nothing else of depura.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

SCHEMA = 5
"""Version of the layout; raised when it changes."""

_NOT_COMPARED = ("command", "source")

_DECISIVE = ("schema", "seed", "threat_model", "defence", "rule", "methods", "draws", "memory", "versions", "code")

_ABSENT: Any = object()
"""Stands for what one of two compared values lacks."""

_AGAIN = "Delete this file and give the same command again; only it will be made anew."


class RecordError(ValueError):
    """A run directory that cannot be used as asked; the message says what to do."""


class Unit(NamedTuple):
    """Results of one piece of work.

    Attributes:
        arrays: per image, by name.
        meta: small facts (row, eps, counts).
    """

    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]


@dataclass(frozen=True)
class RunDirectory:
    """A run on disk.

    Attributes:
        path: its folder.
        header: contents of study.json.
    """

    path: Path
    header: dict[str, Any]

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> RunDirectory:
        """Open the directory of a study, making it if it is not there.

        Args:
            path: folder.
            header: what the study is; must equal what the folder says, if it says anything.

        Returns:
            The directory.

        Raises:
            RecordError: the folder holds another study, or other files, or cannot be written.
        """
        wanted = json.loads(json.dumps({"schema": SCHEMA, **header}))
        file = path / "study.json"
        try:
            if not file.exists():
                if path.exists() and (not path.is_dir() or any(not _ours(p.name) for p in path.iterdir())):
                    raise RecordError(
                        f"run directory {path}: expected a new or empty folder or a run of this study, got a folder of "
                        "other files. Choose another --out."
                    )
                (path / "units").mkdir(parents=True, exist_ok=True)
                _write(file, (json.dumps(wanted, indent=1, sort_keys=True) + "\n").encode(), replace=False)
        except OSError as error:
            raise RecordError(
                f"run directory {path}: expected a folder that can be written, got {error.strerror}. "
                "Choose another --out."
            ) from error
        found = cls.open(path)
        differing = difference(
            {k: v for k, v in found.header.items() if k not in _NOT_COMPARED},
            {k: v for k, v in wanted.items() if k not in _NOT_COMPARED},
        )
        if differing:
            raise RecordError(
                f"run directory {path}: expected a run of this study, got another one ({differing}). "
                "Choose another --out, or give the command and settings that made it."
            )
        return found

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open a directory that is there.

        Args:
            path: folder.

        Returns:
            The directory.

        Raises:
            RecordError: no run there, or one of another layout.
        """
        try:
            header = json.loads((path / "study.json").read_text())
        except (OSError, ValueError) as error:
            raise RecordError(
                f"run directory {path}: expected a folder with a readable study.json, got {_reason(error)}. "
                "Check the path, or make a run with 'depura run'."
            ) from error
        if not isinstance(header, dict) or header.get("schema") != SCHEMA:  # pyright: ignore[reportUnknownMemberType]
            raise RecordError(
                f"run directory {path}: expected layout {SCHEMA}, got another one. Choose another --out, or use the "
                "depura that made it."
            )
        return cls(path, header)  # pyright: ignore[reportUnknownArgumentType]

    def extend(self, header: Mapping[str, Any]) -> RunDirectory:
        """Let the directory speak of a larger study, in one move; whatever was recorded stays where it is.

        Args:
            header: of the larger study.

        Returns:
            The directory.
        """
        _write(self.path / "study.json", (json.dumps(header, indent=1, sort_keys=True) + "\n").encode(), replace=True)
        return self.open(self.path)

    def file(self, name: str) -> Path:
        """Where a unit is kept."""
        return self.path / "units" / f"{name}.npz"

    def has(self, name: str) -> bool:
        """Whether a unit is done."""
        return self.file(name).exists()

    def commit(self, name: str, unit: Unit) -> None:
        """Keep a unit, whole or not at all.

        Args:
            name: of the unit.
            unit: its results.
        """
        buffer = io.BytesIO()
        meant = Unit(unit.arrays, {**unit.meta, "study": self._identity(unit.meta.get("row"))})
        signed = {**meant.meta, "sha256": _digest(meant)}
        meta = np.frombuffer(json.dumps(signed, sort_keys=True).encode(), dtype=np.uint8)
        arrays: dict[str, Any] = {"meta": meta, **dict(sorted(unit.arrays.items()))}
        np.savez_compressed(buffer, **arrays)
        _write(self.file(name), buffer.getvalue(), replace=True)

    def load(self, name: str) -> Unit:
        """Read a unit back, with the further draws that an extension recorded of its examples.

        Further draws of a row are taken along when all its units have them.

        Args:
            name: of the unit.

        Returns:
            Its results.

        Raises:
            RecordError: missing, truncated or damaged, or filed under another name.
        """
        unit = self.read(name)
        more = [entry for entry in self.header["units"] if entry.get("since") and entry["row"] == unit.meta["row"]]
        more = [entry for entry in more if entry["eps"] == unit.meta["eps"]]
        if unit.meta.get("since") or not more or not all(self.has(entry["unit"]) for entry in more):
            return unit
        own = [entry["unit"] for entry in more if entry["first"] == unit.meta["first"]]
        return _joined([unit, *(self.read(entry) for entry in own)])

    def read(self, name: str) -> Unit:
        """Read a unit as it was committed.

        Args:
            name: of the unit.

        Returns:
            Its results.

        Raises:
            RecordError: missing, truncated or damaged, or filed under another name.
        """
        file = self.file(name)
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
            meta = json.loads(arrays.pop("meta").tobytes())
        except Exception as error:  # a damaged archive raises whatever its damage leads to
            raise RecordError(f"unit {file}: expected a complete record, got {_reason(error)}. {_AGAIN}") from error
        if meta.get("unit") != name:
            raise RecordError(f"unit {file}: expected the record of {name}, got that of {meta.get('unit')}. Remove it.")
        digest, unit = meta.pop("sha256", None), Unit(arrays, meta)
        if digest != _digest(unit):
            raise RecordError(f"unit {file}: expected the contents that its digest was taken of, got others. {_AGAIN}")
        if meta.pop("study", None) != self._identity(meta.get("row")):
            raise RecordError(f"unit {file}: expected a record of this study, got that of another one. {_AGAIN}")
        return unit

    def _identity(self, row: Any) -> str:
        """Digest of what decides the numbers of a row, or of a null baseline: studies that agree in it share units."""
        decisive = {key: self.header.get(key) for key in _DECISIVE}
        if "rescored_from" in self.header:
            decisive["rescored_from"] = self.header["rescored_from"]
        rows = [entry for entry in self.header.get("rows", []) if row in (entry.get("name"), entry.get("null"))]
        draws = decisive["draws"]
        if isinstance(draws, dict) and "kept" in draws:
            decisive["draws"] = {"select": draws["select"], "report": draws["kept"][0]}
        decisive["row"] = [(entry.get("name"), entry.get("attack")) for entry in rows[:1]]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def foreign(self) -> tuple[Path, ...]:
        """Files that do not belong to this run: anything in the folder of units that is none of its units."""
        own = {f"{entry['unit']}.npz" for entry in self.header["units"]}
        found = sorted((self.path / "units").iterdir()) if (self.path / "units").is_dir() else []
        return tuple(file for file in found if file.name not in own and not file.name.endswith(".partial"))

    def units(self) -> Iterator[Unit]:
        """Every unit that is done, in the study's order, each with the further draws of its examples."""
        for entry in self.header["units"]:
            if not entry.get("since") and self.has(entry["unit"]):
                yield self.load(entry["unit"])

    @property
    def done(self) -> int:
        """How many units are there, of those that the header lists."""
        return sum(self.has(entry["unit"]) for entry in self.header["units"])


def _joined(units: Sequence[Unit]) -> Unit:
    """A unit and the further draws of its examples: predictions side by side, margins their mean over all draws."""
    first, arrays = units[0], dict(units[0].arrays)
    draws = [unit.arrays["predictions"].shape[1] for unit in units]
    for name in ("predictions", "random_predictions"):
        if name in arrays:
            arrays[name] = np.concatenate([unit.arrays[name] for unit in units], axis=1)
    arrays["margins"] = np.average([unit.arrays["margins"] for unit in units], axis=0, weights=draws)
    counts = [unit.meta["evaluations"]["score"] for unit in units]
    score = [sum(count[i] for count in counts) for i in (0, 1)]
    return Unit(arrays, {**first.meta, "evaluations": {**first.meta["evaluations"], "score": score}})


def _digest(unit: Unit) -> str:
    """Of all arrays, with their names, dtypes and shapes, and of the facts."""
    digest = hashlib.sha256(json.dumps(unit.meta, sort_keys=True).encode())
    for name, array in sorted(unit.arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _ours(name: str) -> bool:
    return name == "units" or name.endswith(".partial")


def _write(file: Path, data: bytes, *, replace: bool) -> None:
    """Write a file in one step; without `replace` an existing one is left alone."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with temporary.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    if replace:
        temporary.replace(file)
        return
    with contextlib.suppress(FileExistsError):
        os.link(temporary, file)
    temporary.unlink()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return getattr(error, "strerror", None) or "a truncated, damaged or foreign file"


def difference(found: Any, wanted: Any, where: str = "") -> str:
    """The first place where two JSON values differ.

    Args:
        found: one value, "there" in the sentence.
        wanted: the other, "here".
        where: name of the place that both come from.

    Returns:
        The place and both values, in words; empty where they do not differ.
    """
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
    """Every place where two JSON values differ, in the order of their keys.

    Args:
        found: one value.
        wanted: the other.
        where: name of the place that both come from.

    Yields:
        The places.
    """
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
