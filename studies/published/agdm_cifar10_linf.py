"""AGDM, a reconstruction, on CIFAR-10, WideResNet-28-10, linf 8/255, t* = 70 of 1000: Lin et al., arXiv:2403.16067.

Its code is not released. The guiding network and the strength of the guidance are choices of this file.

    depura plan studies/published/agdm_cifar10_linf.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.evaluation import reproduction


def study(
    *,
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: Path | None = None,
    guide: Path | None = None,
    scale: float = 100.0,
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: the network's file; None to plan.
        guide: the adversarially trained network's file; None to plan.
        scale: strength of the guidance, which the paper does not state.
        images: how many images of Lee and Kim's draw (AGDM's is not known).
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("score-sde-cifar10", denoiser)
    features = depura.Features(reproduction.guide(guide), "network.layer.2")
    purifier = depura.agdm(d, features=features, scale=scale)
    defence = depura.Defence(purifier, reproduction.classifier("wrn-28-10", classifier))
    ball = depura.Ball("linf", 8 / 255)
    attack = reproduction.lee_kim_pgd(ball, n_steps=200)
    return depura.Study(
        name="agdm-cifar10-linf",
        data=reproduction.cifar(data, reproduction.lee_kim(10_000, images)),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.APGD(ball, common=0)),
        seed=seed,
        published=(
            depura.Published(
                90.42, 64.06, "PGD with 20 draws", "Wesego and Rooshenas 2025, table 1", "as they repeat it"
            ),
            depura.Published(None, 78.12, "AutoAttack", "public review of the paper"),
        ),
        files=(
            reproduction.CIFAR10,
            reproduction.needs("denoiser", "score-sde-cifar10"),
            reproduction.needs("classifier", "wrn-28-10"),
            reproduction.needs("guide", "dmwrn-28-10"),
        ),
    )
