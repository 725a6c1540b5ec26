"""How the strength of AGDM's guidance was chosen for the digits: `python -m experiments.agdm_scale`.

The paper's scale s is not known. For a range of scales this prints accuracy on training digits, clean and under
examples made against the bare classifier (PGD of 20 steps, linf 0.2), both after one purification; no test image and no
adaptive attack takes part. s = 0 is the reverse process without guidance.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from depura import (
    PGD,
    Ball,
    Defence,
    ImageSet,
    Noise,
    Purifier,
    agdm,
    digits_classifier,
    digits_denoiser,
    digits_guide,
    load_digits,
)
from depura.evaluation.demo import EPS
from depura.methods.diffpure import T_STAR

SCALES = (0.0, 1.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    n_images: int = parser.parse_args().images
    torch.set_num_threads(1)
    data, classifier, guide = load_digits("train").first(n_images), digits_classifier(), digits_guide()
    attacked = PGD(Ball("linf", EPS), n_steps=20)(Defence(None, classifier), data.images, data.labels).images[-1]

    def accuracies(purifier: Purifier | None, network: torch.nn.Module) -> list[str]:
        return [f"{100 * share:.1f} %" for share in clean_and_transferred(purifier, network, data, attacked)]

    table = Table("scale", "clean", "transfer", box=None)
    for scale in SCALES:
        purifier = agdm(
            digits_denoiser(), features=guide.features, scale=scale, n_noise=round(1000 * T_STAR), n_steps=10
        )
        table.add_row(f"{scale:g}", *accuracies(purifier, classifier))
    table.add_row("guide alone", *accuracies(None, guide))
    Console().print(table)


if __name__ == "__main__":
    main()
