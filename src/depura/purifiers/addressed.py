"""Randomness of foreign code, answered from addressed noise.

While a piece of foreign code runs, a `TorchDispatchMode` gives torch's random operators their numbers from `Noise`, by
image id, draw and the running number of the operator. So an image gets the same numbers alone, in any batch, on any
worker and on any device. The global generators of Python and numpy are seeded from the same address during the call.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from depura.noise import Kind, Noise

_SENTINEL = 0x5EED0FDE907A
"""Seed of torch's global generator during a call; another seed says that the code has seeded it itself."""


@dataclass
class Observed:
    """What foreign code was seen to do.

    Attributes:
        operators: random operators of torch, and how often each was answered from the noise.
        whole: operators whose numbers cannot be divided by image, so that they belong to the whole call.
        sources: generators besides torch's global one: "numpy", "random", "torch.Generator", "torch.manual_seed".
        state: attributes that a call left changed, by name.
        files: files that calls wrote into their working folder.
        printed: characters that were printed.
    """

    operators: Counter[str] = field(default_factory=Counter[str])
    whole: set[str] = field(default_factory=set[str])
    sources: set[str] = field(default_factory=set[str])
    state: set[str] = field(default_factory=set[str])
    files: int = 0
    printed: int = 0

    @property
    def by_call(self) -> bool:
        """Whether some numbers belong to a whole call, so that only an image by itself has numbers of its own."""
        return bool(self.whole or self.sources & {"numpy", "random"})

    def add(self, other: Observed) -> None:
        """Join what another call was seen to do."""
        self.operators.update(other.operators)
        self.whole |= other.whole
        self.sources |= other.sources
        self.state |= other.state
        self.files += other.files
        self.printed += other.printed


class _Draw(NamedTuple):
    """Where the numbers of one operator come from.

    Attributes:
        noise: the address of the rows.
        step: the running number of the operator.
        shape: of the rows, (B, ...).
        out: what the operator gives; its dtype and device are those of the numbers.
    """

    noise: Noise
    step: int
    shape: tuple[int, ...]
    out: Tensor

    def _like(self) -> Tensor:
        dtype = self.out.dtype if self.out.is_floating_point() else torch.float32
        return torch.empty(self.shape, dtype=dtype, device=self.out.device)

    def normal(self) -> Tensor:
        """Standard normal numbers."""
        return self.noise(self._like(), kind=Kind.FOREIGN, step=self.step).reshape(self.out.shape)

    def uniform(self) -> Tensor:
        """Uniform numbers in [0, 1)."""
        like = self._like()
        below = 1 - torch.finfo(like.dtype).eps / 2
        return self.noise.uniform(like, kind=Kind.FOREIGN, step=self.step).clamp(max=below).reshape(self.out.shape)

    def integers(self, n: int) -> Tensor:
        """Whole numbers in [0, n), n at most 2^31."""
        words = self.noise.bits(self.shape, kind=Kind.FOREIGN, step=self.step, device=self.out.device)
        return ((words * n) >> 32).reshape(self.out.shape).to(self.out.device)


Formula = Callable[[_Draw, Mapping[str, Any]], Tensor]
"""(where numbers come from, arguments by name) -> the operator's values."""


