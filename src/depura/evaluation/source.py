"""Where a study comes from: a Python file with `def study(...) -> Study`, and values for its parameters."""

from __future__ import annotations

import importlib.util
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Union

from depura import _check
from depura.evaluation.profiles import PROFILES, under
from depura.evaluation.study import Study

DEMO = "depura demo"
"""Stands for the file of the demo's study, which lies where depura is installed."""


@dataclass(frozen=True)
class StudySource:
    """A study file and the settings given to it; small enough to send to a worker.

    Attributes:
        path: the Python file.
        settings: (name, text) pairs, as given with -S.
        profile: name of the profile whose ladder of attacks takes the place of the study's own rows; empty for none.
    """

    path: Path
    settings: tuple[tuple[str, str], ...] = ()
    profile: str = ""

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
        return cls(own if path is None else path, tuple(map(tuple, said["settings"])), said["profile"])

    def describe(self) -> dict[str, Any]:
        """For the header of a run: file, settings and profile."""
        own = self.path.resolve() == _demo().resolve()
        file = DEMO if own else self.path.as_posix()
        return {"file": file, "settings": [list(pair) for pair in self.settings], "profile": self.profile}

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
        if not self.profile:
            return made
        if self.profile not in PROFILES:
            _check.fail("--profile", f"one of {', '.join(PROFILES)}", repr(self.profile))
        return under(made, PROFILES[self.profile])


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
