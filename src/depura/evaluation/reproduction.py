"""What studies of published rows share: the papers' images, networks from their files or as shapes alone, and attacks.

Such a study has a path for each file and none by default: then its networks are on torch's meta device and it can be
planned, not run (`depura plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from depura import _check
from depura.attacks.apgd import APGD
from depura.attacks.attack import Attack
from depura.attacks.losses import cross_entropy
from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball, Threat
from depura.data.imageset import ImageSet
from depura.data.sources import load_images
from depura.data.subsets import diffpure_subset, subset
from depura.defence import Defence
from depura.evaluation.study import AttackRun, NeededFile, Published, Study, attack_suite
from depura.models.by_name import classifier as by_name
from depura.models.checkpoints import PUBLISHED, load_classifier, load_denoiser
from depura.models.networks.wide_resnet import WideResNet
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import Purifier

UNVERIFIED = "unverified: from memory, the paper's table was not read"
"""Note of figures whose source was not read."""
AUTHORS_LATER = "evaluated later by others"
"""Note of figures that are not the authors' own."""

T = TypeVar("T")


def lee_kim_pgd(ball: Ball, *, n_steps: int = 200) -> PGD:
    """Lee and Kim's PGD on the mean gradient of 20 draws: steps of 0.007, from the image itself, on the cross entropy.

    It makes 200 steps on CIFAR-10, 20 on ImageNet. In l2 their step is 0.007 in the sign of every pixel's gradient;
    here it is the default of `PGD` along the gradient.
    """
    size = 0.007 if ball.norm == "linf" else None
    return PGD(ball, n_steps=n_steps, step_size=size, eot=20, loss=cross_entropy, random_start=False)


def blind_apgd(ball: Ball) -> APGD:
    """APGD on the bare classifier."""
    return APGD(ball, common=0)


class Images(NamedTuple):
    """The images that a paper reports on.

    Attributes:
        file: what the study is given.
        name: of the data.
        n_classes: their classes.
        size: height and width in pixels.
        draw: from a number of images to their positions; None: the first ones.
        options: of reading them (see `depura.load_images`).
        denoised: height and width that the denoiser takes, where they differ.
    """

    file: NeededFile
    name: str
    n_classes: int
    size: int
    draw: Callable[[int], Sequence[int]] | None
    options: Mapping[str, Any] = {}
    denoised: int | None = None

    def load(self, path: Path | None, images: int) -> ImageSet:
        """The first so many of them, as published; without a path their shape alone, all of class 0."""
        rows = None if self.draw is None else self.draw(images)
        if path is not None:
            return load_images(path, rows=rows, images=images, **self.options)
        ids = tuple(range(images) if rows is None else rows)
        pixels = torch.empty(len(ids), 3, self.size, self.size, device="meta")
        classes = tuple(str(k) for k in range(self.n_classes))
        return ImageSet(self.name, pixels, torch.zeros(len(ids), dtype=torch.int64), ids, classes)

    def around(self, purifier: Purifier) -> Purifier:
        """The purifier at the size that the denoiser takes."""
        return purifier if self.denoised is None else Resized(purifier, size=self.denoised)


class Network(NamedTuple):
    """A network of a published row.

    Attributes:
        needed: what the study is given.
        shape: makes it without weights, on the meta device.
        load: makes it from what is given.
        library: the name by which a library has it ("" if it has to be given); None for one that is in a file.
    """

    needed: NeededFile
    shape: Callable[[], Any]
    load: Callable[[Any], Any]
    library: str | None = None

    def ready(self, given: str | Path | None, *, planned: bool = False) -> Any:
        """The network, or its shape.

        Args:
            given: its file or its name; None for the shape of one in a file, and for the library's own.
            planned: whether only a plan is wanted: then no library is asked.

        Returns:
            A denoiser in [-1, 1] units, or a classifier of images in [0, 1].
        """
        if self.library is not None:
            return self.shape() if planned else self.load(given or self.library)
        return self.shape() if given is None else self.load(given)


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's table.

    Attributes:
        images: what it reports on.
        denoiser: of the purifier.
        classifier: behind it.
        threat: norm and radius.
        published: the figures of the authors and of others.
        setting: the purifier's, as the paper's study reads it.
        attack: the adaptive attack.
        blind: the attack on the bare classifier.
    """

    images: Images
    denoiser: Network
    classifier: Network
    threat: Threat
    published: tuple[Published, ...]
    setting: Any = None
    attack: Callable[[Any], Attack] = lee_kim_pgd
    blind: Callable[[Any], Attack] = blind_apgd

    def networks(self, denoiser: Path | None, classifier: str | None) -> tuple[Any, Any]:
        """Denoiser and classifier from files, or names in a library; without the denoiser's file, their shapes."""
        return self.denoiser.ready(denoiser), self.classifier.ready(classifier, planned=denoiser is None)

    def study(
        self,
        name: str,
        defence: Defence,
        *,
        data: Path | None,
        images: int,
        seed: int,
        relaxed: float | None = None,
        further: tuple[AttackRun, ...] = (),
        files: tuple[NeededFile, ...] = (),
    ) -> Study:
        """The study of the row.

        Args:
            name: of the study.
            defence: what is judged.
            data: the images; None to plan.
            images: how many.
            seed: of all noise.
            relaxed: width of the smoothed sign, where the exact gradient is zero.
            further: rows besides the usual ones.
            files: that are needed besides images, denoiser and classifier.

        Returns:
            The study.
        """
        return Study(
            name=name,
            data=self.images.load(data, images),
            defence=defence,
            rows=(
                *attack_suite(defence, self.attack(self.threat), blind=self.blind(self.threat), relaxed=relaxed),
                *further,
            ),
            seed=seed,
            published=self.published,
            files=(self.images.file, self.denoiser.needed, self.classifier.needed, *files),
        )


