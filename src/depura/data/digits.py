"""The bundled data: 1,797 handwritten digits of 8x8 pixels.

The images are those of `sklearn.datasets.load_digits`: the test part of E. Alpaydin and C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, licensed CC BY 4.0 (see digits.md beside this
file). Pixels count 0 .. 16 strokes and are divided by 16.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from depura.data.imageset import ImageSet, Known, Origin

SHAPE = (1, 8, 8)
"""Channels, height and width."""

_FOLDER = Path(__file__).parent


def load_digits(split: str) -> ImageSet:
    """The digits of one side of the fixed split (500 test images, 1,297 training images).

    The test images are the first 500 entries of `numpy.random.RandomState(0).permutation(1797)`, sorted; their numbers
    are stored in the file.

    Args:
        split: "train" or "test".

    Returns:
        The images with their numbers in the full set as ids.

    Raises:
        KeyError: another split.
    """
    with np.load(_FOLDER / "digits.npz", allow_pickle=False) as file:
        images, labels, test = file["images"], file["labels"], file["test"]
    rows = {"test": test, "train": np.setdiff1d(np.arange(len(images)), test)}[split]
    pixels = torch.from_numpy(images[rows].astype(np.float32) / 16)[:, None]
    classes = torch.from_numpy(labels[rows].astype(np.int64))
    every = tuple(range(len(rows)))
    return ImageSet(
        name=f"digits-{split}",
        images=pixels,
        labels=classes,
        ids=tuple(int(r) for r in rows),
        classes=tuple("0123456789"),
        origin=Origin(len(rows), every, known=Known(pixels, classes, every)),
    )
