"""AGDM, a reconstruction, on ImageNet, ResNet-50, linf 4/255, t* = 70 of 1000: Lin et al., arXiv:2403.16067.

Its code is not released. The guiding network and the strength of the guidance are choices of this file.

    depura plan studies/published/agdm_imagenet.py

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
    classifier: str = "torchvision:resnet50",
    guide: str = "",
    scale: float = 100.0,
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: its name in its library.
        guide: MODULE:FUNCTION of a robust classifier, whose logits are the features; not asked for in a plan.
        scale: strength of the guidance, which the paper does not state.
        images: how many images of Lee and Kim's draw (AGDM's is not known).
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("adm-imagenet256", denoiser)
    features = reproduction.imagenet_classifier(guide, planned=denoiser is None)
    purifier = depura.Resized(depura.agdm(d, features=features, scale=scale), size=256)
    defence = depura.Defence(purifier, reproduction.imagenet_classifier(classifier, planned=denoiser is None))
    ball = depura.Ball("linf", 4 / 255)
    attack = reproduction.lee_kim_pgd(ball, n_steps=20)
    return depura.Study(
        name="agdm-imagenet",
        data=reproduction.imagenet(data, reproduction.lee_kim(50_000, images)),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.APGD(ball, common=0)),
        seed=seed,
        published=(
            depura.Published(None, None, "PGD with draws", "Lin et al., arXiv:2403.16067", "its table was not at hand"),
        ),
        files=(
            reproduction.IMAGENET,
            reproduction.needs("denoiser", "adm-imagenet256"),
            reproduction.needs_by_name(classifier, "BSD-3-Clause (library); weights trained on ImageNet"),
            reproduction.IMAGENET_GUIDE,
        ),
    )
