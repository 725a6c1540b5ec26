"""Any callable as a purifier, as it is: its randomness addressed by image, its gradient exact, its network counted."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from types import MethodType
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.schedules import Step
from depura.gradients import ChainState, FromEnd, GradientRoute, StoredState, StraightThrough
from depura.gradients.stored import recomputation
from depura.noise import BLOCK, Noise
from depura.purifiers.addressed import AddressedDraws, Observed, PathsAgain, addressed
from depura.purifiers.purifier import EXACT, FixedNoiseSteps, IterativePurifier, Stage, TrajectoryStep
from depura.records.describe import describe, source_sha256, weights_sha256
from depura.records.kinds import GradientMode
from depura.records.names import record_name

WHOLE = (Step(0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0),)
"""The step table of a call that nobody looks into: one step."""

LOOKED_AT = 2
"""Calls after which attributes are compared, to name the state that calls change."""


class Wrapped(IterativePurifier):
    """A callable from images in [0, 1] to purified images, or to logits (`gives`), unchanged; made by `depura.wrap`.

    While it runs its random numbers come from the `Noise` that it is handed (`depura.purifiers.addressed`). Where some
    of them cannot be divided by image (numpy, Python's `random`, a shape without the batch) images go through it one
    by one. Each call of its network is checkpointed, so that the exact gradient needs the memory of one call and the
    images between calls; the network's evaluations are counted. Modules keep the mode, training or evaluation, that
    they were given in; weights are frozen.
    """

    def __init__(
        self,
        thing: Callable[..., Any],
        *,
        network: str | None = None,
        call: str = "",
        arguments: Mapping[str, Any] | None = None,
        steps_argument: str = "",
        pixels: tuple[float, float] = (0.0, 1.0),
        pixels_out: tuple[float, float] | None = None,
        gives: str = "images",
        n_results: int = 1,
        combine: str = "mean",
        result: int | None = None,
        isolate: bool | None = None,
        gradient: GradientRoute | None = None,
        differentiable: bool = True,
        quiet: bool = True,
        scratch: bool = True,
        image_shape: tuple[int, int, int] | None = None,
        denoiser: Denoiser | None = None,
    ) -> None:
        """Wrap (see `depura.wrap` for the arguments).

        Args:
            thing: a module, a function or an object.
            network: dotted name of the network inside.
            call: method that is called.
            arguments: further arguments of the call, by name.
            steps_argument: which of them is the number of steps.
            pixels: range of the images that it takes.
            pixels_out: range of the images that it gives.
            gives: "images" or "logits".
            n_results: results for each image, stacked in the batch.
            combine: "mean" or "apart".
            result: which of several, where it gives a tuple or list.
            isolate: one image at a time.
            gradient: how it is differentiated.
            differentiable: whether its results have a gradient path to the images.
            quiet: drop what it prints.
            scratch: run it in a folder of its own.
            image_shape: (C, H, W) that it takes.
            denoiser: what calls the network; for copies.

        Raises:
            InputError: an argument that is not one of these.
        """
        super().__init__()
        where = "wrap"
        self.thing = thing if isinstance(thing, nn.Module) else _Holder(thing)
        self.call = call
        self.arguments = dict(arguments or {})
        self.steps_argument = steps_argument
        self.pixels, self.pixels_out = _interval("range", pixels), _interval("range", pixels_out or pixels)
        for name, value, allowed in (("gives", gives, ("images", "logits")), ("combine", combine, ("mean", "apart"))):
            if value not in allowed:
                _check.fail(where, f"{name} among {', '.join(allowed)}", repr(value))
        self.gives, self.combine = gives, combine
        self.n_results = _check.integer(where, "n_results", n_results, low=1)
        self.result, self.isolate, self.quiet, self.scratch = result, isolate, quiet, scratch
        self._differentiable = differentiable
        blind = not differentiable and gives == "images"
        self.gradient = gradient if gradient is not None else StraightThrough() if blind else EXACT
        self.image_shape = image_shape
        self.steps, self.clamp = WHOLE, False
        self.network = network
        self.denoiser: Denoiser = NetworkCall(self.thing, network) if denoiser is None else denoiser
        self._observed = Observed()
        self._calls = 0
        if call and not callable(getattr(_opened(self.thing), call, None)):
            _check.fail(where, f"call to name a method of {_title(self.thing)}", repr(call))
        if steps_argument and steps_argument not in self.arguments:
            _check.fail(
                where, f"n_steps to be among set= ({', '.join(self.arguments) or 'none'})", repr(steps_argument)
            )
        self.requires_grad_(False)
        self.training = False  # of itself alone: what is wrapped keeps its mode

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return super().settings() | {"thing": _opened(self.thing)}

    @property
    def differentiable(self) -> bool:
        """Whether its results have a gradient path to the images."""
        return self._differentiable

    def why_no_gradient(self, images: Tensor, noise: Noise) -> str:
        """What cuts the gradient path from results to images: found in one call.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: of B rows.

        Returns:
            A few words; empty where there is a path.
        """
        blind: list[str] = []

        def look(name: str, module: nn.Module) -> None:
            if not torch.is_grad_enabled():
                blind.append(name)

        with _each_call(self.thing, look), torch.enable_grad():
            result = self._called(images.detach().clone().requires_grad_(), noise)
        if result.requires_grad:
            return ""
        where = f"grad mode is off when {blind[0]} is called" if blind else "a detach, a conversion or no_grad inside"
        return f"{where} ({_title(self.thing)})"

    @property
    def n_steps(self) -> int:
        """Its number of steps, where that is one of its arguments; else 1."""
        return int(self.arguments[self.steps_argument]) if self.steps_argument else 1

    @property
    def shortens(self) -> bool:
        """Whether it has copies of fewer steps."""
        return bool(self.steps_argument)

    @property
    def title(self) -> str:
        """Name of what is wrapped."""
        return _title(self.thing)

    @property
    def observed(self) -> Observed:
        """What calls were seen to do so far, in this process."""
        return self._observed

    def forget(self) -> None:
        """Begin to observe anew."""
        self._observed, self._calls = Observed(), 0

    @property
    def network_name(self) -> str | None:
        """Dotted name of the network that is checkpointed and counted; "" for none, None: not yet looked for."""
        call = _network_call(self.denoiser)
        if call is None or not call.known:
            return None
        if call.network is None:
            return ""
        return _names(self.thing).get(call.network, type(call.network).__name__)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of results must know."""
        fast = getattr(self.denoiser, "remark", "")
        return (fast,) if fast else ()

    def record_settings(self) -> dict[str, Any]:
        """What describes it in a record: the thing by name, code and weights, and how it is called."""
        thing = _opened(self.thing)
        kind = cast(Any, thing if inspect.isfunction(thing) else type(thing))
        plain = {name: value for name, value in self.settings().items() if name not in ("thing", "denoiser")}
        own = {"fast": describe(self.denoiser)} if not isinstance(self.denoiser, NetworkCall) else {}
        return {
            "thing": record_name(kind),
            "code_sha256": source_sha256(kind),
            "weights_sha256": weights_sha256(self.thing),
            **{name: describe(value) for name, value in plain.items()},
            **own,
        }

    def train(self, mode: bool = True) -> Wrapped:
        """Modules stay in the mode that they are in."""
        return self

    def first(self, image: Tensor, noise: Noise) -> ChainState:
        """The image itself."""
        return (image,)

    def advance(self, state: ChainState, x_in: Tensor, step: Step, noise: Noise) -> tuple[ChainState, Tensor]:
        """The whole call: images in [0, 1], (B, C, H, W), to purified images or to logits."""
        result = self._called(state[0], noise)
        return (result,), result.detach()

    def sample(self, images: Tensor, noise: Noise, n_rounds: int) -> Tensor:
        """Call it.

        Args:
            images: (B, C, H, W), nominally in [0, 1].
            noise: the randomness.
            n_rounds: of the whole purification that this is a part of.

        Returns:
            (B, C, H, W), nominally in [0, 1], or logits (B, K); differentiable by the gradient route.

        Raises:
            InputError: images that it does not take, or results that are not one for each image.
        """
        self.check(images)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return self._called(images, noise)
        if self.gives == "logits" and self.gradient.mode is GradientMode.BPDA:
            _check.fail("StraightThrough", "a purifier, which gives images", "a defence that gives logits")
        return self.gradient(FixedNoiseSteps(self, noise, n_rounds), (images,), images, self.steps)[0]

    def sample_steps(self, stage: Stage, first_round: int) -> Generator[TrajectoryStep, None, Tensor]:
        """The whole call as one step."""
        with torch.no_grad():
            result = self._called(stage.images, stage.noise)
        x0 = 2 * result - 1
        yield TrajectoryStep(2 * stage.images - 1, x0, x0, self.steps[0], first_round, stage.rows)
        return result

    def check(self, images: Tensor) -> None:
        """Check that it takes such images.

        Args:
            images: (B, C, H, W).

        Raises:
            InputError: another shape than `image_shape`.
        """
        _check.image_shape("Wrapped", images, self.image_shape)

    def with_(self, **changes: Any) -> Any:
        """A copy with some settings replaced: of its own, or of its arguments (`n_steps` is the number of steps)."""
        if "n_steps" in changes and self.steps_argument and self.steps_argument != "n_steps":
            changes[self.steps_argument] = changes.pop("n_steps")
        mine = {name: changes.pop(name) for name in list(changes) if name in self.arguments}
        if "n_steps" in changes:
            advice = "Name the argument that is the number of steps, with its value: set={'n_steps': 20}."
            _check.fail("Wrapped.with_", "a callable with a number of steps", "one without", advice)
        if mine:
            changes["arguments"] = {**changes.get("arguments", self.arguments), **mine}
        return super().with_(**changes)

    def coarser(self, share: int) -> Any:
        """A copy of fewer steps, where the number of steps is one of its arguments.

        Args:
            share: how many of its steps one of the copy's stands for.

        Returns:
            The copy.

        Raises:
            InputError: its number of steps cannot be changed.
        """
        return self.with_(n_steps=ceil(self.n_steps / share))

    def one_step(self, where: float) -> Any:
        """A copy of one step, where the number of steps can be changed; else itself."""
        return self.with_(n_steps=1) if self.shortens else self

    def differential(self, noise: Noise) -> FromEnd:
        """Refused: nothing is known of its steps."""
        return _check.fail("Adjoint", "steps along a differential equation", "a wrapped callable", "Use StoredState.")

    def _called(self, images: Tensor, noise: Noise) -> Tensor:
        """The whole batch in one call, or image by image."""
        alone = self.isolate if self.isolate is not None else self._observed.by_call
        if not alone and self.n_results == 1:
            result, seen = self._run(images, noise)
            if len(images) == 1 or self.isolate is False or not seen.by_call:
                return result
        rows: list[Tensor] = []
        shared: dict[tuple[int, int], tuple[int, Tensor]] = {}  # results of one call, of rows that take them apart
        for row in range(len(images)):
            own, index = noise.take([row]), 0
            if self.n_results > 1 and self.combine == "apart":
                draw = noise.draws if isinstance(noise.draws, int) else noise.draws[row]
                block = draw // BLOCK * BLOCK
                own, index = own.draw(block + (draw - block) // self.n_results), (draw - block) % self.n_results
                key = (own.images[0], cast(int, own.draws))
                if key not in shared or not torch.equal(images[shared[key][0]], images[row]):
                    shared[key] = row, self._run(images[row : row + 1], own)[0]
                rows.append(shared[key][1][index : index + 1])
                continue
            result = self._run(images[row : row + 1], own)[0]
            rows.append(result if self.n_results == 1 else result.mean(0, keepdim=True))
        return torch.cat(rows)

    def _run(self, images: Tensor, noise: Noise) -> tuple[Tensor, Observed]:
        """One call of the thing, and what it was seen to do."""
        self._find_network(images, noise)
        seen = Observed()
        look = self._calls < LOOKED_AT
        before = _state(self.thing) if look else {}
        given = self._scaled(images)
        recorded = torch.is_grad_enabled() and given.requires_grad
        along = recorded and "torch.Generator" in self._observed.sources
        leaf = given.detach().requires_grad_() if along else given
        with self._surroundings(noise, seen) as draws, self._watched(draws):
            answer = self._answer(leaf)
        if look:
            after = _state(self.thing)
            seen.state |= {name for name, value in before.items() if after.get(name) != value}
            self._calls += 1
        self._observed.add(seen)
        if recorded and not along and "torch.Generator" in seen.sources:
            return self._run(images, noise)  # once more: its backward pass must go along the generators' paths
        result = self._checked(answer, images)
        if along and result.requires_grad:
            along_paths: Any = _AlongPaths
            result = along_paths.apply(given, leaf, result, draws.paths)
        return result, seen

    def _scaled(self, images: Tensor) -> Tensor:
        """A copy of images in [0, 1], in the range that the thing takes."""
        low, high = self.pixels
        return images.clone() if self.pixels == (0.0, 1.0) else images * (high - low) + low

    @contextmanager
    def _surroundings(self, noise: Noise, seen: Observed) -> Generator[AddressedDraws, None, None]:
        """Where a call is made: its numbers from the noise, its printing and its files dropped."""
        draws = addressed(noise, seen, by_draw=self.isolate is False)
        with _quiet(seen, drop=self.quiet), _scratch(seen, used=self.scratch), draws as mode:
            yield mode

    def _answer(self, images: Tensor) -> Any:
        thing = _opened(self.thing)
        function: Callable[..., Any] = getattr(thing, self.call) if self.call else thing
        arguments, attributes = _divided(function, thing, self.arguments)
        try:
            with _attributes(thing, attributes):
                return function(images, **arguments)
        except (AssertionError, RuntimeError) as error:
            if "CUDA" in str(error) and not torch.cuda.is_available():
                _no_cuda(self.thing, error)
            raise

    def _checked(self, answer: Any, images: Tensor) -> Tensor:
        """The results, one for each image (or n_results), in [0, 1] if they are images."""
        where, n = _title(self.thing), len(images) * self.n_results
        result = _check.tensor_in(self._one_of(answer, n, where))
        if result is None:
            _check.fail(where, "a tensor of results", type(answer).__name__)
        expected = f"({n}, K)" if self.gives == "logits" else f"({n}, C, H, W)"
        if result.ndim != (2 if self.gives == "logits" else 4) or len(result) != n:
            several = len(result) if result.ndim > 0 and len(images) == 1 and len(result) > 1 else 0
            advice = f"If it gives {several} results for each image, say n_results={several}." if several else ""
            if self.gives == "logits" and result.ndim == 4:
                advice = (
                    "If it gives images, it is a purifier: take depura.wrap, and name a classifier to stand behind it."
                )
            _check.fail(where, f"{self.gives} of shape {expected}", f"{tuple(result.shape)}", advice)
        if not result.is_floating_point():
            _check.fail(where, "results of floating point", f"{result.dtype}")
        result = result.to(images.dtype)
        if self.gives == "logits" or self.pixels_out == (0.0, 1.0):
            return result
        low, high = self.pixels_out
        return (result - low) / (high - low)

    def _one_of(self, answer: Any, n: int, where: str) -> Any:
        """The answer, or of a tuple or list the one that is the result: as told, or the only one that it can be."""
        if not isinstance(answer, (tuple, list)):
            return answer
        held = tuple(cast("Sequence[Any]", answer))
        if self.result is not None:
            if not -len(held) <= self.result < len(held):
                _check.fail(where, f"result= from {-len(held)} to {len(held) - 1}", f"{self.result}")
            return held[self.result]
        if self.gives == "logits":
            return held
        fitting = [its for its in held if isinstance(its, Tensor) and its.ndim == 4 and len(its) == n]
        if len(fitting) > 1:
            advice = "Say which is the result: result=-1 for the last, 0 for the first."
            _check.fail(where, "one batch of images", f"{len(fitting)} of them", advice)
        return fitting[0] if fitting else held

    @contextmanager
    def _watched(self, draws: AddressedDraws) -> Generator[None, None, None]:
        """The network's calls go through the denoiser, checkpointed where a graph is kept."""
        call = _network_call(self.denoiser)
        network = None if call is None else call.network
        if network is None:
            yield
            return
        constant = isinstance(self.gradient, StoredState)

        def evaluate(*args: Any, **kwargs: Any) -> Any:
            watched = network.__dict__.pop("forward", None)  # a copy of the network must not come back here
            try:
                return cast("Callable[..., Any]", self.denoiser)(*args, **kwargs)
            finally:
                if watched is not None:
                    network.__dict__["forward"] = watched

        def forward(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if not (constant and torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
                return evaluate(*args, **kwargs)
            # Copies: what the caller changes in place afterwards must not reach the second computation.
            copied = [value.clone() if isinstance(value, Tensor) else value for value in args]
            named = {name: value.clone() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
            again = _MadeAgain(draws, draws.number)
            work = partial(evaluate, **named)
            return cast(
                Any,
                checkpoint(
                    work,
                    *copied,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    context_fn=lambda: (contextlib.nullcontext(), again),
                ),
            )

        network.__dict__["forward"] = forward
        try:
            yield
        finally:
            network.__dict__.pop("forward", None)

    def _find_network(self, images: Tensor, noise: Noise) -> None:
        """Look which submodule is called, in a call of one image: the largest of those that are called repeatedly."""
        inner = _network_call(self.denoiser)
        if inner is None or inner.known:
            return
        calls: Counter[nn.Module] = Counter()

        def count(name: str, module: nn.Module) -> None:
            calls[module] += 1

        with _each_call(self.thing, count), torch.no_grad(), self._surroundings(noise.take([0]), Observed()):
            self._answer(self._scaled(images[:1]))
        weights = {m: sum(p.numel() for p in m.parameters()) for m in calls}
        inner.known = True
        if any(weights.values()):
            inner.network = max(calls, key=lambda m: (calls[m] > 1 and weights[m] > 0, weights[m]))


class _AlongPaths(torch.autograd.Function):
    """A result whose backward pass goes along the paths of the generators that its call asked."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, leaf: Tensor, result: Tensor, paths: Mapping[int, Noise]) -> Tensor:
        ctx.graph = leaf, result, paths
        return result.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        leaf, result, paths = ctx.graph
        with PathsAgain(paths):
            found = cast("tuple[Tensor, ...]", torch.autograd.grad(result, leaf, grad_outputs[0], retain_graph=True))
        return found[0], None, None, None


class NetworkCall(nn.Module):
    """The network inside a wrapped callable, called as it is."""

    network: nn.Module | None

    def __init__(self, thing: nn.Module, path: str | None) -> None:
        """Find the network.

        Args:
            thing: what is wrapped.
            path: dotted name of the network; "" for none; None: it is looked for when the callable is first called.

        Raises:
            InputError: there is no such module.
        """
        super().__init__()
        self.network = _at(thing, path) if path else None
        self.known = path is not None
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        assert self.network is not None
        return self.network.forward(*args, **kwargs)


def _network_call(denoiser: Any) -> NetworkCall | None:
    """The call of the network, inside what counts it or makes it fast."""
    while not isinstance(denoiser, NetworkCall) and hasattr(denoiser, "denoiser"):
        denoiser = denoiser.denoiser
    return denoiser if isinstance(denoiser, NetworkCall) else None


class _Holder(nn.Module):
    """A function or an object, with the modules that it holds."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.held = thing
        self.parts = nn.ModuleList(_modules_of(thing))
        self.training = self.parts.training = False


def _interval(name: str, value: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(number) for number in value)
    if not low < high:
        _check.fail("wrap", f"{name}=(low, high) with low < high", f"{value}")
    return low, high


def _opened(module: nn.Module) -> Any:
    """What a holder holds; any other module itself."""
    return module.held if isinstance(module, _Holder) else module


def _title(module: nn.Module) -> str:
    thing = _opened(module)
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


def _modules_of(thing: Any, depth: int = 3) -> tuple[nn.Module, ...]:
    """Modules that an object reaches: through attributes, closures, methods, partial calls and collections."""
    if isinstance(thing, nn.Module):
        return (thing,)
    inner: list[Any] = []
    if isinstance(thing, partial):
        inner = [thing.func, *thing.args, *thing.keywords.values()]  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(thing, MethodType):
        inner = [thing.__self__]
    elif isinstance(thing, Mapping):
        inner = list(cast("Mapping[Any, Any]", thing).values())
    elif isinstance(thing, (list, tuple)):
        inner = list(cast("Sequence[Any]", thing))
    elif inspect.isfunction(thing):
        cells: Any = getattr(thing, "__closure__", None)
        inner = [cell.cell_contents for cell in cells or ()]
    elif hasattr(thing, "__dict__") and not isinstance(thing, type):
        inner = list(cast("dict[str, Any]", thing.__dict__).values())
    if depth == 0:
        return ()
    return tuple(dict.fromkeys(module for value in inner for module in _modules_of(value, depth - 1)))


def _names(module: nn.Module) -> dict[nn.Module, str]:
    """Names of the modules inside: dotted; what an object does not have as an attribute begins with its class."""
    roots: list[tuple[str, nn.Module]] = [("", module)]
    if isinstance(module, _Holder):
        held = cast("dict[str, Any]", getattr(module.held, "__dict__", {}))
        roots = [(name, its) for name, its in held.items() if isinstance(its, nn.Module)]
        roots += [(type(part).__name__, part) for part in module.parts]
    found: dict[nn.Module, str] = {}
    for root, its in roots:
        for name, inner in cast("Iterable[tuple[str, nn.Module]]", its.named_modules()):
            found.setdefault(inner, f"{root}.{name}".strip("."))
    return found


def _at(module: nn.Module, path: str) -> nn.Module:
    """The module of a dotted name."""
    found: Any = _opened(module)
    for name in path.split("."):
        if isinstance(found, Mapping):
            found = cast("Mapping[str, Any]", found).get(name)
        elif isinstance(found, (list, tuple)):
            items = cast("Sequence[Any]", found)
            found = items[int(name)] if name.isdecimal() and int(name) < len(items) else None
        else:
            found = getattr(found, name, None)
    if not isinstance(found, nn.Module):
        held = getattr(module.held, "__dict__", {}) if isinstance(module, _Holder) else dict(module.named_children())
        near = [name for name, its in cast("dict[str, Any]", held).items() if isinstance(its, nn.Module)]
        _check.fail("wrap", f"network to name a module inside ({', '.join(near) or 'there is none'})", repr(path))
    return found


def _divided(function: Any, thing: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the call, and attributes of the object."""
    if not given:
        return {}, {}
    known = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    anything = any(its.kind is inspect.Parameter.VAR_KEYWORD for its in known.values())
    attributes = {name: value for name, value in given.items() if name not in known and hasattr(thing, name)}
    unknown = sorted(name for name in given if name not in known and name not in attributes and not anything)
    if unknown:
        _check.fail("wrap", f"set= to name arguments ({', '.join(known)}) or attributes", ", ".join(map(repr, unknown)))
    return {name: value for name, value in given.items() if name not in attributes}, attributes


@contextmanager
def _attributes(thing: Any, values: Mapping[str, Any]) -> Generator[None, None, None]:
    before = {name: getattr(thing, name) for name in values}
    for name, value in values.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)


class _MadeAgain:
    """A context for a network's call that is computed again, as often as autograd asks: same numbers, not counted."""

    def __init__(self, draws: AddressedDraws, number: int) -> None:
        self.draws, self.number = draws, number
        self.python, self.arrays = random.getstate(), np.random.get_state()
        self.entered: list[contextlib.ExitStack] = []

    def __enter__(self) -> None:
        stack = contextlib.ExitStack()
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        random.setstate(self.python)
        np.random.set_state(self.arrays)
        stack.enter_context(recomputation())
        stack.enter_context(self.draws.again(self.number))
        self.entered.append(stack)

    def __exit__(self, *error: Any) -> None:
        self.entered.pop().__exit__(*error)


@contextmanager
def _each_call(thing: nn.Module, look: Callable[[str, nn.Module], None]) -> Generator[None, None, None]:
    """Calls of the modules inside are seen, before they are made: name and module."""
    names = {module: name for module, name in _names(thing).items() if name}

    def hook(module: nn.Module, args: Any) -> None:
        look(names[module], module)

    handles = [module.register_forward_pre_hook(hook) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _quiet(seen: Observed, *, drop: bool) -> Generator[None, None, None]:
    """Printing is dropped and counted."""
    if not drop:
        yield
        return
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield
    seen.printed += len(text.getvalue())


@contextmanager
def _scratch(seen: Observed, *, used: bool) -> Generator[None, None, None]:
    """Files of relative paths go into a folder of the call's own."""
    if not used:
        yield
        return
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        except FileNotFoundError as error:
            if error.filename is None or Path(str(error.filename)).is_absolute():
                raise
            advice = "Wrapped code runs in a folder of its own: say scratch=False, or give it an absolute path."
            _check.fail("wrap", "files that are there", f"{error.filename}, which is not", advice)
        finally:
            os.chdir(before)
        seen.files += sum(len(files) for _, _, files in os.walk(folder))


def _no_cuda(thing: nn.Module, error: Exception) -> NoReturn:
    line = (str(error).splitlines() or [""])[0].rstrip(".")
    raise _check.InputError(
        f"{_title(thing)}: expected code that runs on this machine, got code that asks for CUDA ({line}). "
        "Give it the device of its images (x.device), or a machine with CUDA."
    ) from error


def _state(thing: nn.Module) -> dict[str, Any]:
    """Attributes of an object and of its modules that can be compared: numbers, texts, lengths, versions of tensors."""
    objects: list[tuple[str, Any]] = [("", _opened(thing)), *thing.named_modules()]
    state: dict[str, Any] = {}
    for path, its in objects:
        own: dict[str, Any] = dict(getattr(its, "__dict__", {}))
        own |= own.get("_buffers", {})
        for name, value in own.items():
            key = f"{path}.{name}" if path else name
            if isinstance(value, (bool, int, float, str, type(None))):
                state[key] = value
            elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                state[key] = (id(value), value._version)
            elif isinstance(value, torch.Generator):
                state[key] = value.get_state().numpy().tobytes()
            elif isinstance(value, (list, dict, set)) and not name.startswith("_"):
                state[key] = len(cast("list[Any]", value))
    return state
