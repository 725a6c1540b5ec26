"""Names that records call things by. They do not say in which file a thing is, so that files can be moved and renamed.

A class or function of depura is called "depura." and its name, such as "depura.Vote"; one with an attribute
`record_name` is called by that. What a study file defines is called "study." and its name. Anything else is called by
its module and its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T", bound=Callable[..., Any])

STUDY_MODULE = "_study_"
"""How the names of modules begin that study files are run as."""

ALIASES: dict[str, str] = {
    "depura.methods.mimicdiffusion.through_network": "depura.mimicdiffusion.through_network",
    "depura.Purifier": "depura.DiffusionPurifier",
    "depura.Pinned": "depura.FixedNoise",
    "depura.Unchanged": "depura.CleanImages",
}
"""Names in older records, and what the same thing is called now. Entries are added, never removed."""

GONE: dict[str, tuple[str, ...]] = {
    "depura.PGD": ("growth",),
    "depura.APGD": ("growth", "warm"),
    "depura.TargetedAPGD": ("growth",),
}
"""Settings that a class no longer has, and that older records say were left out (null)."""

_PATH = re.compile(rf"(?:depura|{STUDY_MODULE}[^.]+)(?:\.(?:<locals>|<lambda>|\w+))+")


def recorded_as(name: str) -> Callable[[T], T]:
    """Give a function a name of its own in records, where another function of depura has the same name.

    Args:
        name: that records call it by, such as "depura.mimicdiffusion.through_network".

    Returns:
        A decorator.
    """

    def mark(function: T) -> T:
        function.__dict__["record_name"] = name
        return function

    return mark


def record_name(thing: Any) -> str:
    """The name of a class or function in records."""
    own = cast("dict[str, Any]", getattr(thing, "__dict__", {})).get("record_name")  # functions in C have none
    if isinstance(own, str):
        return own
    module, name = str(thing.__module__), str(thing.__qualname__)
    if module.partition(".")[0] == "depura":
        return f"depura.{name}"
    return f"study.{name}" if module.startswith(STUDY_MODULE) else f"{module}.{name}"


def current_name(recorded: str) -> str:
    """The name now of what records call by a name of `record_name`; other texts come back as they are."""
    return ALIASES.get(recorded, recorded)


def name_of_path(recorded: str) -> str:
    """The name now of what records up to layout 5 call by its file and name, such as "depura.defence.Vote".

    Texts that are no such names come back as they are.
    """
    if recorded in ALIASES or not _PATH.fullmatch(recorded):
        return current_name(recorded)
    module, *parts = recorded.split(".")
    if module != "depura":
        return f"study.{'.'.join(parts)}"
    return current_name(f"depura.{'.'.join(parts[_first_of_name(parts) :])}")


def _first_of_name(parts: list[str]) -> int:
    """Where the name begins among the parts of a path: modules are in small letters, functions around functions too."""
    end = parts.index("<locals>") if "<locals>" in parts else len(parts)
    classes = [k for k, part in enumerate(parts[:end]) if part.lstrip("_")[:1].isupper()]
    return classes[0] if classes else end - 1


def renamed(described: Any, name: Callable[[str], str]) -> Any:
    """A description, a JSON value as `describe` makes it, with other names in it and without `GONE` settings."""
    if isinstance(described, str):
        return name(described)
    if isinstance(described, dict):
        named = {key: renamed(value, name) for key, value in cast("dict[str, Any]", described).items()}
        gone = GONE.get(str(named.get("type")), ())
        return {key: value for key, value in named.items() if value is not None or key not in gone}
    if isinstance(described, list):
        return [renamed(value, name) for value in cast("list[Any]", described)]
    return described


def short_name(described: Any) -> str:
    """The last part of the name of a described object: "Vote" of {"type": "depura.Vote", ...} or of the name itself.

    Empty where there is none.
    """
    name = cast("dict[str, Any]", described).get("type", "") if isinstance(described, dict) else described
    return str(name).rpartition(".")[2] if isinstance(name, str) else ""
