"""Commands that train networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from depura import _check
from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball
from depura.cli import training as fitting
from depura.cli.console import door, fraction
from depura.cli.training import Kept, Kind, Sources, Watching
from depura.data.imageset import ImageSet
from depura.diffusion.denoisers import Denoiser
from depura.evaluation.demo import EPS
from depura.models import by_name as models
from depura.models.by_name import DIGITS, named
from depura.models.digits import digits_classifier
from depura.noise import Noise, Stream
from depura.predictions import predicted
from depura.training.classifier import (
    AT_ONCE,
    NETWORKS,
    Augmenting,
    Model,
    ShiftedCrossEntropy,
    accuracy,
    model,
    train_classifier,
)
from depura.training.denoiser import PRESETS, Design, train_denoiser
from depura.training.guide import AdversarialTraining, Trades
from depura.training.loop import CONSTANT, COSINE, UNDECIDED, Fitted, Recipe, seeded
from depura.training.ranks import started

app = typer.Typer(
    no_args_is_help=True, help="Train a denoiser, classifier or guide on the digits or on data of your own."
)

MEASURED_STEPS = 50
"""Steps of the attack that measures a guide."""

Out = Annotated[Path, typer.Option("--out", help="Folder for the weights, their card and curves.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="'digits' (default), or a file or folder of images: NPZ, Parquet, CIFAR as published, class folders. "
        "Give it several times to train on several; the first is the one to serve."
    ),
]
Weight = Annotated[
    list[float] | None, typer.Option(help="Share of a batch from each --data, in order; default by their sizes.")
]
Name = Annotated[
    str, typer.Option(help="Stem of the files; default the preset's name, or that of the first --data and the command.")
]
HeldOut = Annotated[
    int, typer.Option(help="Images of the first --data to keep away (the last ones) and measure on.", min=0)
]
Test = Annotated[Path | None, typer.Option(help="File to measure on (the digits have their own test images).")]
Steps = Annotated[int | None, typer.Option(help="Gradient steps.")]
Minutes = Annotated[
    float | None,
    typer.Option(help="Time budget instead: the rate decays over its last quarter. The card names the steps it gave."),
]
Batch = Annotated[int | None, typer.Option(help="Images per step.")]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, batches and noise.")]
Every = Annotated[int | None, typer.Option(help="Steps between checkpoints.")]
Device = Annotated[
    str | None, typer.Option(help="cpu or cuda; default a GPU if there is one. Several: torchrun -m depura train ...")
]
Threads = Annotated[int, typer.Option(help="Processor threads; small networks are slower with more.", min=1)]


class LossName(str, Enum):
    """What a guide is trained by."""

    trades = "trades"
    at = "at"
    standard = "standard"


class ScheduleName(str, Enum):
    """How the learning rate falls."""

    cosine = COSINE
    constant = CONSTANT


class PresetName(str, Enum):
    """Networks and recipes by name."""

    small = "cifar10-small"
    base = "cifar10-base"


Schedule = Annotated[
    ScheduleName | None,
    typer.Option(help="Of the learning rate; default cosine, with --minutes and in presets constant-then-decay."),
]
Network = Annotated[
    str | None,
    typer.Option(help=f"{NETWORKS}, or MODULE:FUNCTION that returns a network of your own; default small."),
]
Shift = Annotated[int | None, typer.Option(help="Move images by up to so many pixels; default 1.")]
Flip = Annotated[bool, typer.Option("--flip", help="Mirror every second image.")]
Bf16 = Annotated[bool, typer.Option("--bfloat16", help="Run the network in bfloat16; weights and losses stay float32.")]


@app.command("denoiser")
@door
def denoiser(
    to: Out,
    name: Name = "",
    data: Data = None,
    weight: Weight = None,
    held_out: HeldOut = 0,
    test: Test = None,
    preset: Annotated[
        PresetName | None,
        typer.Option(
            help="Network and recipe; default a small one. "
            + " ".join(f"{name}: {its.about}." for name, its in PRESETS.items())
        ),
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Measure what it makes of purified images too, at several t*.")
    ] = None,
    steps: Steps = None,
    minutes: Minutes = None,
    schedule: Schedule = None,
    batch: Batch = None,
    rate: Rate = None,
    seed: Seed = 0,
    every: Every = None,
    width: Annotated[
        int | None,
        typer.Option(help="Channels at the full resolution without --preset, a multiple of 8; default 24."),
    ] = None,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Train an EDM-style U-Net denoiser. Interrupted, the same command goes on."""
    if preset is not None and width is not None:
        _check.fail("--width", "no --preset, which has a network of its own", preset.value, "Drop one of them.")
    design, usual, called = Design(width=24 if width is None else width), Recipe(6000, rate=2e-3), ""
    options: dict[str, object] = {} if width in (None, 24) else {"width": width}
    if preset is not None:
        design, usual, _ = PRESETS[preset.value]
        called = options["preset"] = preset.value
        if steps is None and minutes is None:
            _check.fail("train", "--steps or --minutes with a preset", "neither", "Say how long to train.")
    recipe = _recipe(usual, steps=steps, minutes=minutes, schedule=schedule, batch=batch, rate=rate, seed=seed)
    options |= {} if classifier is None else {"classifier": classifier}
    judge = None if classifier is None else models.classifier(classifier, where="--classifier")
    path = to / f"{name or called or 'denoiser'}.samples.png"

    def fit(given: Sources, recipe: Recipe, kept: Kept) -> Fitted[Denoiser]:
        watching = None if given.held_out is None else Watching(given.held_out, path)
        return train_denoiser(given.mixture, recipe, design=design, watch=watching, **kept)

    def measure(made: Any, images: ImageSet) -> dict[str, str]:
        found = fitting.denoising(made, images)
        return found if judge is None else {**found, **fitting.classified(made, judge, images)}

    kind = Kind("denoiser", "EDM-style U-Net denoiser", fit, measure, options, called=name or called)
    _train(kind, to, data, weight, held_out, test, recipe, 500 if every is None else every, device, threads)


