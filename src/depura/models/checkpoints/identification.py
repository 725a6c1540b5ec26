"""What a checkpoint file is: its family, its network's settings, and where it differs from what it resembles."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from depura import _check
from depura.models.checkpoints.families import FAMILIES, Family, on_meta
from depura.models.checkpoints.published import PUBLISHED
from depura.models.checkpoints.reading import Weights, read_weights
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
    """Weights and the network that they are of: its family, the network on the meta device, its state dict, and what
    the file is, with the options for `Family.ready`."""

    family: Family
    network: nn.Module
    tensors: Mapping[str, Tensor]
    identity: Identified


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
    return match(Path(path), options, where="identify").identity


def match(path: Path, options: Mapping[str, Any], *, where: str) -> Matched:
    """Find the network of a file's weights; refuses as `identify` does, in the name of `where`."""
    weights = read_weights(path, where=where)
    given = _given(weights, options, where)
    if "family" in weights.settings:
        family, settings, network, tensors = _converted(weights, path, where)
    else:
        family, settings, network, tensors = _fitting(weights.tensors, given, path, where)
    known = _keywords(family.settings_of) | _keywords(family.ready)
    for name in given:
        if name not in known:
            has = ", ".join(sorted(known)) or "none"
            _check.fail(where, f"options of {family.title} ({has})", f"{name} for {path}", "Leave it out.")
    if weights.average:
        tensors = _averaged(network, tensors, weights.average, path, where)
    like = [n for n, file in PUBLISHED.items() if file.family == family.name and _same(family, settings, file.settings)]
    identity = Identified(
        path=path,
        kind=weights.kind,
        entry=weights.entry,
        family=family.name,
        title=family.title,
        denoises=family.denoises,
        settings=settings,
        options={name: value for name, value in given.items() if name in _keywords(family.ready)},
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        averaged=bool(weights.average),
        like=tuple(like),
        licence=family.licence,
    )
    return Matched(family, network, tensors, identity)


