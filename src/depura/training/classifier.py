"""Training a classifier: cross-entropy on images moved by a few pixels, and networks for it by name."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.data.imageset import ImageSet
from depura.defence import predicted
from depura.models.networks.resnet import CifarResNet
from depura.models.networks.small import SmallClassifier
from depura.models.networks.vit import SmallViT
from depura.models.networks.wide_resnet import WideResNet
from depura.models.networks.wrappers import Normalised
from depura.models.weights import read_safetensors
from depura.noise import Noise
from depura.records.describe import weights_sha256
from depura.training.loop import Fitted, Progress, Recipe, Watch, evaluating, quick, seeded, train
from depura.training.mixture import Mixture, augmented

AT_ONCE = 256
"""Images put through a network together when accuracy is measured."""

NETWORKS = "small, resnetD with D = 6 n + 2, wrn-D-W with D = 6 n + 4, vit or vit-D-W with W = 4 n"
"""What classifiers may be called."""

HEADS = 4
"""Heads of the attention of a Vision Transformer that is called by name."""


class Model(NamedTuple):
    """A classifier to be trained.

    Attributes:
        network: takes images in [0, 1], gives logits.
        weights: the module whose weights are its file.
        about: what the weight file says about itself.
    """

    network: nn.Module
    weights: nn.Module
    about: dict[str, object]


def model(name: str, data: Mixture, *, seed: int) -> Model:
    """A classifier by name, with random weights.

    Args:
        name: `small`; `resnet20` or another depth 6 n + 2 (He et al. 2016, section 4.2); `wrn-16-4` or another depth
            6 n + 4 and width (Zagoruyko and Komodakis 2016); `vit`, which is `vit-6-96`, or another depth and width
            divisible by 4, the number of heads (Dosovitskiy et al. 2021): its images are square, its patches are 4x4
            pixels, and 2x2 in images smaller than 16x16. All but `small` normalise by the mean and deviation of the
            first source's channels.
        data: what it will be trained on.
        seed: of the weights.

    Returns:
        The classifier.

    Raises:
        InputError: another name, depth or width, or images that a Vision Transformer cannot cut into patches.
    """
    channels, height, width = data.images.shape[1:]
    if name == "small":
        architecture = {"channels": channels, "classes": data.n_classes, "width": 24}
        network = seeded(lambda: SmallClassifier(**architecture), seed)
        return Model(network, network, {"architecture": architecture})
    settings: dict[str, Any] = {"n_classes": data.n_classes, "channels": channels}
    build: Callable[..., nn.Module]
    if (match := re.fullmatch(r"resnet(\d+)", name)) and (depth := int(match[1])) % 6 == 2 and depth > 2:
        family, build = "cifar-resnet", CifarResNet
        settings |= {"n_blocks": (depth - 2) // 6}
    elif (match := re.fullmatch(r"wrn-(\d+)-(\d+)", name)) and int(match[1]) % 6 == 4 and int(match[1]) > 4:
        family, build = "wide-resnet", WideResNet
        settings |= {"depth": int(match[1]), "width": int(match[2])}
    elif (match := re.fullmatch(r"vit(?:-(\d+)-(\d+))?", name)) and (match[1] is None or _is_vit(*match.groups())):
        if height != width:
            _check.fail("--network", f"square images for {name}", f"{height}x{width}", "Crop or resize them.")
        family, build = "vit", SmallViT
        settings |= {"image_size": height, "patch": 4 if height >= 16 else 2}
        settings |= {"depth": int(match[1] or 6), "width": int(match[2] or 96), "heads": HEADS}
    else:
        _check.fail("--network", f"{NETWORKS}, or MODULE:FUNCTION", repr(name))
    first = data.images[: data.sizes[0]].double()
    options = {
        "mean": [round(float(m), 4) for m in first.mean((0, 2, 3))],
        "std": [round(float(s), 4) for s in first.std((0, 2, 3))],
    }
    inner = seeded(lambda: build(**settings), seed)
    about: dict[str, object] = {"family": family, "settings": settings, "options": options}
    return Model(Normalised(inner, mean=options["mean"], std=options["std"]), inner, about)


def begun(start: Model, path: Path) -> Model:
    """A classifier with the weights of a file, to be trained further.

    Args:
        start: the classifier.
        path: a safetensors file that a classifier of this kind was saved to.

    Returns:
        The classifier, whose file will say what it began with.

    Raises:
        InputError: no such file, or one of another network.
    """
    stored, _ = read_safetensors(path)
    have = {name: tuple(tensor.shape) for name, tensor in start.weights.state_dict().items()}
    if {name: tuple(tensor.shape) for name, tensor in stored.items()} != have:
        _check.fail("--start", "weights of the network that --network names", f"others in {path.name}")
    start.weights.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    return start._replace(about={**start.about, "start": weights_sha256(start.weights)})


def _is_vit(depth: str, width: str) -> bool:
    """Whether a Vision Transformer may have this depth and width."""
    return int(depth) > 0 and int(width) > 0 and int(width) % HEADS == 0


@dataclass(frozen=True)
class Augmenting(ABC):
    """What losses of classifiers share: a network, and how images are moved before it sees them.

    Attributes:
        network: takes images in [0, 1], gives logits (B, K).
        shift: most pixels that images are moved by, in each direction (zero padding).
        flip: mirror every second image.
    """

    network: nn.Module = field(repr=False)
    _: KW_ONLY
    shift: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        _check.integer(type(self).__name__, "shift", self.shift, low=0)

    def moved(self, images: Tensor, noise: Noise) -> Tensor:
        """The images of a batch as the network sees them."""
        return augmented(images, noise, shift=self.shift, flip=self.flip)

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Loss of a batch, see `depura.training.loop.Loss`."""


