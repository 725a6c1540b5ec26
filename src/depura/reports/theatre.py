"""The picture theatre: walks of the purifier on single images, frame by frame, and what the draws made of them."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depura.judging.summary import Picture, Summary

LARGEST = 96
"""Frames wider or higher than this are shrunk, so that a report stays small."""

NAMED_CLASSES = 4
"""Classes that a bar names; what is left is put together."""

HEADINGS = ("image", "class", "row", "this draw", "wrong draws", "classes given")


class Share(NamedTuple):
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


class Show(NamedTuple):
    """One walk as it is shown.

    Attributes:
        picture: what is shown.
        frames: title and data: address of each frame.
        shares: the classes that the report draws gave.
    """

    picture: Picture
    frames: tuple[tuple[str, str], ...]
    shares: tuple[Share, ...]


def shows(summary: Summary, *, lucky: bool) -> tuple[Show, ...]:
    """The walks to show.

    Args:
        summary: of a run.
        lucky: the luckiest images, not the worst.

    Returns:
        In the summary's order.
    """
    return tuple(
        Show(p, tuple((title, data_uri(f)) for title, f in zip(p.titles, p.frames, strict=True)), shares(p))
        for p in summary.pictures
        if p.lucky == lucky
    )


def shares(picture: Picture) -> tuple[Share, ...]:
    """The classes that the draws gave, the most frequent first, rare ones together as "others"."""
    votes = picture.votes if len(picture.votes) <= NAMED_CLASSES + 1 else picture.votes[:NAMED_CLASSES]
    rest = picture.draws - sum(draws for _, draws in votes)
    parts = [*votes, ("others", rest)] if rest and len(votes) < len(picture.votes) else list(votes)
    return tuple(Share(name, n, 100 * n / picture.draws, name == picture.label) for name, n in parts)


def rows(summary: Summary) -> tuple[tuple[str, ...], ...]:
    """The pictures in words, lines of `HEADINGS`."""
    return tuple(
        (
            str(p.image),
            p.label,
            p.row,
            p.seen_as,
            f"{p.errors} of {p.draws}",
            ", ".join(f"{share.name}: {share.draws}" for share in shares(p)),
        )
        for p in summary.pictures
    )


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
