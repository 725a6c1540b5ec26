"""Where in a file the weights are: published files wrap a network's state dict in many ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from depura import _check
from depura.models.checkpoints.modules import PickledModule
from depura.models.checkpoints.reading import Opened

ENTRIES = ("ema", "params_ema", "state_dict", "model_state_dict", "model", "net", "network", "params")
"""Names under which files keep a network, averaged weights first."""


class Weights(NamedTuple):
    """The weights of one network.

    Attributes:
        tensors: by name, as in the file.
        average: exponential moving averages of the parameters in their order, without names; empty if there are none.
        entry: where they were, in words.
        module: class of a pickled module, else empty.
        settings: what the file says of the network (a pickled module's, or a converted file's); else empty.
    """

    tensors: Mapping[str, Tensor]
    average: Sequence[Tensor]
    entry: str
    module: str = ""
    settings: Mapping[str, Any] = {}


def unwrap(opened: Opened, path: Path, *, where: str) -> Weights:
    """Find the weights.

    Args:
        opened: a file's contents.
        path: its name, for messages.
        where: who asks, for messages.

    Returns:
        The averaged weights where the file has them.

    Raises:
        InputError: an optimizer's state, or nothing that is a network.
    """
    content = opened.content
    if isinstance(content, PickledModule):
        return Weights(content.tensors, (), f"the pickled {content.name}", content.name, content.settings)
    if isinstance(content, list | tuple):
        return _listed(cast(Sequence[Any], content), path, where)
    if not isinstance(content, Mapping):
        return _check.fail(where, "a checkpoint", f"{path}, which holds a {type(content).__name__}")
    found = cast(Mapping[Any, Any], content)
    if tensors := _tensors(found):
        return Weights(tensors, (), "the whole file", settings=opened.metadata)
    if _is_optimizer(found):
        _check.fail(
            where,
            "a network's weights",
            f"{path}, which is the state of an optimizer",
            "Take the file of the model (or its EMA) that lies beside it.",
        )
    average = _shadow(found.get("ema"))
    if average and (named := _tensors(found.get("model"))):
        return Weights(named, average, "ema (moving averages), with the names of model")
    for name in ENTRIES:
        inner = found.get(name)
        if isinstance(inner, PickledModule):
            return Weights(inner.tensors, (), name, inner.name, inner.settings)
        if tensors := _tensors(inner):
            return Weights(tensors, (), name)
    return _check.fail(
        where,
        f"a network's tensors, alone or under one of {', '.join(ENTRIES)}",
        f"{path}, which has {_entries(found)}",
        "Save the state_dict alone.",
    )


def _listed(items: Sequence[Any], path: Path, where: str) -> Weights:
    """[model, optimizer, epoch, step] or [..., ema] of Ho et al.'s code in PyTorch."""
    found = [tensors for item in items if (tensors := _tensors(item))]
    if not found:
        _check.fail(where, "a checkpoint", f"{path}, a list without a network's tensors")
    bare = [{name.removeprefix("module.") for name in tensors} for tensors in found]
    if len(found) > 1 and bare[-1] == bare[0]:
        return Weights(found[-1], (), "the last mapping of a list (its moving averages)")
    return Weights(found[0], (), "the first mapping of a list")


def _tensors(value: Any) -> dict[str, Tensor]:
    """A state dict, or nothing."""
    if not isinstance(value, Mapping):
        return {}
    items = cast(Mapping[Any, Any], value)
    if not items or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in items.items()):
        return {}
    return {str(name): cast(Tensor, tensor) for name, tensor in items.items()}


def _shadow(value: Any) -> list[Tensor]:
    """The list without names in which score_sde keeps moving averages."""
    if not isinstance(value, Mapping):
        return []
    listed = cast(Mapping[str, Any], value).get("shadow_params", [])
    return cast(list[Tensor], listed) if isinstance(listed, list) else []


def _is_optimizer(content: Mapping[Any, Any]) -> bool:
    return {"state", "param_groups"} <= set(content)


def _entries(content: Mapping[Any, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "no entries"
