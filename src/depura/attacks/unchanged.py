"""The attack that does nothing: what is left under it is the null, or the judge is broken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depura.attacks.attack import Candidates, Cost, Told
from depura.attacks.ball import Ball
from depura.attacks.eot import Model, RandomModel
from depura.attacks.flow import Flow
from depura.noise import Noise


@dataclass(frozen=True)
class Unchanged:
    """Every image as it is, the one candidate of an attack at radius 0.

    Attributes:
        ball: threat model; only its name matters.
    """

    ball: Ball | Flow

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 1

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return Cost(0, 0, 1)

    def at(self, eps: float) -> Unchanged:
        """The same attack at another radius."""
        return replace(self, ball=replace(self.ball, eps=eps))

    def __call__(
        self,
        model: Model | RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        init: Noise | None = None,
        eot: Noise | None = None,
        rows: int | None = None,
        told: Told | None = None,
    ) -> Candidates:
        """Return the images (see `depura.attacks.attack.Attack`).

        Args:
            model: not asked.
            images: (B, C, H, W) in [0, 1].
            labels: not looked at.
            init: not used.
            eot: not used.
            rows: not used.
            told: called once, with 1.

        Returns:
            One candidate for each image: itself.
        """
        del model, labels, init, eot, rows
        if told is not None:
            told(1.0)
        n = len(images)
        never = torch.full((n,), -1, dtype=torch.int64, device=images.device)
        nothing = torch.zeros((n, 2), dtype=torch.int64, device=images.device)
        return Candidates(images[None].clone(), images.new_zeros((0, n)), nothing, never)
