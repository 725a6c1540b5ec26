"""One picture at a time: decoding, the resizing and cropping of ImageNet's validation, and numbers of channels."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from depura import _check

FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
"""What pictures are read from, with the endings of their files in small letters. No other parser is ever called: what a
file holds is not told by its name, and some parsers start programs."""

PICTURES = tuple(ending for endings in FORMATS.values() for ending in endings)
"""Endings of all of them."""

WORDS = "PNG, JPEG, WebP, BMP or TIFF"

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH_AT = 24  # of the bit depth in a PNG file: after its signature, the header's length and name, width and height
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Frame(NamedTuple):
    """What is done to each picture.

    Attributes:
        resize: length of the short side in pixels, or None.
        crop: side of the square that is cut from the middle, or None.
        channels: how many the images are to have, or None for what the file has.
    """

    resize: int | None = None
    crop: int | None = None
    channels: int | None = None

    def checked(self, where: str) -> Frame:
        """Itself, with positive numbers."""
        for name, value in self._asdict().items():
            if value is not None:
                _check.integer(where, name, value, low=1)
        return self


def decode(data: bytes, *, source: str, frame: Frame | None = None, where: str = "load_images") -> Tensor:
    """The image in the bytes of a picture file, of one of `FORMATS`.

    With `resize` the short side gets this length and the long side length * long / short, rounded down, bilinear with
    antialiasing as Pillow does it on 8-bit pixels; with `crop` the middle is cut out, its first row being
    round((height - crop) / 2). Together, 256 and 224, they are the usual preparation of ImageNet's validation images.

    The result is (C, H, W), float32 in [0, 1]; C is 1 or 3, or `frame.channels`. Refused are files that are unreadable,
    truncated, smaller than the crop, or of a kind that would have to be changed silently (transparency, 16 bits; four
    inks unless three channels are asked for).
    """
    frame = frame or Frame()
    try:
        opened: Any = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
        with opened as picture:
            frames = getattr(picture, "n_frames", 1)
            picture.load()
            if picture.mode in ("1", "P") and "transparency" not in picture.info:
                picture = picture.convert("L" if picture.mode == "1" else "RGB")
            if picture.mode == "CMYK" and frame.channels == 3:
                picture = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _check.InputError(
            f"{where}: expected a readable {WORDS}, got {source} (not such a picture, truncated or damaged). "
            "Check the file."
        ) from error
    if frames > 1:
        _check.fail(where, "a file of one picture", f"{source} with {frames}", "Give each a file of its own.")
    deep = data[: len(_PNG)] == _PNG and data[_DEPTH_AT] == 16
    if picture.mode not in ("L", "RGB") or deep:
        got = f"{source} of {'16 bits' if deep else f'mode {picture.mode}'}"
        _check.fail(where, "an 8-bit grey or RGB picture", got, "Convert it to grey or RGB first.")
    pixels = np.asarray(_framed(picture, frame, source, where))
    image = torch.from_numpy(np.array(pixels if pixels.ndim == 3 else pixels[..., None])).permute(2, 0, 1)
    return with_channels(image.to(torch.float32) / 255, frame.channels, source=source, where=where).contiguous()


def with_channels(images: Tensor, channels: int | None, *, source: str, where: str = "load_images") -> Tensor:
    """Images (..., C, H, W) with another number of channels, or None for as many as there are.

    Grey is repeated, RGB becomes grey by its luma (ITU-R BT.601); anything else is refused.
    """
    have = images.shape[-3]
    if channels is None or channels == have:
        return images
    if have == 1:
        return images.expand(*images.shape[:-3], channels, *images.shape[-2:]).contiguous()
    if have == 3 and channels == 1:
        return (images * images.new_tensor(_LUMA)[:, None, None]).sum(-3, keepdim=True).clamp(0, 1)
    return _check.fail(where, f"channels={have}, or 1 from 3", f"channels={channels}, while {source} has {have}")


def from_bytes(pixels: NDArray[np.uint8]) -> Tensor:
    """8-bit pixels as float32 in [0, 1], whatever the shape."""
    return torch.from_numpy(np.array(pixels, order="C")).to(torch.float32) / 255


def _framed(picture: Any, frame: Frame, source: str, where: str) -> Any:
    """The picture, resized and cropped."""
    short, long = sorted(picture.size)
    if frame.resize not in (None, short):
        width, longer = picture.size[0], int(frame.resize * long / short)
        size = (frame.resize, longer) if width == short else (longer, frame.resize)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    if (side := frame.crop) is not None:
        width, height = picture.size
        if min(width, height) < side:
            got = f"{source}, {width} x {height}"
            _check.fail(where, f"pictures of at least {side} x {side} pixels", got, "Resize.")
        left, top = round((width - side) / 2), round((height - side) / 2)
        picture = picture.crop((left, top, left + side, top + side))
    return picture
