"""Commands that train the small networks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
import typer
from torch import nn

from depura import _check
from depura.attacks.ball import Ball
from depura.attacks.pgd import PGD
from depura.cli.doors import door, fraction, one_thread, out, progress
from depura.data.digits import digits_classifier, load_digits
from depura.data.imageset import ImageSet, load_npz
from depura.demo import EPS
from depura.denoisers import EdmDenoiser
from depura.models import named
from depura.noise import Noise, Stream
from depura.training.card import write_card
from depura.training.classifier import AT_ONCE, ShiftedCrossEntropy, accuracy, train_classifier
from depura.training.denoiser import denoising_error, train_denoiser
from depura.training.guide import AdversarialTraining, Trades, train_guide
from depura.training.loop import Loss, Progress, Recipe, save_weights, seeded

app = typer.Typer(
    no_args_is_help=True, help="Train a small denoiser, classifier or guide on the digits or on data of your own."
)

DIGITS = "digits"
LEVELS = (0.1, 0.2, 0.3, 0.5, 0.8)
"""Noise levels at which a denoiser's error is measured."""
MEASURED_STEPS = 50
"""Steps of the attack that measures a guide."""

Out = Annotated[Path, typer.Option("--out", help="Folder for the weights and their card.")]
Data = Annotated[str, typer.Option(help="'digits', or an NPZ file with arrays image and label.")]
Test = Annotated[Path | None, typer.Option(help="NPZ file to measure on (the digits have their own test images).")]
Steps = Annotated[int, typer.Option(help="Gradient steps.")]
Batch = Annotated[int, typer.Option(help="Images per step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, batches and noise.")]
Every = Annotated[int, typer.Option(help="Steps between checkpoints.")]


class LossName(str, Enum):
    """What a guide is trained by."""

    trades = "trades"
    at = "at"
    standard = "standard"


class Kept(TypedDict):
    """Where and how often training saves its state, and whom it tells."""

    checkpoint: Path
    every: int
    progress: Progress


Fit = Callable[[ImageSet, Recipe, Kept], tuple[nn.Module, dict[str, Any]]]
"""(images, recipe, where to keep the state) -> what is measured, and what the weight file says about itself."""
Measure = Callable[[Any, ImageSet], dict[str, str]]
"""(what was trained, images) -> results by name."""


@dataclass(frozen=True)
class _Kind:
    """One kind of network: how it is trained and measured, and what its card says.

    Attributes:
        name: of the command, and in file names.
        title: of the card.
        fit: trains.
        measure: measures.
        options: of the command, besides those that all kinds have.
        settings: lines of the card, by name.
    """

    name: str
    title: str
    fit: Fit
    measure: Measure
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    settings: Mapping[str, str] = field(default_factory=dict[str, str])


@app.command("denoiser")
@door
def denoiser(
    to: Out,
    data: Data = DIGITS,
    test: Test = None,
    steps: Steps = 6000,
    batch: Batch = 128,
    rate: Rate = 2e-3,
    seed: Seed = 0,
    every: Every = 500,
    width: Annotated[int, typer.Option(help="Channels at the full resolution, a multiple of 8.")] = 24,
) -> None:
    """Train a small EDM-style U-Net denoiser. Interrupted, the same command goes on."""
    fit = partial(_fit_denoiser, width=width)
    kind = _Kind("denoiser", "EDM-style U-Net denoiser", fit, _denoising, {} if width == 24 else {"width": width})
    _train(kind, to, data, test, Recipe(n_steps=steps, batch=batch, rate=rate, seed=seed), every)


@app.command("classifier")
@door
def classifier(
    to: Out,
    data: Data = DIGITS,
    test: Test = None,
    steps: Steps = 3000,
    batch: Batch = 128,
    rate: Rate = 5e-3,
    seed: Seed = 0,
    every: Every = 500,
) -> None:
    """Train a small convolutional classifier. Interrupted, the same command goes on."""
    kind = _Kind("classifier", "small convolutional classifier", _fit_classifier, _accuracy)
    _train(kind, to, data, test, Recipe(n_steps=steps, batch=batch, rate=rate, seed=seed), every)


