"""What others published of a defence, for studies that repeat it: their figures, and the files that it takes."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A published figure, by its authors' protocol, which is not this library's.

    Attributes:
        clean: accuracy without an attack, in percent; None where it is not stated.
        robust: accuracy under the attack, in percent; None where it is not stated.
        attack: of the authors, and how it was judged where that is known.
        source: where the figure is from.
        note: what a reader must know of it; "unverified" where the source itself was not read.
    """

    clean: float | None
    robust: float | None
    attack: str
    source: str
    note: str = ""

    @property
    def figures(self) -> str:
        """The two numbers in words."""
        parts = [("clean", self.clean), ("robust", self.robust)]
        return ", ".join(f"{name} {value:g}" for name, value in parts if value is not None) or "no figure"


class NeededFile(NamedTuple):
    """A file that a study is to be given.

    Attributes:
        parameter: of the study, which takes its path.
        name: of the file, as published.
        address: where it is.
        licence: under which it may be used.
        note: what a user must know.
    """

    parameter: str
    name: str
    address: str
    licence: str
    note: str = ""
