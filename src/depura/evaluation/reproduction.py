"""What studies of published rows share: a network from its file or, without one, its shape alone; the papers' images.

Such a study has a path for each file and none by default: then its networks are on torch's meta device and it can be
planned, not run (`depura plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depura.attacks.losses import cross_entropy
from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball
from depura.data.imageset import ImageSet
from depura.data.sources import load_images
from depura.data.subsets import diffpure_subset, subset
from depura.diffusion.denoisers import Denoiser
from depura.evaluation.study import NeededFile
from depura.models.by_name import classifier as by_name
from depura.models.checkpoints import PUBLISHED, load_classifier, load_denoiser
from depura.models.networks.wide_resnet import WideResNet

CIFAR10 = NeededFile(
    "data", "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated", "its test part"
)
CIFAR100 = CIFAR10._replace(name="cifar-100-python.tar.gz")
IMAGENET = NeededFile(
    "data",
    "folder of the validation pictures, one folder for each class",
    "https://image-net.org",
    "ImageNet's terms of access (research)",
    "cut to 224 x 224 pixels when read",
)
CELEBA_HQ = NeededFile(
    "data",
    "CelebA-HQ pictures of 256 x 256 pixels with their table of attributes",
    "https://github.com/tkarras/progressive_growing_of_gans",
    "CelebA's terms (research)",
)
CIFAR100_DENOISER = NeededFile(
    "denoiser",
    "a denoiser of CIFAR-100",
    "none",
    "",
    "none is public; train one (depura train denoiser) or fine-tune EDM's for CIFAR-10, whose shape is planned with",
)
CIFAR100_CLASSIFIER = NeededFile(
    "classifier", "a WideResNet-28-10 of CIFAR-100", "none", "", "the authors' is not public; train one"
)
IMAGENET_GUIDE = NeededFile(
    "guide",
    "MODULE:FUNCTION of an adversarially trained classifier",
    "https://github.com/RobustBench/robustbench",
    "of each entry",
    "a plan without a denoiser's file leaves its cost out",
)
_SOURCES = {"torchvision": "pytorch/vision", "timm": "huggingface/pytorch-image-models"}

UNVERIFIED = "unverified: from memory, the paper's table was not read"
"""Note of figures whose source was not read."""
AUTHORS_LATER = "evaluated later by others"
"""Note of figures that are not the authors' own."""


def denoiser(name: str, path: Path | None, **options: Any) -> Denoiser:
    """A published denoiser.

    Args:
        name: short name of the published file (`depura.models.checkpoints.PUBLISHED`).
        path: the file; None for its shape alone, on the meta device.
        **options: of loading, such as learned_variance=True.

    Returns:
        The denoiser, in [-1, 1] units.
    """
    return PUBLISHED[name].build(device="meta", **options) if path is None else load_denoiser(path, **options)


def classifier(name: str, path: Path | None) -> Callable[[Tensor], Tensor]:
    """A published classifier of images in [0, 1].

    Args:
        name: short name of the published file.
        path: the file; None for its shape alone, on the meta device.

    Returns:
        The classifier.
    """
    return PUBLISHED[name].build(device="meta") if path is None else load_classifier(path, like=name)


def cifar100_classifier(path: Path | None) -> Callable[[Tensor], Tensor]:
    """A WideResNet-28-10 of CIFAR-100, of images in [0, 1].

    Args:
        path: its file; None for its shape alone, on the meta device.

    Returns:
        The classifier.
    """
    if path is not None:
        return load_classifier(path)
    with torch.device("meta"):
        return WideResNet(n_classes=100)


def guide(path: Path | None) -> nn.Module:
    """An adversarially trained network of RobustBench in DeepMind's layout, for guidance.

    Args:
        path: its file; None for its shape alone, on the meta device.

    Returns:
        The network.
    """
    return PUBLISHED["dmwrn-28-10"].build(device="meta") if path is None else load_classifier(path)


def imagenet_classifier(name: str, *, planned: bool) -> Callable[[Tensor], Tensor]:
    """A classifier of ImageNet that another library has.

    Args:
        name: such as torchvision:resnet50 (see `depura.classifier`).
        planned: whether only a plan is wanted: then the library is not asked.

    Returns:
        The classifier; in a plan, one that costs nothing.
    """
    return uncounted if planned else by_name(name)


