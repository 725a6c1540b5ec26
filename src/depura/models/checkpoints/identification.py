"""What a checkpoint file is: its family, its network's settings, and where it differs from what it resembles."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from depura import _check
from depura.models.checkpoints.empty import on_meta
from depura.models.checkpoints.families import FAMILIES, Family
from depura.models.checkpoints.published import PUBLISHED
from depura.models.checkpoints.reading import open_file
from depura.models.checkpoints.unwrapping import Weights, unwrap
from depura.models.networks.blocks import Shapes

UNBUILDABLE = (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError, OverflowError)
"""What building a network from settings that mean none raises."""

RESEMBLES = 0.1
"""Share of names in common from which on a family is named as the nearest."""


class Identified(NamedTuple):
    """What a file is.

    Attributes:
        path: the file.
        kind: how it was written, in words.
        entry: where in it the weights are.
        family: name of the family.
        title: the family for people.
        denoises: whether it is a denoiser; else it is a classifier.
        settings: of the network, as its constructor takes them.
        options: what the file itself or the caller says beyond the weights.
        parameters: how many numbers are trained.
        averaged: whether the weights are moving averages that the file keeps beside the last ones.
        like: names of the published files with the same network.
        licence: hint at the licence of what is published in this layout.
    """

    path: Path
    kind: str
    entry: str
    family: str
    title: str
    denoises: bool
    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    parameters: int
    averaged: bool
    like: tuple[str, ...]
    licence: str


class Matched(NamedTuple):
    """Weights and the network that they are of.

    Attributes:
        family: its family.
        network: on the meta device, without its weights.
        options: for `Family.ready`.
        tensors: the state dict, under the network's names.
        said: what is told of it.
    """

    family: Family
    network: nn.Module
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    said: Identified


_Fitting = tuple[Family, dict[str, Any], nn.Module, Mapping[str, Tensor]]


def identify(path: str | Path, **options: Any) -> Identified:
    """Say what a checkpoint file is. Nothing in it is run, and no weights are copied.

    Args:
        path: the file.
        **options: what its weights do not tell (`heads`, `class_index`, `mean`, `std`, `like` ...).

    Returns:
        Family, settings, number of parameters, licence hint.

    Raises:
        InputError: not readable, an optimizer's state, or no known network: then the nearest family and the first
            tensor that differs are named.
    """
    return match(Path(path), options, where="identify").said


def match(path: Path, options: Mapping[str, Any], *, where: str) -> Matched:
    """Find the network of a file's weights.

    Args:
        path: the file.
        options: what its weights do not tell.
        where: who asks, for messages.

    Returns:
        The network's family and settings, and its weights.

    Raises:
        InputError: as `identify`.
    """
    opened = open_file(path, where=where)
    weights = unwrap(opened, path, where=where)
    given = _given(weights, options, where)
    family, settings, network, tensors = _family_of(weights, given, path, where)
    _check_options(family, given, path, where)
    if weights.average:
        tensors = _averaged(network, tensors, weights.average, path, where)
    chosen = {name: value for name, value in given.items() if name in _keywords(family.ready)}
    like = tuple(
        name
        for name, file in PUBLISHED.items()
        if file.family == family.name and _same(family, settings, file.settings)
    )
    said = Identified(
        path=path,
        kind=opened.kind,
        entry=weights.entry,
        family=family.name,
        title=family.title,
        denoises=family.denoises,
        settings=settings,
        options=chosen,
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        averaged=bool(weights.average),
        like=like,
        licence=family.licence,
    )
    return Matched(family, network, chosen, tensors, said)


def empty(family: Family, settings: Mapping[str, Any]) -> nn.Module:
    """A family's network without memory for its weights."""
    return on_meta(lambda: family.network(**settings))


