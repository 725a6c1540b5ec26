"""How torchattacks, foolbox, ART and pyautoattack are called: as attacks for `External`, and with a model of ours.

A library is imported where it is asked for, and not before. torchattacks and pyautoattack take a `Defence` as it is;
foolbox and ART have wrappers of their own.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depura import _check
from depura.attacks.external import Make, ModelForLibraries, Source

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""depura's names of norms, as torchattacks and pyautoattack spell them."""

Options = Mapping[str, Any]


def torchattacks_source(
    attack: str, options: Options | None = None, *, times_eps: Mapping[str, float] | None = None
) -> Make:
    """An attack of torchattacks (Kim 2020, arXiv:2010.01950), for `External`.

    It is given the ball's radius as eps, and the norm and a seed where it has such arguments. Attacks without eps need
    a `make` of your own.

    Args:
        attack: name of a class in `torchattacks`, such as "EOTPGD".
        options: its other arguments.
        times_eps: those that are multiples of the radius, such as {"alpha": 0.25}, and so go with `External.at`.

    Returns:
        What `External` takes.

    Raises:
        InputError: the library is missing, does not know the attack, or an option is not yours to set.
    """
    _named(_library("torchattacks"), attack)
    settings = _settings("torchattacks_source", options, times_eps, ("eps", "norm", "seed"))
    return partial(_torchattacks, attack=attack, **settings)


def foolbox_source(
    attack: str, options: Options | None = None, *, times_eps: Mapping[str, float] | None = None
) -> Make:
    """An attack of foolbox (Rauber et al. 2020, JOSS 5(53):2607), for `External`: its points clipped to the radius.

    Args:
        attack: name of a class in `foolbox.attacks`, such as "LinfPGD"; its norm must be the ball's.
        options: its arguments.
        times_eps: those that are multiples of the radius, such as {"abs_stepsize": 0.25}.

    Returns:
        What `External` takes.

    Raises:
        InputError: the library is missing or does not know the attack, or an option is given twice.
    """
    _named(_library("foolbox.attacks"), attack)
    return partial(_foolbox, attack=attack, **_settings("foolbox_source", options, times_eps, ()))


def art_source(
    attack: str, options: Options | None = None, *, n_classes: int, times_eps: Mapping[str, float] | None = None
) -> Make:
    """An attack of the Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv:1807.01069), for `External`.

    It is given the ball's norm and radius. Attacks without eps need a `make` of your own.

    Args:
        attack: name of a class in `art.attacks.evasion`, such as "ProjectedGradientDescentPyTorch".
        options: its other arguments.
        n_classes: of the model.
        times_eps: those that are multiples of the radius, such as {"eps_step": 0.25}.

    Returns:
        What `External` takes.

    Raises:
        InputError: the library is missing, does not know the attack, or an option is not yours to set.
    """
    _check.integer("art_source", "n_classes", n_classes, low=2)
    _named(_library("art.attacks.evasion"), attack)
    settings = _settings("art_source", options, times_eps, ("eps", "norm"))
    return partial(_art, attack=attack, n_classes=n_classes, **settings)


def autoattack_source(options: Options | None = None) -> Make:
    """AutoAttack (Croce and Hein 2020, arXiv:2003.01690) of pyautoattack, for `External`.

    Its standard version supposes a deterministic model. Each version leaves alone what one draw misclassifies, and
    returns the image itself where it found nothing.

    Args:
        options: arguments of `pyautoattack.AutoAttack`, such as {"version": "rand"}.

    Returns:
        What `External` takes.

    Raises:
        InputError: the library is missing, or an option is not yours to set.
    """
    _library("pyautoattack")
    settings = _settings("autoattack_source", options, None, ("eps", "norm", "seed", "device"))
    return partial(_autoattack, options=settings["options"])


def as_foolbox(defence: nn.Module) -> Any:
    """A defence as a `foolbox.PyTorchModel` of images in [0, 1], on the device that it is on.

    Args:
        defence: images in [0, 1] to logits, with a parameter or a buffer.

    Returns:
        The model.

    Raises:
        InputError: the library is missing.
    """
    return _library("foolbox").PyTorchModel(defence, bounds=(0, 1), device=_device(defence))


