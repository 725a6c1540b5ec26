"""A labelled data set of which only the chosen rows are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.data.imageset import ImageSet, checked_rows
from depura.data.pictures import Frame, decode

LIKE_TEST = ("test", "validation", "val", "valid")
"""What is read where a data set has several parts and none is asked for: the first of these."""


class IfParts(str):
    """The name of a part that is meant where a data set has parts; where it has none, no part was asked for."""

    __slots__ = ()


class Table(NamedTuple):
    """Labels of a whole data set, and how to read some of its images.

    Attributes:
        name: what it is.
        labels: (N,), int64, of every image.
        classes: their names.
        ids: (N,), the position of each image in the full data set.
        read: takes rows from 0 to N-1, gives (n, C, H, W) in [0, 1].
    """

    name: str
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: NDArray[np.int64]
    read: Callable[[Sequence[int]], Tensor]

    def choose(self, rows: Sequence[int] | None, images: int | None, *, where: str) -> ImageSet:
        """Read some of it.

        Args:
            rows: which, in this order; None for all.
            images: the first so many of them at most; None for all.
            where: who asks, for messages.

        Returns:
            The images.

        Raises:
            InputError: no image, a row twice, or beyond the end.
        """
        n = len(self.labels)
        if n == 0:
            _check.fail(where, "a data set with images", f"{self.name}, which has none")
        chosen = tuple(range(n)) if rows is None else checked_rows(rows, n, where=where)
        if images is not None:
            chosen = chosen[: _check.integer(where, "images", images, low=1)]
        at = list(chosen)
        read = _check.images(where, self.read(chosen))
        labels = torch.from_numpy(self.labels[at])
        return ImageSet(self.name, read, labels, tuple(int(i) for i in self.ids[at]), self.classes)


def one_part(parts: Sequence[str], split: str | None, *, source: Path, where: str) -> str:
    """The part of a data set that is meant.

    Args:
        parts: names of those there are.
        split: the name that was asked for, or None; an `IfParts` may also be the only part, unless that is for tests.
        source: of the data set, for messages.
        where: who asks, for messages.

    Returns:
        `split`, else the only part, else the first of `LIKE_TEST` that is there.

    Raises:
        InputError: it is not there, or cannot be told.
    """
    alone = [*parts] if len(parts) == 1 else []
    if split is None:
        likely = alone or [*LIKE_TEST]
    else:
        likely = [split, *(name for name in alone if isinstance(split, IfParts) and name not in LIKE_TEST)]
    for name in likely:
        if name in parts:
            return name
    return _check.fail(where, f"split= one of {sorted(parts)} of {source}", f"{split!r}")


def no_parts(split: str | None, *, source: Path, where: str) -> None:
    """Refuse a split where there are no parts.

    Args:
        split: what was asked for.
        source: of the data set, for messages.
        where: who asks, for messages.

    Raises:
        InputError: one was asked for.
    """
    if split is not None and not isinstance(split, IfParts):
        _check.fail(where, "split= only where a data set has parts", f"{split!r} of {source}", "Leave it out.")


def stack_pictures(files: Sequence[tuple[str, Callable[[], bytes]]], frame: Frame, *, where: str) -> Tensor:
    """Decode pictures into one tensor.

    Args:
        files: names for messages, and how to read each file's bytes.
        frame: what is done to each.
        where: who asks, for messages.

    Returns:
        (N, C, H, W), float32 in [0, 1].

    Raises:
        InputError: a file cannot be read or decoded, or they differ in size or channels.
    """
    images: Tensor | None = None
    for i, (source, read) in enumerate(files):
        try:
            data = read()
        except OSError as error:
            _check.fail(where, "a picture that can be read", f"{source} ({error.strerror})")
        image = decode(data, source=source, frame=frame, where=where)
        if images is None:
            images = image.new_empty(len(files), *image.shape)
        if image.shape != images.shape[1:]:
            channels, height, width = images.shape[1:]
            _check.fail(
                where,
                f"pictures of one size, {channels} x {height} x {width} like {files[0][0]}",
                f"{source} of {' x '.join(map(str, image.shape))} (channels x height x width)",
                "Give resize= and crop= for one size, channels= for one number of channels.",
            )
        images[i] = image
    assert images is not None  # rows are at least one
    return images
