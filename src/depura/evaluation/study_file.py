"""Where a study comes from: a Python file with `def study(...) -> Study`, and values for its parameters.

A study is code. What a record names is run only where it is asked for (`StudySource.of`).
"""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Union

from depura import _check
from depura.attacks.catalogue import CATALOGUE, built
from depura.evaluation.profiles import PROFILES, under
from depura.evaluation.study import AttackRun, Study, UnitKey
from depura.models.by_name import module_named, module_of
from depura.records.kinds import AttackKind
from depura.records.schema import AddedAttack, Header, Source

DEMO, JUDGE = "depura demo", "depura judge"
"""Stand for files of depura's own: the demo's study, and that of a defence that is named by its settings."""


_IMPORTED = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<function>\w+)")
_IN_FILE = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)")


class _Place(NamedTuple):
    """Where a function is: in a file, or where that is None in a module that is imported."""

    file: Path | None
    function: str = "study"
    module: str = ""


class StudyNotGivenError(_check.InputError):
    """The study of a record is code that was neither given nor trusted; nothing was run."""


@dataclass(frozen=True)
class StudySource:
    """A study file and the settings given to it; small enough to send to a worker.

    Attributes:
        path: the Python file, whose function is called study; or FILE.py:FUNCTION, or MODULE:FUNCTION of a module that
            can be imported.
        settings: (name, text) pairs, as given with -S.
        profile: name of the profile whose attacks take the place of the study's own rows; empty for none.
        attacks: that are run beside the study's own rows.
        kept: units that a run of the study has already, whose boundaries stay.
        reference: whether depura's own attack runs beside the rows, as the study has it; False for records without.
        draws: report draws in the place of the study's own (see `depura.records.schema.Source`).
    """

    path: Path
    settings: tuple[tuple[str, str], ...] = ()
    profile: str = ""
    attacks: tuple[AddedAttack, ...] = ()
    kept: tuple[UnitKey, ...] = ()
    reference: bool = True
    draws: int | None = None

    @classmethod
    def of(cls, header: Header, *, path: Path | None = None, trust: bool = False) -> StudySource:
        """Where the study of a run came from.

        Args:
            header: of the run.
            path: the study, as somebody gives it; None: what the record names.
            trust: whether what the record names may be run. The study of the demo, which is depura's own, always may.

        Returns:
            The source.

        Raises:
            StudyNotGivenError: neither a path nor trust; or the run was made from Python and there is no path.
        """
        said = header.source
        if path is None and said is None:
            raise StudyNotGivenError(
                "run directory: expected a run of a study file, got one made from Python. "
                "Give its study with --study FILE.py or --study MODULE:FUNCTION."
            )
        if path is None and said is not None:
            if said.file != DEMO and not trust:
                raise StudyNotGivenError(
                    f"The record names the study {code_named(said)}, which was not run, since a study is code. "
                    f"Give your own copy with --study, or --trust to run that file."
                )
            path = _own(said.file) if said.file in (DEMO, JUDGE) else Path(said.file)
        assert path is not None
        kept = tuple(UnitKey(unit.row, unit.eps, unit.first, unit.last) for unit in header.units)
        reference = any(row.kind is AttackKind.REFERENCE for row in header.rows)
        if said is None:
            return cls(path, kept=kept, reference=reference)
        return cls(path, said.settings, said.profile, said.attacks, kept, reference, said.draws)

    def describe(self) -> Source:
        """For the header of a run: file, settings, profile and attacks."""
        own = next((name for name in (DEMO, JUDGE) if self.path.resolve() == _own(name).resolve()), None)
        return Source(
            file=own or self.path.as_posix(),
            settings=self.settings,
            profile=self.profile,
            attacks=self.attacks,
            draws=self.draws,
        )

    def seen_from_its_folder(self) -> tuple[Path | None, StudySource]:
        """The folder of the file, and this source where a copy of that folder is the current one.

        Settings that name a file, or a folder by a path with a slash, name it from there if it lies in that folder,
        else by its whole path.

        Returns:
            The folder, None for a module that is installed; and the source.
        """
        place = self._place()
        if place.file is not None:
            folder = place.file.resolve().parent
            path = Path(place.file.name if place.file == self.path else f"{place.file.name}:{place.function}")
        else:
            top = place.module.partition(".")[0]
            here = any((Path.cwd() / name).exists() for name in (f"{top}.py", top))
            folder, path = Path.cwd().resolve() if here else None, self.path
        settings = tuple((name, _seen_from(folder, value)) for name, value in self.settings)
        return folder, replace(self, path=path, settings=settings)

    def load(self) -> Study:
        """Run the file and call its function for the study.

        An `InputError`: no such file or function, unknown or unreadable settings, or not a study.
        """
        build = self._function()
        made = build(**read_settings(build, dict(self.settings)))
        if not isinstance(made, Study):
            _check.fail("study", "the function study to return a Study", f"{type(made).__name__}")
        if self.profile:
            if self.profile not in PROFILES:
                _check.fail("--profile", f"one of {', '.join(PROFILES)}", repr(self.profile))
            made = under(made, PROFILES[self.profile])
        draws = made.report_draws if self.draws is None else self.draws
        reference = made.reference and self.reference
        return replace(_with(made, self.attacks), kept=self.kept, reference=reference, report_draws=draws)

    def _function(self) -> Callable[..., Any]:
        """What makes the study."""
        place = self._place()
        if place.file is not None:
            module = module_of("study", place.file)
        else:
            try:
                module = module_named(place.module)
            except ImportError as error:
                got = f"{place.module}, which cannot be imported ({error})"
                raise _check.InputError(f"study: expected a module that can be imported, got {got}.") from error
        build = getattr(module, place.function, None)
        if not callable(build):
            what = f"a function named {place.function} in {self.path}"
            _check.fail("study", what, "none", "See examples/04_study.py.")
        return build

    def _place(self) -> _Place:
        """Where the function is that makes the study."""
        text = str(self.path)
        in_file, imported = _IN_FILE.fullmatch(text), _IMPORTED.fullmatch(text)
        if self.path.is_file() or (in_file is None and imported is None):
            return _Place(self.path)
        if in_file is not None:
            return _Place(Path(in_file["file"]), in_file["function"])
        assert imported is not None
        return _Place(None, imported["function"], imported["module"])