def uncounted(images: Tensor) -> Tensor:
    """Stands for a classifier of a thousand classes in a plan: gives their number of logits, at no cost."""
    return images.mean((2, 3)).repeat(1, 334)[:, :1000]


def needs(parameter: str, name: str) -> NeededFile:
    """What a study's parameter is to be given.

    Args:
        parameter: its name.
        name: short name of the published file.

    Returns:
        Name, address and licence of the file.
    """
    file = PUBLISHED[name]
    return NeededFile(parameter, file.file, file.address, file.licence, file.note)


def needs_by_name(name: str, licence: str) -> NeededFile:
    """The same of a classifier that another library fetches.

    Args:
        name: such as torchvision:resnet50.
        licence: of its weights.

    Returns:
        What the parameter `classifier` is by default.
    """
    library = name.partition(":")[0]
    note = f"needs depura[{library}]; a plan without a denoiser's file leaves its cost out"
    address = f"https://github.com/{_SOURCES[library]}"
    return NeededFile("classifier", name, address, licence, note)


def cifar(path: Path | None, rows: Sequence[int], *, n_classes: int = 10) -> ImageSet:
    """CIFAR's test images.

    Args:
        path: as published; None for their shape alone.
        rows: which.
        n_classes: 10 or 100.

    Returns:
        The images.
    """
    return _blank(f"cifar{n_classes}", rows, 32, n_classes) if path is None else load_images(path, rows=rows)


def imagenet(path: Path | None, rows: Sequence[int]) -> ImageSet:
    """ImageNet's validation images, 256 pixels on the short side, 224 x 224 of the middle.

    Args:
        path: folder of class folders, or Parquet files; None for their shape alone.
        rows: which.

    Returns:
        The images.
    """
    return _blank("imagenet", rows, 224, 1000) if path is None else load_images(path, rows=rows, resize=256, crop=224)


def celeba_hq(path: Path | None, images: int, *, attribute: str) -> ImageSet:
    """CelebA-HQ's images and one attribute.

    Args:
        path: pictures with a table of attributes; None for their shape alone.
        images: how many, the first ones.
        attribute: its name in the table.

    Returns:
        The images.
    """
    if path is None:
        return _blank("celeba-hq", range(images), 256, 2)
    return load_images(path, labels=attribute, images=images)


def diffpure_cifar(images: int) -> tuple[int, ...]:
    """DiffPure's test images of CIFAR-10: 8 draws of 64, 504 distinct ones; the first so many of them."""
    return diffpure_subset(10_000, 64, seeds=range(8))[:images]


def diffpure_imagenet(images: int) -> tuple[int, ...]:
    """DiffPure's validation images of ImageNet: 32 draws of 16, 510 distinct ones; the first so many of them."""
    return diffpure_subset(50_000, 16, seeds=range(32))[:images]


def lee_kim(n: int, images: int) -> tuple[int, ...]:
    """Lee and Kim's draw of 512 images of n; the first so many of them."""
    return subset(n, 512)[:images]


def lee_kim_pgd(ball: Ball, *, n_steps: int = 200) -> PGD:
    """Lee and Kim's PGD on the mean gradient of 20 draws: steps of 0.007, from the image itself, on the cross entropy.

    In l2 their step is 0.007 in the sign of every pixel's gradient; here it is the default of `PGD` along the gradient.

    Args:
        ball: threat model.
        n_steps: 200 on CIFAR-10, 20 on ImageNet.

    Returns:
        The attack.
    """
    size = 0.007 if ball.norm == "linf" else None
    return PGD(ball, n_steps=n_steps, step_size=size, eot=20, loss=cross_entropy, random_start=False)


def _blank(name: str, rows: Sequence[int], size: int, n_classes: int) -> ImageSet:
    """Images without pixels, all of class 0."""
    n = len(rows)
    labels = torch.zeros(n, dtype=torch.int64)
    classes = tuple(str(k) for k in range(n_classes))
    return ImageSet(name, torch.empty(n, 3, size, size, device="meta"), labels, tuple(rows), classes)