@app.command("guide")
@door
def guide(
    to: Out,
    data: Data = DIGITS,
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
    network: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Returns the network to train; default a small classifier."),
    ] = None,
    steps: Steps = 3000,
    batch: Batch = 128,
    rate: Rate = 5e-3,
    seed: Seed = 0,
    every: Every = 100,
) -> None:
    """Train a robust classifier for guidance, by TRADES. Interrupted, the same command goes on."""
    recipe = Recipe(n_steps=steps, batch=batch, rate=rate, seed=seed)
    radius = (EPS if data == DIGITS else 8 / 255) if eps is None else eps
    _check.number("train", "eps", radius, low=0.0, high=1.0, low_open=True, advice="Such as 0.2 or 8/255.")
    inner = {"step_size": step_size, "attack_steps": attack_steps, "noise_up_to": noise_up_to or None}
    for name, value in {"beta": beta, **(inner if loss is LossName.standard else {})}.items():
        if value is not None and loss is not LossName.trades:
            _check.fail(
                f"--{name.replace('_', '-')}", "an option of the chosen loss", f"--loss {loss.value}", "Drop it."
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
    make = partial(_LOSSES[loss], **attack)
    settings = {"loss": repr(make(nn.Identity()))}
    factory = None
    if network is not None:
        factory = named("--network", network)
        options["network"] = settings["network"] = network

    def fit(images: ImageSet, recipe: Recipe, kept: Kept) -> tuple[nn.Module, dict[str, Any]]:
        given = None if factory is None else seeded(factory, recipe.seed)
        if factory is not None and not isinstance(given, nn.Module):
            _check.fail("--network", "a function that returns a torch.nn.Module", type(given).__name__)
        made, about = train_guide(images, recipe, network=given, loss=make, **kept)
        return made, about | ({} if network is None else {"network": network})

    def measure(made: nn.Module, images: ImageSet) -> dict[str, str]:
        found = {**_accuracy(made, images), **_under_attack(made, images, radius)}
        if data == DIGITS:
            plain = digits_classifier()
            compared = {**_accuracy(plain, images), **_under_attack(plain, images, radius)}
            found |= {f"for comparison, digits-classifier: {key}": value for key, value in compared.items()}
        return found

    _train(
        _Kind("guide", "robust classifier for guidance", fit, measure, options, settings), to, data, test, recipe, every
    )


_LOSSES: Mapping[LossName, Callable[..., Loss]] = {
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
            all_right = torch.stack([network(x).argmax(1) == labels for x in (images, *found.images)]).all(0)
        right += all_right.tolist()
    return sum(right) / len(right)


def _fit_denoiser(images: ImageSet, recipe: Recipe, kept: Kept, *, width: int) -> tuple[nn.Module, dict[str, Any]]:
    if images.images.shape[2] % 2 or images.images.shape[3] % 2:
        _check.fail(
            "train", "images of even height and width", f"{tuple(images.images.shape[2:])}", "Pad or crop them."
        )
    return train_denoiser(images, recipe, width=width, **kept)


def _fit_classifier(images: ImageSet, recipe: Recipe, kept: Kept) -> tuple[nn.Module, dict[str, Any]]:
    return train_classifier(images, recipe, **kept)


def _denoising(made: Any, images: ImageSet) -> dict[str, str]:
    return {
        f"root mean square error at sigma {sigma:g}": f"{denoising_error(made, images.images, sigma=sigma):.4f}"
        for sigma in LEVELS
    }


def _accuracy(made: nn.Module, images: ImageSet) -> dict[str, str]:
    return {"accuracy": f"{100 * accuracy(made, images.images, images.labels):.2f} %"}


def _under_attack(made: nn.Module, images: ImageSet, eps: float) -> dict[str, str]:
    name = f"accuracy under PGD (linf, eps {eps:.3g}, {MEASURED_STEPS} steps)"
    return {name: f"{100 * accuracy_under_pgd(made, images, eps=eps, n_steps=MEASURED_STEPS):.2f} %"}


def _train(kind: _Kind, to: Path, data: str, test: Path | None, recipe: Recipe, every: int) -> None:
    """Train, save the weights, measure, and write the card."""
    one_thread()
    _check.integer("train", "every", every, low=1)
    _check.writable_folder("train", to)
    images, held_out = (load_digits("train"), load_digits("test")) if data == DIGITS else (load_npz(data), None)
    held_out = held_out if test is None else load_npz(test)
    name = f"{DIGITS if data == DIGITS else Path(data).stem}-{kind.name}"
    checkpoint = to / f"{name}.checkpoint.safetensors"
    with progress() as bar:
        task = bar.add_task(f"training {name}", total=recipe.n_steps)

        def told(step: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"training {name}, loss {loss:.3f}")

        made, about = kind.fit(images, recipe, Kept(checkpoint=checkpoint, every=every, progress=told))
    network = made.network if isinstance(made, EdmDenoiser) else made
    assert isinstance(network, nn.Module)
    weights = to / f"{name}.safetensors"
    sha256 = save_weights(network, weights, about)
    measured = {f"{k}, {images.name}": v for k, v in kind.measure(made, images).items()}
    if held_out is not None:
        measured |= {f"{k}, {held_out.name}": v for k, v in kind.measure(made, held_out).items()}
    options = {"data": data, **kind.options}
    options |= {"steps": recipe.n_steps, "batch": recipe.batch, "rate": recipe.rate, "seed": recipe.seed}
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    write_card(
        to / f"{name}.md",
        title=f"{name}: {kind.title}",
        data=images,
        recipe=recipe,
        command=shlex.join(["depura", "train", kind.name, *words, "--out", "DIR"]),
        parameters=sum(p.numel() for p in network.parameters()),
        sha256=sha256,
        measured=measured,
        settings=kind.settings,
    )
    checkpoint.unlink(missing_ok=True)
    for key, value in measured.items():
        out.print(f"{key}: {value}", highlight=False)
    out.print(f"wrote {weights} (sha256 {sha256}) and {to / f'{name}.md'}", highlight=False, soft_wrap=True)