def _given(weights: Weights, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of the caller, those of a published file that it names, and what the file says of itself."""
    own: dict[str, Any] = {}
    if "family" in weights.settings:
        own = dict(weights.settings.get("options", {}))
    elif weights.module:
        names = {
            "EDMPrecond": {"sigma_data": "sigma_data"},
            "VPPrecond": {"beta_d": "beta_slope", "beta_min": "beta_min", "M": "steps"},
            "iDDPMPrecond": {"C_1": "ratio_floor", "C_2": "offset", "M": "steps"},
        }.get(weights.module, {})
        constants = {ours: weights.settings[theirs] for theirs, ours in names.items() if theirs in weights.settings}
        own = {"preconditioner": weights.module, "constants": constants}
    if "architecture" in weights.settings and "sigma_data" in weights.settings:  # of depura train denoiser
        own["sigma_data"] = weights.settings["sigma_data"]
    named = options.get("like")
    if named is not None and named not in PUBLISHED:
        _check.fail(where, f"like to be one of {', '.join(PUBLISHED)}", repr(named))
    published: Mapping[str, Any] = {} if named is None else PUBLISHED[named].options
    return {**own, **published, **{name: value for name, value in options.items() if name != "like"}}


_Fitting = tuple[Family, dict[str, Any], nn.Module, Mapping[str, Tensor]]
"""A family, settings and network, and the weights under its names."""


def _converted(weights: Weights, path: Path, where: str) -> _Fitting:
    """What a converted file says that it is, checked."""
    name = weights.settings["family"]
    family = next((family for family in FAMILIES if family.name == name), None)
    if family is None:
        _check.fail(where, f"a family of {', '.join(f.name for f in FAMILIES)}", f"{name!r} in {path}")
    try:
        settings = dict(weights.settings["settings"])
        network = on_meta(lambda: family.network(**settings))
    except UNBUILDABLE as error:
        raise _check.InputError(
            f"{where}: expected the settings of {family.title} in {path}, got others ({error}). Convert it again."
        ) from error
    wrong = next(_differences(_shapes(weights.tensors), _shapes(network.state_dict()), family), None)
    if wrong is not None:
        _check.fail(where, f"the network that {path} says it is, {family.title}", wrong, "Convert it again.")
    return family, settings, network, weights.tensors


def _fitting(weights: Mapping[str, Tensor], given: Mapping[str, Any], path: Path, where: str) -> _Fitting:
    """The family that fits exactly; else the nearest one and the first tensor that differs are named."""
    near: list[tuple[float, str]] = []
    for tensors in _without_prefix(weights):
        shapes = _shapes(tensors)
        for family in FAMILIES:
            hidden = {name: value for name, value in given.items() if name in _keywords(family.settings_of)}
            try:
                settings = family.settings_of(shapes, **hidden)
            except (KeyError, IndexError, TypeError, ZeroDivisionError, StopIteration):
                continue
            if settings is None:
                continue
            try:
                network = on_meta(lambda family=family, settings=settings: family.network(**settings))
            except UNBUILDABLE as error:
                near.append(_likeness(shapes, _published_shapes(family), family, f"{error}"))
                continue
            expected = _shapes(network.state_dict())
            if next(_differences(shapes, expected, family), None) is None:
                return family, settings, network, tensors
            near.append(_likeness(shapes, expected, family))
    if not near:
        near = [
            _likeness(_shapes(tensors), _published_shapes(family), family)
            for tensors in _without_prefix(weights)
            for family in FAMILIES
        ]
    share, wrong = max(near)
    if share < RESEMBLES:
        first = ", ".join(list(weights)[:3])
        known = "; ".join(family.title for family in FAMILIES)
        _check.fail(where, f"a network of a known family ({known})", f"{path}, whose tensors begin {first}")
    return _check.fail(
        where,
        "a network of a known family",
        f"{path}; nearest is {wrong}",
        "The file may be cut, of other code, or need an option that its tensors do not tell.",
    )


def _likeness(shapes: Shapes, expected: Shapes, family: Family, error: str = "nothing") -> tuple[float, str]:
    """Share of names in common, and the first difference in words."""
    share = len(shapes.keys() & expected.keys()) / len(shapes.keys() | expected.keys())
    return share, f"{family.title}: {next(_differences(shapes, expected, family), error)}"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _published_shapes(family: Family) -> Shapes:
    """The layout of a family's published network, to compare names with."""
    files = [file.settings for file in PUBLISHED.values() if file.family == family.name]
    settings = files[0] if files else dict[str, Any]()
    return _shapes(on_meta(lambda: family.network(**settings)).state_dict())


def _differences(shapes: Shapes, expected: Shapes, family: Family) -> Iterator[str]:
    """In words, in the file's order; what is missing comes last."""
    for name, shape in shapes.items():
        if name not in expected:
            yield f"its first differing tensor is {name}, {shape}, which that family does not have"
        elif shape != expected[name]:
            yield f"its first differing tensor is {name}, {shape}, where {expected[name]} is expected"
    for name, shape in expected.items():
        if name not in shapes and not name.endswith(family.optional or ("\0",)):
            yield f"it lacks {name}, {shape}"


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
            got = f"{tuple(tensor.shape)} in {path}"
            _check.fail(where, f"moving average {position} to be of {name}, {shape}", got)
    return {**tensors, **{name: tensor for (name, _), tensor in zip(trained, average, strict=True)}}


def _keywords(function: Any) -> set[str]:
    kind = inspect.Parameter.KEYWORD_ONLY
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind == kind}


def _same(family: Family, settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two settings mean the same network; what is left out is as the network's signature has it."""
    parameters = inspect.signature(family.network).parameters.values()
    default = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return json.dumps({**default, **settings}, sort_keys=True) == json.dumps({**default, **other}, sort_keys=True)
