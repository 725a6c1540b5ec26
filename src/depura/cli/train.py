"""Commands that train networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from depura import _check
from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball
from depura.cli.console import door, fraction
from depura.cli.training import Kept, Kind, Options, Sources, classified, denoising, run, watched, with_options
from depura.data.imageset import ImageSet
from depura.defence import predicted
from depura.diffusion.denoisers import Denoiser
from depura.evaluation.demo import EPS
from depura.models import by_name as models
from depura.models.by_name import DIGITS, named
from depura.models.digits import digits_classifier
from depura.noise import Noise, Stream
from depura.training.classifier import (
    AT_ONCE,
    NETWORKS,
    Augmenting,
    Model,
    ShiftedCrossEntropy,
    accuracy,
    begun,
    model,
    train_classifier,
)
from depura.training.denoiser import PRESETS, Design, train_denoiser
from depura.training.guide import AdversarialTraining, LogitDistance, Trades, noised_to
from depura.training.loop import Fitted, Recipe, seeded

app = typer.Typer(
    no_args_is_help=True, help="Train a denoiser, classifier or guide on the digits or on data of your own."
)

MEASURED_STEPS = 50
"""Steps of the attack that measures a guide."""
MEASURED_BEHIND_NOISE = 512
"""Images of a data set, the first ones, that it is measured on behind noise."""


class LossName(str, Enum):
    """What a guide is trained by."""

    agdm = "agdm"
    trades = "trades"
    at = "at"
    standard = "standard"


class PresetName(str, Enum):
    """Networks and recipes by name."""

    small = "cifar10-small"
    base = "cifar10-base"


@dataclass(frozen=True)
class ClassifierOptions(Options):
    """And those of classifiers."""

    network: Annotated[
        str | None,
        typer.Option(help=f"{NETWORKS}, or MODULE:FUNCTION that returns a network of your own; default small."),
    ] = None
    start: Annotated[
        Path | None, typer.Option(help="Begin with the weights of a safetensors file of this network, not at random.")
    ] = None
    shift: Annotated[int | None, typer.Option(help="Move images by up to so many pixels; default 1.")] = None
    flip: Annotated[bool, typer.Option("--flip", help="Mirror every second image.")] = False
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Run the network in bfloat16; weights and losses stay float32.")
    ] = False

    @property
    def moved(self) -> dict[str, Any]:
        """How a loss moves images."""
        return {"shift": 1 if self.shift is None else self.shift, "flip": self.flip}

    @property
    def words(self) -> dict[str, object]:
        """The options that say so, and whether in bfloat16."""
        start = None if self.start is None else self.start.name
        return {"start": start, "shift": self.shift, "flip": self.flip or None, "bfloat16": self.bfloat16 or None}

    def fit(
        self, data: Sources, recipe: Recipe, kept: Kept, *, loss: Callable[[nn.Module], Augmenting]
    ) -> Fitted[nn.Module]:
        """Train a classifier by a loss."""
        start = None
        if self.network is not None and ":" in self.network:
            network = seeded(named("--network", self.network), recipe.seed)
            if not isinstance(network, nn.Module):
                _check.fail("--network", "a function that returns a torch.nn.Module", type(network).__name__)
            start = Model(network, network, {"network": self.network})
        elif self.network is not None:
            start = model(self.network, data.mixture, seed=recipe.seed)
        if self.start is not None:
            start = begun(start or model("small", data.mixture, seed=recipe.seed), self.start)
        return train_classifier(data.mixture, recipe, start=start, loss=loss, bfloat16=self.bfloat16, **kept)


@app.command("denoiser")
@with_options(Options)
@door
def denoiser(
    given: Options,
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
    width: Annotated[
        int | None, typer.Option(help="Channels at the full resolution without --preset, a multiple of 8; default 24.")
    ] = None,
) -> None:
    """Train an EDM-style U-Net denoiser. Interrupted, the same command goes on."""
    if preset is not None and width is not None:
        _check.fail("--width", "no --preset, which has a network of its own", preset.value, "Drop one of them.")
    design, usual = Design(width=24 if width is None else width), Recipe(6000, rate=2e-3)
    if preset is not None:
        design, usual, _ = PRESETS[preset.value]
        if given.steps is None and given.minutes is None:
            _check.fail("train", "--steps or --minutes with a preset", "neither", "Say how long to train.")
    recipe = given.recipe(usual)
    judge = None if classifier is None else models.classifier(classifier, where="--classifier")
    name = "" if preset is None else preset.value
    path = given.to / f"{given.name or name or 'denoiser'}.samples.png"

    def fit(data: Sources, recipe: Recipe, kept: Kept) -> Fitted[Denoiser]:
        watch = None if data.held_out is None else partial(watched, held_out=data.held_out, path=path)
        return train_denoiser(data.mixture, recipe, design=design, watch=watch, **kept)

    def measure(trained: Any, images: ImageSet) -> dict[str, str]:
        errors = denoising(trained, images)
        return errors if judge is None else {**errors, **classified(trained, judge, images)}

    options = {"width": None if width == 24 else width, "preset": name, "classifier": classifier}
    run(Kind("denoiser", "EDM-style U-Net denoiser", fit, measure, options, preset=name), given, recipe)


@app.command("classifier")
@with_options(ClassifierOptions)
@door
def classifier(given: ClassifierOptions) -> None:
    """Train a classifier. Interrupted, the same command goes on."""
    title = "classifier" if given.network else "small convolutional classifier"
    fit = partial(given.fit, loss=partial(ShiftedCrossEntropy, **given.moved))
    kind = Kind("classifier", title, fit, _accuracy, {"network": given.network, **given.words})
    run(kind, given, given.recipe(Recipe(3000, rate=5e-3)))


@app.command("guide")
@with_options(ClassifierOptions)
@door
def guide(
    given: ClassifierOptions,
    loss: Annotated[
        LossName,
        typer.Option(help="AGDM's (distance of logits), TRADES, adversarial training (Madry), or cross-entropy."),
    ] = LossName.agdm,
    eps: Annotated[
        float | None,
        typer.Option(parser=fraction, help="linf radius in [0, 1] units; default 0.2 for the digits, else 8/255."),
    ] = None,
    step_size: Annotated[
        float | None, typer.Option(parser=fraction, help="Step of the inner attack; default a quarter of eps.")
    ] = None,
    attack_steps: Annotated[int | None, typer.Option(help="Steps of the inner attack; default 10.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the distance of agdm and trades; default 6.")] = None,
    noise_up_to: Annotated[
        float, typer.Option(help="Train on images noised to a random time up to this, for guidance on noised states.")
    ] = 0.0,
) -> None:
    """Train a robust classifier for guidance, by AGDM's objective. Interrupted, the same command goes on."""
    on_digits = given.data in (None, [DIGITS])
    radius = (EPS if on_digits else 8 / 255) if eps is None else eps
    _check.number("train", "eps", radius, low=0.0, high=1.0, low_open=True, advice="Such as 0.2 or 8/255.")
    inner = {"step_size": step_size, "attack_steps": attack_steps, "noise_up_to": noise_up_to or None}
    for option, value in {"beta": beta, **(inner if loss is LossName.standard else {})}.items():
        if value is not None and loss not in (LossName.agdm, LossName.trades):
            name = f"--{option.replace('_', '-')}"
            _check.fail(name, "an option of the chosen loss", f"--loss {loss.value}", "Drop it.")
    attack: dict[str, Any] = {}
    if loss is not LossName.standard:
        attack = {
            "eps": radius,
            "step_size": radius / 4 if step_size is None else step_size,
            "n_steps": 10 if attack_steps is None else attack_steps,
            "noise_up_to": noise_up_to,
        }
    if loss in (LossName.agdm, LossName.trades):
        attack["beta"] = 6.0 if beta is None else beta
    options: dict[str, object] = {
        "loss": loss.value,
        "eps": radius,
        "step-size": attack.get("step_size"),
        "attack-steps": attack.get("n_steps"),
        "beta": attack.get("beta"),
        "noise-up-to": noise_up_to or None,
        "network": given.network,
        **given.words,
    }
    objective = partial(_LOSSES[loss], **attack, **given.moved)
    settings = {"loss": repr(objective(nn.Identity())), **({} if given.network is None else {"network": given.network})}

    def measure(trained: nn.Module, images: ImageSet) -> dict[str, str]:
        results = {**_accuracy(trained, images), **_under_attack(trained, images, radius)}
        for t in (noise_up_to / 2, noise_up_to) if noise_up_to else ():
            results |= _behind_noise(trained, images, radius, t)
        if on_digits:
            plain = digits_classifier()
            compared = {**_accuracy(plain, images), **_under_attack(plain, images, radius)}
            results |= {f"for comparison, digits-classifier: {key}": value for key, value in compared.items()}
        return results

    fit = partial(given.fit, loss=objective)
    kind = Kind("guide", "robust classifier for guidance", fit, measure, options, settings, every=100)
    run(kind, given, given.recipe(Recipe(3000, rate=5e-3)))


