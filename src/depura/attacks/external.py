"""Attacks of other libraries as sources of candidates, and a defence as a model in those libraries.

What a library returns is a proposal like any other: it is brought into the ball and judged by depura on draws of its
own. The library's success flags are not looked at; on randomised models they count lucky draws.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from depura import _check
from depura.attacks.attack import Candidates, Cost, Told
from depura.attacks.ball import Ball
from depura.attacks.eot import Model, RandomModel
from depura.noise import Noise

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Source(Protocol):
    """A library's attack: a frozen dataclass, so that records can say what it was."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, /) -> Tensor:
        """Adversarial images (B, C, H, W), from a model that gives logits."""
        ...


@dataclass(frozen=True)
class External:
    """An attack of another library.

    The library calls the model as it likes, with batches of its own making, so here noise is addressed by the number of
    the call and the row in it: the same command gives the same candidates, but an image's depend on the batch it is
    in. Global generators are seeded from `init` while the library runs, and put back afterwards.

    Attributes:
        ball: threat model.
        source: the library's attack.
        n_runs: times that it is run, each a candidate.
        gradients: evaluations with a gradient per image, as far as known; for planning only.
        forwards: evaluations without, likewise.
    """

    ball: Ball
    source: Source
    n_runs: int = 1
    gradients: int = 0
    forwards: int = 0

    def __post_init__(self) -> None:
        _check.integer("External", "n_runs", self.n_runs, low=1)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return self.n_runs

    @property
    def cost(self) -> Cost:
        """What was said when it was made; what was spent is counted."""
        return Cost(self.n_runs * self.gradients, self.n_runs * self.forwards, 1)

    def at(self, eps: float) -> External:
        """The same attack at another radius."""
        return replace(self, ball=replace(self.ball, eps=eps))

    def __call__(
        self,
        model: Model | RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        init: Noise | None = None,
        eot: Noise | None = None,
        rows: int | None = None,
        told: Told | None = None,
    ) -> Candidates:
        """Attack (see `depura.attacks.attack.Attack`).

        Args:
            model: images to logits; called as model(images) where `eot` is None, else as model(images, noise).
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            init: seeds the global generators that the library draws from, one seed per run.
            eot: its seed and stream are the model's; image ids are row numbers, draws are numbers of calls.
            rows: not used: the library makes its own batches.
            told: called with the share of the runs that is done.

        Returns:
            The candidates; `spent` is the mean over images, rounded up.

        Raises:
            InputError: images or labels that are not usable, a missing library, or results of another shape or not
                finite.
        """
        _check.images("External", images)
        labels = _check.labels("External", labels, n_images=len(images)).long()
        init = Noise.fresh(len(images)) if init is None else init
        seen = _Seen(model, eot, images)
        found: list[Tensor] = []
        for run in range(self.n_runs):
            with _generators((init.seed + run) % 2**32, images.device):
                got = self.source(seen, images.clone(), labels.clone(), self.ball)
            found.append(self._usable(got, images))
            if told is not None:
                told((run + 1) / self.n_runs)
        each = [-(-n // len(images)) for n in (seen.gradients, seen.forwards)]
        spent = torch.tensor([each] * len(images), dtype=torch.int64, device=images.device)
        none = torch.full((len(images),), -1, dtype=torch.int64, device=images.device)
        return Candidates(torch.stack(found), images.new_zeros(0, len(images)), spent, none)

    def _usable(self, got: Tensor, images: Tensor) -> Tensor:
        """A library's result as images in the ball."""
        got = got.to(images)
        if got.shape != images.shape or not bool(got.isfinite().all()):
            what = f"shape {tuple(got.shape)}" if got.shape != images.shape else "values that are not finite"
            _check.fail("External", f"finite images of shape {tuple(images.shape)} from {self.source}", what)
        return self.ball.project(got, images)


class _Seen(nn.Module):
    """The model as a library sees it: a module with a parameter, whose noise is new in every call."""

    def __init__(self, model: Model | RandomModel, noise: Noise | None, like: Tensor) -> None:
        super().__init__()
        self.marker = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device), requires_grad=False)
        self._call: Any = model
        self._noise = noise
        self._n_calls = 0
        self.gradients = 0
        self.forwards = 0

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad and torch.is_grad_enabled():
            self.gradients += len(images)
        else:
            self.forwards += len(images)
        images = images.clamp(0, 1)
        if self._noise is None:
            return self._call(images)
        noise = replace(self._noise, images=tuple(range(len(images))), draws=self._n_calls)
        self._n_calls += 1
        return self._call(images, noise)


