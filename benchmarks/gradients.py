"""What the gradient of a whole purification costs, route by route: `python -m benchmarks.gradients --out FILE.json`.

DiffPure's walk (t* = 0.1) around a U-Net of about ten million parameters with random weights, 32x32 colour images in
[0, 1], the gradient of a random linear function of the result. One run gives every row; the time of a row is told in
units of its S bare forward calls, timed before and after each repetition, so that a machine that slows down slows
both. The gradient in float32 is compared with the full graph in float64 on the same noise. torchsde's adjoint has
noise of its own and is compared with the full graph of its own walk.

A row of the JSON list:

    route, steps     how it is differentiated, and S
    time_ratio       (forward and gradient of the purification) / (S bare forward calls), median of the repetitions
    b                (forward and pull-back of the bare denoiser) / (forward) - 1, beside the same repetitions
    peak_bytes       peak of the allocator above the state before, in a call of its own (see benchmarks/memory.py)
    rel_error        |g - g64| / |g64| in the 2-norm over the batch
    cosine           between g and g64
    calls            calls of the network
    dtype, batch, parameters, budget, time_limit, error_limit, note

Fields that do not apply are null. Limits are wanted values: they are printed beside the measured ones and never
asserted.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import published
from benchmarks.memory import available_bytes, peak_bytes
from benchmarks.network import CHANNELS, PIXELS, ddpmpp, denoiser_of
from benchmarks.timing import seconds
from depura import DiffusionPurifier, Direct, GradientRoute, Kind, Noise, StoredState, StraightThrough, diffpure
from depura.gradients import Adjoint, graph_bytes

T_STAR = 0.1
TIME_SLACK, MEMORY_LIMIT = 1.05, 1.2
GRAPH_ROOM = 1.15
"""A full graph is tried where this much of it is free: its way back holds gradients too."""
ERROR_LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12}
BARE_CALLS = 5
CONSOLE = Console(width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True)
class Row:
    """One line of the result; see the module's text."""

    route: str
    steps: int
    time_ratio: float | None
    b: float | None
    peak_bytes: int
    rel_error: float | None
    cosine: float | None
    calls: int
    dtype: str
    batch: int
    parameters: int
    budget: int | None = None
    time_limit: float | None = None
    error_limit: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class RoundedNoise(Noise):
    """Noise rounded to float32 whatever the dtype, so that both precisions walk with the same numbers."""

    def __call__(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
        """Standard normal draws, float32 numbers in the dtype of `like`."""
        return super().__call__(like.float(), kind=kind, step=step).to(like.dtype)


@dataclass(frozen=True)
class Problem:
    """What is differentiated: sum(purified * weights) with respect to images, with fixed noise.

    Attributes:
        network: predicts noise.
        images: (B, C, H, W) in [0, 1].
        weights: of the linear function, like images.
        noise: the randomness.
    """

    network: nn.Module
    images: Tensor
    weights: Tensor
    noise: Noise

    @classmethod
    def random(cls, *, width: int, batch: int, device: torch.device) -> Problem:
        """Random weights, images and linear function, from fixed seeds."""
        generator = torch.Generator().manual_seed(1)
        shape = (batch, CHANNELS, PIXELS, PIXELS)
        images, weights = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
        noise = RoundedNoise(0, tuple(range(batch)))
        return cls(ddpmpp(width).to(device), images.to(device), weights.to(device), noise)

    @property
    def parameters(self) -> int:
        """Number of the network's weights."""
        return sum(p.numel() for p in self.network.parameters())

    def in_double(self) -> Problem:
        """The same numbers in float64."""
        network = copy.deepcopy(self.network).double()
        return replace(self, network=network, images=self.images.double(), weights=self.weights.double())

    def image(self, row: int) -> Problem:
        """One image of the batch."""
        only = slice(row, row + 1)
        return replace(self, images=self.images[only], weights=self.weights[only], noise=self.noise.take([row]))

    def purifier(self, n_steps: int, route: GradientRoute) -> DiffusionPurifier:
        """DiffPure around the network."""
        return diffpure(denoiser_of(self.network), t_star=T_STAR, n_steps=n_steps, gradient=route)

    def gradient(self, purify: Callable[[Tensor], Tensor]) -> Tensor:
        """Of the linear function of the purified images."""
        images = self.images.clone().requires_grad_()
        return torch.autograd.grad((purify(images) * self.weights).sum(), images)[0]

    def by_route(self, n_steps: int, route: GradientRoute) -> Callable[[], Tensor]:
        """The gradient of our purification by a route."""
        purifier = self.purifier(n_steps, route)
        return lambda: self.gradient(lambda images: purifier(images, self.noise))

    def by_torchsde(self, n_steps: int, *, increments: list[Tensor] | None = None) -> Callable[[], Tensor]:
        """The gradient of torchsde's purification: its adjoint, or the full graph if increments are given."""

        def purify(images: Tensor) -> Tensor:
            flat = images.flatten(1)
            if increments is None:
                path = published.fresh_path(flat, t_star=T_STAR, seed=0)
            else:
                path = published.Increments(flat)
                path.known += increments
            adjoint = increments is None
            return published.purify(
                self.network, images, self.noise, t_star=T_STAR, n_steps=n_steps, path=path, adjoint=adjoint
            )

        return lambda: self.gradient(purify)


@dataclass
class Gauge:
    """Times of the bare denoiser: forward alone, and forward with pull-back to its input."""

    problem: Problem
    forward: list[float] = field(default_factory=list)
    pulled: list[float] = field(default_factory=list)

    def read(self) -> list[float]:
        """Time both a few times in turn; the forward times."""
        denoise, x = denoiser_of(self.problem.network), 2 * self.problem.images - 1

        def forward() -> None:
            with torch.no_grad():
                denoise(x, 0.3)

        def pulled() -> None:
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(denoise(leaf, 0.3), leaf, self.problem.weights)

        times: list[float] = []
        for _ in range(BARE_CALLS):
            times.append(seconds(forward))
            self.pulled.append(seconds(pulled))
        self.forward += times
        return times

    @property
    def b(self) -> float:
        """Price of a pull-back in forward calls."""
        return statistics.median(self.pulled) / statistics.median(self.forward) - 1


@contextmanager
def counted(network: nn.Module) -> Iterator[list[int]]:
    """Counts the network's calls in the block: the length of the list."""
    calls: list[int] = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


@dataclass(frozen=True)
class Trial:
    """A route on trial.

    Attributes:
        route: its name.
        gradient: one forward and gradient of the purification.
        reference: the gradient in float64; None leaves the error out.
        graphs: how many steps' graphs it holds at once.
        calls_wanted: wanted cost of a step in forward calls, the pull-back's b left out.
        exact: whether its error has a limit.
        budget: of the route, in bytes.
        note: for the reader.
    """

    route: str
    gradient: Callable[[], Tensor]
    reference: Tensor | None = None
    graphs: int = 1
    calls_wanted: int | None = None
    exact: bool = True
    budget: int | None = None
    note: str | None = None


def measure(problem: Problem, n_steps: int, trial: Trial, *, repeats: int) -> Row:
    """Measure one row and print it; without repeats the time is left out."""
    found: list[Tensor] = []
    with counted(problem.network) as calls:
        peak = peak_bytes(lambda: found.append(trial.gradient()), device=problem.images.device)
    rel_error, cosine = (None, None) if trial.reference is None else compare(found[0], trial.reference)
    ratio, b = timed(problem, n_steps, trial.gradient, repeats) if repeats else (None, None)
    dtype = problem.images.dtype
    row = Row(
        route=trial.route,
        steps=n_steps,
        time_ratio=ratio,
        b=b,
        peak_bytes=peak,
        rel_error=rel_error,
        cosine=cosine,
        calls=len(calls),
        dtype=str(dtype).removeprefix("torch."),
        batch=len(problem.images),
        parameters=problem.parameters,
        budget=trial.budget,
        time_limit=None if b is None or trial.calls_wanted is None else TIME_SLACK * (trial.calls_wanted + b),
        error_limit=ERROR_LIMIT[dtype] if trial.exact and trial.reference is not None else None,
        note=trial.note,
    )
    CONSOLE.print("  " + ", ".join(f"{name} {cell}" for name, cell in cells(row).items() if cell), highlight=False)
    return row


def timed(problem: Problem, n_steps: int, f: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """(time ratio, b): medians over the repetitions, each between two readings of the bare denoiser."""
    Gauge(problem).read()
    gauge = Gauge(problem)
    ratios: list[float] = []
    before = gauge.read()
    for _ in range(repeats):
        spent = seconds(f)
        after = gauge.read()
        ratios.append(spent / (n_steps * statistics.median(before + after)))
        before = after
    return statistics.median(ratios), gauge.b


def compare(gradient: Tensor, reference: Tensor) -> tuple[float, float]:
    """(relative error, cosine) of a gradient, over the batch."""
    g, r = gradient.double().flatten(), reference.flatten()
    return float((g - r).norm() / r.norm()), float(torch.dot(g, r) / (g.norm() * r.norm()))


def our_trials(problem: Problem, n_steps: int, step: int, reference: Tensor) -> list[Trial]:
    """The routes on our walk of S steps, the graph of one of which has `step` bytes."""
    # Recomputing a step takes a graph beside those that are kept; half a graph is for rounding.
    half, whole = step * (n_steps // 2 + 1) + step // 2, step * n_steps + step // 2

    def by(route: GradientRoute) -> Callable[[], Tensor]:
        return problem.by_route(n_steps, route)

    return [
        Trial("full graph", by(Direct()), reference, n_steps, 1),
        Trial("StoredState(segment=1)", by(StoredState(segment=1)), reference, 1, 2),
        Trial("StoredState(budget=half)", by(StoredState(budget=half)), reference, n_steps // 2 + 1, budget=half),
        Trial("StoredState(budget=all)", by(StoredState(budget=whole)), reference, n_steps, 1, budget=whole),
        Trial("Adjoint", by(Adjoint()), reference, exact=False),
        Trial("StraightThrough", by(StraightThrough()), reference, exact=False),
    ]


def torchsde_trial(problem: Problem, singles: list[Problem], n_steps: int) -> Trial:
    """DiffPure as published, against the full graph of torchsde's own walk."""
    known = [increment.double() for increment in torchsde_increments(problem, n_steps)]
    graphs = [
        one.by_torchsde(n_steps, increments=[increment[row : row + 1] for increment in known])
        for row, one in enumerate(singles)
    ]
    reference = torch.cat([graph() for graph in graphs])
    return Trial("torchsde sdeint_adjoint", problem.by_torchsde(n_steps), reference, exact=False)


def torchsde_increments(problem: Problem, n_steps: int) -> list[Tensor]:
    """The increments of torchsde's walk, in the order of the steps."""
    flat = problem.images.flatten(1)
    path = published.Increments(flat, source=published.fresh_path(flat, t_star=T_STAR, seed=0))
    with torch.no_grad():
        published.purify(
            problem.network, problem.images, problem.noise, t_star=T_STAR, n_steps=n_steps, path=path, adjoint=False
        )
    return path.known


def bytes_of_one_step(problem: Problem, n_steps: int) -> int:
    """Size of the graph of one step of the walk."""
    purifier = problem.purifier(n_steps, Direct())
    first = purifier.with_(steps=purifier.steps[:1])
    return graph_bytes(lambda: first(problem.images.clone().requires_grad_(), problem.noise))


def rows_of_walk(problem: Problem, singles: list[Problem], n_steps: int, *, repeats: int) -> Iterator[Row]:
    """All routes on the walk of S steps; `singles` are the images one by one in float64."""
    step = bytes_of_one_step(problem, n_steps)
    reference = torch.cat([one.by_route(n_steps, Direct())() for one in singles])
    CONSOLE.print(f"S = {n_steps}: the reference is made; the graph of one step has {mebibytes(step)}")
    for trial in our_trials(problem, n_steps, step, reference):
        if GRAPH_ROOM * trial.graphs * step > available_bytes(problem.images.device):
            CONSOLE.print(f"{trial.route} does not fit and is left out")
        else:
            yield measure(problem, n_steps, trial, repeats=repeats)
    yield measure(problem, n_steps, torchsde_trial(problem, singles, n_steps), repeats=repeats)
    f = singles[0].by_route(n_steps, StoredState(segment=1))
    double = Trial("StoredState(segment=1)", f, reference[:1], note="image 0 alone, not timed")
    yield measure(singles[0], n_steps, double, repeats=0)


def rows_of_memory(problem: Problem, lengths: list[int]) -> Iterator[Row]:
    """The peak of storing states, by length of the walk."""
    for n_steps in lengths:
        f = problem.by_route(n_steps, StoredState(segment=1))
        yield measure(problem, n_steps, Trial("StoredState(segment=1)", f, note="memory only"), repeats=0)


def mebibytes(n: int) -> str:
    """A size for people."""
    return f"{n / 2**20:.1f} MiB"


def beside(measured: float | None, limit: float | None, form: str) -> str:
    """A measured value, and the limit if it has one."""
    if measured is None:
        return ""
    if limit is None:
        return f"{measured:{form}}"
    return f"{measured:{form}} ({'within' if measured <= limit else 'beyond'} {limit:{form}})"


def cells(row: Row) -> dict[str, str]:
    """A row for people, by column."""
    return {
        "route": row.route,
        "S": str(row.steps),
        "dtype": row.dtype,
        "calls": str(row.calls),
        "time ratio": beside(row.time_ratio, row.time_limit, ".2f"),
        "b": beside(row.b, None, ".2f"),
        "peak": mebibytes(row.peak_bytes),
        "relative error": beside(row.rel_error, row.error_limit, ".1e"),
        "cosine": beside(row.cosine, None, ".6f"),
        "note": row.note or "",
    }


def show(rows: list[Row], memory: list[Row]) -> None:
    """Print the table."""
    table = Table(title="The gradient of a purification; times in units of S bare forward calls")
    for heading in cells(rows[0]):
        table.add_column(heading)
    for row in rows + memory:
        table.add_row(*cells(row).values())
    CONSOLE.print(table)
    first, last = memory[0], memory[-1]
    growth = beside(last.peak_bytes / first.peak_bytes, MEMORY_LIMIT, ".3f")
    CONSOLE.print(f"peak of StoredState(segment=1) at S = {last.steps} over S = {first.steps}: {growth}")


def physical_cores() -> int:
    """Cores, not counting hardware threads twice where the system tells."""
    listed = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({file.read_text() for file in listed}) or os.cpu_count() or 1


def integers(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(word) for word in text.split(",")]


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What the gradient of a whole purification costs, route by route.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--steps", type=integers, default=[20, 50], help="lengths of the walk; default 20,50")
    parser.add_argument("--memory-steps", type=integers, default=[10, 100], help="default 10,100")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level; default 64")
    parser.add_argument("--repeats", type=int, default=3, help="timed repetitions of each row; default 3")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: the physical cores")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    return parser.parse_args(words)


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32
    problem = Problem.random(width=options.width, batch=options.batch, device=options.device)
    double = problem.in_double()
    singles = [double.image(row) for row in range(options.batch)]
    CONSOLE.print(
        f"{problem.parameters:,} parameters, batch {options.batch}, {options.threads} threads, {options.device}"
    )
    rows = [row for n in options.steps for row in rows_of_walk(problem, singles, n, repeats=options.repeats)]
    memory = list(rows_of_memory(problem, options.memory_steps))
    show(rows, memory)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(row) for row in rows + memory], indent=1) + "\n", encoding="utf-8")
    CONSOLE.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
