"""What the training commands share: options, sources of images, progress, what is measured, and the model card."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, cast, get_type_hints

import torch
import typer
from torch import Tensor, nn

from depura import _atomic, _check
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
from depura.training.card import write_model_card
from depura.training.classifier import accuracy
from depura.training.denoiser import denoising_error
from depura.training.loop import CONSTANT, COSINE, UNDECIDED, Fitted, Progress, Recipe, Report, save_weights
from depura.training.mixture import Mixture, split_held_out, without_copies
from depura.training.ranks import Ranks, started

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
"""Held-out images that are measured on at every checkpoint."""
SHOWN = 8
"""Images in a picture of samples."""


class Sources(NamedTuple):
    """What a network is trained on and measured with.

    Attributes:
        names: of the data, as they were given.
        train: images of each source.
        mixture: of these.
        held_out: images of the first source that are not trained on.
        test: others to measure on.
    """

    names: tuple[str, ...]
    train: tuple[ImageSet, ...]
    mixture: Mixture
    held_out: ImageSet | None
    test: ImageSet | None


def sources(data: Sequence[str], weights: Sequence[float], test: Path | None, held_out: int) -> Sources:
    """Read what a network is to be trained on.

    Data are 'digits', or files and folders as `load_images` takes them; where there are parts, the training one.
    Weights are relative shares of a batch, one per source; without, every image is as likely as any other. Measured is
    on the file `test` (the digits have a test part), and on the last `held_out` images of the first source, which are
    held out: the same pictures are taken out of the others.
    """
    train = [load_digits("train") if name == DIGITS else load_images(name, split=IfParts("train")) for name in data]
    kept = None
    if held_out:
        first, kept = split_held_out(train[0], held_out)
        train = [first, *(without_copies(other, kept) for other in train[1:])]
    tested = load_digits("test") if [*data] == [DIGITS] else None
    if test is not None:
        tested = load_images(test)
    return Sources(tuple(data), tuple(train), Mixture.of(train, weights or None), kept, tested)


class ScheduleName(str, Enum):
    """How the learning rate falls."""

    cosine = COSINE
    constant = CONSTANT


@dataclass(frozen=True)
class Options:
    """The options that all training commands have; see the help of each."""

    to: Annotated[Path, typer.Option("--out", help="Folder for the weights, their model card and curves.")]
    name: Annotated[
        str,
        typer.Option(help="Stem of the files; default the preset's name, or that of the first --data and the command."),
    ] = ""
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="'digits' (default), or a file or folder of images: NPZ, Parquet, CIFAR as published, class folders. "
            "Give it several times to train on several; the first is the one to serve."
        ),
    ] = None
    weight: Annotated[
        list[float] | None, typer.Option(help="Share of a batch from each --data, in order; default by their sizes.")
    ] = None
    held_out: Annotated[
        int, typer.Option(help="Images of the first --data to hold out (the last ones) and measure on.", min=0)
    ] = 0
    test: Annotated[Path | None, typer.Option(help="File to measure on (the digits have their own test images).")] = (
        None
    )
    steps: Annotated[int | None, typer.Option(help="Gradient steps.")] = None
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Time budget instead: the rate decays over its last quarter. The model card names the steps it gave."
        ),
    ] = None
    schedule: Annotated[
        ScheduleName | None,
        typer.Option(help="Of the learning rate; default cosine, with --minutes and in presets constant-then-decay."),
    ] = None
    batch: Annotated[int | None, typer.Option(help="Images per step.")] = None
    rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and noise.")] = 0
    every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda; default a GPU if there is one. Several: torchrun -m depura train ..."),
    ] = None
    threads: Annotated[int, typer.Option(help="Processor threads; small networks are slower with more.", min=1)] = 1

    def recipe(self, usual: Recipe) -> Recipe:
        """The usual recipe with what was asked for."""
        given: dict[str, Any] = {"n_steps": self.steps, "batch": self.batch, "rate": self.rate, "minutes": self.minutes}
        if self.minutes is not None:
            given = {"n_steps": UNDECIDED, "schedule": CONSTANT} | {k: v for k, v in given.items() if v is not None}
        if self.schedule is not None:
            given["schedule"] = self.schedule.value
        return replace(usual, seed=self.seed, **{k: v for k, v in given.items() if v is not None})


def with_options(options: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command, whose first argument is a set of options, take each of them as an option of its own.

    The fields of `options` are written as parameters of typer are.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = {f.name: f.default for f in fields(options)}
        _, *own = inspect.signature(command).parameters.values()
        hints = get_type_hints(options, include_extras=True) | get_type_hints(command, include_extras=True)
        defaults = {**shared, **{p.name: p.default for p in own}}

        def called(**values: Any) -> None:
            command(options(**{name: values.pop(name) for name in shared}), **values)

        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is MISSING else default,
                annotation=hints[name],
            )
            for name, default in defaults.items()
        ]
        vars(called)["__signature__"] = inspect.Signature(parameters)
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        called.__doc__ = command.__doc__
        return called

    return decorate


class Kept(TypedDict):
    """Where and how often training saves its state, what it calls after each step, and where it computes."""

    checkpoint: Path
    every: int
    progress: Progress
    device: str


@dataclass(frozen=True)
class Kind:
    """One kind of network: how it is trained and measured, and what its model card says.

    Attributes:
        name: of the command.
        title: of the model card.
        fit: trains.
        measure: measures; results by name.
        options: of the command, besides those that all kinds have.
        settings: lines of the model card, by name.
        preset: name of the preset, if any, and of the files then.
        every: steps between checkpoints where it is not said.
    """

    name: str
    title: str
    fit: Callable[[Sources, Recipe, Kept], Fitted[Any]]
    measure: Callable[[Any, ImageSet], dict[str, str]]
    options: Mapping[str, object]
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    preset: str = ""
    every: int = 500


def run(kind: Kind, given: Options, recipe: Recipe) -> None:
    """Train a kind of network by a recipe, save its weights, measure it, and write its model card."""
    torch.set_num_threads(given.threads)
    every = _check.integer("train", "every", kind.every if given.every is None else given.every, low=1)
    _check.writable_folder("train", given.to)
    device = started()
    data = sources(given.data or [DIGITS], given.weight or [], given.test, given.held_out)
    stem = DIGITS if data.names[0] == DIGITS else Path(data.names[0]).stem
    name = given.name or kind.preset or f"{stem}-{kind.name}"
    checkpoint = given.to / f"{name}.checkpoint.safetensors"
    with progress() as bar:
        task = bar.add_task(f"training {name}", total=None)

        def show(report: Report) -> None:
            pace = report.seconds / report.step
            total = report.n_steps if report.n_steps < UNDECIDED else report.step + round(report.left / pace)
            bar.update(task, completed=report.step, total=total, description=f"training {name}, loss {report.loss:.3f}")
            if not out.is_terminal and Ranks.here().first and report.step % every == 0:
                times = f"{duration(report.seconds)}, {duration(report.left)} left"
                out.print(f"step {report.step} of about {total}, loss {report.loss:.4f}, {times}", highlight=False)

        kept = Kept(checkpoint=checkpoint, every=every, progress=show, device=given.device or device)
        fitted = kind.fit(data, recipe, kept)
    if not Ranks.here().first:
        return
    for module in (fitted.model, fitted.weights):
        if isinstance(module, nn.Module):
            module.cpu()
    file, model_card = given.to / f"{name}.safetensors", given.to / f"{name}.md"
    sha256 = save_weights(fitted.weights, file, dict(fitted.about))
    measured: dict[str, str] = {}
    for images, called in ((data.train[0], data.train[0].name), (data.held_out, "held-out"), (data.test, "")):
        if images is not None:
            results = kind.measure(fitted.model, images.first(MOST))
            measured |= {f"{key}, {called or images.name}": value for key, value in results.items()}
    asked: dict[str, object] = {
        "data": data.names,
        **kind.options,
        "steps": fitted.history.n_steps,
        "batch": recipe.batch,
        "rate": recipe.rate,
        "seed": recipe.seed,
        "schedule": recipe.schedule if recipe.schedule != COSINE else None,
        "weight": given.weight or None,
        "held-out": given.held_out or None,
        "threads": None if given.threads == 1 else given.threads,
        "name": given.name,
        "test": given.test,
    }
    words = [word for option, value in asked.items() for word in _words(option, value)]
    write_model_card(
        model_card,
        title=f"{name}: {kind.title}",
        data=data.train,
        weights=data.mixture.weights,
        recipe=recipe,
        history=fitted.history,
        command=shlex.join(["depura", "train", kind.name, *words, "--out", "DIR"]),
        parameters=sum(p.numel() for p in fitted.weights.parameters()),
        sha256=sha256,
        measured=measured,
        settings=kind.settings,
    )
    curve = json.dumps({"seconds": fitted.history.seconds, "curve": fitted.history.curve}, indent=1)
    _atomic.write(given.to / f"{name}.curve.json", f"{curve}\n".encode())
    checkpoint.unlink(missing_ok=True)
    for key, value in measured.items():
        out.print(f"{key}: {value}", highlight=False)
    out.print(f"wrote {file} (sha256 {sha256}) and {model_card}", highlight=False, soft_wrap=True)


def _words(option: str, value: object) -> list[str]:
    """An option as it is written; a list is one that is repeated, True a flag, and None and nothing are left out."""
    if isinstance(value, (list, tuple)):
        return [word for each in cast("list[object]", value) for word in _words(option, each)]
    if value is None or value is True or value == "":
        return [f"--{option}"] if value is True else []
    return [f"--{option}", str(value)]


def denoising(denoiser: Denoiser, images: ImageSet) -> dict[str, str]:
    """Errors of a denoiser at several noise levels."""
    return {
        f"root mean square error at sigma {sigma:g}": f"{denoising_error(denoiser, images.images, sigma=sigma):.4f}"
        for sigma in LEVELS
    }


def classified(denoiser: Denoiser, classifier: Any, images: ImageSet) -> dict[str, str]:
    """Accuracy of a classifier on images before purification, and after it from several t*, by name."""
    images = images.first(PURIFIED)
    shares = {"accuracy of the classifier": _share(classifier, images.images, images.labels)}
    for t in DEPTHS:
        purifier = few_steps(denoiser, t_star=t, steps=STEPS)
        clean = _purified(purifier, images)
        shares[f"after purification from t* {t:g} ({STEPS} ancestral steps)"] = _share(classifier, clean, images.labels)
    return shares


def _share(classifier: Any, images: Tensor, labels: Tensor) -> str:
    return f"{100 * accuracy(classifier, images, labels):.1f} %"


@torch.no_grad()
def _purified(purifier: DiffusionPurifier, images: ImageSet, at_once: int = 64) -> Tensor:
    parts = [
        purifier(images.images[k : k + at_once], Noise(0, images.ids[k : k + at_once], stream=Stream.PROBE))
        for k in range(0, len(images.images), at_once)
    ]
    return torch.cat(parts)


def watched(denoiser: Denoiser, report: Report, *, held_out: ImageSet, path: Path) -> dict[str, float]:
    """Held-out errors of a denoiser at a checkpoint; the first process writes a picture of what it does to a PNG file.

    See `depura.training.loop.Watch`.
    """
    device = next(iter(denoiser.parameters())).device if isinstance(denoiser, nn.Module) else "cpu"
    images = held_out.images[:WATCHED].to(device)
    if Ranks.here().first:
        rows = torch.cat([row.cpu() for row in samples(denoiser, images[:SHOWN])], dim=1)
        files.write_all({path: files.encode(rows[None], path)}, where="train")
    return {f"sigma {sigma:g}": denoising_error(denoiser, images, sigma=sigma) for sigma in LEVELS}


@torch.no_grad()
def samples(denoiser: Denoiser, images: Tensor) -> list[Tensor]:
    """Four rows (C, H, N W): images (N, C, H, W) in [0, 1], noised at t* = 0.1, purified from there, and generated."""
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
