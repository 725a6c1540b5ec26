"""Denoisers for CIFAR-10 by name: their networks and recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from depura.training.denoiser import Design
from depura.training.loop import CONSTANT, UNDECIDED, Recipe


class Preset(NamedTuple):
    """A network and its recipe.

    Attributes:
        design: the network.
        recipe: how it is trained; the number of steps is to be given, or a time budget.
        about: in a sentence.
    """

    design: Design
    recipe: Recipe
    about: str


def _unet(width: int, multipliers: tuple[int, ...], blocks: int, attention: tuple[int, ...]) -> dict[str, object]:
    return {
        "resolution": 32,
        "width": width,
        "multipliers": multipliers,
        "blocks": blocks,
        "attention": attention,
    }


PRESETS: Mapping[str, Preset] = {
    "cifar10-small": Preset(
        Design(_unet(32, (1, 2, 2), 1, ()), flip=True, bfloat16=True, compiled=True),
        Recipe(UNDECIDED, batch=64, rate=1e-3, warmup=200, schedule=CONSTANT),
        "1.2 million parameters, three levels; for a processor and two hours",
    ),
    "cifar10-base": Preset(
        Design(_unet(96, (2, 2, 2), 4, (1,)), flip=True, bfloat16=True, compiled=True),
        Recipe(UNDECIDED, batch=512, rate=1e-3, warmup=2000, ema=0.9995, schedule=CONSTANT),
        "31 million parameters, DDPM++ with attention at 16x16; for a GPU",
    ),
}
"""By name. What they share is in EDM's style: DDPM++ (Karras et al. 2022, table 5), narrower."""
