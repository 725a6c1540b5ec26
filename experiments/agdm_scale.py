"""How the strength s of AGDM's guidance was chosen, on training images; the paper's is not known:

    python -m experiments.agdm_scale                                        # the digits
    export DEPURA_RESNET20=resnet20.th
    python -m experiments.agdm_scale --data train.npz --images 24           # CIFAR-10's

For a range of scales this prints accuracy of one purification on training images: clean, under examples made against
the bare classifier (transfer) and against the guide alone (PGD of 20 steps, linf), and under adaptive attacks (PGD of
10 steps, 2 draws) through the exact gradient, for which the guide's label is constant, and through the relaxed one. s =
0 is the reverse process without guidance. No test image takes part. Of a file, its last 512 images are taken, which
`depura train ... --held-out 512` kept from the networks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import depura
from depura import PGD, Defence, ImageSet, Noise, Purifier, Stream
from depura.analysis.words import percent
from depura.evaluation.scoring import score
from depura.models.by_name import module_of
from depura.statistics.intervals import mean_with_interval

CLAIMS = Path(__file__).parents[1] / "studies" / "claims.py"
"""Where the networks and attacks of these settings stand."""
SCALES = (0.0, 3.0, 10.0, 30.0, 100.0)
HELD_OUT = 512
DRAWS = 8
"""Of each example, to judge it on."""


def clean_and_transferred(
    purifier: Purifier | None, network: torch.nn.Module, data: ImageSet, attacked: Tensor, *, at_once: int = 256
) -> tuple[float, float]:
    """Accuracy on clean and on attacked images, each after one purification.

    Args:
        purifier: or none.
        network: classifies.
        data: the images.
        attacked: examples of them.
        at_once: images in one call.

    Returns:
        Two shares.
    """
    defence, right = Defence(purifier, network), [0, 0]
    for k in range(0, len(data.images), at_once):
        part = slice(k, k + at_once)
        noise = Noise(0, data.ids[part])
        with torch.no_grad():
            for i, images in enumerate((data.images, attacked)):
                right[i] += int((defence(images[part], noise).argmax(1) == data.labels[part]).sum())
    return right[0] / len(data.images), right[1] / len(data.images)


def judged(defence: Defence, data: ImageSet, images: Tensor) -> str:
    """Accuracy of one draw with its interval, over fresh draws."""
    found = score(defence, images, data.labels, Noise(0, data.ids, stream=Stream.REPORT), draws=range(DRAWS))
    return percent(mean_with_interval((found.predictions == data.labels[:, None]).double().mean(1).numpy()))


def adaptive(defence: Defence, data: ImageSet, attack: PGD) -> Tensor:
    """Examples made through the gradient of a defence."""
    init, eot = (Noise(0, data.ids, stream=s) for s in (Stream.INIT, Stream.EOT))
    return attack(defence, data.images, data.labels, init=init, eot=eot).images[-1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10's training images; default the digits")
    parser.add_argument("--images", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    claims = module_of("experiments/agdm_scale.py", CLAIMS)
    case = claims.case_of("digits" if given.data is None else "cifar10", n_steps=10, eot=2)
    if given.data is None:
        data = depura.load_digits("train").first(given.images)
    else:
        whole = depura.load_images(given.data)
        data = whole.take(range(len(whole.images) - HELD_OUT, len(whole.images))).first(given.images)
    bare, alone = Defence(None, case.classifier), Defence(None, case.guide())
    pgd = PGD(case.attack.ball, n_steps=20)
    blind, of_guide = (pgd(its, data.images, data.labels).images[-1] for its in (bare, alone))
    table = Table("scale", "clean", "transfer", "of guide", "adaptive", "relaxed", box=None)
    for scale in SCALES:
        defence = Defence(case.agdm(scale=scale), case.classifier)
        smooth = defence.with_(gradient=depura.Relaxed(claims.LOGITS))
        images = (data.images, blind, of_guide, *(adaptive(its, data, case.attack) for its in (defence, smooth)))
        table.add_row(f"{scale:g}", *(judged(defence, data, its) for its in images))
    table.add_row("guide alone", *(judged(alone, data, its) for its in (data.images, blind, of_guide)), "–", "–")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
