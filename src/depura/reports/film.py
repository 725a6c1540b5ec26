"""A walk as pictures: a strip of its steps as PNG, and a film of them as GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELL, COLUMNS, GAP = 64, 12, 4
"""Least height of a picture in pixels (small ones are enlarged by a whole number), steps to a line, pixels between."""

MILLISECONDS, PAUSE = 150, 1500
"""How long a step of a film is seen, and the last one."""

MOST = 100
"""Steps of a film; of longer walks some are left out."""

Picture = NDArray[np.uint8]
"""(C, H, W), C being 1 or 3."""


def strip(columns: Sequence[tuple[Picture, Picture]]) -> bytes:
    """Pairs of pictures, one above the other, from left to right; line by line where there are many.

    Args:
        columns: pairs (above, below), at least one, of one size.

    Returns:
        A PNG file.
    """
    lines = [_line(columns[k : k + COLUMNS]) for k in range(0, len(columns), COLUMNS)]
    width = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 2 * GAP), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    buffer = io.BytesIO()
    _image(np.concatenate(padded)).save(buffer, format="PNG")
    return buffer.getvalue()


def film(columns: Sequence[tuple[Picture, Picture]]) -> bytes:
    """Pairs of pictures side by side, one pair after another.

    Args:
        columns: pairs (left, right), at least one, of one size.

    Returns:
        An animated GIF that repeats.
    """
    shown = sorted({round(float(k)) for k in np.linspace(0, len(columns) - 1, min(MOST, len(columns)))})
    frames = [_image(_beside(columns[k])) for k in shown]
    buffer = io.BytesIO()
    times = [MILLISECONDS] * (len(frames) - 1) + [PAUSE]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return buffer.getvalue()


def _line(columns: Sequence[tuple[Picture, Picture]]) -> Picture:
    """One line of pairs, (H, W, C)."""
    return np.concatenate([_beside([pair[k] for pair in columns]) for k in (0, 1)])


def _beside(pictures: Sequence[Picture]) -> Picture:
    """Pictures (C, H, W) side by side, (H', W', C): small ones enlarged by a whole number, with white between."""
    times = max(1, -(-CELL // pictures[0].shape[1]))
    large = [np.moveaxis(picture, 0, 2).repeat(times, axis=0).repeat(times, axis=1) for picture in pictures]
    return np.concatenate([np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for p in large], axis=1)


def _image(pixels: Picture) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
