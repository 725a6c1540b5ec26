"""The default route: exact, in the memory there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from depura import _check
from depura.diffusion.schedules import Step
from depura.gradients.memory import Ledger, spare_bytes, unless_out_of_memory
from depura.gradients.routes import Advance, fold, refuse_second_derivatives
from depura.records.kinds import GradientMode

Passing = Callable[[int, Tensor], tuple[Tensor, Tensor] | None]
"""(number of a step, state after it) -> what joins the cotangents of that state and of the input on the way back."""

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def recomputing() -> bool:
    """Whether a step is being run again for its gradient, so that evaluations can be counted apart.

    How many are depends on the memory there is; the gradient and all other counts do not.
    """
    return _recomputing.get()


@contextmanager
def _again() -> Generator[None, None, None]:
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


@dataclass(frozen=True)
class StoredState:
    """Exact, in constant graph memory: keep states, recompute the steps on the way back, and pull back one at a time.

    The recomputation uses the same step rows and the same addressed noise as the walk itself, so it is the same
    function. What memory there is to spare buys back recomputation: the graphs of as many steps as fit into the budget
    are kept from the way forward. Out of memory, half of them are given up and the work goes on. Whatever the setting,
    cotangents go back step by step in the same order, so the gradient is the same to the last bit.

    Costs S evaluations forward, S pulled back, and one more for each step whose graph was not kept. Cannot be
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

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step."""
        return self.passing(advance, x, x_in, steps, None)

    def passing(
        self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], passing: Passing | None
    ) -> Tensor:
        """The state after the last step; on the way back, cotangents are added to as each state is passed.

        Args:
            advance: one step.
            x: state before the first step, (B, C, H, W).
            x_in: image being purified, [-1, 1] units.
            steps: rows of the step table, in order.
            passing: asked once for the state after each step, last to first; None adds nothing.

        Returns:
            The last state.
        """
        if not (torch.is_grad_enabled() and (x.requires_grad or x_in.requires_grad)):
            return fold(advance, x, x_in, steps)
        walk: Any = _StoredWalk
        return walk.apply(self, advance, tuple(steps), passing, x, x_in)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; no gradient where it acts."""
        return images.clamp(0, 1)

    def allowance(self, advance: Advance, device: torch.device) -> int:
        """Bytes of graph that one walk may hold."""
        if self.budget is not None:
            return self.budget // advance.rounds
        return 0 if self.segment is not None else spare_bytes(device) // advance.rounds


class _StoredWalk(torch.autograd.Function):
    """The walk and its vector-Jacobian product by steps, last to first."""

    @staticmethod
    def forward(
        ctx: Any,
        route: StoredState,
        advance: Advance,
        steps: tuple[Step, ...],
        passing: Passing | None,
        x: Tensor,
        x_in: Tensor,
    ) -> Tensor:
        ctx.memory = _Memory(advance, steps, passing, x_in.detach(), offload=route.offload)
        ctx.save_for_backward(x, x_in)
        return ctx.memory.walk(x.detach(), route.allowance(advance, x.device), route.segment)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[None, None, None, None, Tensor | None, Tensor | None]:
        refuse_second_derivatives("StoredState")
        _ = ctx.saved_tensors  # raises if an input was changed in place, or the graph was freed
        by_state, by_input = ctx.memory.pull_back(grad_outputs[0])
        wants = ctx.needs_input_grad
        return None, None, None, None, by_state if wants[4] else None, by_input if wants[5] else None


class _Graph(NamedTuple):
    """One step's graph: its leaves and its result."""

    x: Tensor
    reference: Tensor
    out: Tensor