@dataclass(frozen=True)
class Torchattacks:
    """An attack of torchattacks, by its class name; the radius is the ball's unless `settings` say otherwise.

    Attributes:
        name: such as "PGD", "EOTPGD", "Square".
        settings: further arguments.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, /) -> Tensor:
        """Run it."""
        made = _named(_library("torchattacks"), "torchattacks", self.name)
        return made(model, **_with_eps(made, self.settings, ball))(images, labels)


@dataclass(frozen=True)
class Foolbox:
    """An attack of foolbox, by its name in foolbox.attacks.

    Attributes:
        name: such as "LinfPGD", "L2CarliniWagnerAttack", "HopSkipJumpAttack".
        settings: arguments.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, /) -> Tensor:
        """Run it."""
        attack = _named(_library("foolbox").attacks, "foolbox.attacks", self.name)(**self.settings)
        _, clipped, _ = attack(foolbox_model(model), images, labels, epsilons=ball.eps)
        return clipped


@dataclass(frozen=True)
class Art:
    """An evasion attack of the Adversarial Robustness Toolbox, by its class name.

    Attributes:
        name: such as "ProjectedGradientDescentPyTorch", "SquareAttack".
        n_classes: classes of the model.
        settings: further arguments; the radius is the ball's unless they say otherwise.
    """

    name: str
    n_classes: int
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, /) -> Tensor:
        """Run it."""
        made = _named(_library("art.attacks.evasion"), "art.attacks.evasion", self.name)
        estimator = art_classifier(model, shape=tuple(images.shape[1:]), n_classes=self.n_classes)
        attack = made(estimator, **_with_eps(made, self.settings, ball))
        return torch.from_numpy(attack.generate(images.cpu().numpy(), labels.cpu().numpy()))


@dataclass(frozen=True)
class AutoAttack:
    """The released AutoAttack, as pyautoattack packages it.

    Attributes:
        version: "standard" or "rand".
    """

    version: str = "standard"

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, /) -> Tensor:
        """Run it."""
        attack = _library("pyautoattack").AutoAttack(
            model,
            device=str(images.device),
            eps=ball.eps,
            norm=NORMS[ball.norm],
            seed=torch.initial_seed() % 2**32,
            version=self.version,
        )
        found, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        return found


def foolbox_model(model: nn.Module) -> Any:
    """A defence, or any module from images in [0, 1] to logits, as a model of foolbox.

    Args:
        model: the module, in evaluation mode.

    Returns:
        A `foolbox.PyTorchModel`.

    Raises:
        InputError: foolbox is not installed.
    """
    return _library("foolbox").PyTorchModel(model.eval(), bounds=(0, 1), device=_device(model))


def art_classifier(model: nn.Module, *, shape: tuple[int, ...], n_classes: int) -> Any:
    """A defence, or any module from images in [0, 1] to logits, as an estimator of the Adversarial Robustness Toolbox.

    Args:
        model: the module.
        shape: (C, H, W) of the images.
        n_classes: classes.

    Returns:
        An `art.estimators.classification.PyTorchClassifier`.

    Raises:
        InputError: the toolbox is not installed.
    """
    return _library("art.estimators.classification").PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=n_classes,
        clip_values=(0, 1),
        device_type="gpu" if _device(model).type == "cuda" else "cpu",
    )


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _check.InputError(
            f"External: expected the package {name.partition('.')[0]}, got none ({error}). "
            "Install it with pip install 'depura[attacks]'."
        ) from error


def _named(library: Any, where: str, name: str) -> Any:
    found = getattr(library, name, None)
    if not callable(found):
        _check.fail("External", f"the name of an attack in {where}", repr(name))
    return found


def _with_eps(made: Any, settings: Mapping[str, Any], ball: Ball) -> dict[str, Any]:
    """The settings, and the ball's radius where the attack takes one."""
    takes = "eps" in inspect.signature(made).parameters and "eps" not in settings
    return {**settings, **({"eps": ball.eps} if takes else {})}


@contextmanager
def _generators(seed: int, device: torch.device) -> Generator[None, None, None]:
    """Seed the global generators of torch, NumPy and Python, and put them back as they were."""
    arrays, plain = np.random.get_state(), random.getstate()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cast("list[Any]", devices)):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(arrays)
        random.setstate(plain)
