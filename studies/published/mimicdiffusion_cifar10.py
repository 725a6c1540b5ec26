"""MimicDiffusion on CIFAR-10, WideResNet-28-10, linf 8/255: Song et al. 2024.

    depura plan studies/published/mimicdiffusion_cifar10.py

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
    d = reproduction.denoiser("score-sde-cifar10", denoiser)
    purifier = depura.mimicdiffusion(d)
    defence = depura.Defence(purifier, reproduction.classifier("wrn-28-10", classifier))
    ball = depura.Ball("linf", 8 / 255)
    attack = reproduction.lee_kim_pgd(ball, n_steps=200)
    return depura.Study(
        name="mimicdiffusion-cifar10",
        data=reproduction.cifar(data, reproduction.lee_kim(10_000, images)),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.APGD(ball, common=0), relaxed=TAU),
        seed=seed,
        published=(
            depura.Published(
                None, 92.67, "mean over attacks", "Song et al. 2024, arXiv:2312.04802", "from its abstract"
            ),
            depura.Published(
                92.05,
                91.55,
                "PGD through the adjoint, EDM network",
                "released repository's README",
                "its code was not released",
            ),
            depura.Published(
                91.41,
                80.86,
                "PGD of 200 steps and 20 draws on plain purification in 5 steps, transferred",
                "released repository's README",
            ),
            depura.Published(
                None,
                25.78,
                "AutoAttack with 128 copies, their majority (2.73 the worst of them)",
                "DiffBreak, section 6",
                reproduction.AUTHORS_LATER,
            ),
        ),
        files=(
            reproduction.CIFAR10,
            reproduction.needs("denoiser", "score-sde-cifar10"),
            reproduction.needs("classifier", "wrn-28-10"),
        ),
    )
