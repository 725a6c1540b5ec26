"""Reading pickles without running them: only callables on a list are called, and nothing is imported."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from depura import _check

UnpicklingError = pickle.UnpicklingError
"""What torch raises too over a file that would have to be run to be read, or is no pickle."""

DAMAGED = (
    UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What the standard library raises over bytes that are no pickle, or half of one."""


def read(
    data: bytes,
    allowed: Mapping[tuple[str, str], Callable[..., Any]],
    *,
    where: str,
    encoding: str = "ASCII",
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object that a pickle describes, if it names nothing but what is allowed.

    A pickle is a program that may call whatever it can name. Here a name is only ever looked up in `allowed`; no
    module is imported. The first other name ends the reading, before it or anything after it is called. What is
    called can still be called with any arguments, so `allowed` had best hold functions and classes made for reading,
    which only keep what they are given. Classes must take no attributes or be made anew for each reading, as a
    pickle can set attributes on a class.

    Args:
        data: the whole pickle.
        allowed: what to call, by module and name as the pickle has them.
        where: the file, for messages.
        encoding: of the 8-bit strings of Python 2 ("bytes" leaves them as bytes).
        persistent: what turns a persistent id into an object; without it they are refused.

    Returns:
        The object.

    Raises:
        InputError: another name, or bytes that are not a whole pickle.
    """
    reader = _Reader(io.BytesIO(data), encoding=encoding)
    reader.where, reader.allowed, reader.persistent = where, allowed, persistent
    try:
        return reader.load()
    except _check.InputError:
        raise
    except DAMAGED as error:
        raise _check.InputError(
            f"{where}: expected a whole pickle of plain data, got one that is truncated, damaged or of another kind "
            f"({type(error).__name__}: {error}). Nothing of it was run. Check the file."
        ) from error


class _Reader(pickle.Unpickler):
    where: str
    allowed: Mapping[tuple[str, str], Callable[..., Any]]
    persistent: Callable[[Any], Any] | None

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The callable on the list."""
        found = self.allowed.get((module_name, global_name))
        if found is None:
            _check.fail(
                self.where,
                "a pickle of plain data",
                f"one that asks for {module_name}.{global_name}",
                "Nothing of it was run, as it could do anything. Do not load it by other means unless you trust it.",
            )
        return found if isinstance(found, type) else _Call(found)

    def persistent_load(self, pid: Any, /) -> Any:
        """The object of a persistent id."""
        if self.persistent is None:
            _check.fail(self.where, "a pickle of plain data", f"one that refers to something outside it ({pid!r})")
        return self.persistent(pid)


class _Call:
    """A function on which a pickle can set nothing."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for a function")
