"""AGDM, a reconstruction, t* = 70 of 1000, in its published settings: Lin et al., arXiv:2403.16067.

    depura plan studies/published/agdm.py                   # CIFAR-10, WideResNet-28-10, linf 8/255
    depura plan studies/published/agdm.py -S row=imagenet   # another of ROWS

With the files that the plan names (-S NAME=PATH) it can be run. The paper's code is not released: the guiding network
and the strength of the guidance are choices of this file. For CIFAR-100 the guide is one that was trained on CIFAR-100.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import depura
from depura.evaluation.reproduction import (
    ADM,
    CIFAR10,
    CIFAR100,
    CIFAR100_CLASSIFIER,
    CIFAR100_DENOISER,
    IMAGENET,
    IMAGENET_ROBUST,
    RESNET50,
    ROBUST,
    SCORE_SDE,
    WRN28,
    PublishedRow,
    chosen,
    lee_kim_pgd,
)

NOT_AT_HAND = depura.Published(
    None, None, "PGD with draws", "Lin et al., arXiv:2403.16067", "its table was not at hand"
)


def repeated(robust: float) -> depura.Published:
    """Figures on CIFAR-10."""
    return depura.Published(
        90.42, robust, "PGD with 20 draws", "Wesego and Rooshenas 2025, table 1", "as they repeat it"
    )


ROWS = {
    "cifar10-linf": PublishedRow(
        CIFAR10,
        SCORE_SDE,
        WRN28,
        depura.Ball("linf", 8 / 255),
        (repeated(64.06), depura.Published(None, 78.12, "AutoAttack", "public review of the paper")),
        setting=ROBUST,
    ),
    "cifar10-l2": PublishedRow(CIFAR10, SCORE_SDE, WRN28, depura.Ball("l2", 0.5), (repeated(85.55),), setting=ROBUST),
    "cifar100": PublishedRow(
        CIFAR100, CIFAR100_DENOISER, CIFAR100_CLASSIFIER, depura.Ball("linf", 8 / 255), (NOT_AT_HAND,), setting=ROBUST
    ),
    "imagenet": PublishedRow(
        IMAGENET,
        ADM,
        RESNET50,
        depura.Ball("linf", 4 / 255),
        (NOT_AT_HAND,),
        setting=IMAGENET_ROBUST,
        attack=partial(lee_kim_pgd, n_steps=20),
    ),
}
"""By name; the setting is the guiding network."""


def study(
    *,
    row: str = "cifar10-linf",
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: str | None = None,
    guide: str | None = None,
    scale: float = 100.0,
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study of a row.

    Args:
        row: its name in ROWS.
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: the network's file; on ImageNet its name in its library.
        guide: the adversarially trained network's file; on ImageNet MODULE:FUNCTION of a robust classifier (not
            asked for in a plan). It sees noised states; one that was trained on them suits it better.
        scale: strength of the guidance, which the paper does not state.
        images: how many images of Lee and Kim's draw (AGDM's is not known).
        seed: of all noise.

    Returns:
        The study.
    """
    of = chosen(ROWS, row)
    d, network = of.networks(denoiser, classifier)
    robust = of.setting.ready(guide, planned=denoiser is None)
    defence = depura.Defence(of.images.around(depura.agdm(d, guide=robust, scale=scale)), network)
    return of.study(f"agdm-{row}", defence, data=data, images=images, seed=seed, files=(of.setting.needed,))
