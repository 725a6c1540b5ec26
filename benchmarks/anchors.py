"""The same purification as others write it, around the same network: loops to be faster than, and to agree with."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from benchmarks import published
from depura import VP, Kind, Noise


def plain_loop(network: nn.Module, images: Tensor, noise: Noise, *, t_star: float, n_steps: int) -> Tensor:
    """DiffPure's walk in x_t as a plain PyTorch loop; under autograd, with the graph of all steps.

    x_t' = x_t + h beta (x_t / 2 - eps / sqrt(1 - abar)) + sqrt(beta h) z; Nie et al. 2022, eq. 4-5.

    Args:
        network: predicts noise from (x_t, 999 t).
        images: (B, C, H, W) in [0, 1].
        noise: the randomness.
        t_star: how far to noise the images.
        n_steps: steps, the last one to `published.T_END`.

    Returns:
        (B, C, H, W), nominally in [0, 1].
    """
    schedule = VP()
    times = [t_star * (1 - k / n_steps) for k in range(n_steps)] + [published.T_END]
    x = 2 * images - 1
    x = schedule.scale(t_star) * (x + schedule.sigma(t_star) * noise(x, kind=Kind.FORWARD))
    for k, (t, later) in enumerate(pairwise(times)):
        beta, spread = schedule.beta(t), schedule.scale(t) * schedule.sigma(t)
        eps = network(x, torch.full((len(x),), 999 * t, dtype=x.dtype, device=x.device))
        x = x + (t - later) * beta * (x / 2 - eps / spread)
        x = x + math.sqrt(beta * (t - later)) * noise(x, kind=Kind.REVERSE, step=k)
    return (x + 1) / 2


def torchsde_loop(network: nn.Module, images: Tensor, noise: Noise, *, t_star: float, n_steps: int) -> Tensor:
    """The same walk solved by torchsde as DiffPure drives it, with its own noise and its adjoint for the gradient.

    Args:
        network: as in `plain_loop`.
        images: (B, C, H, W) in [0, 1].
        noise: of the start.
        t_star: how far to noise the images.
        n_steps: steps.

    Returns:
        (B, C, H, W), nominally in [0, 1].
    """
    path = published.fresh_path(images.flatten(1), t_star=t_star, seed=0)
    return published.purify(network, images, noise, t_star=t_star, n_steps=n_steps, path=path, adjoint=True)


def diffusers_loop(network: nn.Module, images: Tensor, noise: Noise, *, n_noise: int, n_steps: int) -> Tensor:
    """The discrete chain with diffusers' scheduler: its own noise, indices n_noise - stride .. 0.

    Args:
        network: predicts noise from (x_t, index).
        images: (B, C, H, W) in [0, 1].
        noise: of the start.
        n_noise: noising depth in indices.
        n_steps: steps, a divisor of n_noise.

    Returns:
        (B, C, H, W), nominally in [0, 1].
    """
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="leading"
    )
    stride = n_noise // n_steps
    scheduler.set_timesteps(1000 // stride, device=images.device)
    x = 2 * images - 1
    start = torch.full((len(x),), n_noise - stride, device=x.device)
    x = scheduler.add_noise(x, noise(x, kind=Kind.FORWARD), start)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator(x.device).manual_seed(0)
    for index in range(n_noise - stride, -1, -stride):
        eps = network(x, torch.full((len(x),), float(index), dtype=x.dtype, device=x.device))
        x = scheduler.step(eps, index, x, generator=generator).prev_sample
    return (x + 1) / 2