@dataclass(frozen=True)
class ShiftedCrossEntropy(Augmenting):
    """Cross-entropy of a network on moved images."""

    def __call__(self, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Loss of a batch, see `depura.training.loop.Loss`."""
        return F.cross_entropy(self.network(self.moved(images, noise)), labels)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share, in [0, 1], of images (N, C, H, W) in [0, 1] whose label (N,) the network predicts."""
    classes = torch.cat([predicted(network(images[k : k + AT_ONCE])) for k in range(0, len(images), AT_ONCE)])
    return float((classes == labels).double().mean())


def train_classifier(
    data: ImageSet | Mixture,
    recipe: Recipe,
    *,
    start: Model | None = None,
    loss: Callable[[nn.Module], Augmenting] = ShiftedCrossEntropy,
    bfloat16: bool = False,
    checkpoint: Path | None = None,
    every: int = 500,
    progress: Progress | None = None,
    watch: Watch | None = None,
    device: str = "cpu",
) -> Fitted[nn.Module]:
    """Train a classifier, plainly or robustly.

    Args:
        data: training images.
        recipe: how.
        start: to be trained in place; default a `SmallClassifier`.
        loss: makes the loss of a network, such as `functools.partial(Trades, eps=8 / 255)`, `AdversarialTraining` or
            `ShiftedCrossEntropy`. A checkpoint is recognised by the loss's `repr`.
        bfloat16: run the network in it where it is safe, in the attacks of losses too; weights and losses are float32.
        checkpoint: file to save to and go on from.
        every: steps between checkpoints.
        progress: called after each step.
        watch: measures the averaged weights at checkpoints.
        device: where to train.

    Returns:
        The classifier, and what is to be known of it.

    Raises:
        InputError: the network gives something other than enough logits.
    """
    mixture = data if isinstance(data, Mixture) else Mixture.of([data])
    classes = mixture.n_classes
    chosen = model("small", mixture, seed=recipe.seed) if start is None else start
    with torch.no_grad(), evaluating(chosen.network):
        logits = chosen.network(mixture.images[:1])
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < classes:
        got = f"shape {tuple(logits.shape)} for one image" if isinstance(logits, Tensor) else type(logits).__name__
        _check.fail("train_classifier", f"a network that gives logits (B, K) of at least {classes} classes", got)
    objective = loss(quick(chosen.network, bfloat16=bfloat16, compiled=False))
    began = f", {chosen.about['start']}" if "start" in chosen.about else ""
    history = train(
        chosen.network,
        objective,
        mixture,
        recipe,
        about=f"{objective!r}, {bfloat16=}, {mixture.sizes}, {mixture.weights}" + began,
        checkpoint=checkpoint,
        every=every,
        progress=progress,
        watch=watch,
        device=device,
    )
    return Fitted(chosen.network, chosen.weights, {**chosen.about, "loss": repr(objective)}, history)
