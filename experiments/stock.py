"""The released AutoAttack, as pyautoattack repackages it: the yardstick of depura's own ensembles."""

from __future__ import annotations

from typing import NamedTuple

import pyautoattack
import torch
from torch import Tensor, nn

from depura.attacks.threat import Ball

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Found(NamedTuple):
    """What the released ensemble returns.

    Attributes:
        images: (B, C, H, W).
        robust: the accuracy that it reports.
    """

    images: Tensor
    robust: float


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    version: str,
) -> Found:
    """Run the released ensemble, seeding the global generator that it draws from.

    Args:
        model: images (B, C, H, W) to logits of at least ten classes.
        images: float32, in [0, 1].
        labels: (B,).
        ball: threat model.
        version: "standard" (9 targets, 5,000 queries) or "rand" (20 draws per gradient); 100 steps.

    Returns:
        What it found.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attack = pyautoattack.AutoAttack(
            model, device="cpu", eps=ball.eps, norm=NORMS[ball.norm], seed=0, version=version
        )
        found, predicted = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return Found(found, float((predicted == labels).double().mean()))
