"""Classifiers and denoisers by name: files, models of other libraries, functions of one's own."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from depura import _check
from depura._check import InputError
from depura.diffusion.denoisers import Denoiser
from depura.models.checkpoints import load_classifier, load_denoiser
from depura.models.checkpoints.diffusers_models import is_diffusers
from depura.models.digits import digits_classifier, digits_denoiser
from depura.models.networks.wrappers import Normalised
from depura.records.names import STUDY_MODULE

DIGITS = "digits"
"""The bundled classifier and denoiser, and, on the command line, the bundled data set."""

OWN = "MODULE:FUNCTION or FILE.py:FUNCTION"
"""How somebody's own function is named, for messages."""

FORMS = f"'digits', a checkpoint file, torchvision:NAME, timm:NAME, robustbench:NAME, {OWN}"
"""What a classifier's name may be, for messages and help."""

DENOISERS = f"'digits', a checkpoint file, a diffusers folder, diffusers:NAME, {OWN}"
"""What a denoiser's name may be."""

ENDINGS = (".pt", ".pth", ".th", ".ckpt", ".pkl", ".safetensors")
"""Of names that mean files, also where there is none."""

NONE = "none"
"""After an @: random weights."""


def classifier(name: str, *, where: str = "classifier") -> Callable[[Tensor], Tensor]:
    """A classifier by name: from images in [0, 1] to logits, in evaluation mode, on the CPU.

    Names are
    - `torchvision:resnet50`, with the weights IMAGENET1K_V1, which the papers use; `torchvision:resnet50@IMAGENET1K_V2`
      for others (torchvision's own default is V2);
    - `timm:deit_small_patch16_224`, with the weights that timm has for it;
    - `robustbench:Standard`, a CIFAR-10 entry of RobustBench's model zoo; `robustbench:NAME@L2` for one of the L2
      board, else Linf;
    - `digits`, the bundled classifier;
    - a checkpoint file, as `load_classifier` takes it;
    - `my.module:name` or `file.py:name`: a class, or a function without required arguments, is called to make the
      classifier; anything else is it.

    `@none` gives models of torchvision and timm random weights. They get the normalisation of their own published
    preprocessing around them, and nothing else of it: images are neither resized nor cropped (see `ResizedInput`).
    RobustBench's normalise themselves. Weights are fetched and kept by these libraries.

    Args:
        name: of one of the forms above.
        where: who asks, for messages.

    Returns:
        A module, or what the function returned.

    Raises:
        InputError: another form, a library that is not installed (the message names the extra), a name that it does not
            know, weights that cannot be had, or a function that returns nothing callable.
    """
    if name == DIGITS:
        return digits_classifier()
    if _is_file(where, name):
        return load_classifier(name)
    source, _, rest = name.partition(":")
    if source in _SOURCES and rest:
        model, at, choice = rest.partition("@")
        if at and not choice:
            _check.fail(where, "a word after the @", repr(name))
        return _SOURCES[source](where, model, choice)
    made = _made(where, name, named(where, name, instead=FORMS.removesuffix(OWN)))
    if not callable(made):
        _check.fail(where, f"{name} to return a callable from images to logits", type(made).__name__)
    if isinstance(made, nn.Module):
        made.eval()
    return cast("Callable[[Tensor], Tensor]", made)


def denoiser(name: str, *, where: str = "denoiser") -> Denoiser:
    """A denoiser by name.

    Args:
        name: `digits`, the bundled one; a checkpoint file or a folder of the diffusers library, as `load_denoiser`
            takes them; `diffusers:NAME`, which that library fetches; or `my.module:factory`, a function of your own,
            which is called without arguments.
        where: who asks, for messages.

    Returns:
        The denoiser, in [-1, 1] units.

    Raises:
        InputError: a file that is no denoiser, or nothing that can be imported and called.
    """
    if name == DIGITS:
        return digits_denoiser()
    if is_diffusers(name) or _is_file(where, name):
        return load_denoiser(name)
    return named(where, name, instead=DENOISERS.removesuffix(OWN))()


