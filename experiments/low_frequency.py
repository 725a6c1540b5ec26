"""A vote of many draws under a low-frequency attack and, on its own, under attacks of as many steps in linf.

    python -m experiments.low_frequency                                       # the bundled digits
    export DEPURA_CIFAR10=test.npz DEPURA_RESNET20=resnet20.th
    python -m experiments.low_frequency --data cifar10 --images 8 --steps 20 --through 3 --draws 2 --select 1

DiffPure in five steps with a vote of 21 purifications is judged without an attack (the null); under `LowFrequency` at a
dissimilarity of at most `--bound`; and, which is another threat model, in linf under APGD and under APGD on one-step
previews, for which neither the purifier nor the vote is known. The attacks ascend the margin of the mean probability of
`--through` purifications; with 21 of them this is the gradient of the whole vote. Previews are as many as the steps
that these purifications have together, so that every gradient has the same price. Candidates are compared on votes of
their own, and the chosen one is judged on fresh votes. There is a table for each threat model, as accuracies under two
of them are not to be compared. For each attack it has the accuracy of a vote with its interval, how many images most
votes get wrong, and means over the images of what the chosen examples differ by.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import depura
from depura.analysis.words import percent
from depura.attacks.attack import Attack
from depura.evaluation.demo import EPS, digits_purifier
from depura.evaluation.scoring import choose, score
from depura.methods.diffpure import few_steps
from depura.noise import Noise, Stream
from depura.statistics.intervals import mean_with_interval

WEIGHTS = Path(__file__).parents[1] / "weights" / "cifar10-small.safetensors"
VOTES = 21
CIFAR_T_STAR = 0.05
"""As in studies/cifar10.py."""
ROWS = 168
"""Purifications in one call of an attack, at most."""


class Case(NamedTuple):
    """What is judged, and the linf radius."""

    data: depura.ImageSet
    defence: depura.Defence
    eps: float


class Tried(NamedTuple):
    """An attack, and what it differentiates."""

    title: str
    attack: Attack
    attacked: depura.Defence


def digits(images: int) -> Case:
    """The bundled digits."""
    defence = depura.Defence(digits_purifier(), depura.digits_classifier(), rule=depura.Vote(VOTES))
    return Case(depura.load_digits("test").first(images), defence, EPS)


def cifar10(images: int) -> Case:
    """CIFAR-10's first test images, with the files that the environment names."""
    purifier = few_steps(depura.load_denoiser(WEIGHTS), t_star=CIFAR_T_STAR)
    classifier = depura.load_classifier(Path(os.environ["DEPURA_RESNET20"]))
    data = depura.load_images(Path(os.environ["DEPURA_CIFAR10"]), images=images)
    return Case(data, depura.Defence(purifier, classifier, rule=depura.Vote(VOTES)), 8 / 255)


def attacks(case: Case, *, steps: int, through: int, bound: float) -> dict[str, tuple[Tried, ...]]:
    """The attacks by threat model, this in words."""
    ball, unlike = depura.Ball("linf", case.eps), depura.Perceptual(bound)
    mean = case.defence.with_(rule=depura.MeanProb(through))
    assert case.defence.purifier is not None
    blind = depura.APGD(ball, n_steps=steps, eot=through * case.defence.purifier.n_steps, common=VOTES)
    return {
        f"(1 - SSIM) / 2 at most {bound:g}": (
            Tried("low frequencies", depura.LowFrequency(unlike, n_steps=steps), mean),
        ),
        f"linf at most {ball.eps:.4g}": (
            Tried("APGD", depura.APGD(ball, n_steps=steps, common=2), mean),
            Tried("APGD on previews", blind, depura.preview(case.defence)),
        ),
    }


def judged(case: Case, images: Tensor, draws: int) -> tuple[str, str]:
    """Accuracy of a vote with its interval; how many images more than half of the votes get wrong."""
    noise = Noise(0, case.data.ids, stream=Stream.REPORT)
    found = score(case.defence, images, case.data.labels, noise, draws=range(draws))
    right = (found.predictions == case.data.labels[:, None]).double().mean(1)
    return percent(mean_with_interval(right.numpy())), f"{int((right < 0.5).sum())} of {len(images)}"


def differences(images: Tensor, clean: Tensor) -> list[str]:
    """Means over the images: largest change of a pixel, length of the change, dissimilarity."""
    change = (images - clean).double().flatten(1)
    sizes = change.abs().amax(1), change.square().sum(1).sqrt(), depura.dssim(images.double(), clean.double())
    return [f"{float(size.mean()):.3f}" for size in sizes]


def tried(case: Case, it: Tried, *, draws: int, select: int) -> dict[str, str]:
    """One line of the table."""
    data, began = case.data, time.monotonic()
    init, eot, choosing = (Noise(0, data.ids, stream=s) for s in (Stream.INIT, Stream.EOT, Stream.SELECT))
    rows = ROWS // it.attacked.rule.n_draws
    found = it.attack(it.attacked, data.images, data.labels, init=init, eot=eot, rows=rows)
    minutes = (time.monotonic() - began) / 60
    chosen = choose(case.defence, found.images, data.labels, choosing, draws=range(select)).images
    return line(case, it.title, chosen, draws=draws, minutes=minutes)


def line(case: Case, title: str, images: Tensor, *, draws: int, minutes: float) -> dict[str, str]:
    """Images judged and measured."""
    accuracy, wrong = judged(case, images, draws)
    linf, l2, unlike = differences(images, case.data.images)
    return {
        "attack": title,
        f"vote of {VOTES}": accuracy,
        "images wrong": wrong,
        "linf": linf,
        "l2": l2,
        "(1 - SSIM) / 2": unlike,
        "minutes of attack": f"{minutes:.1f}",
    }


def main() -> None:
    """Print a Markdown table for each threat model, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--steps", type=int, default=100, help="of each attack")
    parser.add_argument("--through", type=int, default=7, help="purifications per gradient")
    parser.add_argument("--bound", type=float, default=0.05, help="largest dissimilarity, (1 - SSIM) / 2")
    parser.add_argument("--draws", type=int, default=8, help="fresh votes that each example is judged on")
    parser.add_argument("--select", type=int, default=4, help="votes that candidates are compared on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    missing = [name for name in ("DEPURA_CIFAR10", "DEPURA_RESNET20") if name not in os.environ]
    if given.data == "cifar10" and missing:
        parser.error(f"expected files named by {' and '.join(missing)}, see above")
    case = (digits if given.data == "digits" else cifar10)(given.images)
    null = line(case, "none (null)", case.data.images, draws=given.draws, minutes=0.0)
    for threat, those in attacks(case, steps=given.steps, through=given.through, bound=given.bound).items():
        print(f"\n{threat}\n\n| " + " | ".join(null) + " |\n|" + "---|" * len(null))
        print("| " + " | ".join(null.values()) + " |", flush=True)
        for it in those:
            print(
                "| " + " | ".join(tried(case, it, draws=given.draws, select=given.select).values()) + " |", flush=True
            )


if __name__ == "__main__":
    main()