def chosen(rows: Mapping[str, T], row: str) -> T:
    """The row of a paper by its name; an `InputError` where there is none of this name."""
    if row not in rows:
        _check.fail("-S row", f"one of {', '.join(rows)}", repr(row))
    return rows[row]


def published(parameter: str, name: str, **options: Any) -> Network:
    """The network of a published file: of a denoiser, classifier or guide, which the study's parameter is called by.

    The name is one of `depura.models.checkpoints.PUBLISHED`; options are of loading a denoiser, as
    learned_variance=True.
    """
    file = PUBLISHED[name]
    needed = NeededFile(parameter, file.file, file.address, file.licence, file.note)
    loads: dict[str, Callable[[Any], Any]] = {
        "denoiser": partial(load_denoiser, **options),
        "classifier": partial(load_classifier, like=name),
        "guide": load_classifier,
    }
    return Network(needed, partial(file.build, device="meta", **options), loads[parameter])


def of_library(name: str, licence: str = "BSD-3-Clause (library); weights trained on ImageNet") -> Network:
    """A classifier of ImageNet that another library fetches, as torchvision:resnet50; in a plan it costs nothing."""
    library = name.partition(":")[0]
    address = {"torchvision": "pytorch/vision", "timm": "huggingface/pytorch-image-models"}[library]
    note = f"needs depura[{library}]; {_UNCOUNTED}"
    needed = NeededFile("classifier", name, f"https://github.com/{address}", licence, note)
    return Network(needed, lambda: uncounted, by_name, name)


def uncounted(images: Tensor) -> Tensor:
    """Stands for a classifier of a thousand classes in a plan: gives their number of logits, at no cost."""
    return images.mean((2, 3)).repeat(1, 334)[:, :1000]


def _lee_kim(n: int, images: int) -> tuple[int, ...]:
    """Lee and Kim's draw of 512 images of n; the first so many of them."""
    return subset(n, 512)[:images]


def _diffpure(n: int, at_once: int, draws: int, images: int) -> tuple[int, ...]:
    """DiffPure's draws of images of n, distinct ones; the first so many of them."""
    return diffpure_subset(n, at_once, seeds=range(draws))[:images]


def _cifar100_classifier() -> WideResNet:
    with torch.device("meta"):
        return WideResNet(n_classes=100)


_UNCOUNTED = "a plan without a denoiser's file leaves its cost out"
_CIFAR = NeededFile(
    "data", "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated", "its test part"
)
CIFAR10 = Images(_CIFAR, "cifar10", 10, 32, partial(_lee_kim, 10_000))
CIFAR100 = CIFAR10._replace(file=_CIFAR._replace(name="cifar-100-python.tar.gz"), name="cifar100", n_classes=100)
IMAGENET = Images(
    NeededFile(
        "data",
        "folder of the validation pictures, one folder for each class",
        "https://image-net.org",
        "ImageNet's terms of access (research)",
        "cut to 224 x 224 pixels when read",
    ),
    "imagenet",
    1000,
    224,
    partial(_lee_kim, 50_000),
    {"resize": 256, "crop": 224},
    256,
)
DIFFPURE_CIFAR10 = CIFAR10._replace(draw=partial(_diffpure, 10_000, 64, 8))
"""8 draws of 64, 504 distinct images."""
DIFFPURE_IMAGENET = IMAGENET._replace(draw=partial(_diffpure, 50_000, 16, 32))
"""32 draws of 16, 510 distinct images."""
CELEBA_HQ = Images(
    NeededFile(
        "data",
        "CelebA-HQ pictures of 256 x 256 pixels with their table of attributes",
        "https://github.com/tkarras/progressive_growing_of_gans",
        "CelebA's terms (research)",
    ),
    "celeba-hq",
    2,
    256,
    None,
    {"labels": "Eyeglasses"},
)

SCORE_SDE = published("denoiser", "score-sde-cifar10")
ADM = published("denoiser", "adm-imagenet256")
WRN28 = published("classifier", "wrn-28-10")
RESNET50 = of_library("torchvision:resnet50")
CIFAR100_DENOISER = published("denoiser", "edm-cifar10-uncond-vp")._replace(
    needed=NeededFile(
        "denoiser",
        "a denoiser of CIFAR-100",
        "none",
        "",
        "none is public; train one (depura train denoiser) or fine-tune EDM's for CIFAR-10, "
        "whose shape is planned with",
    )
)
CIFAR100_CLASSIFIER = Network(
    NeededFile("classifier", "a WideResNet-28-10 of CIFAR-100", "none", "", "the authors' is not public; train one"),
    _cifar100_classifier,
    load_classifier,
)
ROBUST = published("guide", "dmwrn-28-10")
"""An adversarially trained network of RobustBench in DeepMind's layout, for guidance."""
IMAGENET_ROBUST = Network(
    NeededFile(
        "guide",
        "MODULE:FUNCTION of an adversarially trained classifier",
        "https://github.com/RobustBench/robustbench",
        "of each entry",
        _UNCOUNTED,
    ),
    lambda: uncounted,
    by_name,
    "",
)
