"""What an exact gradient costs at ImageNet's size: `python -m benchmarks.adm [--size 256] [--steps 2]`.

DiffPure's walk (t* = 0.15) around the ADM network of 256x256_diffusion_uncond.pt, 552,814,086 parameters with random
weights, one image, on the CPU. The gradient is that of a random linear function of the purified image, exact, by
`StoredState(segment=1)`, which holds the graph of one step at a time. Printed are evaluations of the network, times
(the gradient's with its forward pass, and with the memory's bookkeeping, which adds little) and memory:

    graph       the most that autograd graphs hold at once (`depura.graph_bytes`); and the graph of one call
    allocator   the most that all tensors hold at once, above what is held before (benchmarks/memory.py)
    process     growth of the largest resident size of the process, code and libraries' buffers included
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.gradients import counted, mebibytes
from benchmarks.memory import give_back, peak_bytes
from benchmarks.timing import seconds
from depura import DiffusionPurifier, EpsDenoiser, GradientRoute, Noise, StoredState, diffpure
from depura.gradients import graph_bytes
from depura.methods.diffpure import IMAGENET
from depura.models.networks.adm import AdmUNet

CALIBRATION = 64
"""Pixels along a side of the noise that the last layer is scaled by."""


def adm(width: int, *, seed: int = 0) -> AdmUNet:
    """ADM's 256x256 network (Dhariwal and Nichol 2021, arXiv:2105.05233) with random weights, frozen.

    The last convolution is scaled so that the prediction for white noise has unit mean square, as noise has.

    Args:
        width: 256 as published, or less, a multiple of 32.
        seed: of the weights.

    Returns:
        The network, in evaluation mode.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AdmUNet(
            width=width,
            multipliers=(1, 1, 2, 2, 4, 4),
            blocks=2,
            attention=(3, 4, 5),
            head_width=64,
            residual_resampling=True,
        )
        noise = torch.randn(1, 3, CALIBRATION, CALIBRATION)
    network.eval().requires_grad_(False)
    loudness = network(noise, torch.full((1,), 50.0))[:, :3].square().mean().sqrt()
    for parameter in network.out[2].parameters():
        parameter.div_(loudness)
    return network


def walk(network: nn.Module, *, steps: int, route: GradientRoute) -> DiffusionPurifier:
    """DiffPure's walk for ImageNet around a network, in fewer steps than its 150."""
    return diffpure(denoiser_of(network), t_star=IMAGENET.t_star, n_steps=steps, gradient=route)


def denoiser_of(network: nn.Module) -> EpsDenoiser:
    """The denoiser around the network; its variances are dropped."""
    return EpsDenoiser(network, label=IMAGENET.label)


def gradient(purifier: DiffusionPurifier, images: Tensor, weights: Tensor) -> Tensor:
    """Of sum(purified * weights) with respect to images, on the noise of seed 0."""
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad((purifier(leaf, Noise(0, (0,))) * weights).sum(), leaf)[0]


@dataclass(frozen=True)
class Account:
    """What was measured: times in seconds, memory in bytes, and the network's calls."""

    parameters: int
    purification_seconds: float
    purification_calls: int
    gradient_seconds: float
    gradient_calls: int
    gradient_norm: float
    graph: int
    graph_of_a_call: int
    allocator: int
    process: int | None


def measure(network: nn.Module, *, size: int, steps: int) -> Account:
    """Purify and differentiate one random image of size x size pixels."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, 3, size, size)
    images, weights = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    purifier = walk(network, steps=steps, route=StoredState(segment=1))
    with counted(network) as purification_calls, torch.no_grad():
        purification_seconds = seconds(lambda: purifier(images, Noise(0, (0,))))
    give_back()
    before = largest_resident_bytes()
    found: list[Tensor] = []
    times: list[float] = []
    graphs: list[int] = []

    def once() -> None:
        found.append(gradient(purifier, images, weights))

    with counted(network) as gradient_calls:
        allocator = peak_bytes(
            lambda: times.append(seconds(lambda: graphs.append(graph_bytes(once)))), device=images.device
        )
    after = largest_resident_bytes()
    x = (2 * images - 1).requires_grad_()
    call = graph_bytes(lambda: denoiser_of(network)(x, 0.3))
    return Account(
        parameters=sum(p.numel() for p in network.parameters()),
        purification_seconds=purification_seconds,
        purification_calls=len(purification_calls),
        gradient_seconds=times[0],
        gradient_calls=len(gradient_calls),
        gradient_norm=float(found[0].norm()),
        graph=graphs[0],
        graph_of_a_call=call,
        allocator=allocator,
        process=None if before is None or after is None else after - before,
    )


def largest_resident_bytes() -> int | None:
    """The most memory that this process has had; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def lines(account: Account, *, size: int, steps: int) -> list[str]:
    """The account for people."""
    a = account
    process = "unknown" if a.process is None else mebibytes(a.process)
    return [
        f"ADM, {a.parameters:,} parameters, one image of {size}x{size} pixels, {steps} steps",
        f"purification: {a.purification_calls} evaluations, {a.purification_seconds:.1f} s",
        f"exact gradient, forward included: {a.gradient_calls} evaluations, {a.gradient_seconds:.1f} s, "
        f"{a.gradient_seconds / a.purification_seconds:.2f} times the purification; its norm {a.gradient_norm:.4g}",
        f"graph: {mebibytes(a.graph)} at once; one call of the network alone: {mebibytes(a.graph_of_a_call)}",
        f"allocator: {mebibytes(a.allocator)} at the peak; process: {process} more than before",
    ]


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the exact gradient through ADM costs.")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side, a multiple of 32; default 256")
    parser.add_argument("--steps", type=int, default=2, help="steps of the walk; default 2")
    parser.add_argument("--width", type=int, default=256, help="of the network, a multiple of 32; default 256")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    account = measure(adm(options.width), size=options.size, steps=options.steps)
    for line in lines(account, size=options.size, steps=options.steps):
        Console(soft_wrap=True).print(line, highlight=False)


if __name__ == "__main__":
    main()
