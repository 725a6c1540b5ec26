"""Addresses for attacks that draw more often than an address has steps."""

from __future__ import annotations

from depura.noise import Noise


def numbered(noise: Noise, number: int) -> tuple[Noise, int]:
    """The noise and step of an attack's draw of some number: each 65536 of them are a round.

    Args:
        noise: randomness of the attack.
        number: of the draw, in [0, 2^23) and so up to 128 rounds later.

    Returns:
        The noise to draw from and the step to draw at.
    """
    return noise.later(number >> 16), number & 0xFFFF
