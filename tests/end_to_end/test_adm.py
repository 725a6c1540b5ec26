"""A purification of ImageNet's shape through the ADM network, small: exact gradients, their calls and their memory."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.adm import Account, adm, gradient, lines, measure, walk
from benchmarks.gradients import counted
from benchmarks.memory import peak_bytes
from depura import Direct, EpsVarianceDenoiser, IndexLabel, Noise, StoredState, diffpure_adm, graph_bytes
from depura.diffusion.schedules import DiscreteLinear

SIZE, STEPS = 64, 2


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """ADM's layers with an eighth of their features."""
    return adm(32)


def images(dtype: torch.dtype, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """An image, the weights of a linear function of what becomes of it, and a direction."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, 3, size, size)
    x = torch.rand(shape, generator=generator).to(dtype)
    return x, torch.randn(shape, generator=generator).to(dtype), torch.randn(shape, generator=generator).to(dtype)


def test_the_gradient_is_exact(network: nn.Module) -> None:
    """Against central differences; in double precision, since single precision's differences are noise."""
    purifier = walk(copy.deepcopy(network).double(), steps=STEPS, route=StoredState(segment=1))
    x, weights, direction = images(torch.float64)

    def value(x: Tensor) -> Tensor:
        return (purifier(x, Noise(0, (0,))) * weights).sum()

    h = 1e-6
    with torch.no_grad():
        difference = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    slope = (gradient(purifier, x, weights) * direction).sum()
    assert abs(slope - difference) < 1e-6 * abs(difference)


@pytest.mark.slow
def test_a_step_is_held_at_a_time(network: nn.Module) -> None:
    x, weights, _ = images(torch.float32)
    gradients: list[Tensor] = []
    calls: list[int] = []
    graphs: list[int] = []
    peaks: list[int] = []
    for route in (Direct(), StoredState(segment=1)):
        purifier = walk(network, steps=STEPS, route=route)

        def once(purifier=purifier) -> None:
            gradients.append(gradient(purifier, x, weights))

        with counted(network) as called:
            peaks.append(peak_bytes(lambda once=once: graphs.append(graph_bytes(once)), device=x.device))
        calls.append(len(called))
    print(f"ADM at {SIZE}x{SIZE}, {STEPS} steps, full graph and stored states: graphs {graphs}, peaks {peaks} bytes")
    full, stored = gradients[0], gradients[1]
    torch.testing.assert_close(stored, full, rtol=1e-4, atol=1e-5 * full.abs().max().item())
    assert calls == [STEPS, 2 * STEPS]
    assert 0.5 * graphs[0] <= graphs[1] < 0.55 * graphs[0]
    assert graphs[1] < peaks[1] < 0.6 * peaks[0]


@pytest.mark.slow
def test_the_benchmark_measures_it(network: nn.Module) -> None:
    account = measure(network, size=32, steps=STEPS)
    assert account.parameters == sum(p.numel() for p in network.parameters())
    assert (account.purification_calls, account.gradient_calls) == (STEPS, 2 * STEPS)
    assert account.graph_of_a_call <= account.graph < 1.05 * account.graph_of_a_call
    assert account.graph < account.allocator
    x, weights, _ = images(torch.float32, 32)
    expected = gradient(walk(network, steps=STEPS, route=Direct()), x, weights).norm()
    assert account.gradient_norm == pytest.approx(float(expected), rel=1e-3)


def test_the_benchmark_says_what_it_measured() -> None:
    account = Account(7, 2.0, 2, 9.0, 4, 1.5, 3 * 2**20, 2**20, 5 * 2**20, None)
    text = "\n".join(lines(account, size=64, steps=2))
    for part in ("7 parameters", "64x64", "4 evaluations, 9.0 s, 4.50 times", "3.0 MiB", "5.0 MiB", "unknown more"):
        assert part in text
    assert "6.0 MiB more" in "\n".join(lines(replace(account, process=6 * 2**20), size=64, steps=2))


def test_the_released_chain_with_learned_variances(network: nn.Module) -> None:
    """`diffpure_adm` reads the six outputs; what it returns is an image, and its gradient is that of its full graph."""
    denoiser = EpsVarianceDenoiser(network, label=IndexLabel(DiscreteLinear()))
    x, weights, _ = images(torch.float32)
    stored = gradient(diffpure_adm(denoiser, n_noise=STEPS, gradient=StoredState(segment=1)), x, weights)
    purifier = diffpure_adm(denoiser, n_noise=STEPS, gradient=Direct())
    purified = purifier(x, Noise(0, (0,)))
    assert 0 <= purified.min() < purified.max() <= 1
    assert (purified - x).abs().mean() > 1e-3
    full = gradient(purifier, x, weights)
    assert full.norm() > 1
    torch.testing.assert_close(stored, full, rtol=1e-4, atol=1e-5 * full.abs().max().item())