def _is_file(where: str, name: str) -> bool:
    """Whether a file is meant; refused where it is not there."""
    if Path(name).is_file():
        return True
    if Path(name).suffix.lower() in ENDINGS:
        _check.fail(where, "a checkpoint file", f"{name}, which is not there", "Check the path.")
    return False


def named(option: str, name: str, *, instead: str = "") -> Callable[[], Any]:
    """The function without arguments that MODULE:FUNCTION names; `instead` is what else the option takes."""
    found = imported(option, name, instead=instead)
    if not callable(found):
        _check.fail(option, "a function without arguments", f"{name!r}, which is of type {type(found).__name__}")
    return found


def imported(option: str, name: str, *, instead: str = "") -> Any:
    """What MODULE:NAME or FILE.py:NAME names; modules of the current folder can be imported, too.

    Args:
        option: who asks, for messages.
        name: a module or a Python file, a colon, and a name in it.
        instead: what else the option takes, for messages.

    Returns:
        The object.

    Raises:
        InputError: another form, or nothing that can be imported.
    """
    module, colon, attribute = name.rpartition(":")
    if not (module and colon and attribute):
        _check.fail(option, f"{instead}{OWN}", repr(name))
    try:
        if module.endswith(".py"):
            source: Any = _file_once(option, Path(module))
        else:
            source = module_named(module)
    except ImportError as error:
        raise InputError(f"{option}: expected something importable, got {name!r} ({error}).") from error
    if not hasattr(source, attribute):
        _check.fail(option, "something importable", f"{name!r} ({module} has no {attribute!r})")
    return getattr(source, attribute)


def foreign(option: str, name: str) -> Any:
    """Somebody's purifier, classifier or defence by name.

    Args:
        option: who asks, for messages.
        name: MODULE:NAME or FILE.py:NAME. A class, or a function without required arguments, is called to make it;
            anything else is it.

    Returns:
        The object; modules keep their mode.

    Raises:
        InputError: nothing that can be imported, or a class that needs arguments.
    """
    return _made(option, name, imported(option, name))


def _made(option: str, name: str, found: Any) -> Any:
    """What a class, or a function without required arguments, makes; anything else is it."""
    if not (isinstance(found, type) or inspect.isfunction(found)):
        return found
    needed = [
        its.name
        for its in inspect.signature(found).parameters.values()
        if its.default is its.empty and its.kind in (its.POSITIONAL_ONLY, its.POSITIONAL_OR_KEYWORD, its.KEYWORD_ONLY)
    ]
    if needed and isinstance(found, type):
        advice = "Write a function without arguments that makes the object, and name that."
        _check.fail(option, "a class without required arguments", f"{name!r}, which needs {', '.join(needed)}", advice)
    return found if needed else found()


def module_named(name: str) -> ModuleType:
    """A module by its dotted name; those of the current folder can be imported, too. An ImportError as Python's own."""
    _on_path(Path.cwd())
    return importlib.import_module(name)


