"""What is seen of a run while it goes on: a bar for each attack, with its ETA and the accuracy so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.progress import TaskID

from depura.analysis.results import RowResults
from depura.analysis.words import percent
from depura.cli.console import out, progress
from depura.evaluation.study import Study, UnitKey
from depura.records.directory import RunDirectory
from depura.statistics.intervals import Floats, mean_with_interval

_At = tuple[str, float]
"""A row and a radius."""

LINES = 4
"""How often a run prints where it is, where the output is not a terminal."""


class Live:
    """`bars` for the units to do, one for each row and radius, which are shown in their context."""

    def __init__(self, study: Study, directory: RunDirectory, todo: Sequence[UnitKey]) -> None:
        """Show the units to do of a study, which are committed in the directory."""
        self._directory, self._todo = directory, todo
        self._done = 0
        self.bars = progress()
        self._tasks: dict[_At, TaskID] = {}
        self._unread: dict[_At, dict[str, None]] = {}
        self._accuracies: dict[_At, list[Floats]] = {}
        self._finished: dict[_At, int] = {}
        totals = Counter((key.row, key.eps) for key in todo)
        for key in todo:
            at = (key.row, key.eps)
            if at not in self._tasks:
                self._tasks[at] = self.bars.add_task(_title(key), total=totals[at])
        for key in study.units():
            self._unread.setdefault((key.row, key.eps), {})[key.name] = None

    def unit(self, key: UnitKey) -> None:
        """A unit is committed."""
        self._done += 1
        at, n = (key.row, key.eps), len(self._todo)
        finished = self._finished[at] = self._finished.get(at, 0) + 1
        unread = self._unread.get(at, {})
        # Units of other processes are looked for each time that twice as many are done: rarely enough for long runs.
        others = [name for name in unread if self._directory.has(name)] if finished & (finished - 1) == 0 else []
        for name in dict.fromkeys([key.name, *others]):
            if name in unread:
                del unread[name]
                its = self._directory.read(name)
                if "predictions" in its.arrays:
                    self._accuracies.setdefault(at, []).append(RowResults((its,)).accuracies)
        text = f"{_title(key)}  {accuracy_text(self._accuracies.get(at, []))}"
        self.bars.update(self._tasks[at], completed=finished, description=text)
        if not out.is_terminal and self._done * LINES // n > (self._done - 1) * LINES // n:
            out.print(f"running  {self._done} of {n} units done; {text}".rstrip())

    def share(self, key: UnitKey, share: float) -> None:
        """So much of a unit's attack is done."""
        at = (key.row, key.eps)
        self.bars.update(self._tasks[at], completed=self._finished.get(at, 0) + share)


def accuracy_text(accuracies: Sequence[Floats]) -> str:
    """Accuracy of one draw over the images of some units, with its interval; empty where nothing is predicted."""
    if not accuracies:
        return ""
    found = np.concatenate(accuracies)
    return f"{percent(mean_with_interval(found))} on {len(found)} images"


def _title(key: UnitKey) -> str:
    return f"{key.row}, eps {key.eps:g}"
