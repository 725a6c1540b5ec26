"""What studies/cifar10.py chose, on training images that nothing here was trained on:

    python -m experiments.cifar10_choices --data train.npz --classifier resnet20.th

The last 512 images of the file are those that `depura train ... --held-out 512` kept away from the denoiser and the
guide (the published classifier has seen them). For several t* of few-step DiffPure, and for several strengths of AGDM's
guidance, which the paper does not give, it prints accuracy without an attack and under examples made against the bare
classifier (PGD of 40 steps, linf 8/255), both after one purification. No test image and no adaptive attack takes part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from depura import (
    PGD,
    Ball,
    Defence,
    Features,
    Purifier,
    agdm,
    load_classifier,
    load_denoiser,
    load_images,
    on_estimate,
)
from depura.methods.diffpure import few_steps
from experiments.agdm_scale import clean_and_transferred

WEIGHTS = Path(__file__).parents[1] / "weights"
HELD_OUT = 512
DEPTHS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.075, 0.1)
SCALES = (0.0, 1e2, 1e3, 1e4, 1e5, 1e6)
LAYER = "network.layer3"
"""Of the guide, whose activations AGDM compares."""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--denoiser", default=WEIGHTS / "cifar10-small.safetensors")
    parser.add_argument("--guide", default=WEIGHTS / "cifar10-guide.safetensors")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--t-star", type=float, default=0.05, help="of AGDM's table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    whole = load_images(given.data)
    data = whole.take(range(len(whole.images) - HELD_OUT, len(whole.images))).first(given.images)
    d, network, guide = load_denoiser(given.denoiser), load_classifier(given.classifier), load_classifier(given.guide)
    attack = PGD(Ball("linf", 8 / 255), n_steps=40)
    parts = [slice(k, k + 64) for k in range(0, len(data.images), 64)]
    bare = Defence(None, network)
    attacked = torch.cat([attack(bare, data.images[part], data.labels[part]).images[-1] for part in parts])

    def row(table: Table, name: str, purifier: Purifier | None, classifier: torch.nn.Module = network) -> None:
        found = clean_and_transferred(purifier, classifier, data, attacked, at_once=64)
        table.add_row(name, *(f"{100 * share:.1f} %" for share in found))

    depths = Table("few-step DiffPure", "clean", "transfer", box=None)
    row(depths, "no purification", None)
    for t in DEPTHS:
        row(depths, f"t* {t:g}", few_steps(d, t_star=t, steps=5))
    row(depths, "guide alone", None, guide)
    scales = Table("AGDM", "clean", "transfer", box=None)
    for s in SCALES:
        guided = agdm(
            d,
            guide=guide,
            features=Features(guide, LAYER),
            label=False,
            sees=on_estimate,
            scale=s,
            n_noise=round(1000 * given.t_star),
            n_steps=10,
        )
        row(scales, f"scale {s:g}", guided)
    for table in (depths, scales):
        Console().print(table)


if __name__ == "__main__":
    main()