_LOSSES: Mapping[LossName, Callable[..., Augmenting]] = {
    LossName.agdm: LogitDistance,
    LossName.trades: Trades,
    LossName.at: AdversarialTraining,
    LossName.standard: ShiftedCrossEntropy,
}


def accuracy_under_pgd(network: nn.Module, data: ImageSet, *, eps: float, n_steps: int, t: float = 0.0) -> float:
    """Share of images that are classified correctly as they are and as everything that one run of linf PGD proposes.

    Its `n_steps` are on the margin, 2.5 eps / n_steps long. Ids of the images address its random starts and, where `t`
    is above zero, the noise of time t that the network sees every image behind: one for good, known to the attack.
    """
    attack = PGD(Ball("linf", eps), n_steps=n_steps)
    right: list[bool] = []
    for k in range(0, len(data.images), AT_ONCE):
        images, labels = data.images[k : k + AT_ONCE], data.labels[k : k + AT_ONCE]
        ids = data.ids[k : k + AT_ONCE]
        seen = network if t == 0 else partial(_noised_logits, network, Noise(0, ids, stream=Stream.REPORT), t)
        proposals = attack(seen, images, labels, init=Noise(0, ids, stream=Stream.INIT))
        with torch.no_grad():
            all_right = torch.stack([predicted(seen(x)) == labels for x in (images, *proposals.images)]).all(0)
        right += all_right.tolist()
    return sum(right) / len(right)


