"""DiffPure on CIFAR-10, ResNet-50, linf 8/255, t* = 0.125 (threats that no training has seen): Nie et al. 2022.

    depura plan studies/published/diffpure_cifar10_linf_resnet50.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.attacks.ensembles import rand
from depura.evaluation import reproduction
from depura.methods.diffpure import CIFAR10_RESNET50


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
    defence = depura.Defence(CIFAR10_RESNET50.purifier(d), reproduction.classifier("cifar10-resnet50", classifier))
    ball = depura.Ball("linf", 8 / 255)
    return depura.Study(
        name="diffpure-cifar10-linf-resnet50",
        data=reproduction.cifar(data, reproduction.diffpure_cifar(images)),
        defence=defence,
        rows=depura.ladder(defence, rand(ball), blind=depura.APGD(ball, common=0)),
        seed=seed,
        published=(
            depura.Published(
                88.2,
                70.0,
                "AutoAttack, the lesser of rand and standard, through the adjoint",
                "Nie et al. 2022, arXiv:2205.07460",
                reproduction.UNVERIFIED,
            ),
        ),
        files=(
            reproduction.CIFAR10,
            reproduction.needs("denoiser", "score-sde-cifar10"),
            reproduction.needs("classifier", "cifar10-resnet50"),
        ),
    )
