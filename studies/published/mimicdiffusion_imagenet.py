"""MimicDiffusion on ImageNet, ResNet-50, linf 4/255: Song et al. 2024.

The released code lacks its settings for ImageNet: these are those for CIFAR-10.

    depura plan studies/published/mimicdiffusion_imagenet.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.evaluation import reproduction

TAU = 4 * 2 * 4 / 255
"""Width of the smoothed sign, four radii in [-1, 1] units: the exact gradient is zero."""


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
    purifier = depura.Resized(depura.mimicdiffusion(d), size=256)
    defence = depura.Defence(purifier, reproduction.imagenet_classifier(classifier, planned=denoiser is None))
    ball = depura.Ball("linf", 4 / 255)
    attack = reproduction.lee_kim_pgd(ball, n_steps=20)
    return depura.Study(
        name="mimicdiffusion-imagenet",
        data=reproduction.imagenet(data, reproduction.lee_kim(50_000, images)),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.APGD(ball, common=0), relaxed=TAU),
        seed=seed,
        published=(
            depura.Published(
                None, 61.53, "mean over attacks", "Song et al. 2024, arXiv:2312.04802", "from its abstract"
            ),
        ),
        files=(
            reproduction.IMAGENET,
            reproduction.needs("denoiser", "adm-imagenet256"),
            reproduction.needs_by_name(classifier, "BSD-3-Clause (library); weights trained on ImageNet"),
        ),
    )
