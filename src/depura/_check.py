"""Validators for the public doors, and the one form of their messages: where, expected, got, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

RANGE_SLACK = 1e-3
"""How far outside [0, 1] an image may lie: attacks and resizing overshoot by rounding, other ranges by much more."""


class InputError(ValueError):
    """Something handed to a public function is not usable; the message says what to do about it."""


class InputTypeError(InputError, TypeError):
    """As `InputError`, for a value of the wrong type."""


def fail(where: str, expected: str, got: str, advice: str = "") -> NoReturn:
    """Raise an `InputError` in the house form: the public name that was called, what it takes, what came, advice."""
    raise InputError(f"{where}: expected {expected}, got {got}.{' ' + advice if advice else ''}")


def image_shape(where: str, x: Tensor, shape: Sequence[int] | None) -> None:
    """Check the shape (C, H, W) of a batch's images, where the callee knows it."""
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        fail(
            where,
            f"images of (channels, height, width) = {tuple(shape)}",
            f"{tuple(x.shape[1:])}",
            "Convert or resize them first.",
        )


def images(where: str, x: object, *, shape: Sequence[int] | None = None) -> Tensor:
    """Check a batch of images: floating point, (B, C, H, W), B >= 1, finite, in [0, 1].

    Of images on torch's meta device, which have no values, only type and shape are checked.

    Args:
        where: the public name that was called.
        x: the value to check.
        shape: (C, H, W) where the callee knows it.

    Returns:
        The same tensor.

    Raises:
        InputError: the batch is empty, misshapen, out of range or not finite.
        InputTypeError: not a floating-point tensor.
    """
    if not isinstance(x, Tensor):
        raise InputTypeError(
            f"{where}: expected images as a torch.Tensor, got {type(x).__name__}. Convert with torch.as_tensor."
        )
    if not x.is_floating_point():
        raise InputTypeError(
            f"{where}: expected images of a floating-point dtype, got {x.dtype}. "
            "For 8-bit images pass images.float() / 255."
        )
    if x.ndim != 4:
        fail(where, "images of shape (B, C, H, W)", f"shape {tuple(x.shape)}", "A single image needs x.unsqueeze(0).")
    if x.numel() == 0:
        fail(where, "at least one image", f"an empty batch of shape {tuple(x.shape)}")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        image_shape(where, x, shape)
    if x.is_meta:
        return x
    ends = torch.aminmax(x.detach())
    low, high = float(ends.min), float(ends.max)
    if not (math.isfinite(low) and math.isfinite(high)):
        fail(where, "finite images", "NaN or infinite values", "Find where they come from; nothing is replaced here.")
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        advice = "If your images are in [-1, 1], pass (x + 1) / 2." if low >= -1.01 and high <= 1.01 else ""
        advice = "If your images are in [0, 255], pass x / 255." if low >= 0 and 1.5 < high <= 255 else advice
        fail(where, "images in [0, 1]", f"values in [{low:.2f}, {high:.2f}]", advice)
    return x


def tensor_in(answer: Any) -> Tensor | None:
    """The tensor of an answer: the answer itself, its `logits` or `images`, or the first of several.

    Args:
        answer: a tensor, an object or mapping with `logits` (as of Hugging Face) or `images`, or a tuple or list.

    Returns:
        The tensor; None where there is none.
    """
    if isinstance(answer, Tensor):
        return answer
    for name in ("logits", "images"):
        its = cast("Mapping[str, Any]", answer)
        inner: Any = its.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        if isinstance(inner, Tensor):
            return inner
    if isinstance(answer, (tuple, list)) and answer and isinstance(answer[0], Tensor):
        return answer[0]
    return None


def labels(where: str, y: object, *, n_images: int, n_classes: int | None = None) -> Tensor:
    """Check class labels: an int64 tensor of shape (n_images,), in [0, n_classes) where that number is known."""
    if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32, torch.uint8, torch.int16):
        kind = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise InputTypeError(f"{where}: expected labels as an integer tensor, got {kind}. Pass labels.long().")
    if tuple(y.shape) != (n_images,):
        fail(where, f"labels of shape ({n_images},), one per image", f"shape {tuple(y.shape)}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or (n_classes is not None and high >= n_classes):
        upper = "" if n_classes is None else f" to {n_classes - 1}"
        fail(where, f"labels from 0{upper}", f"labels from {low} to {high}", "Check the label map of your data.")
    return y


def number(
    where: str,
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    advice: str = "",
) -> float:
    """Check a real number and give it back as a float: finite, in [low, high], or in (low, high] if `low_open`.

    What is not a number is an `InputTypeError`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputTypeError(f"{where}: expected {name} to be a number, got {type(value).__name__}.")
    below = value <= low if low_open else value < low
    if not math.isfinite(value) or below or value > high:
        left = "(" if low_open else "["
        right = "]" if math.isfinite(high) else ")"
        fail(where, f"{name} in {left}{low:g}, {high:g}{right}", f"{value!r}", advice)
    return float(value)


def integer(where: str, name: str, value: object, *, low: int = 0, high: int | None = None, advice: str = "") -> int:
    """Check a whole number, low <= value <= high; what is not a whole number is an `InputTypeError`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{where}: expected {name} to be a whole number, got {type(value).__name__} {value!r}.")
    if value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        fail(where, f"{name} {span}", f"{value}", advice)
    return value


def device(where: str, name: str) -> str:
    """Check that torch can compute on a device of this machine, as torch names it: cpu, cuda, cuda:1, mps."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{where}: expected a device of this machine, got {name!r} ({reason}). Try --device cpu."
        ) from error
    return name


def writable_folder(where: str, folder: Path) -> Path:
    """Create a folder if need be and check that a file can be written in it."""
    probe = folder / ".write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        fail(where, "a folder that can be written", f"{folder} ({error.strerror})", "Choose another with --out.")
    return folder
