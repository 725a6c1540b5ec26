"""GDMP in its published settings: Wang et al. 2022.

    depura plan studies/published/gdmp.py                   # CIFAR-10, WideResNet-28-10, 4 rounds of 36 steps, 10 paths
    depura plan studies/published/gdmp.py -S row=imagenet   # ResNet-152, 45 steps of a chain of 250

With the files that the plan names (-S NAME=PATH) it can be run. The published classifier of CIFAR-10 is a pickled
module, which is not loaded here: RobustBench's Standard stands in its place.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import depura
from depura.evaluation.reproduction import (
    AUTHORS_LATER,
    CIFAR10,
    IMAGENET,
    WRN28,
    PublishedRow,
    chosen,
    of_library,
    published,
)
from depura.methods.gdmp import released_start

TRANSFERRED = "PGD on the bare classifier, transferred"
WANG = "Wang et al. 2022, arXiv:2205.14969"
SURROGATE = "PGD of 200 steps and 20 draws through a surrogate"
PGD_40 = partial(depura.PGD, n_steps=40)

ROWS = {
    "cifar10": PublishedRow(
        CIFAR10,
        published("denoiser", "ddpm-cifar10"),
        WRN28,
        depura.Ball("linf", 8 / 255),
        (
            depura.Published(93.5, 90.06, TRANSFERRED, WANG, "as DiffBreak repeats it; 90.1 in its abstract"),
            depura.Published(89.96, 75.59, "BPDA", "Lee and Kim 2023", AUTHORS_LATER),
            depura.Published(89.96, 24.53, SURROGATE, "Lee and Kim 2023", AUTHORS_LATER),
            depura.Published(93.36, 19.53, "exact gradients (10.55 with 20 purifications)", "DiffBreak", AUTHORS_LATER),
        ),
        (partial(depura.gdmp, start=released_start(36)), depura.MeanLogit(10)),
        partial(PGD_40, step_size=2 / 255, eot=15),
        PGD_40,
    ),
    "imagenet": PublishedRow(
        IMAGENET,
        published("denoiser", "adm-imagenet256", learned_variance=True),
        of_library("torchvision:resnet152"),
        depura.Ball("linf", 4 / 255),
        (depura.Published(None, 70.94, TRANSFERRED, WANG, "from a summary of its abstract"),),
        (depura.gdmp_imagenet, depura.Single()),
        partial(PGD_40, eot=15),
        PGD_40,
    ),
}
"""By name; the setting is the purifier around a denoiser, and the rule."""


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
        images: how many images of Lee and Kim's draw (GDMP's is not known).
        seed: of all noise.

    Returns:
        The study.
    """
    of = chosen(ROWS, row)
    d, network = of.networks(denoiser, classifier)
    build, rule = of.setting
    defence = depura.Defence(of.images.around(build(d)), network, rule=rule)
    return of.study(f"gdmp-{row}", defence, data=data, images=images, seed=seed)
