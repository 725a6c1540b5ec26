"""What the training commands share: sources of images, progress, what is measured, and the card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn

from depura import _atomic
from depura.cli.console import duration, out, progress
from depura.data import files
from depura.data.digits import load_digits
from depura.data.imageset import ImageSet
from depura.data.sources import load_images
from depura.data.table import IfParts
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral, from_unit_noise
from depura.methods.diffpure import few_steps
from depura.models.by_name import DIGITS
from depura.noise import Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from depura.training.card import write_card
from depura.training.classifier import accuracy
from depura.training.denoiser import denoising_error
from depura.training.loop import UNDECIDED, Fitted, Progress, Recipe, Report, save_weights
from depura.training.mixture import Mixture, kept_away, without_copies
from depura.training.ranks import Ranks

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 2.0)
"""Noise levels at which a denoiser's error is measured."""
DEPTHS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1)
"""Times t* of DiffPure that a denoiser is measured at before a classifier."""
STEPS = 10
"""Ancestral steps of that measurement."""
MOST = 2000
"""Images of a data set that are measured on, the first ones."""
PURIFIED = 512
"""Of these, how many are purified for a classifier."""
WATCHED = 128
"""Images kept away that are measured on at every checkpoint."""
SHOWN = 8
"""Images in a picture of samples."""


class Sources(NamedTuple):
    """What a network is trained on and measured with.

    Attributes:
        names: of the data, as they were given.
        train: images of each source.
        mixture: of these.
        held_out: images of the first source that were kept away from training.
        test: others to measure on.
    """

    names: tuple[str, ...]
    train: tuple[ImageSet, ...]
    mixture: Mixture
    held_out: ImageSet | None
    test: ImageSet | None


def sources(data: Sequence[str], weights: Sequence[float], test: Path | None, held_out: int) -> Sources:
    """Read what a network is to be trained on.

    Args:
        data: 'digits', or files and folders as `load_images` takes them; where there are parts, the training one.
        weights: relative shares of a batch, one per source; none: every image is as likely as any other.
        test: file to measure on.
        held_out: images of the first source to keep away; the same pictures are taken out of the others.

    Returns:
        The images.
    """
    read = [_training(name) for name in data]
    kept = None
    if held_out:
        first, kept = kept_away(read[0], held_out)
        read = [first, *(without_copies(other, kept) for other in read[1:])]
    tested = load_digits("test") if [*data] == [DIGITS] and test is None else None
    if test is not None:
        tested = load_images(test)
    return Sources(tuple(data), tuple(read), Mixture.of(read, weights or None), kept, tested)


def _training(name: str) -> ImageSet:
    if name == DIGITS:
        return load_digits("train")
    return load_images(name, split=IfParts("train"))


class Kept(TypedDict):
    """Where and how often training saves its state, whom it tells, and where it computes."""

    checkpoint: Path
    every: int
    progress: Progress
    device: str


@dataclass(frozen=True)
class Kind:
    """One kind of network: how it is trained and measured, and what its card says.

    Attributes:
        name: of the command.
        title: of the card.
        fit: trains.
        measure: measures; results by name.
        options: of the command, besides those that all kinds have.
        settings: lines of the card, by name.
        called: stem of the files; default the data's name and the kind's.
    """

    name: str
    title: str
    fit: Callable[[Sources, Recipe, Kept], Fitted[Any]]
    measure: Callable[[Any, ImageSet], dict[str, str]]
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    called: str = ""

    def stem(self, names: Sequence[str]) -> str:
        """Of the files."""
        return self.called or f"{DIGITS if names[0] == DIGITS else Path(names[0]).stem}-{self.name}"


def fitted(
    kind: Kind, to: Path, given: Sources, recipe: Recipe, every: int, *, device: str, options: Mapping[str, object]
) -> None:
    """Train, save the weights, measure, and write the card.

    Args:
        kind: of network.
        to: folder.
        given: images.
        recipe: how.
        every: steps between checkpoints.
        device: where.
        options: of the command, that all kinds have, but for data and steps.
    """
    name = kind.stem(given.names)
    checkpoint = to / f"{name}.checkpoint.safetensors"
    with progress() as bar:
        task = bar.add_task(f"training {name}", total=None)

        def told(report: Report) -> None:
            pace = report.seconds / report.step
            total = report.n_steps if report.n_steps < UNDECIDED else report.step + round(report.left / pace)
            bar.update(task, completed=report.step, total=total, description=f"training {name}, loss {report.loss:.3f}")
            if not out.is_terminal and Ranks.here().first and report.step % every == 0:
                times = f"{duration(report.seconds)}, {duration(report.left)} left"
                out.print(f"step {report.step} of about {total}, loss {report.loss:.4f}, {times}", highlight=False)

        made = kind.fit(given, recipe, Kept(checkpoint=checkpoint, every=every, progress=told, device=device))
    if not Ranks.here().first:
        return
    for module in (made.model, made.weights):
        if isinstance(module, nn.Module):
            module.cpu()
    file = to / f"{name}.safetensors"
    sha256 = save_weights(made.weights, file, dict(made.about))
    measured: dict[str, str] = {}
    for images, called in ((given.train[0], given.train[0].name), (given.held_out, "kept away"), (given.test, "")):
        if images is not None:
            found = kind.measure(made.model, images.first(MOST))
            measured |= {f"{key}, {called or images.name}": value for key, value in found.items()}
    said = {"data": given.names, **kind.options, "steps": made.story.n_steps, **options}
    words = [word for option, value in said.items() for word in _words(option, value)]
    write_card(
        to / f"{name}.md",
        title=f"{name}: {kind.title}",
        data=given.train,
        weights=given.mixture.weights,
        recipe=recipe,
        story=made.story,
        command=shlex.join(["depura", "train", kind.name, *words, "--out", "DIR"]),
        parameters=sum(p.numel() for p in made.weights.parameters()),
        sha256=sha256,
        measured=measured,
        settings=kind.settings,
    )
    curve = json.dumps({"seconds": made.story.seconds, "curve": made.story.curve}, indent=1)
    _atomic.write(to / f"{name}.curve.json", f"{curve}\n".encode())
    checkpoint.unlink(missing_ok=True)
    for key, value in measured.items():
        out.print(f"{key}: {value}", highlight=False)
    out.print(f"wrote {file} (sha256 {sha256}) and {to / f'{name}.md'}", highlight=False, soft_wrap=True)