@app.command("classifier")
@door
def classifier(
    to: Out,
    name: Name = "",
    data: Data = None,
    weight: Weight = None,
    held_out: HeldOut = 0,
    test: Test = None,
    network: Network = None,
    shift: Shift = None,
    flip: Flip = False,
    bfloat16: Bf16 = False,
    steps: Steps = None,
    minutes: Minutes = None,
    schedule: Schedule = None,
    batch: Batch = None,
    rate: Rate = None,
    seed: Seed = 0,
    every: Every = None,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Train a classifier. Interrupted, the same command goes on."""
    recipe = _recipe(
        Recipe(3000, rate=5e-3), steps=steps, minutes=minutes, schedule=schedule, batch=batch, rate=rate, seed=seed
    )
    moved, options = _moved(shift, flip, bfloat16)
    make = partial(ShiftedCrossEntropy, **moved)
    kind = Kind(
        "classifier",
        "classifier" if network else "small convolutional classifier",
        partial(_fit_classifier, network=network, loss=make, bfloat16=bfloat16),
        _accuracy,
        {**({"network": network} if network else {}), **options},
        called=name,
    )
    _train(kind, to, data, weight, held_out, test, recipe, 500 if every is None else every, device, threads)


@app.command("guide")
@door
def guide(
    to: Out,
    name: Name = "",
    data: Data = None,
    weight: Weight = None,
    held_out: HeldOut = 0,
    test: Test = None,
    loss: Annotated[
        LossName, typer.Option(help="TRADES, adversarial training (Madry et al.), or plain cross-entropy.")
    ] = LossName.trades,
    eps: Annotated[
        float | None,
        typer.Option(parser=fraction, help="linf radius in [0, 1] units; default 0.2 for the digits, else 8/255."),
    ] = None,
    step_size: Annotated[
        float | None, typer.Option(parser=fraction, help="Step of the inner attack; default a quarter of eps.")
    ] = None,
    attack_steps: Annotated[int | None, typer.Option(help="Steps of the inner attack; default 10.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of TRADES' divergence; default 6.")] = None,
    noise_up_to: Annotated[
        float, typer.Option(help="Train on images noised to a random time up to this, for guidance on noised states.")
    ] = 0.0,
    network: Network = None,
    shift: Shift = None,
    flip: Flip = False,
    bfloat16: Bf16 = False,
    steps: Steps = None,
    minutes: Minutes = None,
    schedule: Schedule = None,
    batch: Batch = None,
    rate: Rate = None,
    seed: Seed = 0,
    every: Every = None,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Train a robust classifier for guidance, by TRADES. Interrupted, the same command goes on."""
    recipe = _recipe(
        Recipe(3000, rate=5e-3), steps=steps, minutes=minutes, schedule=schedule, batch=batch, rate=rate, seed=seed
    )
    on_digits = data in (None, [DIGITS])
    radius = (EPS if on_digits else 8 / 255) if eps is None else eps
    _check.number("train", "eps", radius, low=0.0, high=1.0, low_open=True, advice="Such as 0.2 or 8/255.")
    inner = {"step_size": step_size, "attack_steps": attack_steps, "noise_up_to": noise_up_to or None}
    for option, value in {"beta": beta, **(inner if loss is LossName.standard else {})}.items():
        if value is not None and loss is not LossName.trades:
            _check.fail(
                f"--{option.replace('_', '-')}", "an option of the chosen loss", f"--loss {loss.value}", "Drop it."
            )
    options: dict[str, object] = {"loss": loss.value, "eps": radius}
    attack: dict[str, Any] = {}
    if loss is not LossName.standard:
        attack = {
            "eps": radius,
            "step_size": radius / 4 if step_size is None else step_size,
            "n_steps": 10 if attack_steps is None else attack_steps,
            "noise_up_to": noise_up_to,
        }
        options |= {"step-size": attack["step_size"], "attack-steps": attack["n_steps"]}
    if loss is LossName.trades:
        attack["beta"] = 6.0 if beta is None else beta
        options["beta"] = attack["beta"]
    if noise_up_to:
        options["noise-up-to"] = noise_up_to
    moved, more = _moved(shift, flip, bfloat16)
    make = partial(_LOSSES[loss], **attack, **moved)
    settings = {"loss": repr(make(nn.Identity()))}
    if network is not None:
        options["network"] = settings["network"] = network

    def measure(made: nn.Module, images: ImageSet) -> dict[str, str]:
        found = {**_accuracy(made, images), **_under_attack(made, images, radius)}
        if on_digits:
            plain = digits_classifier()
            compared = {**_accuracy(plain, images), **_under_attack(plain, images, radius)}
            found |= {f"for comparison, digits-classifier: {key}": value for key, value in compared.items()}
        return found

    fit = partial(_fit_classifier, network=network, loss=make, bfloat16=bfloat16)
    kind = Kind("guide", "robust classifier for guidance", fit, measure, {**options, **more}, settings, called=name)
    _train(kind, to, data, weight, held_out, test, recipe, 100 if every is None else every, device, threads)


_LOSSES: Mapping[LossName, Callable[..., Augmenting]] = {
    LossName.trades: Trades,
    LossName.at: AdversarialTraining,
    LossName.standard: ShiftedCrossEntropy,
}


def accuracy_under_pgd(network: nn.Module, data: ImageSet, *, eps: float, n_steps: int) -> float:
    """Share of images that are classified correctly as they are and as everything that one run of PGD proposes.

    Args:
        network: takes images in [0, 1], gives logits.
        data: the images, whose ids address the random starts.
        eps: linf radius.
        n_steps: of the attack, on the margin, with steps of 2.5 eps / n_steps.

    Returns:
        In [0, 1].
    """
    attack = PGD(Ball("linf", eps), n_steps=n_steps)
    right: list[bool] = []
    for k in range(0, len(data.images), AT_ONCE):
        images, labels = data.images[k : k + AT_ONCE], data.labels[k : k + AT_ONCE]
        found = attack(network, images, labels, init=Noise(0, data.ids[k : k + AT_ONCE], stream=Stream.INIT))
        with torch.no_grad():
            all_right = torch.stack([predicted(network(x)) == labels for x in (images, *found.images)]).all(0)
        right += all_right.tolist()
    return sum(right) / len(right)


def _recipe(
    usual: Recipe,
    *,
    steps: int | None,
    minutes: float | None,
    schedule: ScheduleName | None,
    batch: int | None,
    rate: float | None,
    seed: int,
) -> Recipe:
    """The usual recipe with what was asked for."""
    asked = {"batch": batch, "rate": rate, "minutes": minutes}
    n_steps = steps if steps is not None else UNDECIDED if minutes is not None else usual.n_steps
    shape = schedule.value if schedule is not None else CONSTANT if minutes is not None else usual.schedule
    given = {name: value for name, value in asked.items() if value is not None}
    return replace(usual, n_steps=n_steps, schedule=shape, seed=seed, **given)


def _moved(shift: int | None, flip: bool, bfloat16: bool) -> tuple[dict[str, Any], dict[str, object]]:
    """How a loss moves images, and the options that say so."""
    options: dict[str, object] = {} if shift is None else {"shift": shift}
    options |= {name: True for name, given in (("flip", flip), ("bfloat16", bfloat16)) if given}
    return {"shift": 1 if shift is None else shift, "flip": flip}, options


def _fit_classifier(
    given: Sources,
    recipe: Recipe,
    kept: Kept,
    *,
    network: str | None,
    loss: Callable[[nn.Module], Augmenting],
    bfloat16: bool,
) -> Fitted[nn.Module]:
    made = None
    if network is not None and ":" in network:
        own = seeded(named("--network", network), recipe.seed)
        if not isinstance(own, nn.Module):
            _check.fail("--network", "a function that returns a torch.nn.Module", type(own).__name__)
        made = Model(own, own, {"network": network})
    elif network is not None:
        made = model(network, given.mixture, seed=recipe.seed)
    return train_classifier(given.mixture, recipe, made=made, loss=loss, bfloat16=bfloat16, **kept)


def _accuracy(made: nn.Module, images: ImageSet) -> dict[str, str]:
    return {"accuracy": f"{100 * accuracy(made, images.images, images.labels):.2f} %"}


def _under_attack(made: nn.Module, images: ImageSet, eps: float) -> dict[str, str]:
    name = f"accuracy under PGD (linf, eps {eps:.3g}, {MEASURED_STEPS} steps)"
    return {name: f"{100 * accuracy_under_pgd(made, images, eps=eps, n_steps=MEASURED_STEPS):.2f} %"}


def _train(
    kind: Kind,
    to: Path,
    data: list[str] | None,
    weight: list[float] | None,
    held_out: int,
    test: Path | None,
    recipe: Recipe,
    every: int,
    device: str | None,
    threads: int,
) -> None:
    """Train, save the weights, measure, and write the card."""
    torch.set_num_threads(threads)
    _check.integer("train", "every", every, low=1)
    _check.writable_folder("train", to)
    own = started()
    given = fitting.sources(data or [DIGITS], weight or [], test, held_out)
    options: dict[str, object] = {"batch": recipe.batch, "rate": recipe.rate, "seed": recipe.seed}
    options |= {"schedule": recipe.schedule if recipe.schedule != COSINE else None}
    options |= {"weight": weight or None, "held-out": held_out or None, "threads": None if threads == 1 else threads}
    options |= {"name": kind.called if kind.called not in PRESETS else None, "test": test}
    fitting.fitted(kind, to, given, recipe, every, device=own if device is None else device, options=options)
