"""DiffPure in its published settings: Nie et al. 2022.

    depura plan studies/published/diffpure.py                        # CIFAR-10, WideResNet-28-10, linf 8/255, t* = 0.1
    depura plan studies/published/diffpure.py -S row=imagenet-deit   # another of ROWS

With the files that the plan names (-S NAME=PATH) it can be run. CelebA-HQ: attribute classifiers and a DDPM chain of
500 steps. The ResNet-50 of CIFAR-10 stands for threats that no training has seen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import depura
from depura.attacks.ensembles import rand
from depura.evaluation.reproduction import (
    ADM,
    AUTHORS_LATER,
    CELEBA_HQ,
    DIFFPURE_CIFAR10,
    DIFFPURE_IMAGENET,
    RESNET50,
    SCORE_SDE,
    UNVERIFIED,
    WRN28,
    PublishedRow,
    chosen,
    of_library,
    published,
)
from depura.methods.diffpure import CIFAR10_L2, CIFAR10_LINF, CIFAR10_RESNET50, IMAGENET
from depura.methods.diffpure_ddpm import CELEBA

LINF, L2, IMAGENET_LINF = depura.Ball("linf", 8 / 255), depura.Ball("l2", 0.5), depura.Ball("linf", 4 / 255)
WRN70 = published("classifier", "wrn-70-16-dropout")
CIFAR10_RN50 = published("classifier", "cifar10-resnet50")
CIFAR10_ROW = partial(PublishedRow, DIFFPURE_CIFAR10, SCORE_SDE, attack=rand)
IMAGENET_ROW = partial(PublishedRow, DIFFPURE_IMAGENET, ADM, setting=IMAGENET, attack=rand)


def nie(
    clean: float | None,
    robust: float | None,
    attack: str = "AutoAttack, the lesser of rand and standard, through the adjoint",
    note: str = UNVERIFIED,
) -> depura.Published:
    """Figures of the paper."""
    return depura.Published(clean, robust, attack, "Nie et al. 2022, arXiv:2205.07460", note)


def wesego(clean: float, robust: float) -> depura.Published:
    """Figures under Lee and Kim's attack."""
    attack = "PGD of 200 steps and 20 draws through a surrogate"
    return depura.Published(
        clean, robust, attack, "Wesego and Rooshenas 2025, table 1, after Lee and Kim 2023", AUTHORS_LATER
    )


def diffbreak(robust: float, attack: str, table: str = "") -> depura.Published:
    """Figures through exact gradients."""
    return depura.Published(None, robust, f"exact gradients, {attack}", f"DiffBreak{table}", AUTHORS_LATER)


ROWS = {
    "cifar10-linf-wrn28": CIFAR10_ROW(
        WRN28,
        LINF,
        (
            nie(89.02, 70.64, note="as DiffBreak's table 4 repeats it"),
            wesego(90.07, 51.25),
            diffbreak(48.05, "one final purification (30.86 with 20)", ", tables 4 and 5"),
        ),
        CIFAR10_LINF,
    ),
    "cifar10-linf-wrn70": CIFAR10_ROW(
        WRN70,
        LINF,
        (
            nie(90.07, 71.29),
            wesego(90.43, 57.03),
            diffbreak(17.19, "the worst of 10 purifications (39.45 by their majority)", ", tables 1 and 6"),
        ),
        CIFAR10_LINF,
    ),
    "cifar10-l2-wrn28": CIFAR10_ROW(WRN28, L2, (nie(91.03, 78.58), wesego(91.41, 82.11)), CIFAR10_L2),
    "cifar10-l2-wrn70": CIFAR10_ROW(WRN70, L2, (nie(92.68, 80.6), wesego(92.15, 84.8)), CIFAR10_L2),
    "cifar10-linf-resnet50": CIFAR10_ROW(CIFAR10_RN50, LINF, (nie(88.2, 70.0),), CIFAR10_RESNET50),
    "cifar10-l2-resnet50": CIFAR10_ROW(CIFAR10_RN50, depura.Ball("l2", 1.0), (nie(88.2, 70.9),), CIFAR10_RESNET50),
    "cifar10-stadv-resnet50": PublishedRow(
        DIFFPURE_CIFAR10,
        SCORE_SDE,
        CIFAR10_RN50,
        depura.Flow(0.05),
        (nie(88.2, 55.0, "StAdv of 100 steps and 20 draws"),),
        CIFAR10_RESNET50,
        partial(depura.StAdv, eot=20),
        depura.StAdv,
    ),
    "imagenet-resnet50": IMAGENET_ROW(RESNET50, IMAGENET_LINF, (nie(67.79, 40.93),)),
    "imagenet-wrn50": IMAGENET_ROW(
        of_library("torchvision:wide_resnet50_2"),
        IMAGENET_LINF,
        (nie(71.16, 44.39), diffbreak(12.11, "the worst of all copies (29.69 by their majority)")),
    ),
    "imagenet-deit": IMAGENET_ROW(
        of_library("timm:deit_small_patch16_224", "Apache-2.0"),
        IMAGENET_LINF,
        (nie(73.63, 43.18), diffbreak(21.09, "the worst of all copies (32.81 by their majority)")),
    ),
    "celebahq": PublishedRow(
        CELEBA_HQ,
        published("denoiser", "ddpm-celebahq256"),
        published("classifier", "celebahq-attribute"),
        depura.Ball("linf", 16 / 255),
        (
            nie(
                None,
                None,
                "BPDA of 50 steps and 15 draws, verified on 20",
                "the figures of its table were not at hand; it also tries t* = 0.4",
            ),
        ),
        CELEBA,
        partial(depura.PGD, n_steps=50, step_size=2 / 255, eot=15, random_start=False),
        partial(depura.PGD, n_steps=50),
    ),
}
"""By name: data, threat, classifier."""


def study(
    *,
    row: str = "cifar10-linf-wrn28",
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: str | None = None,
    attribute: str | None = None,
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study of a row.

    Args:
        row: its name in ROWS.
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: the network's file; on ImageNet its name in its library.
        attribute: of CelebA-HQ, which the classifier tells: Eyeglasses (default) or Smiling.
        images: how many of the authors' draw; of CelebA-HQ the first ones.
        seed: of all noise.

    Returns:
        The study.
    """
    of = chosen(ROWS, row)
    if attribute is not None:
        if row != "celebahq":
            raise depura.InputError(f"-S attribute: expected it with -S row=celebahq, got row {row}.")
        of = replace(of, images=of.images._replace(options={"labels": attribute}))
    d, network = of.networks(denoiser, classifier)
    defence = depura.Defence(of.setting.purifier(d), network)
    return of.study(f"diffpure-{row}", defence, data=data, images=images, seed=seed)