def _seen_from(folder: Path | None, text: str) -> str:
    """A text; if it names a file that is there, one that names it from a folder."""
    named = Path(text)
    if not (named.is_file() or ("/" in text and named.is_dir())):
        return text
    path = named.resolve()
    return path.relative_to(folder).as_posix() if folder is not None and path.is_relative_to(folder) else str(path)


def _with(study: Study, attacks: Sequence[AddedAttack]) -> Study:
    """The study with further rows, at its own radius only."""
    if not attacks:
        return study
    if study.methods:
        advice = "Put further rows into the study file."
        _check.fail("--attack", "a study of one defence", "a comparison of methods", advice)
    needs, random = {entry.name: entry.needs for entry in CATALOGUE}, study.defence.core is not None
    rows = list(study.rows)
    for added in attacks:
        if added.row in {row.name for row in rows}:
            _check.fail("--attack", f"a study without a row {added.row!r}", "one with it", "Give it other --steps.")
        attack = built(added.name, study.ball, random=random, steps=added.steps, eot=added.eot)
        kind = "adaptive" if needs[added.name] == "gradients" else "black-box"
        title = f"purified; {added.row.replace('-', ' ')}"
        rows.append(AttackRun(added.row, title, attack, study.defence, study.defence, kind))
    curve_rows = study.curve_rows or tuple(row.name for row in study.rows)
    return replace(study, rows=tuple(rows), curve_rows=curve_rows)


def code_named(said: Source) -> str:
    """What is run when the study of a record is built: its file; of `depura judge`, what its settings name."""
    if said.file != JUDGE:
        return said.file
    named = [value for name, value in said.settings if name in ("purifier", "classifier")]
    return f"{JUDGE} of {' and '.join(named)}"


def _own(name: str) -> Path:
    return Path(__file__).parent / {DEMO: "demo.py", JUDGE: "judge.py"}[name]


def literal(text: str) -> Any:
    """A number, a truth value, a list or nothing from a text; another text is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def read_settings(build: Callable[..., Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """Values for a function's parameters from texts by name, read by the parameters' annotations.

    These are int, float, str, bool, Path, or tuples of one. Numbers may be written as fractions (8/255); tuples are
    separated by commas. Unknown names, and texts that an annotation does not allow, are refused.
    """
    known = inspect.signature(build).parameters
    hints = typing.get_type_hints(build)
    values: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in known:
            _check.fail("-S", f"a name among {', '.join(known) or 'none'}", repr(name))
        try:
            values[name] = _read(text, hints.get(name, str))
        except (ValueError, ZeroDivisionError) as error:
            raise _check.InputError(
                f"-S {name}: expected {getattr(hints.get(name), '__name__', hints.get(name))}, got {text!r}."
            ) from error
    return values


def _read(text: str, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if text.lower() == "none" else _read(text, kinds[0])
    if origin is tuple:
        return tuple(_read(part, typing.get_args(kind)[0]) for part in text.split(",") if part)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind is int:
        return int(text)
    if kind is float:
        return float(Fraction(text))
    return kind(text)
