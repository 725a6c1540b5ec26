"""The picture of the README: CIFAR-10 images, attacked, purified, and what the classifier says of each:

    python -m experiments.picture --data test.npz --classifier resnet20.th --out docs/figures/cifar10.png

The first images of the file, whatever comes out. The blind attack knows the classifier alone (PGD of 40 steps, linf
8/255), the adaptive one goes through the exact gradient of the whole purification (PGD of 40 steps, 8 draws a step).
Purification is few-step DiffPure as in studies/cifar10.py; beneath a purified image is the label of the draw that is
shown, and how many of 32 fresh draws are right.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

from depura import PGD, Ball, Defence, ImageSet, Noise, Stream
from depura.evaluation.scoring import score
from depura.evaluation.study_file import StudySource

mpl.use("agg")

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DRAWS = 32
HEADS = ("image", "attacked, blindly", "purified", "attacked through\nthe purification", "purified")
GOOD, BAD = "#00734f", "#b3400a"


def cells(defence: Defence, data: ImageSet, *, seed: int = 0) -> list[list[tuple[Tensor, str, bool]]]:
    """What is shown: per image a row of pictures, each with what is written beneath and whether that is right.

    Args:
        defence: few-step DiffPure and a classifier.
        data: the images.
        seed: of all noise.

    Returns:
        One row per image, five cells each.
    """
    bare, ball, n = defence.with_(purifier=None), Ball("linf", 8 / 255), len(data.images)
    init = Noise(seed, data.ids, stream=Stream.INIT)
    blind = PGD(ball, n_steps=40)(bare, data.images, data.labels, init=init).images[-1]
    eot = Noise(seed, data.ids, stream=Stream.EOT)
    adaptive = PGD(ball, n_steps=40, eot=8)(defence, data.images, data.labels, init=init, eot=eot).images[-1]
    report = Noise(seed, data.ids, stream=Stream.REPORT)
    assert defence.purifier is not None
    columns: list[list[tuple[Tensor, str, bool]]] = []
    for shown, purified in ((data.images, False), (blind, False), (blind, True), (adaptive, False), (adaptive, True)):
        with torch.no_grad():
            pictures = defence.purifier(shown, report) if purified else shown
            labels = defence.classifier(pictures).argmax(1)
        right = [""] * n
        if purified:
            correct = DRAWS - score(defence, shown, data.labels, report, draws=range(DRAWS)).errors(data.labels)
            right = [f"\n{int(k)} of {DRAWS} draws right" for k in correct]
        columns.append(
            [
                (pictures[i].clamp(0, 1), f"{CLASSES[int(labels[i])]}{right[i]}", bool(labels[i] == data.labels[i]))
                for i in range(n)
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def drawn(rows: list[list[tuple[Tensor, str, bool]]]) -> Figure:
    """The figure."""
    figure = Figure(figsize=(1.6 * len(HEADS), 2.0 * len(rows) + 0.3), dpi=110, facecolor="white")
    grid: Any = figure.subplots(len(rows), len(HEADS), squeeze=False)
    for i, row in enumerate(rows):
        for j, (picture, text, right) in enumerate(row):
            axes = grid[i][j]
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(text, fontsize=8, color=GOOD if right else BAD)
            if i == 0:
                axes.set_title(HEADS[j], fontsize=9)
    figure.tight_layout()
    return figure


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--denoiser", type=Path, default=ROOT / "weights" / "cifar10-small.safetensors")
    parser.add_argument("--guide", type=Path, default=ROOT / "weights" / "cifar10-guide.safetensors")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / "cifar10.png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = ("data", "classifier", "denoiser", "guide", "images")
    settings = tuple((name, str(getattr(given, name))) for name in names)
    study = StudySource(ROOT / "studies" / "cifar10.py", settings).load()
    assert isinstance(study.data, ImageSet)
    rows = cells(study.defence, study.data)
    drawn(rows).savefig(given.out, metadata={"Software": None})
    for row in rows:
        print(" | ".join(text.replace("\n", ", ") for _, text, _ in row))


if __name__ == "__main__":
    main()
