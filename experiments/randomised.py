"""What the released AutoAttack (version rand) and depura's `rand` find on randomised models.

    python -m experiments.randomised [--images 64] [--draws 256]

Three models: ten random linear logits of an image under Gaussian noise; the bundled digits classifier under Gaussian
noise; the same behind DiffPure. For each: the robust accuracy that the released ensemble reports, how many images it
returns unperturbed, and the accuracy on fresh draws of what either returns; beside it that of clean images.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

import depura
from depura.analysis.words import percent
from depura.attacks.ensembles import rand
from depura.evaluation.demo import digits_purifier
from depura.evaluation.scoring import choose, score
from depura.noise import Noise, Stream
from depura.statistics.intervals import mean_with_interval
from experiments.stock import autoattack

SELECT = 32
"""Draws on which depura's judge picks among the candidates."""


class Case(NamedTuple):
    """A randomised defence, the images it is attacked on, and the radius."""

    name: str
    defence: depura.Defence
    data: depura.ImageSet
    ball: depura.Ball


class Linear(nn.Module):
    """Ten random linear logits."""

    def __init__(self, n_pixels: int) -> None:
        super().__init__()
        rows = depura.Noise(1, images=tuple(range(10)))
        self.weight = nn.Parameter(rows(torch.zeros(10, n_pixels), kind=depura.Kind.ATTACK))

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1) @ self.weight.T


def cases(n: int) -> list[Case]:
    """The models, in rising order of what stands between image and logits."""
    digits, linear, classifier = depura.load_digits("test").first(n), Linear(64), depura.digits_classifier()
    labels = linear(digits.images).argmax(1)
    own = depura.ImageSet("digits", digits.images, labels, digits.ids, digits.classes)
    return [
        Case("linear logits of a noised image", depura.Defence(noised(0.1), linear), own, depura.Ball("linf", 0.01)),
        Case(
            "digits classifier of a noised image",
            depura.Defence(noised(0.3), classifier),
            digits,
            depura.Ball("linf", 0.05),
        ),
        Case("DiffPure on digits", depura.Defence(digits_purifier(), classifier), digits, depura.Ball("linf", 0.1)),
    ]


def noised(std: float) -> depura.Purifier:
    """Gaussian noise in [0, 1] units, and no more."""
    return depura.noise_only(std=std)


def noise(stream: Stream, case: Case) -> Noise:
    """Noise of a stream for the images of a case."""
    return Noise(0, case.data.ids, stream=stream)


def correct(case: Case, images: Tensor, draws: int) -> Tensor:
    """Share of fresh draws that are right, of each image."""
    found = score(case.defence, images, case.data.labels, noise(Stream.REPORT, case), draws=range(draws))
    return (found.predictions == case.data.labels[:, None]).double().mean(1)


def compare(case: Case, *, draws: int) -> dict[str, str]:
    """One line of the table."""
    data = case.data
    released = autoattack(case.defence, data.images, data.labels, case.ball, version="rand")
    attack = rand(case.ball)
    init, own = noise(Stream.INIT, case), noise(Stream.EOT, case)
    ours = attack(case.defence, data.images, data.labels, init=init, eot=own)
    chosen = choose(case.defence, ours.images, data.labels, noise(Stream.SELECT, case), draws=range(SELECT)).images
    same = [int((x == data.images).flatten(1).all(1).sum()) for x in (released.images, chosen)]
    fresh = [correct(case, x, draws) for x in (data.images, released.images, chosen)]
    shown = [percent(mean_with_interval(share.numpy())) for share in fresh]
    return {
        "model": f"{case.name}, {case.ball.norm} {case.ball.eps:g}",
        "clean (null)": shown[0],
        "released: reported": f"{100 * released.robust:.1f} %",
        "released: unperturbed": f"{same[0]} of {len(data.images)}",
        "released: fresh draws": shown[1],
        "depura: unperturbed": f"{same[1]}",
        "depura: fresh draws": shown[2],
    }


def main() -> None:
    """Compare and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--draws", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for k, case in enumerate(cases(given.images)):
        line = compare(case, draws=given.draws)
        if k == 0:
            print("| " + " | ".join(line) + " |\n|" + "---|" * len(line))
        print("| " + " | ".join(line.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