def _words(option: str, value: object) -> list[str]:
    """An option as it is written; a list is one that is repeated, True a flag, and None and nothing are left out."""
    if isinstance(value, (list, tuple)):
        return [word for each in cast("list[object]", value) for word in _words(option, each)]
    if value is None or value is True or value == "":
        return [f"--{option}"] if value is True else []
    return [f"--{option}", str(value)]


def denoising(made: Denoiser, images: ImageSet) -> dict[str, str]:
    """Errors of a denoiser at several noise levels."""
    return {
        f"root mean square error at sigma {sigma:g}": f"{denoising_error(made, images.images, sigma=sigma):.4f}"
        for sigma in LEVELS
    }


def classified(made: Denoiser, classifier: Any, images: ImageSet) -> dict[str, str]:
    """What a classifier makes of images before purification, and after it at several t*.

    Args:
        made: the denoiser.
        classifier: images in [0, 1] to logits.
        images: the images.

    Returns:
        Shares by name.
    """
    images = images.first(PURIFIED)
    found = {"accuracy of the classifier": _share(classifier, images.images, images.labels)}
    for t in DEPTHS:
        purifier = few_steps(made, t_star=t, steps=STEPS)
        clean = _purified(purifier, images)
        found[f"after purification from t* {t:g} ({STEPS} ancestral steps)"] = _share(classifier, clean, images.labels)
    return found


def _share(classifier: Any, images: Tensor, labels: Tensor) -> str:
    return f"{100 * accuracy(classifier, images, labels):.1f} %"


@torch.no_grad()
def _purified(purifier: DiffusionPurifier, images: ImageSet, at_once: int = 64) -> Tensor:
    parts = [
        purifier(images.images[k : k + at_once], Noise(0, images.ids[k : k + at_once], stream=Stream.PROBE))
        for k in range(0, len(images.images), at_once)
    ]
    return torch.cat(parts)


class Watching:
    """Held-out errors of a denoiser at every checkpoint, and a picture of what it does."""

    def __init__(self, held_out: ImageSet, path: Path) -> None:
        """Set up.

        Args:
            held_out: images kept away.
            path: PNG file to write.
        """
        self.held_out = held_out
        self.path = path

    def __call__(self, denoiser: Denoiser, report: Report) -> dict[str, float]:
        """Measure; see `depura.training.loop.Watch`."""
        device = next(iter(denoiser.parameters())).device if isinstance(denoiser, nn.Module) else "cpu"
        images = self.held_out.images[:WATCHED].to(device)
        if Ranks.here().first:
            shown = torch.cat([row.cpu() for row in samples(denoiser, images[:SHOWN])], dim=1)
            files.write_all({self.path: files.encode(shown[None], self.path)}, where="train")
        return {f"sigma {sigma:g}": denoising_error(denoiser, images, sigma=sigma) for sigma in LEVELS}


@torch.no_grad()
def samples(denoiser: Denoiser, images: Tensor) -> list[Tensor]:
    """Rows of pictures: images, noised at t* = 0.1, purified from there, and made from pure noise.

    Args:
        denoiser: any.
        images: (N, C, H, W) in [0, 1].

    Returns:
        Four pictures (C, H, N W).
    """
    noise = Noise(0, tuple(range(len(images))), stream=Stream.PROBE)
    purifier = few_steps(denoiser, t_star=0.1, steps=STEPS)
    painter = DiffusionPurifier(
        denoiser,
        steps=uniform_steps(VP(), t_start=1.0, n_steps=8 * STEPS, t_end=0.0),
        solver=Ancestral(),
        start=from_unit_noise,
    )
    first = purifier.steps[0]
    noised = first.scale * purifier.start(2 * images - 1, first, noise)
    rows = [images, (noised + 1) / 2, purifier(images, noise), painter(images, noise)]
    return [torch.cat(list(row.clamp(0, 1)), dim=2) for row in rows]