class AddressedDraws(TorchDispatchMode):
    """Numbers for random operators, from the noise of a batch.

    Numbers of an operator whose first dimension is the batch are divided by image. Others are drawn for the whole call,
    at an address of all its rows; in a call of one image they are the image's own. Numbers of a `torch.Generator`, or
    of the global one after `torch.manual_seed`, are addressed by the generator's state instead of the draw, so that a
    path that is asked for again is the same path. Operators that have no formula here run as they are, with the global
    generator seeded from the address.
    """

    def __init__(self, noise: Noise, observed: Observed, *, by_draw: bool = False, number: int = 0) -> None:
        """Answer from a noise.

        Args:
            noise: one image id per row of the call.
            observed: what is seen is written there.
            by_draw: whether the numbers of a generator with a seed depend on draw and stream, too.
            number: of the first operator.
        """
        super().__init__()
        self.noise, self.observed, self.by_draw, self.number = noise, observed, by_draw, number
        self.paths: dict[int, Noise] = {}  # by the digest of a generator's state, what its numbers came from

    @contextmanager
    def again(self, number: int) -> Generator[None, None, None]:
        """The same answers from operator `number` on, for a computation that is made again."""
        with _global_generator(), AddressedDraws(self.noise, Observed(), by_draw=self.by_draw, number=number):
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a random operator; let any other one pass."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name, given = _asked(func, args, kwargs)
        formula = _FORMULAS.get(name.rstrip("_"))
        if name == "native_dropout":
            # Where it is trained it is a product with a random mask; else the identity, without a number.
            return self._dropout(given) if given.get("train") in (True, None) else func(*args, **kwargs)
        if formula is None or (formula is _integers and not 0 < _bounds(given)[1] - _bounds(given)[0] <= 2**31):
            return self._seeded(func, args, kwargs, name)
        noise, step = self._address(given)
        # The operator runs as well: it gives shape, dtype, device and layout, and moves its generator on.
        out: Tensor = func(*args, **kwargs)
        self.observed.operators[name] += 1
        if out.numel() == 0 or out.is_meta or out.is_complex():
            return out
        return out.copy_(formula(self._draw(noise, step, out, name), given))

    def _address(self, given: Mapping[str, Any]) -> tuple[Noise, int]:
        """Noise and step of the next operator: by its running number, or by the state of its generator."""
        generator = given.get("generator")
        if generator is None and torch.default_generator.initial_seed() == _SENTINEL:
            number, self.number = self.number, self.number + 1
            return replace(self.noise, round=(self.noise.round + (number >> 16)) % 256, _ahead=()), number & 0xFFFF
        self.observed.sources.add("torch.manual_seed" if generator is None else "torch.Generator")
        seed = _state_digest(torch.default_generator if generator is None else generator)
        if seed not in self.paths:
            its = Noise(seed, self.noise.images)
            self.paths[seed] = replace(self.noise, seed=seed ^ self.noise.seed, _ahead=()) if self.by_draw else its
        return self.paths[seed], 0

    def _draw(self, noise: Noise, step: int, out: Tensor, name: str) -> _Draw:
        """The numbers of an operator, divided by image where that is possible."""
        draw = _divided(noise, step, out)
        if len(noise) > 1 and len(draw.noise) == 1:
            self.observed.whole.add(name)
        return draw

    def _dropout(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        x, p = cast(Tensor, given["input"]), float(given["p"])
        noise, step = self._address(given)
        self.observed.operators["native_dropout"] += 1
        kept = self._draw(noise, step, x, "native_dropout").uniform() < 1 - p
        return x * kept * (0.0 if p == 1 else 1 / (1 - p)), kept

    def _seeded(self, func: Any, args: Any, kwargs: Any, name: str) -> Any:
        """An operator without a formula, run with the global generator seeded from the address."""
        if kwargs.get("generator") is not None:
            self.observed.sources.add("torch.Generator")
            return func(*args, **kwargs)
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(_digest(self.noise, self.number) >> 1)
        seeded = torch.get_rng_state()
        try:
            out = func(*args, **kwargs)
        finally:
            drawn = not torch.equal(seeded, torch.get_rng_state())
            torch.set_rng_state(before)
        if drawn:  # an attention without dropout draws nothing
            self.number += 1
            self.observed.operators[name] += 1
            if len(self.noise) > 1:
                self.observed.whole.add(name)
        return out


class PathsAgain(TorchDispatchMode):
    """In a backward pass: generators that are asked at a state that a call asked before give the same numbers again.

    So an adjoint pass of torchsde, which queries its Brownian tree once more, goes back along the same path.
    """

    def __init__(self, paths: Mapping[int, Noise]) -> None:
        """Answer along some paths.

        Args:
            paths: what the numbers came from, by the digest of the generator's state.
        """
        super().__init__()
        self.paths = paths

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a random operator of a known generator; let any other one pass."""
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        noise = None if generator is None else self.paths.get(_state_digest(generator))
        out = func(*args, **kwargs)
        name, given = _asked(func, args, kwargs)
        formula = _FORMULAS.get(name.rstrip("_"))
        if formula is None or noise is None:
            return out
        return out.copy_(formula(_divided(noise, 0, out), given))


def _asked(func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An operator's name, and its arguments by name; those that are their defaults are not handed to a mode."""
    arguments = func._schema.arguments
    given = {its.name: its.default_value for its in arguments if its.has_default_value()}
    given |= dict(zip([its.name for its in arguments], args, strict=False)) | dict(kwargs)
    return str(func._schema.name).removeprefix("aten::"), given


def _state_digest(generator: torch.Generator) -> int:
    """64 bits of a generator's seed and offset."""
    return int.from_bytes(hashlib.sha256(generator.get_state().numpy().tobytes()).digest()[:8], "little")


def _divided(noise: Noise, step: int, out: Tensor) -> _Draw:
    """The numbers of an operator: by image, where its first dimension is the batch; else of the whole call."""
    if len(noise) > 1 and out.ndim > 0 and len(out) == len(noise):
        return _Draw(noise, step, tuple(out.shape), out)
    if len(noise) > 1:
        noise = replace(noise, seed=_digest(noise), images=(0,), draws=0)
    return _Draw(noise, step, (1, out.numel()), out)


def _bounds(given: Mapping[str, Any]) -> tuple[int, int]:
    """Bounds of whole numbers: randint(high), randint(low, high), random_(to), random_(from, to)."""
    low, high = given.get("low", given.get("from", 0)), given.get("high", given.get("to", 0))
    return int(low or 0), int(high or 0)


def _integers(draw: _Draw, given: Mapping[str, Any]) -> Tensor:
    low, high = _bounds(given)
    return low + draw.integers(high - low)


def _normal(draw: _Draw, given: Mapping[str, Any]) -> Tensor:
    mean, std = given.get("mean", 0.0), given.get("std", 1.0)
    return mean + std * draw.normal()


def _uniform(draw: _Draw, given: Mapping[str, Any]) -> Tensor:
    low, high = float(given.get("from", 0.0)), float(given.get("to", 1.0))
    return low + (high - low) * draw.uniform()


def _bernoulli(draw: _Draw, given: Mapping[str, Any]) -> Tensor:
    return draw.uniform() < given.get("p", given["self"])  # bernoulli(probabilities), or bernoulli_(p)


def _exponential(draw: _Draw, given: Mapping[str, Any]) -> Tensor:
    return -torch.log1p(-draw.uniform()) / float(given.get("lambd", 1.0))


_FORMULAS: dict[str, Formula] = {
    "randn": lambda draw, given: draw.normal(),
    "randn_like": lambda draw, given: draw.normal(),
    "rand": lambda draw, given: draw.uniform(),
    "rand_like": lambda draw, given: draw.uniform(),
    "normal": _normal,
    "normal_functional": _normal,
    "uniform": _uniform,
    "bernoulli": _bernoulli,
    "exponential": _exponential,
    "randint": _integers,
    "randint_like": _integers,
    "random": _integers,
}
"""Operators, without the underscore of those in place."""


def _digest(noise: Noise, number: int = -1) -> int:
    """64 bits of the address of all rows."""
    draws = (noise.draws,) * len(noise) if isinstance(noise.draws, int) else noise.draws
    text = f"{noise.seed} {noise.images} {draws} {int(noise.stream)} {noise.round} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@contextmanager
def _global_generator() -> Generator[None, None, None]:
    """Torch's global generators with a seed that tells whether the code seeds them; as they were, afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(_SENTINEL)
        yield


@contextmanager
def _seeded_generators(seed: int, observed: Observed) -> Generator[None, None, None]:
    """The global generators of Python and numpy, seeded; as they were, afterwards.

    A generator that numpy makes without a seed gets one from there.
    """
    python, arrays, unseeded = random.getstate(), np.random.get_state(), np.random.default_rng
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    first = random.getstate(), _position(np.random.get_state())

    def default_rng(seed: Any = None) -> np.random.Generator:
        return unseeded([int(word) for word in np.random.randint(0, 2**31, 4)] if seed is None else seed)

    np.random.default_rng = default_rng  # type: ignore[assignment]
    try:
        yield
    finally:
        if random.getstate() != first[0]:
            observed.sources.add("random")
        if _position(np.random.get_state()) != first[1]:
            observed.sources.add("numpy")
        np.random.default_rng = unseeded
        random.setstate(python)
        np.random.set_state(arrays)


def _position(state: Any) -> tuple[bytes, int, int]:
    """What changes when numpy's global generator draws or is seeded."""
    return state[1].tobytes(), state[2], state[3]


@contextmanager
def addressed(noise: Noise, observed: Observed, *, by_draw: bool = False) -> Generator[AddressedDraws, None, None]:
    """A context in which all randomness comes from the noise.

    Args:
        noise: one image id per row of the call.
        observed: what is seen is written there.
        by_draw: whether numbers of seeded generators depend on draw and stream, too; and, as several images then share
            a call, whether numpy and Python are seeded for all images of it alike.

    Yields:
        The mode.
    """
    whole = replace(noise, images=(0,), draws=0) if by_draw else noise
    mode = AddressedDraws(noise, observed, by_draw=by_draw)
    with _global_generator(), _seeded_generators(_digest(whole), observed), mode:
        yield mode
