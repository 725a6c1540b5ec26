"""Small images drawn in a terminal with half blocks, two pixels to a character cell."""

from __future__ import annotations

from typing import cast

from rich.text import Text
from torch import Tensor

LARGEST = 40
"""Images wider or higher than this are not drawn."""


def sketch(image: Tensor) -> list[Text]:
    """Draw an image.

    Args:
        image: (C, H, W) in [0, 1], C being 1 or 3; H and W at most LARGEST.

    Returns:
        One line of text for two rows of pixels.
    """
    levels = (image.clamp(0, 1) * 255).round().int().expand(3, -1, -1).permute(1, 2, 0)
    pixels = cast("list[list[list[int]]]", levels.tolist())
    pixels += [[[0, 0, 0]] * len(pixels[0])] * (len(pixels) % 2)
    lines: list[Text] = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        line = Text()
        for a, b in zip(upper, lower, strict=True):
            line.append("▀", style=f"rgb({a[0]},{a[1]},{a[2]}) on rgb({b[0]},{b[1]},{b[2]})")
        lines.append(line)
    return lines


def side_by_side(before: Tensor, after: Tensor) -> list[Text]:
    """Two images of the same size next to each other (see `sketch`)."""
    return [Text("   ").join([a, b]) for a, b in zip(sketch(before), sketch(after), strict=True)]