def layout(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's state dict by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _given(weights: Weights, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of the caller, those of a published file that it names, and what the file says of itself."""
    own = dict(weights.settings.get("options", {})) if "family" in weights.settings else _of_module(weights)
    if "architecture" in weights.settings and "sigma_data" in weights.settings:  # of depura train denoiser
        own["sigma_data"] = weights.settings["sigma_data"]
    named = options.get("like")
    if named is not None and named not in PUBLISHED:
        _check.fail(where, f"like to be one of {', '.join(PUBLISHED)}", repr(named))
    published: Mapping[str, Any] = {} if named is None else PUBLISHED[named].options
    return {**own, **published, **{name: value for name, value in options.items() if name != "like"}}


def _of_module(weights: Weights) -> dict[str, Any]:
    """What a pickled module says of itself and its weights do not."""
    if not weights.module:
        return {}
    names = {
        "EDMPrecond": {"sigma_data": "sigma_data"},
        "VPPrecond": {"beta_d": "beta_slope", "beta_min": "beta_min", "M": "steps"},
        "iDDPMPrecond": {"C_1": "ratio_floor", "C_2": "offset", "M": "steps"},
    }.get(weights.module, {})
    constants = {ours: weights.settings[theirs] for theirs, ours in names.items() if theirs in weights.settings}
    return {"preconditioner": weights.module, "constants": constants}


def _family_of(weights: Weights, given: Mapping[str, Any], path: Path, where: str) -> _Fitting:
    """The family that fits exactly, its settings and its network, and the weights under its names."""
    if "family" in weights.settings:
        return _converted(weights, path, where)
    near: list[tuple[float, str]] = []
    for tensors in _without_prefix(weights.tensors):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for family in FAMILIES:
            settings = _settings(family, shapes, given)
            if settings is None:
                continue
            network, unbuilt = None, ""
            try:
                network = empty(family, settings)
            except UNBUILDABLE as error:
                unbuilt = str(error)
            expected = _default_layout(family) if network is None else layout(network)
            wrong = next(_differences(shapes, expected, family.optional), None)
            if network is not None and wrong is None:
                return family, settings, network, tensors
            near.append((_overlap(shapes, expected), f"{family.title}: {wrong or unbuilt}"))
    return _unknown(weights, near, path, where)


def _converted(weights: Weights, path: Path, where: str) -> _Fitting:
    """What a converted file says that it is, checked."""
    said = weights.settings
    family = next((family for family in FAMILIES if family.name == said["family"]), None)
    if family is None:
        _check.fail(where, f"a family of {', '.join(f.name for f in FAMILIES)}", f"{said['family']!r} in {path}")
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    try:
        settings = dict(said["settings"])
        network = empty(family, settings)
    except UNBUILDABLE as error:
        raise _check.InputError(
            f"{where}: expected the settings of {family.title} in {path}, got others ({error}). Convert it again."
        ) from error
    wrong = next(_differences(shapes, layout(network), family.optional), None)
    if wrong is not None:
        _check.fail(where, f"the network that {path} says it is, {family.title}", wrong, "Convert it again.")
    return family, settings, network, weights.tensors


def _settings(family: Family, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any] | None:
    hidden = {name: value for name, value in given.items() if name in _keywords(family.settings_of)}
    try:
        return family.settings_of(shapes, **hidden)
    except (KeyError, IndexError, TypeError, ZeroDivisionError, StopIteration):
        return None


def _unknown(weights: Weights, near: list[tuple[float, str]], path: Path, where: str) -> Any:
    """Refuse, naming the nearest family and the first tensor that differs."""
    if not near:
        for tensors in _without_prefix(weights.tensors):
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for family in FAMILIES:
                expected = _default_layout(family)
                near.append((_overlap(shapes, expected), _differing(family, shapes, expected)))
    share, wrong = max(near)
    if share < RESEMBLES:
        first = ", ".join(list(weights.tensors)[:3])
        known = "; ".join(family.title for family in FAMILIES)
        _check.fail(where, f"a network of a known family ({known})", f"{path}, whose tensors begin {first}")
    return _check.fail(
        where,
        "a network of a known family",
        f"{path}; nearest is {wrong}",
        "The file may be cut, of other code, or need an option that its tensors do not tell.",
    )


def _differing(family: Family, shapes: Shapes, expected: Shapes) -> str:
    wrong = next(_differences(shapes, expected, family.optional), "nothing")
    return f"{family.title}: {wrong}"


def _default_layout(family: Family) -> Shapes:
    """The layout of a family's published network, to compare names with."""
    found = [file.settings for file in PUBLISHED.values() if file.family == family.name]
    settings: Mapping[str, Any] = found[0] if found else {}
    return layout(empty(family, settings))


def _differences(shapes: Shapes, expected: Shapes, optional: Sequence[str]) -> Iterator[str]:
    """In words, in the file's order; what is missing comes last."""
    for name, shape in shapes.items():
        if name not in expected:
            yield f"its first differing tensor is {name}, {shape}, which that family does not have"
        elif shape != expected[name]:
            yield f"its first differing tensor is {name}, {shape}, where {expected[name]} is expected"
    for name, shape in expected.items():
        if name not in shapes and not name.endswith(tuple(optional) or "\0"):
            yield f"it lacks {name}, {shape}"


def _overlap(shapes: Shapes, expected: Shapes) -> float:
    return len(shapes.keys() & expected.keys()) / len(shapes.keys() | expected.keys())


def _without_prefix(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The tensors as they are named, and without what all names begin with ("module.", "model.", "module.0.")."""
    while True:
        yield tensors
        first = {name.partition(".")[0] for name in tensors}
        if len(first) != 1 or any("." not in name for name in tensors):
            return
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}


def _averaged(
    network: nn.Module, tensors: Mapping[str, Tensor], average: Sequence[Tensor], path: Path, where: str
) -> Mapping[str, Tensor]:
    """The weights with moving averages in the place of parameters, by position."""
    trained = [(name, tuple(p.shape)) for name, p in network.named_parameters() if p.requires_grad]
    if len(trained) != len(average):
        _check.fail(where, f"{len(trained)} moving averages, one per trained tensor", f"{len(average)} in {path}")
    for position, ((name, shape), tensor) in enumerate(zip(trained, average, strict=True)):
        if tuple(tensor.shape) != shape:
            _check.fail(
                where, f"moving average {position} to be of {name}, {shape}", f"{tuple(tensor.shape)} in {path}"
            )
    return {**tensors, **{name: tensor for (name, _), tensor in zip(trained, average, strict=True)}}


def _check_options(family: Family, given: Mapping[str, Any], path: Path, where: str) -> None:
    known = _keywords(family.settings_of) | _keywords(family.ready)
    for name in given:
        if name not in known:
            has = ", ".join(sorted(known)) or "none"
            _check.fail(where, f"options of {family.title} ({has})", f"{name} for {path}", "Leave it out.")


def _keywords(function: Any) -> set[str]:
    kind = inspect.Parameter.KEYWORD_ONLY
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind == kind}


def _same(family: Family, settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two settings mean the same network; what is left out is as the network's signature has it."""
    parameters = inspect.signature(family.network).parameters.values()
    default = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return json.dumps({**default, **settings}, sort_keys=True) == json.dumps({**default, **other}, sort_keys=True)
