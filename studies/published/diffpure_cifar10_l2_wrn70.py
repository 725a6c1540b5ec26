"""DiffPure on CIFAR-10, WideResNet-70-16, l2 0.5, t* = 0.075: Nie et al. 2022.

    depura plan studies/published/diffpure_cifar10_l2_wrn70.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.attacks.ensembles import rand
from depura.evaluation import reproduction
from depura.methods.diffpure import CIFAR10_L2


def study(
    *,
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: Path | None = None,
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: the network's file; None to plan.
        images: how many of the authors' draw.
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("score-sde-cifar10", denoiser)
    defence = depura.Defence(CIFAR10_L2.purifier(d), reproduction.classifier("wrn-70-16-dropout", classifier))
    ball = depura.Ball("l2", 0.5)
    return depura.Study(
        name="diffpure-cifar10-l2-wrn70",
        data=reproduction.cifar(data, reproduction.diffpure_cifar(images)),
        defence=defence,
        rows=depura.ladder(defence, rand(ball), blind=depura.APGD(ball, common=0)),
        seed=seed,
        published=(
            depura.Published(
                92.68,
                80.6,
                "AutoAttack, the lesser of rand and standard, through the adjoint",
                "Nie et al. 2022, arXiv:2205.07460",
                reproduction.UNVERIFIED,
            ),
            depura.Published(
                92.15,
                84.8,
                "PGD of 200 steps and 20 draws through a surrogate",
                "Wesego and Rooshenas 2025, table 1, after Lee and Kim 2023",
                reproduction.AUTHORS_LATER,
            ),
        ),
        files=(
            reproduction.CIFAR10,
            reproduction.needs("denoiser", "score-sde-cifar10"),
            reproduction.needs("classifier", "wrn-70-16-dropout"),
        ),
    )
