"""Parameters of tests that take long: `make test` leaves these cases out, `make test-slow` and CI run them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow(*values: Any, id: str | None = None) -> Any:
    """One case of a parametrised test, marked as slow; its name is `id`, or made of the values."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def slow_among(names: Iterable[str], long: Collection[str]) -> list[Any]:
    """The cases of a parametrised test in their order, those named in `long` marked as slow; all of these exist."""
    names = list(names)
    assert set(long) <= set(names), f"no such cases: {set(long) - set(names)}"
    return [slow(name) if name in long else name for name in names]
