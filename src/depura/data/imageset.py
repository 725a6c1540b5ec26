"""A labelled set of images, and reading one from a file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.data.subsets import subset


class Known(NamedTuple):
    """Images of a data set that are at hand.

    Attributes:
        images: (M, C, H, W), float32 in [0, 1].
        labels: (M,), int64.
        positions: (M,), where they are in the data set.
    """

    images: Tensor
    labels: Tensor
    positions: tuple[int, ...]


class Origin(NamedTuple):
    """What the images of a set were chosen from.

    Attributes:
        size: how many images the data set, or the part of it that was read, has.
        positions: (N,), where in it the chosen images are.
        seed: of the draw by which they are said to be chosen; None where none is said.
        known: of its images, those that are at hand; among them the chosen ones. None where no others are.
    """

    size: int
    positions: tuple[int, ...]
    seed: int | None = None
    known: Known | None = None

    def take(self, at: Sequence[int], *, seed: int | None = None) -> Origin:
        """That of some of the images, by their positions in the set; `seed` of the draw that they are."""
        return self._replace(positions=tuple(self.positions[i] for i in at), seed=seed)


class ImageSet(NamedTuple):
    """Labelled images, each with the id that addresses its noise and its records.

    Attributes:
        name: what it is.
        images: (N, C, H, W), float32 in [0, 1].
        labels: (N,), int64.
        ids: (N,), the position of each image in the full data set.
        classes: names of the classes.
        origin: what the images were chosen from; None where that is not known.
    """

    name: str
    images: Tensor
    labels: Tensor
    ids: tuple[int, ...]
    classes: tuple[str, ...]
    origin: Origin | None = None

    def first(self, n: int) -> ImageSet:
        """The first n images (fewer if there are fewer).

        Args:
            n: how many, at least one.

        Returns:
            The smaller set.
        """
        _check.integer("ImageSet.first", "n", n, low=1)
        whole = None if self.origin is None else self.origin.take(range(len(self.ids))[:n], seed=self.origin.seed)
        return self._replace(images=self.images[:n], labels=self.labels[:n], ids=self.ids[:n], origin=whole)

    def take(self, rows: Sequence[int]) -> ImageSet:
        """Some of the images, with their ids.

        Args:
            rows: positions in this set, 0 .. N-1, in the order wanted, each once.

        Returns:
            The smaller set.

        Raises:
            InputError: no row, one twice, or one that is not there.
        """
        return self._at(checked_rows(rows, len(self.images), where="ImageSet.take"), seed=None)

    def draw(self, n: int, seed: int = 0) -> ImageSet:
        """Some of the images, drawn at random without replacement, in the order of the draw (see `depura.subset`).

        The choice can be made again by anybody, so that a report says that the images were drawn, and by which seed.

        Args:
            n: how many, 1 to N.
            seed: of the draw, 0 to 2^32 - 1.

        Returns:
            The smaller set.

        Raises:
            InputError: no image, or more than there are.
        """
        _check.integer("ImageSet.draw", "n", n, low=1, high=len(self.images))
        _check.integer("ImageSet.draw", "seed", seed, high=2**32 - 1)
        return self._at(subset(len(self.images), n, seed=seed), seed=seed)

    def _at(self, rows: Sequence[int], *, seed: int | None) -> ImageSet:
        at, origin = list(rows), None if self.origin is None else self.origin.take(rows, seed=seed)
        ids = tuple(self.ids[i] for i in at)
        return self._replace(images=self.images[at], labels=self.labels[at], ids=ids, origin=origin)

    def sha256(self) -> str:
        """Digest of the images, labels and ids, as they are used."""
        digest = hashlib.sha256()
        for array in (self.images.numpy(), self.labels.numpy(), np.asarray(self.ids, dtype=np.int64)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def checked_rows(rows: Sequence[int], n: int, *, where: str) -> tuple[int, ...]:
    """Rows as a tuple of whole numbers from 0 to n - 1, at least one and each once, else an error."""
    chosen = tuple(int(r) for r in rows)
    outside = [r for r in chosen if not 0 <= r < n]
    if outside:
        _check.fail(where, f"rows from 0 to {n - 1}", f"{outside[0]}", "Draw them for the size of this data set.")
    if not chosen or len(set(chosen)) < len(chosen):
        _check.fail(where, "at least one row, each once", f"{len(chosen)} rows, {len(set(chosen))} distinct")
    return chosen


def load_npz(path: str | Path, *, labels: str = "label") -> ImageSet:
    """Read a labelled set from an NPZ file.

    The file holds `image` (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 in [0, 255] or float in [0, 1], and `label`
    (N,) of integers; it may hold `ids` (N,), the positions of the images in a full data set. Nothing in it is
    unpickled.

    Args:
        path: the file.
        labels: the array of labels, where it has another name.

    Returns:
        The set, with ids 0 .. N-1 where there are none, and classes named by their numbers.

    Raises:
        InputError: the file cannot be read, lacks an array, or holds something else.
    """
    return of_arrays(read_npz(path), path, labels=labels)


def of_arrays(arrays: dict[str, NDArray[Any]], path: str | Path, *, labels: str = "label") -> ImageSet:
    """The set that the arrays of an NPZ file are; see `load_npz`."""
    for key in ("image", labels):
        if key not in arrays:
            wanted, got = f"arrays named image and {labels}", f"{sorted(arrays)} in {path}"
            _check.fail("load_npz", wanted, got, "Rename them with numpy.savez.")
    images = to_images(arrays["image"], source=str(path))
    numbers = torch.from_numpy(_whole(arrays[labels], labels, path))
    _check.labels(f"load_npz, {path}", numbers, n_images=len(images))
    classes = tuple(str(i) for i in range(int(numbers.max()) + 1))
    ids = _whole(arrays["ids"], "ids", path).tolist() if "ids" in arrays else range(len(images))
    if len(ids) != len(images) or len(set(ids)) < len(images) or min(ids) < 0:
        _check.fail("load_npz", f"{len(images)} distinct ids from 0 in {path}", f"{len(ids)}, {len(set(ids))} distinct")
    return whole(ImageSet(Path(path).stem, images, numbers, tuple(ids), classes))


def whole(data: ImageSet) -> ImageSet:
    """A data set, or a part of one, that is all at hand: smaller sets that are taken of it know what they are of.

    Where ids are not 0 .. N-1 it is itself a choice of something else, so nothing is known.
    """
    every = tuple(range(len(data.ids)))
    if data.ids != every:
        return data._replace(origin=None)
    return data._replace(origin=Origin(len(every), every, known=Known(data.images, data.labels, every)))


def _whole(array: NDArray[Any], name: str, path: str | Path) -> NDArray[np.int64]:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        _check.fail("load_npz", f"{name} (N,) of whole numbers in {path}", f"{array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def read_npz(path: str | Path) -> dict[str, NDArray[Any]]:
    """All arrays of an NPZ file by name, without unpickling; fails where it is no whole file of plain arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "truncated, damaged, or not plain arrays"
        raise _check.InputError(
            f"read_npz: expected a readable NPZ file of plain arrays, got {path} ({reason}). Check the file."
        ) from error


def to_images(array: NDArray[Any], *, source: str) -> Tensor:
    """(N, C, H, W) float32 in [0, 1] of an array (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3.

    The array is uint8, or floating-point in [0, 1]; `source` is its name for messages.
    """
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = np.moveaxis(array, 3, 1)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        _check.fail(source, "images (N, H, W), (N, H, W, C) or (N, C, H, W) of 1 or 3 channels", f"shape {array.shape}")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        _check.fail(source, "uint8 or floating-point images", f"{array.dtype}")
    images = torch.from_numpy(np.array(array, order="C")).to(torch.float32)
    return _check.images(source, images / 255 if array.dtype == np.uint8 else images)