def _accuracy(network: nn.Module, images: ImageSet) -> dict[str, str]:
    return {"accuracy": f"{100 * accuracy(network, images.images, images.labels):.2f} %"}


def _under_attack(network: nn.Module, images: ImageSet, eps: float) -> dict[str, str]:
    name = f"accuracy under PGD (linf, eps {eps:.3g}, {MEASURED_STEPS} steps)"
    return {name: f"{100 * accuracy_under_pgd(network, images, eps=eps, n_steps=MEASURED_STEPS):.2f} %"}


def _behind_noise(network: nn.Module, images: ImageSet, eps: float, t: float) -> dict[str, str]:
    """The same two on images noised to a time, for a guide that sees noised states."""
    few = images.first(MEASURED_BEHIND_NOISE)
    seen = noised_to(few.images, Noise(0, few.ids, stream=Stream.REPORT), times=[t] * len(few.images))
    clean = accuracy(network, seen, few.labels)
    attacked = accuracy_under_pgd(network, few, eps=eps, n_steps=MEASURED_STEPS, t=t)
    where = f"of {len(few.images)} images noised to t = {t:g}"
    return {
        f"accuracy {where}": f"{100 * clean:.2f} %",
        f"accuracy {where}, under PGD (linf, eps {eps:.4g}, {MEASURED_STEPS} steps)": f"{100 * attacked:.2f} %",
    }


def _noised_logits(network: nn.Module, noise: Noise, t: float, images: Tensor) -> Tensor:
    return network(noised_to(images, noise, times=[t] * len(images)))
