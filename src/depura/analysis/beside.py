"""Other runs of a study that lie beside a run: the same with another seed, or on other images of the data set.

Of several runs the best looks better than any one of them is. They are for whoever has the folder; a report's files are
made of its own record alone, and do not change with what lies around it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from depura.analysis.summary import Summary, summarise
from depura.records.directory import RecordError, RunDirectory
from depura.records.schema import Header

LARGEST = 2**25
"""Bytes of the largest header that is read of a run beside."""


class RunBeside(NamedTuple):
    """A run of the same study.

    Attributes:
        name: of its folder.
        seed: of its noise.
        other_images: whether its images are not those of the run that it lies beside.
        number: its headline number in words, or why it has none.
    """

    name: str
    seed: int
    other_images: bool
    number: str

    @property
    def text(self) -> str:
        """Such as "digits-2 (seed 3, other images): at most 44.1 %"."""
        return f"{self.name} (seed {self.seed}{', other images' if self.other_images else ''}): {self.number}"


def runs_beside(directory: RunDirectory) -> tuple[RunBeside, ...]:
    """Runs of the same study in folders beside a run, by name.

    They judge the same defences by the same attacks under the same threat model on images of the same data set, with
    another seed or on other images. Headers are read first, and only of finished runs more. Folders that hold something
    else, or a damaged record, are passed over.

    Args:
        directory: the run.

    Returns:
        The others.
    """
    own = directory.path.resolve()
    found: list[RunBeside] = []
    try:
        folders = sorted(path for path in own.parent.iterdir() if path.resolve() != own and path.is_dir())
    except OSError:
        return ()
    for folder in folders:
        try:
            other = _same_study(folder, directory.header)
            if other is not None:
                header = other.header
                elsewhere = header.data.ids != directory.header.data.ids
                found.append(RunBeside(folder.name, header.seed, elsewhere, _number(summarise(other))))
        except Exception:  # a damaged record raises whatever its damage leads to
            continue
    return tuple(found)


def _same_study(folder: Path, header: Header) -> RunDirectory | None:
    """The run in a folder, if it is one of the same study and not the same run; most are told by their names."""
    file = folder / "study.json"
    if not file.is_file() or file.stat().st_size > LARGEST:
        return None
    raw: Any = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or raw.get("name") != header.name:  # pyright: ignore[reportUnknownMemberType]
        return None
    try:
        other = RunDirectory.open(folder)
    except RecordError:
        return None
    if _judged(other.header) != _judged(header):
        return None
    same = (other.header.seed, other.header.data.ids) == (header.seed, header.data.ids)
    return None if same else other


def _judged(header: Header) -> tuple[Any, ...]:
    """What two runs of one study have in common."""
    rows = [(row.name, row.method, row.kind, row.mode, row.judged, row.attack) for row in header.rows]
    return (header.data.name, header.data.shape, header.threat_model, header.methods, rows)


def _number(summary: Summary) -> str:
    """The headline number of a run, or why it has none."""
    if not summary.complete:
        return f"under way, {summary.done} of {summary.total} units done"
    if summary.refused:
        return "no headline"
    if summary.ranking is not None and summary.ranking.best is not None:
        best = summary.ranking.best
        return f"{best.method} at most {100 * best.strongest.single.value:.1f} %"
    return f"at most {100 * summary.strongest.single.value:.1f} %" if summary.strongest is not None else "no headline"
