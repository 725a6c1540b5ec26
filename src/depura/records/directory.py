"""Run directories: `study.json` says what, `units/NAME.npz` hold the results, and nothing else is the truth.

A unit is written to a temporary file, flushed to disk and renamed, so it is there whole or not at all. Equal results
give equal bytes. Nothing is unpickled, and nothing that a record names is run.

Reading a unit goes through all its arrays once, one by one, for the digest; after that each is read when it is asked
for. Units of one row may be packed into one file, `units/ROW.zip` (`depura.records.packs`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from depura import _atomic
from depura.records import packs
from depura.records.arrays import Array, NpzFile, Stored, StoredArrays, kept, restored
from depura.records.older import NARROWED, OLDEST, further_draws
from depura.records.schema import Header, LayoutError, UnitFacts, layout_of, read_facts, read_header

_NOT_COMPARED = ("command", "source")

_DECISIVE = ("schema", "seed", "threat_model", "methods", "draws", "memory", "versions", "code")
"""Parts of a header that decide the numbers of all rows."""

_DECISIVE_OLDEST = (*_DECISIVE[:3], "defence", "rule", *_DECISIVE[3:])
"""The same of layout 5."""

_ABSENT: Any = object()
"""Stands for what one of two compared values lacks."""

UNDER_WAY = "under-way"
"""Folder of what units that are being computed keep; it is no part of the record."""

ERRORS = "errors.jsonl"
"""File of the errors that units ended in; it is no part of the record."""

_AGAIN = "Delete this file and give the same command again; only it will be made anew."

_PACKED_AGAIN = (
    "Give depura pack --undo: it takes the units out that are whole. Then delete the packed file and give the same "
    "command again; only the others will be made anew."
)

_READ_BEFORE: dict[tuple[str, str], tuple[Any, ...]] = {}
"""Units whose contents have been compared with their digests in this process: what their files were like then."""

_SETTLED = 2 * 10**9
"""Nanoseconds after which a file that is changed once more has another time of change on every system."""


class RecordError(ValueError):
    """A run directory that cannot be used as asked; the message says what to do."""


class UnitError(NamedTuple):
    """An error that a unit ended in.

    Attributes:
        unit: its name.
        at: when, in seconds since 1970.
        sentence: what it said.
    """

    unit: str
    at: float
    sentence: str


class Unit(NamedTuple):
    """Results of one piece of work.

    Attributes:
        arrays: per image, by name; those of a unit that was read are read from its file when they are asked for.
        facts: small facts (row, eps, counts).
    """

    arrays: Mapping[str, NDArray[Any]]
    facts: UnitFacts


class _Place(NamedTuple):
    """Where a unit is kept.

    Attributes:
        name: of the unit.
        file: that it is in.
        pack: the packed units of that file; None where the unit has a file of its own.
    """

    name: str
    file: Path
    pack: packs.Pack | None

    def __str__(self) -> str:
        """In words."""
        return f"unit {self.file}" if self.pack is None else f"unit {self.name} in {self.file}"

    @property
    def again(self) -> str:
        """What to do where it is damaged."""
        return _AGAIN if self.pack is None else _PACKED_AGAIN

    @property
    def state(self) -> tuple[int, ...]:
        """What differs once the file is another one; an `OSError` where there is none."""
        return _state(self.file)

    @contextlib.contextmanager
    def opened(self) -> Generator[Stored, None, None]:
        """The arrays as they are kept, with the facts among them, to be read one by one."""
        if self.pack is not None:
            yield self.pack.unit(self.name)
            return
        with zipfile.ZipFile(self.file) as file:
            yield NpzFile(file)


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
        return self.file(name).exists() or self._packed(name) is not None

    def commit(self, unit: Unit) -> None:
        """Keep a unit, whole or not at all, under its name."""
        meant = self._meant(unit)
        signed = {**meant, "sha256": contents_sha256(unit.arrays, meant)}
        written: Mapping[str, Array] = unit.arrays
        if layout_of(self.raw) >= NARROWED:
            written, types = kept(unit.arrays)
            signed = {**signed, "types": types}
        facts = np.frombuffer(json.dumps(signed, sort_keys=True).encode(), dtype=np.uint8)
        self.write(unit.facts.unit, {"meta": facts, **written})

    def signature(self, unit: Unit) -> str:
        """Digest of the arrays and facts of a unit, and of what decides its numbers."""
        return contents_sha256(unit.arrays, self._meant(unit))

    def _meant(self, unit: Unit) -> dict[str, Any]:
        return {**unit.facts.model_dump(mode="json", exclude_none=True), "study": self.identity(unit.facts.row)}

    def write(self, name: str, stored: Mapping[str, Array]) -> None:
        """Write the file of a unit: its arrays as they are kept, with its facts as "meta"."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {key: stored[key] for key in ("meta", *sorted(set(stored) - {"meta"}))}
        np.savez_compressed(buffer, **arrays)
        _atomic.write(self.file(name), buffer.getvalue())

    def load(self, name: str) -> Unit:
        """Read a unit back (see `read`); of layout 5, with further draws of its examples if its whole row has them."""
        unit = self.read(name)
        if layout_of(self.raw) != OLDEST:
            return unit
        facts = unit.facts
        groups = self._further.get((facts.row, facts.eps), {})
        if not groups.get(facts.first) or not all(self.has(other) for names in groups.values() for other in names):
            return unit
        return _joined([unit, *(self.read(other) for other in groups[facts.first])])

    def read(self, name: str, *, within: packs.Pack | None = None) -> Unit:
        """Read a unit as it was committed.

        All of it is compared with its digest, one array after another, and none of them is kept: the arrays of the
        unit are read when they are asked for. Where that was done before, in this process and of the same file, only
        the facts are read.

        Args:
            name: of the unit.
            within: a file of packed units to read it from; default where the directory has it.

        Returns:
            The unit.

        Raises:
            RecordError: missing, truncated or damaged, or filed under another name.
        """
        place = self._place(name) if within is None else _Place(name, within.path, within)
        try:
            state = place.state
            with place.opened() as stored:
                meta = json.loads(stored["meta"].tobytes())
                signed, study, types = meta.pop("sha256", None), meta.get("study"), meta.pop("types", {})
                there = meta.get("unit")
                names = sorted(set(stored.files) - {"meta"})
                whole = _READ_BEFORE.get((str(place.file), name)) == (state, signed)
                if not whole:
                    arrays = StoredArrays(names, lambda some: [restored(stored[n], types.get(n)) for n in some])
                    whole = signed == contents_sha256(arrays, meta)
        except Exception as error:  # a damaged archive raises whatever its damage leads to
            raise RecordError(f"{place}: expected a complete record, got {_reason(error)}. {place.again}") from error
        if there != name:
            raise RecordError(f"{place}: expected the record of {name}, got that of {there}. Remove it.")
        if not whole:
            raise RecordError(f"{place}: expected the contents that its digest was taken of, got others. {place.again}")
        if study != self.identity(meta.get("row")):
            raise RecordError(f"{place}: expected a record of this study, got that of another one. {place.again}")
        if time.time_ns() - place.state[0] > _SETTLED:
            _READ_BEFORE[str(place.file), name] = (state, signed)
        del meta["study"]
        try:
            facts = read_facts(meta, layout=layout_of(self.raw))
        except LayoutError as error:
            raise RecordError(f"{place}: {error}. {place.again}") from error
        return Unit(StoredArrays(names, lambda some: self._arrays(name, some, (state, signed))), facts)

    def _arrays(self, name: str, wanted: Sequence[str], known: tuple[tuple[int, ...], str]) -> list[Array]:
        """Arrays of a unit that was read before, when its file was in this state and it had this digest."""
        place, (state, signed) = self._place(name), known
        try:
            if place.state != state:
                self.read(name)
                place = self._place(name)
            with place.opened() as stored:
                meta = json.loads(stored["meta"].tobytes())
                if meta.get("sha256") != signed:
                    raise ValueError("another unit has taken its place")
                types = meta.get("types", {})
                return [restored(stored[key], types.get(key)) for key in wanted]
        except RecordError:
            raise
        except Exception as error:  # as in `read`
            raise RecordError(f"{place}: expected the record as it was before, got {_reason(error)}.") from error

    def stored(self, name: str) -> contextlib.AbstractContextManager[Stored]:
        """The arrays of a unit as they are kept, with its facts as "meta", unchecked: to be copied."""
        return self._place(name).opened()

    def _place(self, name: str) -> _Place:
        """Where a unit is kept: in a file of its own, or in that of its row; the first where it is in none."""
        file = self.file(name)
        pack = None if file.exists() else self._packed(name)
        return _Place(name, file, None) if pack is None else _Place(name, pack.path, pack)

    def pack_file(self, row: str) -> Path:
        """Where the packed units of a row are kept; a row's name that would lead elsewhere is a `RecordError`."""
        return self.file(row).with_name(f"{row}.zip")

    def packed(self, row: str) -> packs.Pack | None:
        """The packed units of a row; None where there are none. A `RecordError`: a damaged file."""
        file = self.pack_file(row)
        try:
            state = _state(file)
        except OSError:
            return None
        found = self._packs.get(row)
        if found is None or found[0] != state:
            try:
                found = state, packs.Pack(file)
            except Exception as error:  # as in `read`
                raise RecordError(
                    f"packed units {file}: expected a complete file, got {_reason(error)}. Delete it and give the same "
                    "command again; only its units will be made anew."
                ) from error
            self._packs[row] = found
        return found[1]

    def _packed(self, name: str) -> packs.Pack | None:
        row = self.unit_rows.get(name)
        pack = None if row is None else self.packed(row)
        return pack if pack is not None and name in pack else None

    def __reduce__(self) -> Any:
        """To another process goes what it is, not what it has read."""
        return RunDirectory, (self.path, self.header, self.raw)

    @cached_property
    def _packs(self) -> dict[str, tuple[tuple[int, ...], packs.Pack]]:
        return {}

    @cached_property
    def unit_rows(self) -> Mapping[str, str]:
        """The row of each unit that may be in the folder, by the unit's name."""
        return {entry["unit"]: entry["row"] for entry in self.raw["units"]}

    @cached_property
    def _further(self) -> Mapping[tuple[str, float], Mapping[int, list[str]]]:
        """Of layout 5, names of the units with further draws, by row and radius, and by the first image."""
        found: dict[tuple[str, float], dict[int, list[str]]] = {}
        more = further_draws(self.raw)
        for entry in self.header.units:
            names = more.get((entry.row, entry.eps, entry.first), [])
            found.setdefault((entry.row, entry.eps), {})[entry.first] = names
        return found

    @cached_property
    def _identities(self) -> dict[Any, str]:
        return {}

    def identity(self, row: Any) -> str:
        """Digest of what decides the numbers of a row, or of a clean baseline: studies that agree in it share units."""
        if row not in self._identities:
            self._identities[row] = self._new_identity(row)
        return self._identities[row]

    def _new_identity(self, row: Any) -> str:
        raw = self.raw
        keys = _DECISIVE_OLDEST if layout_of(raw) == OLDEST else _DECISIVE
        decisive = {key: raw.get(key) for key in keys}
        if raw.get("rescored_from") is not None:
            decisive["rescored_from"] = raw["rescored_from"]
        draws = decisive["draws"]
        if isinstance(draws, dict) and "kept" in draws:
            decisive["draws"] = {"select": draws["select"], "report": draws["kept"][0]}
        rows = [entry for entry in raw.get("rows", []) if row in (entry.get("name"), entry.get("null"))]
        decisive["row"] = [(entry.get("name"), entry.get("attack")) for entry in rows[:1]]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def under_way(self, name: str) -> Path:
        """Where a unit that is being computed keeps what it must not ask for twice."""
        return self.path / UNDER_WAY / self.file(name).stem

    def note_error(self, unit: str, sentence: str) -> None:
        """Add an error of a unit to `errors`."""
        line = json.dumps({"unit": unit, "at": round(time.time()), "error": sentence})
        with (self.path / ERRORS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @property
    def errors(self) -> tuple[UnitError, ...]:
        """Errors of units, the last one last; lines that are not whole are passed over."""
        file, found = self.path / ERRORS, list[UnitError]()
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said: dict[str, Any] = json.loads(line)
                found.append(UnitError(str(said["unit"]), float(said["at"]), str(said["error"])))
        return tuple(found)

    def foreign(self) -> tuple[Path, ...]:
        """Files that do not belong to this run: anything in the folder of units that is none of its units."""
        rows = set(self.unit_rows.values())
        own = {f"{name}.npz" for name in self.unit_rows} | {f"{row}.zip" for row in rows}
        there = sorted((self.path / "units").iterdir()) if (self.path / "units").is_dir() else []
        others = [file for file in there if file.name not in own and not file.name.endswith(".partial")]
        for row in sorted(rows):
            others += [self.pack_file(row) / unit for unit in self.packed(row) or () if self.unit_rows.get(unit) != row]
        return tuple(others)

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

    def joined(name: str) -> Array:
        if name in ("predictions", "random_predictions"):
            return np.concatenate([unit.arrays[name] for unit in units], axis=1)
        if name == "margins":
            draws = [unit.arrays["predictions"].shape[1] for unit in units]
            return np.average([unit.arrays["margins"] for unit in units], axis=0, weights=draws)
        return units[0].arrays[name]

    arrays = StoredArrays([*units[0].arrays], lambda names: [joined(name) for name in names])
    counts = [unit.facts.evaluations.score for unit in units]
    score = (sum(count[0] for count in counts), sum(count[1] for count in counts))
    evaluations = units[0].facts.evaluations.model_copy(update={"score": score})
    return Unit(arrays, units[0].facts.model_copy(update={"evaluations": evaluations}))


def contents_sha256(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> str:
    """Of all arrays, with their names, dtypes and shapes, and of the facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _state(file: Path) -> tuple[int, ...]:
    """The times of change of a file, its size and which file it is."""
    its = file.stat()
    return (its.st_mtime_ns, its.st_ctime_ns, its.st_size, its.st_ino)


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
