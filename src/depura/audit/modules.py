"""Which module inside a faulty part is to blame: the deepest one that fails by itself while those inside it pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from depura.audit.derivatives import Precision
from depura.audit.parts import parts
from depura.audit.probes import Fault, Probe, Tensors, examine, inner_modules, take_rows
from depura.defence import Defence
from depura.noise import Noise


def localise(defence: Defence, images: Tensor, noise: Noise, *, precision: Precision, seed: int) -> tuple[Fault, ...]:
    """Name what is to blame for a wrong gradient.

    Args:
        defence: any defence.
        images: (B, C, H, W) in [0, 1], in the defence's dtype.
        noise: one image id per row.
        precision: what counts as equal.
        seed: of cotangents and directions.

    Returns:
        One fault per part or module, in the order of their calls.
    """
    faults: dict[str, Fault] = {}
    done: set[str] = set()
    for probe in parts(defence, images, noise):
        skip = probe.part in done or (probe.together and faults)
        fault = None if skip else examine(probe, precision, seed)
        if fault is not None:
            done.add(probe.part)
            deepest = list(_inside(probe, precision, seed)) or [fault]
            faults |= {f.part: f for f in deepest if f.part not in faults}
    return tuple(faults.values())


def _inside(probe: Probe, precision: Precision, seed: int) -> Iterator[Fault]:
    role = probe.part.partition(" ")[0]
    for name, module in inner_modules(probe.thing).items():
        path = f"{role}.{name}" if name else role
        calls = _record(module, probe)
        if name:
            yield from _deepest(path, module, calls, probe.n, precision, seed)
        else:
            for child, inner in _called(path, module, calls):
                yield from _deepest(child, inner, calls, probe.n, precision, seed)


def _deepest(
    path: str, module: nn.Module, calls: dict[nn.Module, _Call], n: int, precision: Precision, seed: int
) -> list[Fault]:
    """The faults of a module's own, or of those inside it."""
    if module not in calls:
        return [f for p, m in _called(path, module, calls) for f in _deepest(p, m, calls, n, precision, seed)]
    fault = examine(_probe(f"{path} ({type(module).__qualname__})", module, calls[module], n), precision, seed)
    if fault is None:
        return []
    inner = [f for p, m in _called(path, module, calls) for f in _deepest(p, m, calls, n, precision, seed)]
    return inner or [fault]


def _called(path: str, module: nn.Module, calls: dict[nn.Module, _Call]) -> Iterator[tuple[str, nn.Module]]:
    """The children that were called, and of those that were not (lists of modules) their children."""
    for name, child in module.named_children():
        if child in calls:
            yield f"{path}.{name}", child
        else:
            yield from _called(f"{path}.{name}", child, calls)


class _Slot(NamedTuple):
    """The place of a tensor in a call's arguments."""

    place: int


@dataclass(frozen=True)
class _Call:
    """The arguments of one call: tensors, which of them depend on the image, and where they stood."""

    tensors: Tensors
    traced: tuple[bool, ...]
    args: Any
    kwargs: Any


def _record(root: nn.Module, probe: Probe) -> dict[nn.Module, _Call]:
    """The first call of each module in one run of a part, with a graph back to the part's inputs."""
    calls: dict[nn.Module, _Call] = {}

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if module not in calls:
            tensors: list[Tensor] = []

            def place(t: Tensor) -> _Slot:
                tensors.append(t)
                return _Slot(len(tensors) - 1)

            places = _swap((args, kwargs), Tensor, place)
            traced = tuple(t.requires_grad and t.is_floating_point() for t in tensors)
            calls[module] = _Call(tuple(t.detach().clone() for t in tensors), traced, *places)

    handles: list[RemovableHandle] = []
    try:
        handles += [m.register_forward_pre_hook(hook, with_kwargs=True) for m in root.modules()]
        with torch.enable_grad():
            probe.call(tuple(t.clone().requires_grad_() for t in probe.inputs), probe.rows)
    except Exception:  # what it got to is recorded; the part itself is named if nothing inside is
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _probe(part: str, module: nn.Module, call: _Call, n: int) -> Probe:
    """A module as a function of those of its arguments that depend on the image."""
    names = [f"argument {k + 1}" for k, traced in enumerate(call.traced) if traced]

    def run(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        fed = iter(inputs)
        tensors = [
            next(fed) if traced else take_rows(t, rows, n).clone()
            for t, traced in zip(call.tensors, call.traced, strict=True)
        ]

        def put(slot: _Slot) -> Tensor:
            return tensors[slot.place]

        args, kwargs = _swap((call.args, call.kwargs), _Slot, put)
        found: list[Tensor] = []
        _swap(module(*args, **kwargs), Tensor, found.append)
        return tuple(t for t in found if t.is_floating_point())

    inputs = tuple(t for t, traced in zip(call.tensors, call.traced, strict=True) if traced)
    return Probe(part, run, inputs, tuple(names), n, module, strict=False)


def _swap(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A nest of tuples, lists and dicts with all members of a kind changed."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        members = [_swap(member, kind, change) for member in cast("list[Any]", tree)]
        return tuple(members) if isinstance(tree, tuple) else members
    if isinstance(tree, dict):
        return {key: _swap(value, kind, change) for key, value in cast("dict[Any, Any]", tree).items()}
    return tree