def as_art(defence: nn.Module, shape: tuple[int, int, int], n_classes: int) -> Any:
    """A defence as an `art.estimators.classification.PyTorchClassifier` of images in [0, 1].

    Args:
        defence: images in [0, 1] to logits, with a parameter or a buffer; it stays on its device.
        shape: (C, H, W) of the images.
        n_classes: of the defence.

    Returns:
        The estimator; its loss is the cross-entropy.

    Raises:
        InputError: the library is missing.
    """
    return _library("art.estimators.classification").PyTorchClassifier(
        defence,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(shape),
        nb_classes=n_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if _device(defence).type == "cpu" else "gpu",
    )


def _torchattacks(
    model: ModelForLibraries, *, attack: str, options: dict[str, Any], times_eps: dict[str, float]
) -> Source:
    made = _named(_library("torchattacks"), attack)
    known = inspect.signature(made).parameters
    given = {"eps": model.ball.eps, "norm": NORMS[model.ball.norm], "seed": model.seed}
    ours = {name: value for name, value in given.items() if name == "eps" or name in known}
    return made(model, **ours, **_together(model, options, times_eps))


def _foolbox(model: ModelForLibraries, *, attack: str, options: dict[str, Any], times_eps: dict[str, float]) -> Source:
    made = _named(_library("foolbox.attacks"), attack)(**_together(model, options, times_eps))
    wrapped, eps = as_foolbox(model), model.ball.eps
    # It returns its points, the same clipped to the radius, and what it takes for success.
    return lambda images, labels: made(wrapped, images, labels, epsilons=eps)[1]


def _art(
    model: ModelForLibraries, *, attack: str, n_classes: int, options: dict[str, Any], times_eps: dict[str, float]
) -> Source:
    made = _named(_library("art.attacks.evasion"), attack)
    ours = {"eps": model.ball.eps, "norm": {"linf": np.inf, "l2": 2, "l1": 1}[model.ball.norm]}

    def source(images: Tensor, labels: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        estimator = as_art(model, (channels, height, width), n_classes)
        ready = made(estimator, **ours, **_together(model, options, times_eps))
        return torch.from_numpy(ready.generate(x=images.float().cpu().numpy(), y=labels.cpu().numpy()))

    return source


def _autoattack(model: ModelForLibraries, *, options: dict[str, Any]) -> Source:
    made = _library("pyautoattack").AutoAttack(
        model,
        norm=NORMS[model.ball.norm],
        eps=model.ball.eps,
        seed=model.seed,
        device=model.device_marker.device,
        **options,
    )
    # Its own numbers are float32, whatever it is given; beside its images it returns what it takes for their classes.
    return lambda images, labels: made.run_standard_evaluation(images.float(), labels, batch_size=len(images))[0]


def _library(name: str) -> Any:
    """A module of an optional library."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        raise _check.InputError(
            f"{top}: expected the library to be installed, got {error}. Run pip install 'depura[attacks]'."
        ) from error


def _named(library: Any, attack: str) -> Any:
    """A class of a library."""
    found = getattr(library, attack, None)
    if not callable(found):
        _check.fail(library.__name__, "the name of an attack in it", repr(attack), "Names are those of its classes.")
    return found


def _settings(
    where: str, options: Options | None, times_eps: Mapping[str, float] | None, taken: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Both kinds of options, with none in both and none that depura sets."""
    fixed, scaled = dict(options or {}), dict(times_eps or {})
    wrong = sorted(({*fixed, *scaled} & set(taken)) | (set(fixed) & set(scaled)))
    if wrong:
        advice = "The ball and the noise of External decide these." if set(wrong) & set(taken) else ""
        _check.fail(where, f"options without {', '.join(taken)}, each given once", ", ".join(wrong), advice)
    return {"options": fixed, "times_eps": scaled}


def _together(model: ModelForLibraries, options: dict[str, Any], times_eps: dict[str, float]) -> dict[str, Any]:
    return {**options, **{name: factor * model.ball.eps for name, factor in times_eps.items()}}


def _device(module: nn.Module) -> torch.device:
    tensor = next((t for some in (module.parameters(), module.buffers()) for t in some), None)
    return torch.device("cpu") if tensor is None else tensor.device
