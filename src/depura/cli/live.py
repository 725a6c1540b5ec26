"""What is seen of a run while it goes on: a bar for each attack, with its ETA and the accuracy so far."""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import TaskID

from depura.analysis.progress import accuracy_so_far
from depura.analysis.words import percent
from depura.cli.console import out, progress
from depura.evaluation.study import Study, UnitKey
from depura.records.directory import RunDirectory, Unit

LINES = 4
"""How often a run prints where it is, where the output is not a terminal."""


class Live:
    """`bars` for the units to do, one for each row and radius, which are shown in their context."""

    def __init__(self, study: Study, directory: RunDirectory, todo: Sequence[UnitKey]) -> None:
        """Show the units to do of a study, which are committed in the directory."""
        self._directory, self._todo, self._all = directory, todo, study.units()
        self._done = 0
        self.bars = progress()
        self._tasks: dict[tuple[str, float], TaskID] = {}
        self._units: dict[tuple[str, float], dict[str, Unit]] = {}
        self._finished: dict[tuple[str, float], int] = {}
        for key in todo:
            at = (key.row, key.eps)
            if at not in self._tasks:
                total = sum(1 for other in todo if (other.row, other.eps) == at)
                self._tasks[at] = self.bars.add_task(_title(key), total=total)

    def unit(self, key: UnitKey) -> None:
        """A unit is committed."""
        self._done += 1
        at, n = (key.row, key.eps), len(self._todo)
        self._finished[at] = self._finished.get(at, 0) + 1
        units = self._units.setdefault(at, {})
        for other in self._all:
            new = (other.row, other.eps) == at and other.name not in units
            if new and self._directory.has(other.name):
                units[other.name] = self._directory.read(other.name)
        text = f"{_title(key)}  {accuracy_text(list(units.values()))}"
        self.bars.update(self._tasks[at], completed=self._finished[at], description=text)
        if not out.is_terminal and self._done * LINES // n > (self._done - 1) * LINES // n:
            out.print(f"running  {self._done} of {n} units done; {text}".rstrip())

    def share(self, key: UnitKey, share: float) -> None:
        """So much of a unit's attack is done."""
        at = (key.row, key.eps)
        self.bars.update(self._tasks[at], completed=self._finished.get(at, 0) + share)


def accuracy_text(units: Sequence[Unit]) -> str:
    """Accuracy of one draw over the units that are there, with its interval; empty where nothing is predicted."""
    accuracy = accuracy_so_far(units)
    return (
        "" if accuracy is None else f"{percent(accuracy)} on {sum(len(unit.arrays['labels']) for unit in units)} images"
    )


def _title(key: UnitKey) -> str:
    return f"{key.row}, eps {key.eps:g}"
