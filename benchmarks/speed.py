"""What depura adds to the network's own time, and takes off it: `python -m benchmarks.speed --out FILE.json`.

DiffPure around a DDPM++ (depura.models.networks.score_sde) of about ten million parameters with random weights, 32x32
colour images in [0, 1]. Every row is a ratio of two things measured in turn in one run (see benchmarks/rows.py):

    overhead    purification over S bare calls of the same network, plain and fast; shares of a purification's time
    gradients   routes over S bare calls
    precision   channels-last, compiled and bfloat16 over plain float32, forward and exact gradient
    anchors     torchsde as DiffPure drives it, a plain PyTorch loop, diffusers' scheduler loop, on the same weights
    noise       the noise of one step over one call of the network, at 32x32 and (--adm) at 256x256
    draws       the gradient of 16 draws in one batch, per draw, over that of one
    attack      one iteration of PGD over the gradient that it needs; PGD of other libraries on the same classifier
    memory      peak of the exact gradient against steps and batch
    gpu         on CUDA: published sizes in images per second, the share of the matrix-product ceiling, largest batches

The JSON has the machine, the settings and the rows. Nothing is asserted. `python -m benchmarks.speed_page` draws and
tabulates it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adm import adm as adm_network
from benchmarks.anchors import diffusers_loop, plain_loop, torchsde_loop
from benchmarks.memory import available_bytes, peak_bytes
from benchmarks.network import denoiser_of
from benchmarks.rows import Row, compared, machine, rounds
from benchmarks.timing import seconds
from depura import (
    APGD,
    PGD,
    Adjoint,
    Ball,
    Defence,
    Denoiser,
    DiffusionPurifier,
    Direct,
    DiscreteLinear,
    EpsDenoiser,
    Fast,
    GradientRoute,
    IndexLabel,
    Kind,
    Noise,
    StoredState,
    StraightThrough,
    cross_entropy,
    diffpure,
    diffpure_ddpm,
    digits_classifier,
    graph_bytes,
    load_digits,
)
from depura.models.networks.score_sde import NcsnPP
from depura.purifiers.fast import deviation

T_STAR = 0.1
SIGMA = 0.3
DRAWS_TIMED = 20
CONSOLE = Console(soft_wrap=True)
BY_IMAGES, BY_GRADIENT = "purified images, median, in 1/255", "gradient, |g - g'| / |g'|"
PLAIN = "plain float32"


def ddpmpp(width: int, blocks: int, *, seed: int = 0) -> NcsnPP:
    """DDPM++ with random weights, frozen, its output for white noise scaled to unit mean square."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NcsnPP(width=width, blocks=blocks)
        x = torch.randn(8, 3, 32, 32)
    network.eval().requires_grad_(False)
    loudness = network(x, torch.full((len(x),), 50.0)).square().mean().sqrt()
    last = network.all_modules[-1]
    for parameter in last.parameters():
        parameter.div_(loudness)
    return network


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often.

    Attributes:
        network: predicts noise.
        batch: images at once.
        steps: S.
        repeats: rounds.
        compiled: whether compiled networks are measured.
        device: where.
    """

    network: nn.Module
    batch: int
    steps: int
    repeats: int
    compiled: bool
    device: torch.device

    @cached_property
    def images(self) -> Tensor:
        """(B, C, H, W) in [0, 1]."""
        return torch.rand((self.batch, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(self.device)

    @cached_property
    def weights(self) -> Tensor:
        """Of the linear function that is differentiated."""
        return torch.randn((self.batch, 3, 32, 32), generator=torch.Generator().manual_seed(2)).to(self.device)

    @property
    def noise(self) -> Noise:
        """One id per image."""
        return Noise(0, tuple(range(self.batch)))

    @cached_property
    def denoiser(self) -> EpsDenoiser:
        """Around the network."""
        return denoiser_of(self.network)

    @cached_property
    def fast(self) -> Fast:
        """The default-fast denoiser."""
        return Fast(self.denoiser, compiled=self.compiled)

    def purifier(self, denoiser: Denoiser, route: GradientRoute | None = None) -> DiffusionPurifier:
        """DiffPure."""
        return diffpure(denoiser, t_star=T_STAR, n_steps=self.steps, gradient=route)

    def rounds(self, calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Times of calls in turn."""
        return rounds(calls, repeats=self.repeats)

    def purify(self, denoiser: Denoiser) -> Callable[[], Tensor]:
        """A purification without gradient."""
        purifier = self.purifier(denoiser)
        return without_graph(lambda: purifier(self.images, self.noise))

    def gradient(self, purify: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        """Of a linear function of the purified images."""

        def run() -> Tensor:
            leaf = self.images.clone().requires_grad_()
            return torch.autograd.grad((purify(leaf) * self.weights).sum(), leaf)[0]

        return run

    def by_route(self, denoiser: Denoiser, route: GradientRoute) -> Callable[[], Tensor]:
        """The gradient of our purification."""
        purifier = self.purifier(denoiser, route)
        return self.gradient(lambda images: purifier(images, self.noise))

    def bare(self, denoiser: Denoiser) -> Callable[[], object]:
        """S calls of the network itself, fast or plain, with the walk's own inputs and nothing around it."""
        x = 2 * self.images - 1
        label = torch.full((self.batch,), 50.0, device=self.device)
        network = denoiser.network_alone if isinstance(denoiser, Fast) else self.network

        def run() -> None:
            for _ in range(self.steps):
                network(x, label)

        return without_graph(run)


def without_graph(f: Callable[[], Any]) -> Callable[[], Any]:
    """The same call without gradients."""

    def run() -> Any:
        with torch.no_grad():
            return f()

    return run


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())


