"""What the images of a set were chosen from, and how: all of it, the first, a draw by a seed, or other ones."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from depura.data.digits import SHAPE, load_digits
from depura.data.imageset import ImageSet, Known, Origin
from depura.data.subsets import some_others, subset

OTHERS = 400
"""Other images of a data set that the chosen ones are compared with, at most."""

SEEDS = 32
"""Seeds of a draw that are tried where none is said: those of published evaluations."""

LEVELS = 16
"""Levels of a pixel of the bundled digits."""


class Choice(NamedTuple):
    """How images were chosen.

    Attributes:
        how: "all", "first", "drawn" or "other".
        size: images that there were to choose from.
        seed: of the draw (`depura.subset`); None where they were not drawn.
    """

    how: str
    size: int
    seed: int | None = None


def origin_of(data: ImageSet) -> Origin | None:
    """What the images of a set were chosen from; None where that is not known.

    The bundled digits are known by their pixels, whatever the set is called; others by what their loader said.
    """
    return _of_digits(data.images) or data.origin


def choice_of(data: ImageSet) -> Choice | None:
    """How the images of a set were chosen; None where what they were chosen from is not known.

    A draw is one that comes out again by its seed, in its order.
    """
    origin = origin_of(data)
    if origin is None:
        return None
    n, at = origin.size, origin.positions
    if at == tuple(range(len(at))):
        return Choice("all" if len(at) == n else "first", n)
    said = data.origin.seed if data.origin is not None else None
    for seed in dict.fromkeys(([] if said is None else [said]) + list(range(SEEDS))):
        if at == subset(n, len(at), seed=seed):
            return Choice("drawn", n, seed)
    return Choice("all" if len(at) == n else "other", n)


def others_of(data: ImageSet) -> Known | None:
    """Other images of the data set that a set was chosen from, up to `OTHERS`; None where none is at hand.

    None too where the set's images are not those of the data set: what was made of them is not known of the others.
    """
    origin = origin_of(data)
    if origin is None or origin.known is None or len(origin.positions) != len(data.images):
        return None
    known = origin.known
    place = {position: k for k, position in enumerate(known.positions)}
    chosen = [place[position] for position in origin.positions if position in place]
    if len(chosen) < len(data.images) or known.images.shape[1:] != data.images.shape[1:]:
        return None
    if not torch.allclose(known.images[chosen], data.images.cpu(), rtol=0, atol=0.5 / 255):
        return None
    if not torch.equal(known.labels[chosen], data.labels.cpu()):
        return None
    at = list(some_others(len(known.positions), chosen, most=OTHERS))
    return Known(known.images[at], known.labels[at], tuple(known.positions[i] for i in at)) if at else None


def _of_digits(images: Tensor) -> Origin | None:
    """Origin of images that are all of the bundled digits: of the one part that has them all, else of both parts."""
    if images.is_meta or tuple(images.shape[1:]) != SHAPE or not len(images):
        return None
    keys = _keys(images)
    for split in ("test", "train", "all"):
        part, place = _part(split)
        if all(key in place for key in keys):
            return Origin(len(part.ids), tuple(place[key] for key in keys), known=part.origin and part.origin.known)
    return None


@cache
def _part(split: str) -> tuple[ImageSet, dict[bytes, int]]:
    """A part of the bundled digits, or both ("all"), and where in it each image is, by its pixels."""
    if split != "all":
        data = load_digits(split)
    else:
        test, train = load_digits("test"), load_digits("train")
        images, labels = (torch.cat([getattr(test, name), getattr(train, name)]) for name in ("images", "labels"))
        every = tuple(range(len(images)))
        known = Known(images, labels, every)
        origin = Origin(len(every), every, known=known)
        data = test._replace(images=images, labels=labels, ids=test.ids + train.ids, origin=origin)
    place: dict[bytes, int] = {}
    for position, key in enumerate(_keys(data.images)):
        place.setdefault(key, position)
    return data, place


def _keys(images: Tensor) -> list[bytes]:
    """Pixels of digits in their own levels; of other images, bytes that no digit has."""
    levels = images.cpu().to(torch.float64) * LEVELS
    whole = (levels - levels.round()).abs().flatten(1).amax(1) < LEVELS * 0.5 / 255
    pixels = levels.round().clamp(0, 255).to(torch.uint8).numpy()
    return [image.tobytes() if bool(fits) else b"" for image, fits in zip(pixels, whole, strict=True)]
