"""A labelled data set of which only the chosen rows are read, and what all its readers are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.data.imageset import ImageSet, Known, Origin, checked_rows
from depura.data.pictures import Frame, decode
from depura.data.subsets import some_others

WHERE = "load_images"
"""Who speaks in messages."""

LIKE_TEST = ("test", "validation", "val", "valid")
"""What is read where a data set has several parts and none is asked for: the first of these."""


class IfParts(str):
    """The name of a part that is meant where a data set has parts; where it has none, no part was asked for."""

    __slots__ = ()


class Request(NamedTuple):
    """What is to be read.

    Attributes:
        path: a file or folder.
        split: the part, or None.
        labels: the kind of labels, or None for the usual one.
        frame: what is done to each picture.
    """

    path: Path
    split: str | None = None
    labels: str | None = None
    frame: Frame = Frame()

    def part_of(self, parts: Sequence[str]) -> str:
        """The part that is meant: `split`, else the only one there is, else the first of `LIKE_TEST` that is there.

        An `IfParts` may also be the only part, unless that is for tests. Fails where it is not there or not clear.
        """
        only = [*parts] if len(parts) == 1 else []
        likely = only or [*LIKE_TEST]
        if self.split is not None:
            stands_in = [name for name in only if isinstance(self.split, IfParts) and name not in LIKE_TEST]
            likely = [self.split, *stands_in]
        for name in likely:
            if name in parts:
                return name
        return _check.fail(WHERE, f"split= one of {sorted(parts)} of {self.path}", f"{self.split!r}")

    def without_parts(self, where: str = WHERE) -> None:
        """Refuse a split, where there are no parts."""
        if self.split is not None and not isinstance(self.split, IfParts):
            got = f"{self.split!r} of {self.path}"
            _check.fail(where, "split= only where a data set has parts", got, "Leave it out.")


class Table(NamedTuple):
    """Labels of a whole data set, and how to read some of its images.

    Attributes:
        name: what it is.
        labels: (N,), int64, of every image.
        classes: their names.
        ids: (N,), the position of each image in the full data set.
        read: takes rows from 0 to N-1, gives (n, C, H, W) in [0, 1].
        at_hand: whether all pixels are in memory, so that reading further rows costs nothing.
        whole: whether it is a data set or a part of one as published, and not itself chosen from one.
    """

    name: str
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: NDArray[np.int64]
    read: Callable[[Sequence[int]], Tensor]
    at_hand: bool = False
    whole: bool = True

    def choose(self, rows: Sequence[int] | None, images: int | None) -> ImageSet:
        """Read `rows` in their order (None: all), and of these the first `images` (None: all)."""
        n = len(self.labels)
        if n == 0:
            _check.fail(WHERE, "a data set with images", f"{self.name}, which has none")
        chosen = tuple(range(n)) if rows is None else checked_rows(rows, n, where=WHERE)
        if images is not None:
            chosen = chosen[: _check.integer(WHERE, "images", images, low=1)]
        at = list(chosen)
        pixels = _check.images(WHERE, self.read(chosen))
        labels, known = torch.from_numpy(self.labels[at]), None
        if self.at_hand:
            more = some_others(n, chosen)
            known = Known(
                torch.cat([pixels, self.read(more)]) if more else pixels,
                torch.from_numpy(self.labels[[*chosen, *more]]),
                (*chosen, *more),
            )
        origin = Origin(n, chosen, known=known) if self.whole else None
        return ImageSet(self.name, pixels, labels, tuple(self.ids[at].tolist()), self.classes, origin)


def stack_pictures(files: Sequence[tuple[str, bytes | Path]], frame: Frame) -> Tensor:
    """Pictures (N, C, H, W), float32 in [0, 1], of encoded bytes or of files, with their names for messages."""
    images: Tensor | None = None
    for i, (source, encoded) in enumerate(files):
        try:
            data = encoded.read_bytes() if isinstance(encoded, Path) else encoded
        except OSError as error:
            _check.fail(WHERE, "a picture that can be read", f"{source} ({error.strerror})")
        image = decode(data, source=source, frame=frame, where=WHERE)
        if images is None:
            images = image.new_empty(len(files), *image.shape)
        if image.shape != images.shape[1:]:
            _check.fail(
                WHERE,
                f"pictures of one size, {' x '.join(map(str, images.shape[1:]))} like {files[0][0]}",
                f"{source} of {' x '.join(map(str, image.shape))} (channels x height x width)",
                "Give resize= and crop= for one size, channels= for one number of channels.",
            )
        images[i] = image
    assert images is not None  # rows are at least one
    return images
