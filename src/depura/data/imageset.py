"""A labelled set of images, and reading one from a file."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depura import _check


class ImageSet(NamedTuple):
    """Labelled images, each with the id that addresses its noise and its records.

    Attributes:
        name: what it is.
        images: (N, C, H, W), float32 in [0, 1].
        labels: (N,), int64.
        ids: (N,), the position of each image in the full data set.
        classes: names of the classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    ids: tuple[int, ...]
    classes: tuple[str, ...]

    def first(self, n: int) -> ImageSet:
        """The first n images (fewer if there are fewer).

        Args:
            n: how many, at least one.

        Returns:
            The smaller set.
        """
        _check.integer("ImageSet.first", "n", n, low=1)
        return self._replace(images=self.images[:n], labels=self.labels[:n], ids=self.ids[:n])

    def sha256(self) -> str:
        """Digest of the images, labels and ids, as they are used."""
        digest = hashlib.sha256()
        for array in (self.images.numpy(), self.labels.numpy(), np.asarray(self.ids, dtype=np.int64)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_npz(path: str | Path) -> ImageSet:
    """Read a labelled set from an NPZ file.

    The file holds `image` (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 in [0, 255] or float in [0, 1], and `label`
    (N,) of integers. Nothing in it is unpickled.

    Args:
        path: the file.

    Returns:
        The set, with ids 0 .. N-1 and classes named by their numbers.

    Raises:
        InputError: the file cannot be read, lacks an array, or holds something else.
    """
    arrays = read_npz(path)
    for key in ("image", "label"):
        if key not in arrays:
            _check.fail(
                "load_npz",
                "arrays named image and label",
                f"{sorted(arrays)} in {path}",
                "Rename them with numpy.savez.",
            )
    images = to_images(arrays["image"], source=str(path))
    labels = torch.from_numpy(arrays["label"].astype(np.int64))
    _check.labels("load_npz", labels, n_images=len(images))
    classes = tuple(str(i) for i in range(int(labels.max()) + 1))
    return ImageSet(Path(path).stem, images, labels, tuple(range(len(images))), classes)


def read_npz(path: str | Path) -> dict[str, NDArray[Any]]:
    """All arrays of an NPZ file, without unpickling.

    Args:
        path: the file.

    Returns:
        The arrays by name.

    Raises:
        InputError: the file is missing, truncated, not an NPZ file, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "truncated, damaged, or not plain arrays"
        raise _check.InputError(
            f"read_npz: expected a readable NPZ file of plain arrays, got {path} ({reason}). Check the file."
        ) from error


def to_images(array: NDArray[Any], *, source: str) -> Tensor:
    """Images of an array in any of the usual layouts, as (N, C, H, W) float32 in [0, 1].

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3; uint8, or float in [0, 1].
        source: where it comes from, for messages.

    Returns:
        The images.

    Raises:
        InputError: another layout, type or range.
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
