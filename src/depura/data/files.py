"""Image files: pictures through Pillow, NPZ through numpy. Read whole and checked before anything is written."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depura import _atomic, _check
from depura.data.imageset import of_arrays, read_npz, to_images
from depura.data.pictures import PICTURES, WORDS, Frame, decode, with_channels

ARRAYS = (".npz",)

WRITTEN = (".png", ".jpg", ".jpeg")
"""Endings of pictures that are written."""


class Loaded(NamedTuple):
    """Images of one file.

    Attributes:
        path: where they came from.
        images: (N, C, H, W), float32 in [0, 1].
        ids: (N,), addresses for noise: a checksum of the file's name, plus the position in an array file. A file's
            images are treated the same alone and in a folder. Images of a data set have their positions in it.
        labels: (N,), int64, of a labelled set.
        numbers: (N,), positions of the images in a full data set, of a labelled set.
    """

    path: Path
    images: Tensor
    ids: tuple[int, ...]
    labels: Tensor | None = None
    numbers: tuple[int, ...] | None = None

    def first(self, n: int) -> Loaded:
        """The first n images (fewer if there are fewer)."""
        labels = None if self.labels is None else self.labels[:n]
        numbers = None if self.numbers is None else self.numbers[:n]
        return Loaded(self.path, self.images[:n], self.ids[:n], labels, numbers)


def find(path: Path, *, where: str = "purify") -> tuple[Path, ...]:
    """The image files that a path stands for, at least one: itself, or those in a folder, by name."""
    if path.is_dir():
        files = tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in (*PICTURES, *ARRAYS)))
        if not files:
            _check.fail(where, f"a folder with {WORDS} or NPZ files", f"{path}, which has none")
        return files
    if not path.exists():
        _check.fail(where, "an image file or a folder", f"{path}, which is not there", "Check the path.")
    return (path,)


def load(path: Path, *, frame: Frame | None = None, where: str = "purify") -> Loaded:
    """Read a picture, or all images of an NPZ file (its arrays `image` and, if there, `label` and `ids`).

    Refused are files that are unreadable, truncated, or would have to be changed silently (transparency, 16 bits).
    """
    first, frame = zlib.crc32(path.name.encode()), frame or Frame()
    if path.suffix.lower() in ARRAYS:
        arrays = read_npz(path)
        if "image" not in arrays:
            _check.fail(where, f"an array named image in {path}", f"{sorted(arrays)}")
        if frame.resize is not None or frame.crop is not None:
            _check.fail(where, "resizing and cropping for pictures only", f"{path}, which holds arrays of pixels")
        images = to_images(arrays["image"], source=str(path))
        images = with_channels(images, frame.channels, source=f"{path}", where=where)
        labelled = of_arrays(arrays, path) if "label" in arrays else None
        addresses = tuple((first + i) % 2**32 for i in range(len(images)))
        return Loaded(path, images, addresses, labelled and labelled.labels, labelled and labelled.ids)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _check.InputError(
            f"{where}: expected a readable {WORDS}, got {path} ({error.strerror}). Check the file."
        ) from error
    return Loaded(path, decode(data, source=f"{path}", frame=frame, where=where)[None], (first,))


def in_folder(folder: Path, paths: Sequence[Path], *, where: str) -> list[Path]:
    """Files of the same names in a folder; pictures become PNG, since JPEG would add errors of its own.

    Refused where two would have the same name.
    """
    targets = [folder / (p.name if p.suffix.lower() in ARRAYS else f"{p.stem}.png") for p in paths]
    if len(set(targets)) != len(targets):
        _check.fail(where, "files whose names differ in more than the ending", f"{[p.name for p in paths]}")
    return targets


def encode(images: Tensor, path: Path, *, labels: Tensor | None = None, numbers: Sequence[int] | None = None) -> bytes:
    """The bytes of an image file of images (N, C, H, W), clamped to [0, 1], in the format of the path's ending.

    Pictures hold one image and are rounded to 8 bits. NPZ files hold float32, and as `label` and `ids` the labels (N,)
    and positions in a full data set (N,).
    """
    ending, buffer = path.suffix.lower(), io.BytesIO()
    array = images.clamp(0, 1).cpu()
    if ending in ARRAYS:
        arrays: dict[str, Any] = {"image": array.numpy().astype(np.float32)}
        if labels is not None:
            arrays["label"] = labels.cpu().numpy().astype(np.int64)
        if numbers is not None:
            arrays["ids"] = np.asarray(numbers, dtype=np.int64)
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()
    if ending not in WRITTEN:
        _check.fail("purify", "an output name ending in .png, .jpg or .npz", f"{path}")
    if len(array) != 1:
        _check.fail("purify", "one image for a picture file", f"{len(array)}", "Write several to an .npz file.")
    pixels = (array[0] * 255).round().to(torch.uint8)
    picture = Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).contiguous().numpy())
    picture.save(buffer, format="PNG" if ending == ".png" else "JPEG", **({} if ending == ".png" else {"quality": 95}))
    return buffer.getvalue()


def write_all(contents: dict[Path, bytes], *, where: str = "purify") -> None:
    """Write files, bytes by path, each in one move, after all have been made; folders are created."""
    for path, data in contents.items():
        try:
            _atomic.write(path, data)
        except OSError as error:
            _check.fail(
                where, "a place that can be written", f"{path} ({error.strerror})", "Choose another with --out."
            )