def rows_of_overhead(setting: Setting) -> Iterator[Row]:
    """Purification over S bare calls."""
    for title, denoiser in ((PLAIN, setting.denoiser), ("default fast", setting.fast)):
        name, than = f"purification, {title}", f"{setting.steps} bare calls, {title}"
        times = setting.rounds({name: setting.purify(denoiser), than: setting.bare(denoiser)})
        yield compared("overhead", name, than, times)
        yield from rows_of_shares(setting, denoiser, title)


def rows_of_shares(setting: Setting, denoiser: Denoiser, title: str) -> Iterator[Row]:
    """Where the time of a purification goes: the network, the noise, everything else."""
    spent = {"network": 0.0, "noise": 0.0}

    def timed(*inputs: Tensor) -> Tensor:
        found: list[Tensor] = []
        spent["network"] += seconds(lambda: found.append(alone(*inputs)))
        return found[0]

    class TimedNoise(Noise):
        """Noise with a clock."""

        def __call__(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
            found: list[Tensor] = []
            draw = super().__call__
            spent["noise"] += seconds(lambda: found.append(draw(like, kind=kind, step=step)))
            return found[0]

    alone = denoiser.network_alone if isinstance(denoiser, Fast) else setting.network
    purifier = setting.purifier(EpsDenoiser(timed, label=setting.denoiser.label))
    noise = TimedNoise(0, tuple(range(setting.batch)))
    run = without_graph(lambda: purifier(setting.images, noise))
    run()
    shares: dict[str, list[float]] = {"network": [], "noise": [], "the rest": []}
    totals: list[float] = []
    for _ in range(setting.repeats):
        spent["network"] = spent["noise"] = 0.0
        total = seconds(run)
        totals.append(total)
        parts = spent | {"the rest": total - sum(spent.values())}
        for part, time in parts.items():
            shares[part].append(time)
    for part, times in shares.items():
        yield compared("profile", f"{part}, {title}", "whole", {f"{part}, {title}": times, "whole": totals})


def rows_of_gradients(setting: Setting) -> Iterator[Row]:
    """Routes over S bare calls, each compared with the full graph."""
    routes: dict[str, GradientRoute] = {
        "Direct": Direct(),
        "StoredState(segment=1)": StoredState(segment=1),
        "StoredState()": StoredState(),
        "Adjoint": Adjoint(),
        "StraightThrough": StraightThrough(),
    }
    exact = setting.by_route(setting.denoiser, Direct())()
    than = f"{setting.steps} bare calls"
    bare = setting.bare(setting.denoiser)
    for name, route in routes.items():
        call = setting.by_route(setting.denoiser, route)
        far = relative(call(), exact)
        times = setting.rounds({name: call, than: bare})
        yield compared("gradients", name, than, times, deviation=far, deviation_of=BY_GRADIENT)


def rows_of_precision(setting: Setting) -> Iterator[Row]:
    """Each way to run the network over plain float32."""
    plain, noise, route = setting.denoiser, setting.noise, StoredState(segment=1)
    ways: dict[str, Fast] = {
        "channels-last": Fast(plain, dtype=None, compiled=False),
        "bfloat16, channels-last": Fast(plain, compiled=False),
    }
    if setting.compiled:
        ways["compiled, channels-last"] = Fast(plain, dtype=None)
        ways["default fast: bfloat16, compiled, channels-last"] = setting.fast
        if setting.device.type == "cuda":
            ways["default fast with CUDA graphs"] = Fast(plain, cuda_graphs=True)
    forward, pulled = setting.purify(plain), setting.by_route(plain, route)
    exact = pulled()
    for name, fast in ways.items():
        far = deviation(setting.purifier(fast), setting.images, noise)
        times = setting.rounds({name: setting.purify(fast), PLAIN: forward})
        note = f"largest {far.largest:.3g}/255"
        yield compared("precision", name, PLAIN, times, deviation=far.median, deviation_of=BY_IMAGES, note=note)
        call = setting.by_route(fast, route)
        off = relative(call(), exact)
        name, than = f"exact gradient, {name}", f"exact gradient, {PLAIN}"
        times = setting.rounds({name: call, than: pulled})
        yield compared("precision", name, than, times, deviation=off, deviation_of=BY_GRADIENT)


def rows_of_anchors(setting: Setting) -> Iterator[Row]:
    """depura beside what others run, on the same weights. torchsde and diffusers have noise of their own."""
    network, images, noise, n = setting.network, setting.images, setting.noise, setting.steps

    def loop(x: Tensor) -> Tensor:
        return plain_loop(network, x, noise, t_star=T_STAR, n_steps=n)

    def sde(x: Tensor) -> Tensor:
        return torchsde_loop(network, x, noise, t_star=T_STAR, n_steps=n)

    calls: dict[str, Callable[[], object]] = {
        "depura, plain float32": setting.purify(setting.denoiser),
        "depura, default fast": setting.purify(setting.fast),
        "plain PyTorch loop": without_graph(lambda: loop(images)),
        "torchsde": without_graph(lambda: sde(images)),
    }
    times = setting.rounds(calls)
    found = setting.purify(setting.denoiser)()
    far = float(255 * (found - without_graph(lambda: loop(images))()).abs().median())
    ours = list(calls)[:2]
    quick = deviation(setting.purifier(setting.fast), images, noise).median
    for name in ours:
        off = far if name == ours[0] else quick
        loops = "plain PyTorch loop"
        yield compared("anchors", name, loops, times, deviation=off, deviation_of=BY_IMAGES)
        note = "torchsde has noise of its own: images are not compared"
        yield compared("anchors", name, "torchsde", times, note=note)
    route = StoredState()
    calls = {
        "exact gradient, plain float32": setting.by_route(setting.denoiser, route),
        "exact gradient, default fast": setting.by_route(setting.fast, route),
        "full graph of the plain PyTorch loop": setting.gradient(loop),
        "torchsde's adjoint": setting.gradient(sde),
    }
    reference = setting.gradient(loop)()
    offs = {name: relative(call(), reference) for name, call in list(calls.items())[:2]}  # type: ignore[arg-type]
    times = setting.rounds(calls)
    for name, off in offs.items():
        for than in list(calls)[2:]:
            note = "its gradient is of a walk with other noise, and approximate" if than.startswith("torchsde") else ""
            yield compared(
                "anchors", name, than, times, deviation=off, deviation_of=f"{BY_GRADIENT}, full graph", note=note
            )
    yield from rows_of_scheduler(setting)


def rows_of_scheduler(setting: Setting) -> Iterator[Row]:
    """diffusers' scheduler loop on the discrete chain of as many steps."""
    n_noise = 100 // setting.steps * setting.steps
    if n_noise == 0 or 1000 % (n_noise // setting.steps):
        return
    denoiser = EpsDenoiser(setting.network, label=IndexLabel(DiscreteLinear()))
    purifier = diffpure_ddpm(denoiser, n_noise=n_noise, n_steps=setting.steps)
    images, noise = setting.images, setting.noise
    name, than = "depura, discrete chain", "diffusers' scheduler loop"
    times = setting.rounds(
        {
            name: without_graph(lambda: purifier(images, noise)),
            than: without_graph(
                lambda: diffusers_loop(setting.network, images, noise, n_noise=n_noise, n_steps=setting.steps)
            ),
        }
    )
    note = "diffusers has noise of its own and other indices: images are not compared"
    yield compared("anchors", name, than, times, note=note)


def drawn(noise: Noise, x: Tensor) -> None:
    """The noise of a walk, as a walk draws it."""
    noise = noise.later(0, ahead=range(DRAWS_TIMED))
    for k in range(DRAWS_TIMED):
        noise(x, kind=Kind.REVERSE, step=k)


def rows_of_noise(setting: Setting, *, adm: bool) -> Iterator[Row]:
    """The noise of one step over one call of the network."""
    one = Setting(setting.network, setting.batch, 1, setting.repeats, setting.compiled, setting.device)
    x, noise = setting.images, setting.noise
    name = f"noise of a step, 32x32, batch {setting.batch}"
    for title, denoiser in ((PLAIN, setting.denoiser), ("default fast", setting.fast)):
        than = f"one call, {title}"
        times = setting.rounds({name: lambda: drawn(noise, x), than: one.bare(denoiser)})
        yield compared("noise", name, than, times, share=DRAWS_TIMED)
    if adm:
        network = adm_network(256).to(setting.device)
        big, noise = torch.zeros(1, 3, 256, 256, device=setting.device), Noise(0, (0,))
        label = torch.full((1,), 50.0, device=setting.device)
        name, than = "noise of a step, 256x256, batch 1", "one call of ADM, plain float32"
        times = rounds({name: lambda: drawn(noise, big), than: without_graph(lambda: network(big, label))}, repeats=2)
        yield compared("noise", name, than, times, share=DRAWS_TIMED)


def rows_of_draws(setting: Setting, *, draws: int = 16) -> Iterator[Row]:
    """The exact gradient of many draws in one batch, per draw, over that of one draw; both compiled for their size."""
    torch.compiler.reset()
    for title, denoiser in ((PLAIN, setting.denoiser), ("default fast", setting.fast)):
        purifier = setting.purifier(denoiser, StoredState(segment=1))
        image = setting.images[:1]

        def gradient(copies: int, purifier: DiffusionPurifier = purifier, image: Tensor = image) -> Tensor:
            leaf = image.clone().requires_grad_()
            noise = Noise(0, (0,)).expand(range(copies))
            out = purifier(leaf.repeat_interleave(copies, dim=0), noise)
            return torch.autograd.grad(out.square().sum() / copies, leaf)[0]

        name, than = f"{draws} draws in one batch, per draw, {title}", f"1 draw, {title}"
        times = setting.rounds({name: lambda g=gradient: g(draws), than: lambda g=gradient: g(1)})
        yield compared("draws", name, than, times, share=draws, note="one image")


class Pooled(nn.Module):
    """Ten classes from means of quarters: a classifier that costs nothing."""

    def __init__(self) -> None:
        """Fixed weights."""
        super().__init__()
        matrix = torch.randn((48, 10), generator=torch.Generator().manual_seed(3))
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) @ self.matrix


def rows_of_attacks(setting: Setting) -> Iterator[Row]:
    """One iteration of PGD over the gradient that it needs, and PGD of other libraries on the bundled classifier."""
    route = StoredState(segment=1)
    labels = torch.zeros(setting.batch, dtype=torch.int64, device=setting.device)
    for title, denoiser in ((PLAIN, setting.denoiser), ("default fast", setting.fast)):
        purifier = setting.purifier(denoiser, route)
        defence = Defence(purifier, Pooled().to(setting.device))
        attack = PGD(Ball("linf", 8 / 255), n_steps=1)
        name, than = f"PGD, one iteration, {title}", f"exact gradient, {title}"
        times = setting.rounds(
            {
                name: lambda d=defence, a=attack: a(d, setting.images, labels, init=setting.noise, eot=setting.noise),
                than: setting.by_route(denoiser, route),
            }
        )
        rate = 1 / statistics.median(times[name])
        yield compared("attack", name, than, times, note=f"{rate:.3g} iterations per second of {setting.batch} images")
    yield from rows_of_libraries(setting.repeats)


def rows_of_libraries(repeats: int) -> Iterator[Row]:
    """Whole attacks on the bundled digits classifier, beside libraries that are installed."""
    data = load_digits("test").first(64)
    classifier, eps, steps = digits_classifier(), 0.2, 20
    size = 2.5 * eps / steps
    ours = PGD(Ball("linf", eps), n_steps=steps, step_size=size)
    init = Noise(0, data.ids)
    name = "PGD-20 of depura on the bundled classifier, 64 digits"
    torchattacks = installed("torchattacks")
    if torchattacks is None:
        CONSOLE.print("torchattacks is not installed: whole attacks are not compared with it")
    else:
        theirs = torchattacks.PGD(classifier, eps=eps, alpha=size, steps=steps)
        than = "PGD-20 of torchattacks"
        times = rounds(
            {
                name: lambda: ours(classifier, data.images, data.labels, init=init),
                than: lambda: theirs(data.images, data.labels),
            },
            repeats=repeats,
        )
        note = "depura's also keeps the best iterate and the health of the gradients"
        yield compared("attack", name, than, times, note=note)
    autopgd = installed("pyautoattack.autopgd_base")
    if autopgd is None:
        CONSOLE.print("pyautoattack is not installed: APGD is not compared with it")
        return
    theirs = autopgd.APGDAttack(classifier, n_iter=steps, norm="Linf", eps=eps, loss="ce", n_restarts=1, device="cpu")
    for common, note in ((0, ""), (8, "the best point is chosen on common random numbers, for defences that draw")):
        apgd = APGD(Ball("linf", eps), n_steps=steps, loss=cross_entropy, common=common)
        name, than = f"APGD-20 of depura, common={common}, bundled classifier, 64 digits", "APGD-20 of pyautoattack"
        times = rounds(
            {
                name: lambda a=apgd: a(classifier, data.images, data.labels, init=init),
                than: lambda: theirs.perturb(data.images, data.labels),
            },
            repeats=repeats,
        )
        yield compared("attack", name, than, times, note=note)


def installed(name: str) -> Any:
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def rows_of_memory(setting: Setting) -> Iterator[Row]:
    """Peaks of the exact gradient: by steps, and by batch."""

    def peak(steps: int, batch: int, route: GradientRoute) -> float:
        one = Setting(setting.network, batch, steps, 1, False, setting.device)
        return float(peak_bytes(one.by_route(one.denoiser, route), device=setting.device))

    def row(name: str, than: str, value: float, against: float) -> Row:
        return Row("memory", name, than, value, against, value / against, unit="bytes")

    route, n, b = StoredState(segment=1), setting.steps, setting.batch
    base = peak(n, b, route)
    yield row(f"StoredState(segment=1), S = {4 * n}, batch {b}", f"S = {n}, batch {b}", peak(4 * n, b, route), base)
    few = max(1, b // 4)
    than = f"S = {n}, batch {few}"
    yield row(f"StoredState(segment=1), S = {n}, batch {b}", than, base, peak(n, few, route))
    one = Setting(setting.network, b, 1, 1, False, setting.device)
    step = graph_bytes(one.by_route(one.denoiser, Direct()))
    if 1.2 * n * step < available_bytes(setting.device):
        than = f"StoredState(segment=1), S = {n}"
        yield row(f"full graph, S = {n}, batch {b}", than, peak(n, b, Direct()), base)
    else:
        CONSOLE.print(f"the full graph of {n} steps does not fit and is left out")


def rows_of_gpu(setting: Setting) -> Iterator[Row]:
    """Published sizes on CUDA, in bfloat16, compiled: images per second, share of the ceiling, largest batch."""
    ceiling = matrix_ceiling(setting.device)
    sizes: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "DDPM++, 106 M parameters, 32x32": (lambda: ddpmpp(128, 8), 32),
        "ADM, 553 M parameters, 256x256": (lambda: adm_network(256), 256),
    }
    for title, (build, size) in sizes.items():
        network = build().to(setting.device)
        denoiser = denoiser_of(network)
        batch = 128 if size == 32 else 4
        x = torch.rand(batch, 3, size, size, device=setting.device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            denoiser(x, SIGMA)
        work = counter.get_total_flops()
        for way, graphs in (("bfloat16, compiled", False), ("bfloat16, compiled, CUDA graphs", True)):
            fast = Fast(denoiser, cuda_graphs=graphs)
            name, than = f"{title}, {way}, one step", f"{title}, {PLAIN}, one step"
            times = setting.rounds(
                {
                    name: without_graph(lambda f=fast, x=x: f(x, SIGMA)),
                    than: without_graph(lambda d=denoiser, x=x: d(x, SIGMA)),
                }
            )
            per_second = work / statistics.median(times[name])
            note = (
                f"{batch / statistics.median(times[name]):.4g} images per second and step; {per_second / ceiling:.0%} "
                f"of the {ceiling / 1e12:.0f} TFLOP/s that matrix products reach here"
            )
            yield compared("gpu", name, than, times, note=note)
        most = largest_batch(Fast(denoiser, compiled=False), x[:1])
        yield Row("gpu", f"{title}, largest batch of one step's gradient", "1", most, 1, most, unit="images")


def matrix_ceiling(device: torch.device, *, size: int = 8192, repeats: int = 10) -> float:
    """Operations per second of a product of square bfloat16 matrices."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    a @ a
    return 2 * size**3 / statistics.median(seconds(lambda: a @ a) for _ in range(repeats))


def largest_batch(denoiser: Denoiser, image: Tensor) -> int:
    """The largest power of two whose gradient through one step fits."""
    batch = 1
    while True:
        try:
            leaf = image.expand(2 * batch, -1, -1, -1).clone().requires_grad_()
            torch.autograd.grad(denoiser(leaf, SIGMA).sum(), leaf)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return batch
        batch *= 2


SECTIONS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "overhead": rows_of_overhead,
    "precision": rows_of_precision,
    "anchors": rows_of_anchors,
    "gradients": rows_of_gradients,
    "attack": rows_of_attacks,
    "memory": rows_of_memory,
}


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table(title="Ratios of one run")
    for heading in ("what", "measured", "over", "ratio", "deviation", "note"):
        table.add_column(heading)
    for row in rows:
        spread = "" if row.spread is None else f" ± {row.spread:.2g}"
        far = "" if row.deviation is None else f"{row.deviation:.2g} ({row.deviation_of})"
        size = f"{row.value / 2**20:.0f} MiB" if row.unit == "bytes" else f"{row.value:.4g} {row.unit}"
        table.add_row(row.name, size, row.than, f"{row.ratio:.3f}{spread}", far, row.note)
    Console(width=200).print(table)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed and memory beside anchors, as ratios in one run.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=10, help="length of the walk; default 10")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=64, help="of the network, a multiple of 4; default 64")
    parser.add_argument("--blocks", type=int, default=2, help="of the network, per level; default 2")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; default 5")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--no-compile", action="store_true", help="leave compiled networks out")
    parser.add_argument("--adm", action="store_true", help="also the noise beside ADM at 256x256 (553 M parameters)")
    parser.add_argument("--only", default=None, help="sections, between commas")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Measure, print and write; the file is written again after every section."""
    options = arguments(words)
    torch.set_num_threads(options.threads)
    network = ddpmpp(options.width, options.blocks).to(options.device)
    setting = Setting(network, options.batch, options.steps, options.repeats, not options.no_compile, options.device)
    # Draws come last: they compile the network for other batch sizes.
    sections = SECTIONS | {"noise": lambda setting: rows_of_noise(setting, adm=options.adm), "draws": rows_of_draws}
    if options.device.type == "cuda":
        sections["gpu"] = rows_of_gpu
    told: dict[str, Any] = {
        "machine": machine(options.device),
        "settings": {
            "parameters": sum(p.numel() for p in network.parameters()),
            "steps": options.steps,
            "batch": options.batch,
            "repeats": options.repeats,
            "compiled": setting.compiled,
            "device": str(options.device),
        },
    }
    CONSOLE.print_json(json.dumps(told))
    rows: list[Row] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in sections.items():
        if options.only is None or name in options.only.split(","):
            for row in measure(setting):
                rows.append(row)
                CONSOLE.print(f"{row.section}: {row.name} / {row.than} = {row.ratio:.3f}", highlight=False)
            text = json.dumps(told | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n"
            options.out.write_text(text, encoding="utf-8")
    show(rows)
    CONSOLE.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
