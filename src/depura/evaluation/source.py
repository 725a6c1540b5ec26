"""Where a study comes from: a Python file with `def study(...) -> Study`, and values for its parameters."""

from __future__ import annotations

import importlib.util
import inspect
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
from depura.evaluation.study import Row, Study, UnitKey

DEMO = "depura demo"
"""Stands for the file of the demo's study, which lies where depura is installed."""


class Added(NamedTuple):
    """An attack of the catalogue that judges the study's defence in a row of its own.

    Attributes:
        name: in the catalogue.
        steps: of the attack; None for its own.
        eot: draws per step; None for what is usual.
    """

    name: str
    steps: int | None = None
    eot: int | None = None

    @property
    def row(self) -> str:
        """Name of its row."""
        parts = [f"{word}{value}" for word, value in (("steps", self.steps), ("eot", self.eot)) if value is not None]
        return "-".join([self.name, *parts])


@dataclass(frozen=True)
class StudySource:
    """A study file and the settings given to it; small enough to send to a worker.

    Attributes:
        path: the Python file.
        settings: (name, text) pairs, as given with -S.
        profile: name of the profile whose ladder of attacks takes the place of the study's own rows; empty for none.
        attacks: that are run beside the study's own rows.
        kept: units that a run of the study has already, whose boundaries stay.
        draws: report draws, rising, that examples were to be scored on in addition to the study's own.
    """

    path: Path
    settings: tuple[tuple[str, str], ...] = ()
    profile: str = ""
    attacks: tuple[Added, ...] = ()
    kept: tuple[UnitKey, ...] = ()
    draws: tuple[int, ...] = ()

    @classmethod
    def of(cls, header: Mapping[str, Any], *, path: Path | None = None) -> StudySource:
        """Where the study of a run came from.

        Args:
            header: of the run.
            path: the study file, if it is not where it was.

        Returns:
            The source.

        Raises:
            InputError: the run was not made from a study file.
        """
        said = header.get("source")
        if said is None:
            _check.fail("run directory", "a run of a study file", "one made from Python", "Use depura's Python API.")
        own = _demo() if said["file"] == DEMO else Path(said["file"])
        return cls(
            own if path is None else path,
            tuple(map(tuple, said["settings"])),
            said["profile"],
            tuple(Added(*added) for added in said.get("attacks", [])),
            tuple(
                UnitKey(unit["row"], unit["eps"], unit["first"], unit["last"])
                for unit in header.get("units", [])
                if not unit.get("since")
            ),
            tuple(said.get("draws", ())),
        )

    def describe(self) -> dict[str, Any]:
        """For the header of a run: file, settings, profile and attacks."""
        own = self.path.resolve() == _demo().resolve()
        file = DEMO if own else self.path.as_posix()
        said: dict[str, Any] = {
            "file": file,
            "settings": [list(pair) for pair in self.settings],
            "profile": self.profile,
        }
        if self.attacks:
            said["attacks"] = [list(added) for added in self.attacks]
        if self.draws:
            said["draws"] = list(self.draws)
        return said

    def load(self) -> Study:
        """Run the file and call its `study` function.

        Returns:
            The study.

        Raises:
            InputError: no such file, no such function, unknown or unreadable settings, or not a study.
        """
        if not self.path.is_file():
            _check.fail("study", "a Python file", f"{self.path}, which is not there", "Check the path.")
        spec = importlib.util.spec_from_file_location(f"_study_{self.path.stem}", self.path)
        if spec is None or spec.loader is None:
            _check.fail("study", "a Python file (.py)", f"{self.path}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        build = getattr(module, "study", None)
        if not callable(build):
            _check.fail("study", f"a function named study in {self.path}", "none", "See examples/04_study.py.")
        made = build(**read_settings(build, dict(self.settings)))
        if not isinstance(made, Study):
            _check.fail("study", "the function study to return a Study", f"{type(made).__name__}")
        if self.profile:
            if self.profile not in PROFILES:
                _check.fail("--profile", f"one of {', '.join(PROFILES)}", repr(self.profile))
            made = under(made, PROFILES[self.profile])
        made = replace(_with(made, self.attacks), kept=self.kept)
        if self.draws:
            made = replace(made, report_draws=self.draws[-1], draws_kept=(made.report_draws, *self.draws[:-1]))
        return made


def _with(study: Study, attacks: Sequence[Added]) -> Study:
    """The study with further rows, at its own radius only."""
    if not attacks:
        return study
    if study.methods:
        advice = "Put further rows into the study file."
        _check.fail("--attack", "a study of one defence", "a comparison of methods", advice)
    needs, random = {entry.name: entry.needs for entry in CATALOGUE}, study.defence.purifier is not None
    rows = list(study.rows)
    for added in attacks:
        if added.row in {row.name for row in rows}:
            _check.fail("--attack", f"a study without a row {added.row!r}", "one with it", "Give it other --steps.")
        attack = built(added.name, study.ball, random=random, steps=added.steps, eot=added.eot)
        kind = "adaptive" if needs[added.name] == "gradients" else "black-box"
        title = f"purified; {added.row.replace('-', ' ')}"
        rows.append(Row(added.row, title, attack, study.defence, study.defence, kind))
    curve_rows = study.curve_rows or tuple(row.name for row in study.rows)
    return replace(study, rows=tuple(rows), curve_rows=curve_rows)


def _demo() -> Path:
    return Path(__file__).parents[1] / "demo.py"


def read_settings(build: Callable[..., Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """Values for a function's parameters from texts, by their annotations (int, float, str, bool, Path, or tuples of
    one).

    Numbers may be written as fractions (8/255); tuples are separated by commas.

    Args:
        build: the function.
        settings: texts by parameter name.

    Returns:
        Values by parameter name.

    Raises:
        InputError: an unknown name, or a text that its annotation does not allow.
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
