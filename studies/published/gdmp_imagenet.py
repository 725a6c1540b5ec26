"""GDMP on ImageNet, ResNet-152, linf 4/255, 45 steps of a chain of 250: Wang et al. 2022.

    depura plan studies/published/gdmp_imagenet.py

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
    classifier: str = "torchvision:resnet152",
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: its name in its library.
        images: how many images of Lee and Kim's draw (GDMP's is not known).
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("adm-imagenet256", denoiser, learned_variance=True)
    defence = depura.Defence(
        depura.Resized(depura.gdmp_imagenet(d), size=256),
        reproduction.imagenet_classifier(classifier, planned=denoiser is None),
    )
    ball = depura.Ball("linf", 4 / 255)
    attack = depura.PGD(ball, n_steps=40, eot=15)
    return depura.Study(
        name="gdmp-imagenet",
        data=reproduction.imagenet(data, reproduction.lee_kim(50_000, images)),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.PGD(ball, n_steps=40)),
        seed=seed,
        published=(
            depura.Published(
                None,
                70.94,
                "PGD on the bare classifier, transferred",
                "Wang et al. 2022, arXiv:2205.14969",
                "from a summary of its abstract",
            ),
        ),
        files=(
            reproduction.IMAGENET,
            reproduction.needs("denoiser", "adm-imagenet256"),
            reproduction.needs_by_name(classifier, "BSD-3-Clause (library); weights trained on ImageNet"),
        ),
    )
