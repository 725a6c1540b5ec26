"""The default route: exact, in the memory there is; and what memory a graph holds and the machine has left."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from depura import _check
from depura.diffusion.schedules import Step
from depura.gradients.routes import ChainState, Transition
from depura.records.kinds import GradientMode

T = TypeVar("T")

Passing = Callable[[int, Tensor], tuple[Tensor, Tensor] | None]
"""(number of a step, image after it) -> what joins the cotangents of that image and of the input on the way back."""

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def recomputing() -> bool:
    """Whether a step is being run again for its gradient, so that evaluations can be counted apart.

    How many are depends on the memory there is; the gradient and all other counts do not.
    """
    return _recomputing.get()


@contextmanager
def recomputation() -> Generator[None, None, None]:
    """A context in which steps are run again for their gradient."""
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


@dataclass(frozen=True)
class StoredState:
    """Exact, in constant graph memory: keep states, recompute the steps on the way back, differentiate one at a time.

    The recomputation uses the same step rows and the same addressed noise as the steps themselves, so it is the same
    function. What memory there is to spare buys back recomputation: the graphs of as many steps as fit into the budget
    are kept from the way forward. Out of memory, half of them are given up and the work goes on. Whatever the setting,
    cotangents go back step by step in the same order, so the gradient is the same to the last bit.

    Costs S evaluations forward, S backward, and one more for each step whose graph was not kept. Cannot be
    differentiated twice: a backward pass with create_graph raises NotImplementedError.

    Attributes:
        segment: steps between stored states, which are recomputed together. Default: the length that takes least
            memory, sqrt(S * bytes of a state / bytes of a step's graph), at least 1.
        budget: bytes of graph that may be alive at once. Default: nothing is kept if `segment` is given, else
            half of the memory that is free (on a CPU, divided by the number of cores).
        offload: hold the states in host memory.
    """

    mode: ClassVar[GradientMode] = GradientMode.EXACT
    segment: int | None = None
    budget: int | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        if self.segment is not None:
            _check.integer("StoredState", "segment", self.segment, low=1)
        if self.budget is not None:
            _check.integer("StoredState", "budget", self.budget, low=0)

    def __call__(
        self,
        advance: Transition,
        state: ChainState,
        x_in: Tensor,
        steps: Sequence[Step],
        /,
        passing: Passing | None = None,
    ) -> ChainState:
        """The state after the last step; on the way back, cotangents may be added to as each state is passed.

        Args:
            advance: one step.
            state: before the first step.
            x_in: image being purified, (B, C, H, W) in [-1, 1].
            steps: rows of the step table, in order.
            passing: called once with the image after each step, last to first; None adds nothing.

        Returns:
            The last state.
        """
        stored: Any = _StoredSteps
        return stored.apply(self, advance, tuple(steps), passing, x_in, *state)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; no gradient where it acts."""
        return images.clamp(0, 1)


class _StoredSteps(torch.autograd.Function):
    """The steps, and their vector-Jacobian products, last to first."""

    @staticmethod
    def forward(
        ctx: Any,
        route: StoredState,
        advance: Transition,
        steps: tuple[Step, ...],
        passing: Passing | None,
        x_in: Tensor,
        *state: Tensor,
    ) -> ChainState:
        ctx.memory = _Memory(advance, steps, passing, x_in.detach(), route.offload)
        ctx.save_for_backward(x_in, *state)
        first = tuple(x.detach() for x in state)
        allowance = route.budget  # bytes of graph that one purification may hold; its rounds share them
        if allowance is None:
            allowance = 0 if route.segment is not None else spare_bytes(x_in.device)
        return ctx.memory.run(first, allowance // advance.rounds, route.segment)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives("StoredState")
        _ = ctx.saved_tensors  # raises if an input was changed in place, or the graph was freed
        by_state, by_input = ctx.memory.differentiate(grad_outputs)
        wants = ctx.needs_input_grad[4:]
        return (None,) * 4 + tuple(g if w else None for g, w in zip((by_input, *by_state), wants, strict=True))


class _Graph(NamedTuple):
    """One step's graph: its leaves and its result."""

    state: ChainState
    reference: Tensor
    out: ChainState


@dataclass
class _Memory:
    """What is kept of a round for the way back."""

    advance: Transition
    steps: tuple[Step, ...]
    passing: Passing | None
    x_in: Tensor
    offload: bool
    graphs: dict[int, _Graph] = field(default_factory=dict[int, _Graph])
    states: dict[int, ChainState] = field(default_factory=dict[int, ChainState])

    def run(self, state: ChainState, allowance: int, segment: int | None) -> ChainState:
        """The state after the last step; graphs of the first steps are kept while they fit."""
        n, k, ledger, largest, transient = len(self.steps), 0, Ledger(), 0, 0
        after: ChainState | None = None
        while allowance > 0 and k < n:
            before = ledger.peak = ledger.alive
            with ledger.watch():
                made = unless_out_of_memory(lambda k=k, state=state: self._graph(k, state))
            if made is None:
                self._give_up_half()
                break
            largest = max(largest, ledger.alive - before)
            transient = max(transient, ledger.peak - ledger.alive)
            at_once = min(n - k - 1, segment or 1)  # graphs of the way back, beside those that are kept
            if ledger.alive + at_once * largest + transient > allowance:
                after = made[1]
                del made
                break
            self.states[k] = state
            self.graphs[k], state = made
            k += 1
        length = 1 if segment is None else segment
        if segment is None and largest > 0 and k < n:
            # n / length states and length graphs at once take least memory; no more graphs than there is room for.
            best = round(math.sqrt((n - k) * sum(x.numel() * x.element_size() for x in state) / largest))
            length = max(1, min(best, (allowance - ledger.alive) // largest, n - k))
        for first in range(k, n, length):
            self.states[first] = tuple(x.cpu() for x in state) if self.offload else state
            last = min(first + length, n)
            state = self._on(state, first, last) if after is None else self._on(after, first + 1, last)
            after = None
        return state

    def differentiate(self, cotangent: ChainState) -> tuple[ChainState, Tensor]:
        """Cotangents of the first state and of the input."""
        total = torch.zeros_like(self.x_in)
        last = len(self.steps)
        for first in sorted(self.states, reverse=True):
            state = tuple(x.to(self.x_in.device) for x in self.states[first])
            cotangent, total = self._through(first, last, state, cotangent, total)
            last = first
        return cotangent, total

    def _through(
        self, first: int, last: int, state: ChainState, cotangent: ChainState, total: Tensor
    ) -> tuple[ChainState, Tensor]:
        """Cotangents before some steps, computed in as many pieces as memory asks for."""
        graph = self.graphs.pop(first, None)
        if graph is not None:
            return self._vjp(first, graph, cotangent, total)
        found = unless_out_of_memory(lambda: self._recompute(first, last, state, cotangent, total))
        if found is not None:
            return found
        if self.graphs:
            self._give_up_half()
            return self._through(first, last, state, cotangent, total)
        if last - first == 1:
            return self._recompute(first, last, state, cotangent, total)
        middle = (first + last) // 2
        with recomputation():
            half = self._on(state, first, middle)
        cotangent, total = self._through(middle, last, half, cotangent, total)
        return self._through(first, middle, state, cotangent, total)

    def _recompute(
        self, first: int, last: int, state: ChainState, cotangent: ChainState, total: Tensor
    ) -> tuple[ChainState, Tensor]:
        graphs: list[tuple[_Graph, ChainState]] = []
        with recomputation():
            for k in range(first, last):
                graphs.append(self._graph(k, state))
                state = graphs[-1][1]
        while graphs:
            last -= 1
            cotangent, total = self._vjp(last, graphs.pop()[0], cotangent, total)
        return cotangent, total

    def _vjp(self, k: int, graph: _Graph, cotangent: ChainState, total: Tensor) -> tuple[ChainState, Tensor]:
        """Cotangent of the state before a step, and the input's so far with what the step adds."""
        added = None if self.passing is None else self.passing(k, graph.out[0].detach())
        if added is not None:
            cotangent, total = (cotangent[0] + added[0], *cotangent[1:]), total + added[1]
        recorded = [(x, given) for x, given in zip(graph.out, cotangent, strict=True) if x.requires_grad]
        outputs, weights = [x for x, _ in recorded], [given for _, given in recorded]
        found = torch.autograd.grad(outputs, (*graph.state, graph.reference), weights, allow_unused=True)
        *by_state, by_input = cast("tuple[Tensor | None, ...]", found)
        before = tuple(torch.zeros_like(x) if g is None else g for x, g in zip(graph.state, by_state, strict=True))
        return before, total if by_input is None else total + by_input

    def _graph(self, k: int, state: ChainState) -> tuple[_Graph, ChainState]:
        """One step, recorded, and the state after it; state and reference are leaves of its graph."""
        with torch.enable_grad():
            leaves = tuple(x.detach().requires_grad_() for x in state)
            reference = self.x_in.detach().requires_grad_()
            out = self.advance(leaves, reference, self.steps[k])
        if not out[0].requires_grad:
            _check.fail(
                "StoredState",
                f"a result of step {k} with a gradient path to the state",
                "one without",
                "Look for detach or no_grad in the denoiser, or audit the gradient with depura audit-gradient.",
            )
        return _Graph(leaves, reference, out), tuple(x.detach() for x in out)

    def _on(self, state: ChainState, first: int, last: int) -> ChainState:
        """The state some steps later, without a graph."""
        with torch.no_grad():
            for k in range(first, last):
                after = unless_out_of_memory(lambda k=k, state=state: self.advance(state, self.x_in, self.steps[k]))
                while after is None and self.graphs:
                    self._give_up_half()
                    after = unless_out_of_memory(lambda k=k, state=state: self.advance(state, self.x_in, self.steps[k]))
                state = self.advance(state, self.x_in, self.steps[k]) if after is None else after
        return state

    def _give_up_half(self) -> None:
        """Free the later half of the kept graphs; their steps will be recomputed."""
        kept = sorted(self.graphs)
        for k in kept[len(kept) // 2 :]:
            del self.graphs[k]


def refuse_second_derivatives(route: str) -> None:
    """Called in a backward pass: raises where it is itself recorded, since the result would have no graph.

    Args:
        route: name of the route.

    Raises:
        NotImplementedError: the backward pass was asked for with create_graph.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(
            f"{route}: expected a backward pass without create_graph, got one that is to be differentiated again. "
            "Second derivatives need the route Direct()."
        )


# --- Memory ---------------------------------------------------------------------------------------------------------

_active = threading.local()


class Ledger:
    """Bytes of the tensors that autograd keeps for backward passes and that are still alive.

    Every storage counts once, however many nodes keep it; weights are not counted, since they stay anyway. Ledgers
    nest: what an inner one sees, the outer one sees too. The numbers depend on the program and torch's version, not
    on the device. The meta device, where nothing is computed, gives them too (and counts two numbers for each feature
    of a batch norm that the CPU does not keep).

    Attributes:
        alive: bytes alive now.
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        """Begin with nothing; `watch` records."""
        self.alive = 0
        self.peak = 0
        self._outer: Ledger | None = getattr(_active, "ledger", None)
        self._owners: dict[int, int] = {}

    @contextmanager
    def watch(self) -> Generator[Ledger, None, None]:
        """A context in which tensors saved for backward are entered."""
        before: Ledger | None = getattr(_active, "ledger", None)
        _active.ledger = self
        try:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: _Saved(t, self), _Saved.unpack):
                yield self
        finally:
            _active.ledger = before

    def change(self, storage: int, size: int, owners: int) -> None:
        """A tensor was saved (owners = 1) or let go (-1)."""
        before = self._owners.pop(storage, 0)
        if before + owners > 0:
            self._owners[storage] = before + owners
        self.alive += size * ((before + owners > 0) - (before > 0))
        self.peak = max(self.peak, self.alive)
        if self._outer is not None:
            self._outer.change(storage, size, owners)


class _Saved:
    """A tensor kept for backward.

    Hooks switch off autograd's check for changes in place, so it is made here. The tensor is held without its graph,
    which autograd ties to it again: a node that holds its own result holds itself and is never freed.
    """

    __slots__ = ("_ledger", "_size", "_storage", "_tensor", "_version")

    def __init__(self, tensor: Tensor, ledger: Ledger) -> None:
        self._tensor = tensor.detach()
        self._version: int = tensor._version
        storage = tensor.untyped_storage()
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        # On the meta device there is no memory to have an address; the storage itself has one.
        own: int = storage._cdata  # pyright: ignore[reportPrivateUsage]
        self._storage = own if tensor.is_meta else storage.data_ptr()
        self._size = 0 if weight else storage.nbytes()
        self._ledger = ledger
        if self._size:
            ledger.change(self._storage, self._size, 1)

    def unpack(self) -> Tensor:
        if self._tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"tensor of shape {tuple(self._tensor.shape)} is at version {self._tensor._version}; expected version "
                f"{self._version}. Look for operations in place in the network or the guidance."
            )
        return self._tensor

    def __del__(self) -> None:
        if self._size:
            self._ledger.change(self._storage, self._size, -1)


def graph_bytes(f: Callable[[], object]) -> int:
    """The most memory that autograd graphs hold at once while a function runs, in bytes.

    Counts the storages of tensors saved for backward, each once, weights apart; graphs that `StoredState` keeps or
    rebuilds inside are seen. The memory that an operation needs while it works is not, nor are results without graph.

    Args:
        f: what to run, for instance a forward pass with its gradient.

    Returns:
        Bytes.
    """
    ledger = Ledger()
    with ledger.watch():
        f()
    return ledger.peak


def spare_bytes(device: torch.device) -> int:
    """How much memory graphs may take on a device if nobody says: half of what is free.

    On a CPU that half is divided by the number of cores, so that one process per core fits. Where the system does not
    tell what is free, half of all memory counts as free.

    Args:
        device: a device.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + kept) // 2
    return free_host_bytes() // (2 * (os.cpu_count() or 1))


def unless_out_of_memory(f: Callable[[], T]) -> T | None:
    """Call a function; None if there was not enough memory.

    What the failed call held is let go before this returns, so that the caller may try with less.

    Args:
        f: the function; it must not return None.

    Returns:
        Its value, or None.
    """
    try:
        return f()
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "DefaultCPUAllocator: " not in str(error):
            raise
    return None


def free_host_bytes() -> int:
    """Memory that this process may still take, in bytes: what the system or its control group has left.

    Where the system does not tell, half of all there is.
    """
    limits_by_file: dict[str, int] = {}
    for path, pattern, unit in (
        ("/proc/meminfo", r"MemAvailable:\s+(\d+) kB", 1024),
        ("/sys/fs/cgroup/memory.max", r"(\d+)", 1),
        ("/sys/fs/cgroup/memory.current", r"(\d+)", 1),
    ):
        with suppress(OSError):
            number = re.search(pattern, Path(path).read_text(encoding="utf-8"))
            if number is not None:
                limits_by_file[Path(path).name] = int(number.group(1)) * unit
    limits = [limits_by_file["meminfo"]] if "meminfo" in limits_by_file else []
    if "memory.max" in limits_by_file and "memory.current" in limits_by_file:
        limits.append(limits_by_file["memory.max"] - limits_by_file["memory.current"])
    if limits:
        return max(0, min(limits))
    sysconf: Any = getattr(os, "sysconf", None)
    return sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE") // 2 if sysconf is not None else 2**31
