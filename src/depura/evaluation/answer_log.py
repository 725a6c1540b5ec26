"""The answers that a unit under way has had, on disk, so that an interrupted one need not ask for them again.

An attack is a function of what the network answers, and these answers are a function of images and noise. So an attack
that is begun again asks the same questions; those that were answered before are answered from the log, at no cost, and
its candidates are the same to the bit. No attack needs to know how its state is saved. Answers are written every few
minutes; what is lost by an interruption is what was asked since then, and at most the question under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depura import _atomic
from depura.attacks.queries import Log
from depura.records.directory import contents_sha256

EVERY = 300.0
"""Seconds between two files of answers, unless another number is asked for."""


MOST = 2**28
"""Bytes of answers that are held in memory; they are written when there are more, however soon that is."""


class Entry(NamedTuple):
    """An answer.

    Attributes:
        question: digest of what was asked, and of the question that it was a part of.
        tensors: the answer.
        rises: by how much each counter rose meanwhile.
    """

    question: str
    tensors: tuple[NDArray[Any], ...]
    rises: tuple[NDArray[Any], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the answer."""
        return sum(values.nbytes for values in self.tensors)


class Counter(NamedTuple):
    """What rises while a question is answered, and must rise as much where the answer comes from the log.

    Attributes:
        read: gives its numbers.
        add: adds to them.
    """

    read: Callable[[], NDArray[Any]]
    add: Callable[[NDArray[Any]], object]

    @classmethod
    def of(cls, values: NDArray[np.int64] | Tensor) -> Counter:
        """Of an array or a tensor that is changed in place."""

        def add(rise: NDArray[Any]) -> None:
            if isinstance(values, Tensor):
                values.add_(torch.from_numpy(rise).to(values.device))
            else:
                np.add(values, rise, out=values)

        return cls(lambda: np.array(_numbers(values)), add)


class AnswerLog:
    """Answers of one unit, kept in files of a folder. Files of another study, and damaged ones, are passed over."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        *,
        every: float = EVERY,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read what is there.

        Args:
            folder: of this unit alone; made when there is something to keep.
            identity: of the study and the unit: what decides the answers besides the questions.
            every: seconds between two files; 0 writes every answer at once.
            now: a clock, in seconds.
        """
        self.counters: tuple[Counter, ...] = ()
        self._folder, self._identity, self._every, self._now = folder, identity, every, now
        self._last = now()
        self._new: list[Entry] = []
        self._held = 0
        self._within: list[str] = []
        self._known: dict[str, deque[Entry]] = {}
        for file in sorted(folder.glob("*.npz")) if folder.is_dir() else ():
            for entry in self._read(file):
                self._known.setdefault(entry.question, deque()).append(entry)

    def answer(
        self, question: Sequence[object], ask: Callable[[], tuple[Tensor, ...]], *, spent: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The answer to a question: from the log, else by asking.

        A question may be answered by way of others, which are kept until it is answered itself.

        Args:
            question: tensors and what is told apart by its `repr`.
            ask: gives the answer.
            spent: a counter that asking adds to, besides those of the log.

        Returns:
            The answer, on the device of the first tensor of the question.
        """
        name = digest((*self._within[-1:], *question))
        counters = (*self.counters, *(() if spent is None else (Counter.of(spent),)))
        known = self._known.get(name)
        if known:
            entry = known.popleft()
            for counter, rise in zip(counters, entry.rises, strict=True):
                counter.add(rise)
            device = next((its.device for its in question if isinstance(its, Tensor)), torch.device("cpu"))
            return tuple(torch.from_numpy(values).to(device) for values in entry.tensors)
        before: list[NDArray[Any]] = [counter.read() for counter in counters]
        unwritten = self._new
        start = len(unwritten)
        self._within.append(name)
        try:
            tensors = ask()
        finally:
            self._within.pop()
        # What was answered on the way is part of this answer; where files were written meanwhile, all the rest is.
        first = start if self._new is unwritten else 0
        self._held -= sum(entry.nbytes for entry in self._new[first:])
        del self._new[first:]
        rises: list[NDArray[Any]] = [
            np.subtract(counter.read(), then) for counter, then in zip(counters, before, strict=True)
        ]
        entry = Entry(name, tuple(np.array(_numbers(tensor)) for tensor in tensors), tuple(rises))
        self._new.append(entry)
        self._held += entry.nbytes
        if self._now() - self._last >= self._every or self._held > MOST:
            self.write()
        return tensors

    def write(self) -> None:
        """Write the answers that are new."""
        if not self._new:
            return
        arrays: dict[str, NDArray[Any]] = {}
        for k, entry in enumerate(self._new):
            arrays |= {f"{k}-answer-{i}": values for i, values in enumerate(entry.tensors)}
            arrays |= {f"{k}-rise-{i}": values for i, values in enumerate(entry.rises)}
        questions = [(entry.question, len(entry.tensors), len(entry.rises)) for entry in self._new]
        meta = {"identity": self._identity, "questions": questions}
        signed = json.dumps({**meta, "sha256": contents_sha256(arrays, meta)}).encode()
        buffer = io.BytesIO()
        everything: dict[str, Any] = {"meta": np.frombuffer(signed, dtype=np.uint8), **arrays}
        np.savez(buffer, **everything)
        _atomic.write(self._folder / f"{time.time_ns():020d}.npz", buffer.getvalue())
        self._new, self._held, self._last = [], 0, self._now()

    def forget(self) -> None:
        """Remove all files: the unit is done."""
        self._new, self._held, self._known = [], 0, {}
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are under way
            self._folder.parent.rmdir()

    def _read(self, file: Path) -> list[Entry]:
        """The answers of a file; none of one that is damaged or another study's."""
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays: dict[str, NDArray[Any]] = {key: stored[key] for key in stored.files}
            meta: dict[str, Any] = json.loads(arrays.pop("meta").tobytes())
            signature = meta.pop("sha256")
            if meta["identity"] != self._identity or signature != contents_sha256(arrays, meta):
                return []
            return [
                Entry(
                    question,
                    tuple(arrays[f"{k}-answer-{i}"] for i in range(n)),
                    tuple(arrays[f"{k}-rise-{i}"] for i in range(m)),
                )
                for k, (question, n, m) in enumerate(meta["questions"])
            ]
        except Exception:  # a damaged archive raises whatever its damage leads to; the answers are asked for again
            return []


class PartLog:
    """A log for questions about something else than the rest of it: their name tells them apart."""

    def __init__(self, log: Log, name: str) -> None:
        """Give the questions of a log a name."""
        self._log, self._name = log, name

    def answer(
        self, question: Sequence[object], ask: Callable[[], tuple[Tensor, ...]], *, spent: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """As `AnswerLog.answer`."""
        return self._log.answer((self._name, *question), ask, spent=spent)


def digest(question: Sequence[object]) -> str:
    """Of a question: tensors by their bytes, anything else by its `repr`."""
    found = hashlib.sha256()
    for part in question:
        if isinstance(part, Tensor):
            values = _numbers(part)
            found.update(f"{values.dtype.str} {values.shape}".encode())
            found.update(np.ascontiguousarray(values).tobytes())
        else:
            found.update(repr(part).encode())
        found.update(b"\0")
    return found.hexdigest()


def _numbers(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    return values.numpy(force=True) if isinstance(values, Tensor) else values
