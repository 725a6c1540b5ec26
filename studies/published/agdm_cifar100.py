"""AGDM, a reconstruction, on CIFAR-100, linf 8/255, t* = 70 of 1000: Lin et al., arXiv:2403.16067.

Its code is not released. The guiding network and the strength of the guidance are choices of this file. It
takes one that was trained on CIFAR-100.

    depura plan studies/published/agdm_cifar100.py

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
    d = reproduction.denoiser("edm-cifar10-uncond-vp", denoiser)
    features = depura.Features(reproduction.guide(guide), "network.layer.2")
    purifier = depura.agdm(d, features=features, scale=scale)
    defence = depura.Defence(purifier, reproduction.cifar100_classifier(classifier))
    ball = depura.Ball("linf", 8 / 255)
    attack = reproduction.lee_kim_pgd(ball, n_steps=200)
    return depura.Study(
        name="agdm-cifar100",
        data=reproduction.cifar(data, reproduction.lee_kim(10_000, images), n_classes=100),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.APGD(ball, common=0)),
        seed=seed,
        published=(
            depura.Published(None, None, "PGD with draws", "Lin et al., arXiv:2403.16067", "its table was not at hand"),
        ),
        files=(
            reproduction.CIFAR100,
            reproduction.CIFAR100_DENOISER,
            reproduction.CIFAR100_CLASSIFIER,
            reproduction.needs("guide", "dmwrn-28-10"),
        ),
    )
