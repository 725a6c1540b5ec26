"""Random directions along which a gradient is estimated from differences of losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from depura.noise import Kind, Noise


class Directions(Protocol):
    """Independent symmetric numbers of variance 1."""

    def __call__(self, like: Tensor, noise: Noise, *, step: int) -> Tensor:
        """Directions u like images (R, C, H, W), one noise id per row."""
        ...

    def reach(self, room: Tensor, delta: float) -> Tensor:
        """E[|u| min(delta |u|, room)]: what of delta remains, on average, where only so much room is left."""
        ...


@dataclass(frozen=True)
class Rademacher:
    """Signs: SPSA. Spall 1992; as an attack Uesato et al. 2018 (arXiv:1802.05666)."""

    def __call__(self, like: Tensor, noise: Noise, *, step: int) -> Tensor:
        """Directions."""
        words = noise.bits(like.shape, kind=Kind.ATTACK, step=step, device=like.device)
        return torch.where(words < 2**31, -1.0, 1.0).to(like.dtype)

    def reach(self, room: Tensor, delta: float) -> Tensor:
        """The smaller of both."""
        return room.clamp_max(delta)


@dataclass(frozen=True)
class Gaussian:
    """Normal numbers: natural evolution strategies. Ilyas et al. 2018 (arXiv:1804.08598)."""

    def __call__(self, like: Tensor, noise: Noise, *, step: int) -> Tensor:
        """Directions."""
        return noise(like, kind=Kind.ATTACK, step=step)

    def reach(self, room: Tensor, delta: float) -> Tensor:
        """Delta times the chance of a move within the room, by Stein's identity."""
        return delta * torch.erf(room / (delta * 2**0.5))