def module_of(where: str, file: Path) -> ModuleType:
    """A Python file, run as a module of a name of its own; records call what it defines "study.NAME".

    Args:
        where: who asks, for messages.
        file: the file.

    Returns:
        The module.

    Raises:
        InputError: there is no such file, or it is no Python file.
    """
    if not file.is_file():
        _check.fail(where, "a Python file", f"{file}, which is not there", "Check the path.")
    spec = importlib.util.spec_from_file_location(f"{STUDY_MODULE}{file.stem}", file)
    if spec is None or spec.loader is None:
        _check.fail(where, "a Python file (.py)", f"{file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def _file_once(where: str, file: Path) -> ModuleType:
    """A Python file, run once, so that two names in it are of one module; the files beside it can be imported by it."""
    path = file.resolve()
    _on_path(path.parent)
    known = sys.modules.get(f"{STUDY_MODULE}{path.stem}")
    return known if known is not None and known.__file__ == str(path) else module_of(where, path)


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _torchvision(where: str, model: str, choice: str) -> nn.Module:
    """A classification model of torchvision, and the mean and deviation of its weights' transforms."""
    models = _library(where, "torchvision.models", "torchvision")
    known: list[str] = models.list_models(module=models)
    if model not in known:
        _unknown(where, "torchvision", model, known)
    sets: dict[str, Any] = {weights.name: weights for weights in models.get_model_weights(model)}
    wanted = "IMAGENET1K_V1" if choice in ("", NONE) else choice
    if wanted not in sets and choice != NONE:
        given = f"torchvision:{model}@{wanted}"
        _check.fail(where, f"weights of {model} ({', '.join(sets)}, or {NONE})", repr(given), "Name them after the @.")
    weights = sets.get(wanted, next(iter(sets.values())))
    try:
        network: nn.Module = models.get_model(model, weights=None if choice == NONE else weights)
    except Exception as error:  # whatever a download or a damaged file leads to
        _not_had(where, f"torchvision:{model}", error)
    prepared = weights.transforms()
    return _normalised(network, prepared.mean, prepared.std)


def _timm(where: str, model: str, choice: str) -> nn.Module:
    """A model of timm, and the mean and deviation of its own configuration."""
    timm = _library(where, "timm", "timm")
    if choice not in ("", NONE):
        advice = "Weights are part of timm's names: a tag after a dot."
        _check.fail(where, f"nothing or {NONE} after the @", f"'timm:{model}@{choice}'", advice)
    if not timm.is_model(model):
        _unknown(where, "timm", model, timm.list_models())
    try:
        network: nn.Module = timm.create_model(model, pretrained=choice != NONE)
    except Exception as error:  # whatever a download or a damaged file leads to
        _not_had(where, f"timm:{model}", error)
    settings = timm.data.resolve_model_data_config(network)
    return _normalised(network, settings["mean"], settings["std"])


def _robustbench(where: str, model: str, choice: str) -> nn.Module:
    """A CIFAR-10 entry of RobustBench's zoo, which takes images in [0, 1] as it is."""
    utils = _library(where, "robustbench.utils", "robustbench")
    zoo = _library(where, "robustbench.model_zoo", "robustbench")
    if choice not in ("", "Linf", "L2"):
        _check.fail(where, "Linf or L2 after the @", f"'robustbench:{model}@{choice}'")
    threat = choice or "Linf"
    (entries,) = (
        found
        for dataset, boards in zoo.model_dicts.items()
        for board, found in boards.items()
        if (dataset.value, board.value) == ("cifar10", threat)
    )
    if model not in entries:
        _unknown(where, f"robustbench ({threat})", model, list(entries))
    try:
        network: nn.Module = utils.load_model(model_name=model, dataset="cifar10", threat_model=threat)
    except Exception as error:  # whatever a download or a damaged file leads to
        _not_had(where, f"robustbench:{model}", error)
    return network.eval()


_SOURCES: dict[str, Callable[[str, str, str], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "robustbench": _robustbench,
}
"""Who asks, the model, and what is after the @, to the classifier."""


def _normalised(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    return Normalised(network, mean=mean, std=std).eval()


def _library(where: str, name: str, extra: str) -> Any:
    """A module of an optional library."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        lacking = error.name or extra
        inside = lacking.partition(".")[0] != extra
        also = f" If it says so again: {extra} imports {lacking}, so install that too." if inside else ""
        raise InputError(
            f"{where}: expected {extra} to be installed, got {error}. Run pip install 'depura[{extra}]'.{also}"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"{where}: expected a {extra} that works with this torch, got {error}. "
            "Install the torchvision that was made for it: its kind (CPU or CUDA) must be the same too."
        ) from error


def _unknown(where: str, library: str, model: str, known: Sequence[str]) -> NoReturn:
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
    advice = f"Close to it: {', '.join(near)}." if near else "The library's documentation lists its names."
    _check.fail(where, f"the name of a classifier of {library}", repr(model), advice)


def _not_had(where: str, name: str, error: Exception) -> NoReturn:
    """The library could not fetch the weights, or they do not fit its network."""
    raise InputError(
        f"{where}: expected the weights of {name}, got {type(error).__name__} ({error}). "
        "Once fetched they are kept; where there is no network, copy the library's cache from a machine that has one."
    ) from error
