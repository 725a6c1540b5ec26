"""MimicDiffusion in its published settings: Song et al. 2024.

    depura plan studies/published/mimicdiffusion.py                  # CIFAR-10, WideResNet-28-10, linf 8/255
    depura plan studies/published/mimicdiffusion.py -S row=imagenet  # another of ROWS

With the files that the plan names (-S NAME=PATH) it can be run. CIFAR-100: neither its steps for EDM networks nor its
network are public; here are its 100 DDPM steps, and the shape of EDM's CIFAR-10 network, which its own was fine-tuned
from. ImageNet: the released code lacks its settings; these are those for CIFAR-10.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import depura
from depura.evaluation.reproduction import (
    ADM,
    AUTHORS_LATER,
    CIFAR10,
    CIFAR100,
    CIFAR100_CLASSIFIER,
    CIFAR100_DENOISER,
    IMAGENET,
    RESNET50,
    SCORE_SDE,
    WRN28,
    PublishedRow,
    chosen,
    lee_kim_pgd,
)


def abstract(robust: float) -> depura.Published:
    """The figure of the paper's abstract."""
    return depura.Published(
        None, robust, "mean over attacks", "Song et al. 2024, arXiv:2312.04802", "from its abstract"
    )


ROWS = {
    "cifar10": PublishedRow(
        CIFAR10,
        SCORE_SDE,
        WRN28,
        depura.Ball("linf", 8 / 255),
        (
            abstract(92.67),
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
                AUTHORS_LATER,
            ),
        ),
    ),
    "cifar100": PublishedRow(
        CIFAR100, CIFAR100_DENOISER, CIFAR100_CLASSIFIER, depura.Ball("linf", 8 / 255), (abstract(61.35),)
    ),
    "imagenet": PublishedRow(
        IMAGENET,
        ADM,
        RESNET50,
        depura.Ball("linf", 4 / 255),
        (abstract(61.53),),
        attack=partial(lee_kim_pgd, n_steps=20),
    ),
}
"""By name."""


def study(
    *,
    row: str = "cifar10",
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: str | None = None,
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study of a row.

    Args:
        row: its name in ROWS.
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: the network's file; on ImageNet its name in its library.
        images: how many of the authors' draw.
        seed: of all noise.

    Returns:
        The study; the exact gradient is zero, so that the sign is also smoothed, over four radii in [-1, 1] units.
    """
    of = chosen(ROWS, row)
    d, network = of.networks(denoiser, classifier)
    defence = depura.Defence(of.images.around(depura.mimicdiffusion(d)), network)
    relaxed = 4 * 2 * of.threat.eps
    return of.study(f"mimicdiffusion-{row}", defence, data=data, images=images, seed=seed, relaxed=relaxed)
