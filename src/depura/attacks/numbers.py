"""Addresses for attacks that draw more often than an address has steps."""

from __future__ import annotations

from depura.noise import Noise


def numbered(noise: Noise, number: int) -> tuple[Noise, int]:
    """The noise and step of an attack's draw of some number in [0, 2^23): each 65536 of them are a round."""
    return noise.later(number >> 16), number & 0xFFFF
