"""DiffPure on ImageNet, ResNet-50, linf 4/255, t* = 0.15: Nie et al. 2022.

    depura plan studies/published/diffpure_imagenet_resnet50.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.attacks.ensembles import rand
from depura.evaluation import reproduction
from depura.methods.diffpure import IMAGENET


def study(
    *,
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: str = "torchvision:resnet50",
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: its name in its library.
        images: how many of the authors' draw.
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("adm-imagenet256", denoiser)
    defence = depura.Defence(
        IMAGENET.purifier(d), reproduction.imagenet_classifier(classifier, planned=denoiser is None)
    )
    ball = depura.Ball("linf", 4 / 255)
    return depura.Study(
        name="diffpure-imagenet-resnet50",
        data=reproduction.imagenet(data, reproduction.diffpure_imagenet(images)),
        defence=defence,
        rows=depura.ladder(defence, rand(ball), blind=depura.APGD(ball, common=0)),
        seed=seed,
        published=(
            depura.Published(
                67.79,
                40.93,
                "AutoAttack, the lesser of rand and standard, through the adjoint",
                "Nie et al. 2022, arXiv:2205.07460",
                reproduction.UNVERIFIED,
            ),
        ),
        files=(
            reproduction.IMAGENET,
            reproduction.needs("denoiser", "adm-imagenet256"),
            reproduction.needs_by_name(classifier, "BSD-3-Clause (library); weights trained on ImageNet"),
        ),
    )
