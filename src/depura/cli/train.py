"""Commands that train the small networks."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from depura import _check
from depura.cli.doors import door, one_thread, out, progress
from depura.data.digits import load_digits
from depura.data.imageset import ImageSet, load_npz
from depura.training.card import write_card
from depura.training.classifier import accuracy, train_classifier
from depura.training.denoiser import denoising_error, train_denoiser
from depura.training.loop import Progress, Recipe, save_weights

app = typer.Typer(
    no_args_is_help=True, help="Train a small denoiser or classifier on the digits or on data of your own."
)

DIGITS = "digits"
LEVELS = (0.1, 0.2, 0.3, 0.5, 0.8)
"""Noise levels at which a denoiser's error is measured."""

Out = Annotated[Path, typer.Option("--out", help="Folder for the weights and their card.")]
Data = Annotated[str, typer.Option(help="'digits', or an NPZ file with arrays image and label.")]
Test = Annotated[Path | None, typer.Option(help="NPZ file to measure on (the digits have their own test images).")]
Steps = Annotated[int, typer.Option(help="Gradient steps.")]
Batch = Annotated[int, typer.Option(help="Images per step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, batches and noise.")]


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
) -> None:
    """Train a small EDM-style U-Net denoiser. Interrupted, the same command goes on."""
    recipe = Recipe(n_steps=steps, batch=batch, rate=rate, seed=seed)

    def fit(images: ImageSet, checkpoint: Path, told: Progress) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        made, about = train_denoiser(images, recipe, checkpoint=checkpoint, progress=told)
        assert isinstance(made.network, nn.Module)
        return made, made.network, about

    def measure(made: nn.Module, images: ImageSet) -> dict[str, str]:
        return {
            f"root mean square error at sigma {sigma:g}": f"{denoising_error(made, images.images, sigma=sigma):.4f}"
            for sigma in LEVELS
        }

    _train("denoiser", "EDM-style U-Net denoiser", to, data, test, recipe, fit, measure)


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
) -> None:
    """Train a small convolutional classifier. Interrupted, the same command goes on."""
    recipe = Recipe(n_steps=steps, batch=batch, rate=rate, seed=seed)

    def fit(images: ImageSet, checkpoint: Path, told: Progress) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        made, about = train_classifier(images, recipe, checkpoint=checkpoint, progress=told)
        return made, made, about

    def measure(made: nn.Module, images: ImageSet) -> dict[str, str]:
        return {"accuracy": f"{100 * accuracy(made, images.images, images.labels):.2f} %"}

    _train("classifier", "small convolutional classifier", to, data, test, recipe, fit, measure)


def _train(
    kind: str,
    title: str,
    to: Path,
    data: str,
    test: Path | None,
    recipe: Recipe,
    fit: Callable[[ImageSet, Path, Progress], tuple[nn.Module, nn.Module, dict[str, Any]]],
    measure: Callable[[nn.Module, ImageSet], dict[str, str]],
) -> None:
    """Train, save the weights, measure, and write the card."""
    one_thread()
    _check.writable_folder("train", to)
    if data == DIGITS:
        images, held_out = load_digits("train"), load_digits("test")
    else:
        images, held_out = load_npz(data), None
        if images.images.shape[2] % 2 or images.images.shape[3] % 2:
            _check.fail(
                "train", "images of even height and width", f"{tuple(images.images.shape[2:])}", "Pad or crop them."
            )
    held_out = held_out if test is None else load_npz(test)
    name = f"{DIGITS if data == DIGITS else Path(data).stem}-{kind}"
    checkpoint = to / f"{name}.checkpoint.safetensors"
    with progress() as bar:
        task = bar.add_task(f"training {name}", total=recipe.n_steps)

        def told(step: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"training {name}, loss {loss:.3f}")

        made, network, about = fit(images, checkpoint, told)
    weights = to / f"{name}.safetensors"
    sha256 = save_weights(network, weights, about)
    measured = {f"{k}, {images.name}": v for k, v in measure(made, images).items()}
    if held_out is not None:
        measured |= {f"{k}, {held_out.name}": v for k, v in measure(made, held_out).items()}
    options = {"data": data, "steps": recipe.n_steps, "batch": recipe.batch, "rate": recipe.rate, "seed": recipe.seed}
    words = ["depura", "train", kind, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    write_card(
        to / f"{name}.md",
        title=f"{name}: {title}",
        data=images,
        recipe=recipe,
        command=shlex.join([*words, "--out", "DIR"]),
        parameters=sum(p.numel() for p in network.parameters()),
        sha256=sha256,
        measured=measured,
    )
    checkpoint.unlink(missing_ok=True)
    for key, value in measured.items():
        out.print(f"{key}: {value}", highlight=False)
    out.print(f"wrote {weights} (sha256 {sha256}) and {to / f'{name}.md'}", highlight=False, soft_wrap=True)
