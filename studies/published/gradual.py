"""The gradual noise schedule in its published settings, votes over 10: Lee and Kim 2023.

    depura plan studies/published/gradual.py                     # CIFAR-10, WideResNet-28-10, linf 8/255
    depura plan studies/published/gradual.py -S row=cifar10-l2   # another of ROWS

With the files that the plan names (-S NAME=PATH) it can be run. Beside the exact gradient it is attacked through the
authors' surrogate of seven steps.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import depura
from depura.evaluation import reproduction
from depura.evaluation.reproduction import (
    ADM,
    RESNET50,
    SCORE_SDE,
    UNVERIFIED,
    WRN28,
    PublishedRow,
    chosen,
    lee_kim_pgd,
)
from depura.methods.gradual import CIFAR10, IMAGENET, N_VOTES, gradual, surrogate


def lee_kim(clean: float, robust: float, n_steps: int = 200, also: str = "") -> tuple[depura.Published, ...]:
    """Figures of the paper."""
    attack = f"PGD of {n_steps} steps and 20 draws through the surrogate{also}"
    return (depura.Published(clean, robust, attack, "Lee and Kim 2023, arXiv:2303.09051", UNVERIFIED),)


ROWS = {
    "cifar10-linf": PublishedRow(
        reproduction.CIFAR10,
        SCORE_SDE,
        WRN28,
        depura.Ball("linf", 8 / 255),
        lee_kim(90.16, 55.82, also=" (AutoAttack 70.47)"),
        (CIFAR10, (30, 50, 125)),
    ),
    "cifar10-l2": PublishedRow(
        reproduction.CIFAR10, SCORE_SDE, WRN28, depura.Ball("l2", 0.5), lee_kim(90.16, 83.59), (CIFAR10, (30, 50, 125))
    ),
    "imagenet": PublishedRow(
        reproduction.IMAGENET,
        ADM,
        RESNET50,
        depura.Ball("linf", 4 / 255),
        lee_kim(70.74, 42.15, n_steps=20),
        (IMAGENET, (30, 50, 200)),
        partial(lee_kim_pgd, n_steps=20),
    ),
}
"""By name; the setting is the depths of the schedule and of the surrogate."""


def study(
    *,
    row: str = "cifar10-linf",
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
        The study.
    """
    of = chosen(ROWS, row)
    d, network = of.networks(denoiser, classifier)
    depths, shorter = of.setting
    defence = depura.Defence(of.images.around(gradual(d, depths=depths)), network, rule=depura.Vote(N_VOTES))
    against = depura.Defence(of.images.around(surrogate(d, depths=shorter)), network)
    title = "purified; attack through the authors' surrogate"
    further = (depura.AttackRun("surrogate", title, of.attack(of.threat), against, defence, "surrogate"),)
    return of.study(f"gradual-{row}", defence, data=data, images=images, seed=seed, further=further)
