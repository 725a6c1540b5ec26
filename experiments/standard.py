"""depura's `standard` beside the released AutoAttack, on deterministic classifiers, in one run.

    python -m experiments.standard [--cifar-weights FILE --cifar-images FILE] [--images 128] [--out FILE]

The bundled digits classifiers, plain and robust, and, if given, the CIFAR-10 ResNet-20 whose published checkpoint is
FILE (a dict with `state_dict`, keys prefixed `module.`) on the first images of an NPZ file (`image` uint8, `label`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import depura
from benchmarks.timing import seconds
from depura.attacks.ensembles import standard
from depura.data.imageset import ImageSet, load_npz
from depura.models.networks.resnet import CifarResNet
from depura.models.networks.wrappers import Normalised
from experiments.stock import autoattack


class Case(NamedTuple):
    """A classifier, its images and the radii to attack at."""

    name: str
    classifier: nn.Module
    data: ImageSet
    balls: tuple[depura.Ball, ...]


def digits(n: int) -> list[Case]:
    """The bundled classifiers."""
    data = depura.load_digits("test").first(n)
    linf, small, l2 = depura.Ball("linf", 0.2), depura.Ball("linf", 0.05), depura.Ball("l2", 0.5)
    return [
        Case("digits, plain", depura.digits_classifier(), data, (linf, small)),
        Case("digits, robust", depura.digits_guide(), data, (linf, l2)),
    ]


def cifar(weights: Path, images: Path, n: int) -> Case:
    """The published ResNet-20."""
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    network = CifarResNet()
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    classifier = Normalised(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).eval()
    classifier.requires_grad_(False)
    balls = (depura.Ball("linf", 8 / 255), depura.Ball("linf", 1 / 255))
    return Case("CIFAR-10 ResNet-20", classifier, load_npz(images).first(n), balls)


def broken(classifier: nn.Module, images: Tensor, labels: Tensor) -> list[bool]:
    """Which images are misclassified."""
    with torch.no_grad():
        return (classifier(images).argmax(1) != labels).tolist()


def compare(case: Case, ball: depura.Ball) -> dict[str, object]:
    """Both ensembles on one classifier at one radius."""
    images, labels = case.data.images, case.data.labels
    found: dict[str, Tensor] = {}
    noise = depura.Noise(0, case.data.ids, stream=depura.Stream.INIT)

    def ours() -> None:
        found["ours"] = standard(ball)(case.classifier, images, labels, init=noise).images[0]

    def stock() -> None:
        found["stock"] = autoattack(case.classifier, images, labels, ball, version="standard").images

    took = {"ours": seconds(ours), "stock": seconds(stock)}
    wrong = {name: broken(case.classifier, x, labels) for name, x in found.items()}
    assert all(bool(ball.contains(x, images).all()) for x in found.values())
    return {
        "model": case.name,
        "ball": f"{ball.norm} {ball.eps:.4g}",
        "images": len(images),
        "clean": sum(broken(case.classifier, images, labels)),
        "stock": sum(wrong["stock"]),
        "ours": sum(wrong["ours"]),
        "only stock": sum(s and not o for s, o in zip(wrong["stock"], wrong["ours"], strict=True)),
        "only ours": sum(o and not s for s, o in zip(wrong["stock"], wrong["ours"], strict=True)),
        "time ratio": round(took["ours"] / took["stock"], 3),
    }


def main() -> None:
    """Compare and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar-weights", type=Path)
    parser.add_argument("--cifar-images", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cases = digits(given.images)
    if given.cifar_weights is not None and given.cifar_images is not None:
        cases.append(cifar(given.cifar_weights, given.cifar_images, given.images))
    results: list[dict[str, object]] = []
    for case in cases:
        for ball in case.balls:
            result = compare(case, ball)
            if not results:
                print("| " + " | ".join(result) + " |\n|" + "---|" * len(result))
            print("| " + " | ".join(str(value) for value in result.values()) + " |", flush=True)
            results.append(result)
    print("\nimages broken of all: without attack, by the released ensemble, by ours; time ratio: ours over released")
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