class _Memory:
    """What is kept of a walk for the way back."""

    def __init__(
        self, advance: Advance, steps: tuple[Step, ...], passing: Passing | None, x_in: Tensor, *, offload: bool
    ) -> None:
        self.advance = advance
        self.steps = steps
        self.passing = passing
        self.x_in = x_in
        self.offload = offload
        self.graphs: dict[int, _Graph] = {}
        self.states: dict[int, Tensor] = {}

    def walk(self, x: Tensor, allowance: int, segment: int | None) -> Tensor:
        """The state after the last step; graphs of the first steps are kept while they fit."""
        n, k, ledger, largest, transient = len(self.steps), 0, Ledger(), 0, 0
        x_next: Tensor | None = None
        while allowance > 0 and k < n:
            before = ledger.peak = ledger.alive
            with ledger.watch():
                graph = unless_out_of_memory(lambda k=k, x=x: self._graph(k, x))
            if graph is None:
                self._give_up_half()
                break
            largest = max(largest, ledger.alive - before)
            transient = max(transient, ledger.peak - ledger.alive)
            at_once = min(n - k - 1, segment or 1)  # graphs of the way back, beside those that are kept
            if ledger.alive + at_once * largest + transient > allowance:
                x_next = graph.out.detach()
                del graph
                break
            self.graphs[k] = graph
            self._store(k, x)
            x, k = graph.out.detach(), k + 1
        length = _segment(n - k, x, largest, allowance - ledger.alive) if segment is None else segment
        for first in range(k, n, length):
            self._store(first, x)
            last = min(first + length, n)
            x = self._on(x, first, last) if x_next is None else self._on(x_next, first + 1, last)
            x_next = None
        return x

    def pull_back(self, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangents of the first state and of the input."""
        total = torch.zeros_like(self.x_in)
        last = len(self.steps)
        for first in sorted(self.states, reverse=True):
            cotangent, total = self._through(first, last, self._state(first), cotangent, total)
            last = first
        return cotangent, total

    def _through(self, first: int, last: int, x: Tensor, cotangent: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Pull back through some steps, in as many pieces as memory asks for."""
        graph = self.graphs.pop(first, None)
        if graph is not None:
            return self._pull(first, graph, cotangent, total)
        pulled = unless_out_of_memory(lambda: self._recompute(first, last, x, cotangent, total))
        if pulled is not None:
            return pulled
        if self.graphs:
            self._give_up_half()
            return self._through(first, last, x, cotangent, total)
        if last - first == 1:
            return self._recompute(first, last, x, cotangent, total)
        middle = (first + last) // 2
        with _again():
            half = self._on(x, first, middle)
        cotangent, total = self._through(middle, last, half, cotangent, total)
        return self._through(first, middle, x, cotangent, total)

    def _recompute(self, first: int, last: int, x: Tensor, cotangent: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        graphs: list[_Graph] = []
        with _again():
            for k in range(first, last):
                graphs.append(self._graph(k, x))
                x = graphs[-1].out.detach()
        while graphs:
            last -= 1
            cotangent, total = self._pull(last, graphs.pop(), cotangent, total)
        return cotangent, total

    def _pull(self, k: int, graph: _Graph, cotangent: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangent of the state before a step, and the input's so far with what the step adds."""
        added = None if self.passing is None else self.passing(k, graph.out.detach())
        if added is not None:
            cotangent, total = cotangent + added[0], total + added[1]
        by_state, by_reference = _vjp(graph, cotangent)
        return (
            torch.zeros_like(graph.x) if by_state is None else by_state,
            total if by_reference is None else total + by_reference,
        )

    def _graph(self, k: int, x: Tensor) -> _Graph:
        """One step, recorded; state and reference are leaves of its graph."""
        with torch.enable_grad():
            leaf, reference = x.detach().requires_grad_(), self.x_in.detach().requires_grad_()
            out = self.advance(leaf, reference, self.steps[k])
        if not out.requires_grad:
            _check.fail(
                "StoredState",
                f"a result of step {k} with a gradient path to the state",
                "one without",
                "Look for detach or no_grad in the denoiser, or audit the gradient with depura audit-gradient.",
            )
        return _Graph(leaf, reference, out)

    def _on(self, x: Tensor, first: int, last: int) -> Tensor:
        """Walk some steps without a graph."""
        with torch.no_grad():
            for k in range(first, last):
                x_next = unless_out_of_memory(lambda k=k, x=x: self.advance(x, self.x_in, self.steps[k]))
                while x_next is None and self.graphs:
                    self._give_up_half()
                    x_next = unless_out_of_memory(lambda k=k, x=x: self.advance(x, self.x_in, self.steps[k]))
                x = self.advance(x, self.x_in, self.steps[k]) if x_next is None else x_next
        return x

    def _store(self, k: int, x: Tensor) -> None:
        self.states[k] = x.cpu() if self.offload else x

    def _state(self, k: int) -> Tensor:
        return self.states[k].to(self.x_in.device)

    def _give_up_half(self) -> None:
        """Free the later half of the kept graphs; their steps will be recomputed."""
        kept = sorted(self.graphs)
        for k in kept[len(kept) // 2 :]:
            del self.graphs[k]


def _vjp(graph: _Graph, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian products; None for a leaf that the result does not depend on."""
    return torch.autograd.grad(graph.out, (graph.x, graph.reference), cotangent, allow_unused=True)


def _segment(n_steps: int, x: Tensor, graph: int, spare: int) -> int:
    """The segment length of least memory: n / K states and K graphs at once; no more graphs than there is room for."""
    if graph == 0 or n_steps == 0:
        return 1
    best = round(math.sqrt(n_steps * x.numel() * x.element_size() / graph))
    return max(1, min(best, spare // graph, n_steps))
