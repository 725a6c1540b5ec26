"""The same denoiser in less time: its network in fewer bits, in another memory layout, compiled.

Nothing of the mathematics changes: noise levels, states, estimates and gradients keep the caller's dtype, and only what
happens inside the network is rounded differently. By how much that moves purified images is measured by `deviation`.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from depura import _check
from depura.diffusion.denoisers import Clipped, Denoiser
from depura.models.networks.adapters import OfClass
from depura.models.networks.preconditioned import Preconditioned
from depura.noise import Noise
from depura.purifiers.purifier import Purifier


class Fast(nn.Module):
    """A denoiser whose network runs as fast as the machine allows; `purifier.over(Fast)` makes a purifier's so.

    The network is called under autocast with its matrices in `dtype`, in channels-last memory, compiled; what goes in
    and what comes out has the state's dtype, and gradients with respect to images go the same way back. It is a copy
    made at the first call, beside the plain weights, which are what is described, hashed and moved: change weights
    before, not after. A state in float64, or on the meta device, is given to the plain denoiser.

    A defence around it is one of its own. Attack and judge the same one: where only one of the two is fast, the row
    is told as a surrogate's.

    Compiled networks have no second derivatives (nothing that torch compiles has), which a gradient through guidance
    that differentiates the denoiser needs: give `compiled=False` there. Where compiling fails, a warning says why and
    the network goes on without.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        dtype: torch.dtype | None = torch.bfloat16,
        channels_last: bool = True,
        compiled: bool = True,
        cuda_graphs: bool = False,
    ) -> None:
        """Wrap the denoiser.

        Args:
            denoiser: a depura denoiser around a network, or one of Karras et al.'s preconditioned networks.
            dtype: of the network's matrix products, torch.bfloat16; None leaves them as they are.
            channels_last: memory layout (B, H, W, C) inside the network.
            compiled: compile the network with torch.compile; at the first call, which takes a minute or more. It is
                compiled once more for gradients, and once more for the second batch size.
            cuda_graphs: replay its kernels from CUDA graphs; for one batch size, on CUDA, compiled.

        Raises:
            InputError: no network inside that can be told apart, another dtype, or graphs without compiling.
        """
        super().__init__()
        _path_to_network(denoiser)
        if dtype not in (None, torch.bfloat16):
            _check.fail("Fast", "dtype torch.bfloat16 or None", f"{dtype}", "For float64, convert the purifier.")
        if cuda_graphs and not compiled:
            _check.fail("Fast", "cuda_graphs with compiled", "cuda_graphs alone", "Set compiled=True.")
        assert isinstance(denoiser, nn.Module)
        self.denoiser = denoiser
        self.precision = "as given" if dtype is None else str(dtype).removeprefix("torch.")
        self.channels_last = channels_last
        self.compiled = compiled
        self.cuda_graphs = cuda_graphs
        self._quick: nn.Module | None = None
        self._made_of: list[tuple[int, int, torch.dtype, torch.device]] = []

    def forward(self, x: Tensor, *others: Any, **more: Any) -> Any:
        """Estimate x0 from x at a noise level; of wrapped code, whatever its network takes and gives."""
        plain = x.is_meta or x.dtype == torch.float64
        return (self.denoiser if plain else self._made())(x, *others, **more)

    @property
    def network_alone(self) -> nn.Module:
        """The network as it is called inside, without the denoiser's arithmetic: what overhead is measured against."""
        return _inside(self._made(), _path_to_network(self._made()))

    @property
    def remark(self) -> str:
        """What a reader of results must know (see `Purifier.remarks`)."""
        how = [
            "" if self.precision == "as given" else f"in {self.precision}",
            "channels-last" if self.channels_last else "",
            "compiled" if self.compiled else "",
            "from CUDA graphs" if self.cuda_graphs else "",
        ]
        said = ", ".join(word for word in how if word)
        return f"The network runs {said}" if said else ""

    def extra_repr(self) -> str:
        """How the network is run."""
        return (
            f"precision={self.precision}, channels_last={self.channels_last}, compiled={self.compiled}, "
            f"cuda_graphs={self.cuda_graphs}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the plain denoiser and how to run it."""
        return vars(self) | {"_quick": None}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Fast:
        super()._apply(fn, recurse)
        if self._quick is not None and self._state() != self._made_of:  # a unit of work moves it to where it is
            object.__setattr__(self, "_quick", None)
        return self

    def _state(self) -> list[tuple[int, int, torch.dtype, torch.device]]:
        """What tells whether weights have been moved, converted or written to."""
        tensors = (*self.parameters(), *self.buffers())
        return [(t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, t.device) for t in tensors]

    def _made(self) -> nn.Module:
        if self._quick is None:
            # Not a submodule: it is made of the weights, and is no part of them.
            object.__setattr__(self, "_quick", self._build())
            self._made_of = self._state()
        assert self._quick is not None
        return self._quick

    def _build(self) -> nn.Module:
        """The denoiser with its network exchanged for one that runs fast."""
        path = _path_to_network(self.denoiser)
        network: Any = copy.deepcopy(_inside(self.denoiser, path)).eval().requires_grad_(False)
        dtype = None if self.precision == "as given" else torch.bfloat16
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)
        if dtype is not None:
            for weight in network.parameters():
                if weight.is_floating_point() and weight.ndim > 1:
                    weight.data = weight.data.to(dtype)
        door = Door(network, dtype=dtype, channels_last=self.channels_last)
        if self.compiled:
            door.compile_network(cuda_graphs=self.cuda_graphs)
        return _exchanged(self.denoiser, path, door)


