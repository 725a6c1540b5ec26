"""MimicDiffusion on CIFAR-100, linf 8/255: Song et al. 2024.

Neither its steps for EDM networks nor its CIFAR-100 network are public: here are its 100 DDPM steps, and the
shape of EDM's CIFAR-10 network, which its own was fine-tuned from.

    depura plan studies/published/mimicdiffusion_cifar100.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.evaluation import reproduction

TAU = 4 * 2 * 8 / 255
"""Width of the smoothed sign, four radii in [-1, 1] units: the exact gradient is zero."""


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
    d = reproduction.denoiser("edm-cifar10-uncond-vp", denoiser)
    purifier = depura.mimicdiffusion(d)
    defence = depura.Defence(purifier, reproduction.cifar100_classifier(classifier))
    ball = depura.Ball("linf", 8 / 255)
    attack = reproduction.lee_kim_pgd(ball, n_steps=200)
    return depura.Study(
        name="mimicdiffusion-cifar100",
        data=reproduction.cifar(data, reproduction.lee_kim(10_000, images), n_classes=100),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.APGD(ball, common=0), relaxed=TAU),
        seed=seed,
        published=(
            depura.Published(
                None, 61.35, "mean over attacks", "Song et al. 2024, arXiv:2312.04802", "from its abstract"
            ),
        ),
        files=(
            reproduction.CIFAR100,
            reproduction.CIFAR100_DENOISER,
            reproduction.CIFAR100_CLASSIFIER,
        ),
    )
