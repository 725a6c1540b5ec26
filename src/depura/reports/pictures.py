"""Images of a report: image grids, and the gallery of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depura.analysis.summary import Picture, Summary

CELL, COLUMNS, GAP = 64, 12, 4
"""Least height of a picture in pixels (small ones are enlarged by a whole number), steps to a line, pixels between."""

Pixels = NDArray[np.uint8]
"""(C, H, W), C being 1 or 3."""


def image_grid(columns: Sequence[tuple[Pixels, Pixels]]) -> bytes:
    """A PNG file of pairs (above, below) of pictures of one size, from left to right, line by line."""
    lines = [_line(columns[k : k + COLUMNS]) for k in range(0, len(columns), COLUMNS)]
    width = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 2 * GAP), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    buffer = io.BytesIO()
    _image(np.concatenate(padded)).save(buffer, format="PNG")
    return buffer.getvalue()


def _line(columns: Sequence[tuple[Pixels, Pixels]]) -> Pixels:
    """One line of pairs, (H, W, C)."""
    return np.concatenate([_side_by_side([pair[k] for pair in columns]) for k in (0, 1)])


def _side_by_side(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures (C, H, W) side by side, (H', W', C): small ones enlarged by a whole number, with white between."""
    times = max(1, -(-CELL // pictures[0].shape[1]))
    large = [np.moveaxis(picture, 0, 2).repeat(times, axis=0).repeat(times, axis=1) for picture in pictures]
    return np.concatenate([np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for p in large], axis=1)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


LARGEST = 96
"""Frames wider or higher than this are shrunk, so that a report stays small."""

NAMED_CLASSES = 4
"""Classes that a bar names; what is left is put together."""


class ClassShare(NamedTuple):
    """A part of the bar of classes.

    Attributes:
        name: of the class.
        draws: how many draws gave it.
        percent: of all draws.
        right: whether it is the image's class.
    """

    name: str
    draws: int
    percent: float
    right: bool


class GalleryEntry(NamedTuple):
    """One trajectory as the page shows it.

    Attributes:
        picture: the image.
        frames: title and data: address of each frame.
        shares: the classes that the report draws gave.
    """

    picture: Picture
    frames: tuple[tuple[str, str], ...]
    shares: tuple[ClassShare, ...]


def gallery(summary: Summary, *, lucky: bool) -> tuple[GalleryEntry, ...]:
    """The worst images, or the luckiest ones, in the summary's order."""
    return tuple(
        GalleryEntry(
            p, tuple((title, data_uri(f)) for title, f in zip(p.titles, p.frames, strict=True)), class_shares(p)
        )
        for p in summary.pictures
        if p.lucky == lucky
    )


def class_shares(picture: Picture) -> tuple[ClassShare, ...]:
    """The classes that the draws gave, the most frequent first, rare ones together as "others"."""
    votes = picture.votes if len(picture.votes) <= NAMED_CLASSES + 1 else picture.votes[:NAMED_CLASSES]
    rest = picture.draws - sum(draws for _, draws in votes)
    parts = [*votes, ("others", rest)] if rest and len(votes) < len(picture.votes) else list(votes)
    return tuple(ClassShare(name, n, 100 * n / picture.draws, name == picture.label) for name, n in parts)


def png(frame: NDArray[np.uint8]) -> bytes:
    """A frame (C, H, W) uint8, C being 1 or 3, as PNG; larger ones than `LARGEST` are shrunk."""
    picture = Image.fromarray(frame[0] if len(frame) == 1 else np.ascontiguousarray(np.moveaxis(frame, 0, 2)))
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def data_uri(frame: NDArray[np.uint8]) -> str:
    """A frame as a data: address, to be put into a page."""
    return "data:image/png;base64," + base64.b64encode(png(frame)).decode()