class Door(nn.Module):
    """A network as it is called from outside, whatever it computes in."""

    def __init__(self, network: nn.Module, *, dtype: torch.dtype | None, channels_last: bool) -> None:
        """Stand before a network.

        Args:
            network: takes images (B, C, H, W) and labels.
            dtype: that autocast runs it in; None leaves it as it is.
            channels_last: whether it is given its images so.
        """
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.channels_last = channels_last
        self.quick: Callable[..., Tensor] | None = None
        self.graphs = False

    def compile_network(self, *, cuda_graphs: bool) -> None:
        """Compile the network from the next call on.

        Args:
            cuda_graphs: replay its kernels from CUDA graphs, where it is on CUDA.
        """
        device = next((p.device.type for p in self.network.parameters()), "cpu")
        self.graphs = cuda_graphs and device == "cuda"
        if device == "cpu" and not _has_compiler():
            _say_not_compiled("no C++ compiler was found; install g++ or set CXX")
        else:
            self.quick = torch.compile(self.network, mode="reduce-overhead" if self.graphs else None)

    def forward(self, x: Tensor, *labels: Any, **more: Any) -> Any:
        """What the network gives, its floating-point tensors in the dtype of x."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            out = self._run(x, *labels, **more)
        return _as_given(out, x.dtype)

    def _run(self, *inputs: Any, **more: Any) -> Any:
        if self.quick is None:
            return self.network(*inputs, **more)
        try:
            if not self.graphs:
                return self.quick(*inputs, **more)
            torch.compiler.cudagraph_mark_step_begin()
            return self.quick(*inputs, **more).clone()  # the next replay writes over it
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            out = self.network(*inputs, **more)  # raises what the network itself has to say against its inputs
            self.quick = None
            _say_not_compiled(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            return out


def _as_given(answer: Any, dtype: torch.dtype) -> Any:
    """An answer, or a mapping, tuple or list of answers, with its floating-point tensors in a dtype."""
    if isinstance(answer, Tensor):
        return answer.to(dtype, memory_format=torch.contiguous_format) if answer.is_floating_point() else answer
    if isinstance(answer, Mapping):
        held = cast("Mapping[str, Any]", answer)
        return cast(Any, type(held))(**{name: _as_given(its, dtype) for name, its in held.items()})
    if isinstance(answer, (tuple, list)):
        several = cast("tuple[Any, ...] | list[Any]", answer)
        made, kind = [_as_given(its, dtype) for its in several], cast(Any, type(several))
        return kind(*made) if hasattr(kind, "_fields") else kind(made)
    return answer


def _has_compiler() -> bool:
    """Whether torch.compile has a C++ compiler to call; where it is asked for by CXX, that one."""
    named = os.environ.get("CXX")
    usual = ("cl",) if sys.platform == "win32" else ("g++", "clang++", "c++")
    return any(shutil.which(name) for name in ((named,) if named else usual))


def _say_not_compiled(why: str) -> None:
    warnings.warn(f"Fast: the network runs without torch.compile, because {why}.", stacklevel=4)


def _path_to_network(denoiser: Denoiser | nn.Module) -> tuple[str, ...]:
    """Names of the attributes that lead to the network: the innermost module that takes images and labels."""
    inner: Any = denoiser
    path: list[str] = []
    while isinstance(inner, (Clipped, OfClass)):
        if isinstance(inner, OfClass) and not isinstance(inner.network, Preconditioned):
            break
        path.append("denoiser" if isinstance(inner, Clipped) else "network")
        inner = getattr(inner, path[-1])
    name = "model" if isinstance(inner, Preconditioned) else "network"
    if not isinstance(inner, nn.Module) or not isinstance(getattr(inner, name, None), nn.Module):
        _check.fail(
            "Fast",
            "a denoiser with a torch module as its `network`",
            f"{type(inner).__name__}",
            "Put the network into EpsDenoiser, ScoreDenoiser, VDenoiser or EdmDenoiser; of wrapped code, name it: "
            "depura.wrap(..., network=...).",
        )
    return (*path, name)


def _inside(denoiser: nn.Module, path: tuple[str, ...]) -> nn.Module:
    """What the path leads to."""
    for name in path:
        denoiser = getattr(denoiser, name)
    return denoiser


def _exchanged(denoiser: nn.Module, path: tuple[str, ...], network: nn.Module) -> nn.Module:
    """A copy of a denoiser with another network at the end of the path; everything else is shared."""
    twin = copy.copy(denoiser)
    object.__setattr__(twin, "_modules", dict(vars(denoiser)["_modules"]))
    first, *rest = path
    setattr(twin, first, _exchanged(getattr(denoiser, first), tuple(rest), network) if rest else network)
    return twin


@dataclass(frozen=True)
class Deviation:
    """By how much purified images differ from those of the plain denoiser, pixel by pixel, in units of 1/255.

    Attributes:
        median: over all pixels of all images.
        largest: of all pixels of all images.
    """

    median: float
    largest: float

    def __str__(self) -> str:
        """For people."""
        return f"purified images within {self.median:.3g}/255 (median), {self.largest:.3g}/255 (largest) of the plain"


def is_fast(purifier: Purifier) -> bool:
    """Whether any of its denoisers is a `Fast` one."""
    return any(isinstance(component.denoiser, Fast) for component in purifier.components)


def deviation(purifier: Purifier, images: Tensor, noise: Noise) -> Deviation:
    """Compare a purifier with itself without `Fast`, on the same noise.

    Args:
        purifier: around denoisers some of which are `Fast`.
        images: (B, C, H, W) in [0, 1].
        noise: the randomness, one image id per row.

    Returns:
        The deviation; zero where nothing is `Fast`.
    """
    plain = purifier.over(lambda denoiser: denoiser.denoiser if isinstance(denoiser, Fast) else denoiser)
    with torch.no_grad():
        far = 255 * (purifier(images, noise) - plain(images, noise)).abs().flatten()
    return Deviation(float(far.median()), float(far.max()))
