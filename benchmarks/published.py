"""DiffPure's purification on torchsde, set up as the released code sets it up (arXiv:2205.07460, section 3).

The reverse VP-SDE in the clock 1 - t on flattened images, diagonal noise, Ito, torchsde's Euler forward and whatever
torchsde then chooses backward. Weights are frozen here: the released code leaves them trainable, and pays for it.
"""

import math
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

from depura import VP, Kind, Noise

T_END = 1e-5


class ReverseVP(nn.Module):
    """The reverse VP-SDE around a network that predicts noise, in the clock 1 - t."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """Keep the network and the (C, H, W) of an image."""
        super().__init__()
        self.network = network
        self.shape = shape
        self.schedule = VP()

    def f(self, clock: Tensor, y: Tensor) -> Tensor:
        """Drift: beta / 2 x + beta score, score = -eps / sqrt(1 - abar)."""
        t = 1 - float(clock)
        beta, spread = self.schedule.beta(t), self.schedule.scale(t) * self.schedule.sigma(t)
        eps = self.network(y.reshape(-1, *self.shape), torch.full((len(y),), 999 * t, dtype=y.dtype, device=y.device))
        return beta / 2 * y - beta / spread * eps.flatten(1)

    def g(self, clock: Tensor, y: Tensor) -> Tensor:
        """Diffusion: sqrt(beta)."""
        return torch.full_like(y, math.sqrt(self.schedule.beta(1 - float(clock))))


def fresh_path(like: Tensor, *, t_star: float, seed: int) -> torchsde.BaseBrownian:
    """torchsde's own path for the batch `like`, (B, D), and the walk from t_star; equal seeds give equal walks."""
    start, end = _clock(like, t_star).tolist()
    return torchsde.BrownianInterval(
        t0=start, t1=end, size=tuple(like.shape), dtype=like.dtype, device=like.device, entropy=seed
    )


class Increments(torchsde.BaseBrownian):
    """A path by its increments in the order of the steps: those of another path, written down, or known ones."""

    levy_area_approximation = "none"

    def __init__(self, like: Tensor, *, source: torchsde.BaseBrownian | None = None) -> None:
        """A path for the batch `like`, (B, D), which asks `source` or, without one, hands out what is in `known`."""
        self.like = like
        self.source = source
        self.known: list[Tensor] = []

    def __call__(self, ta: Any, tb: Any = None, **_: Any) -> Tensor:
        """The next increment."""
        if self.source is None:
            return self.known.pop(0)
        self.known.append(self.source(ta, tb))
        return self.known[-1]

    def __repr__(self) -> str:
        """What it is and of which shape."""
        return f"Increments of {self.shape}"

    shape = property(lambda self: tuple(self.like.shape))
    dtype = property(lambda self: self.like.dtype)
    device = property(lambda self: self.like.device)


def purify(
    network: nn.Module,
    images: Tensor,
    noise: Noise,
    *,
    t_star: float,
    n_steps: int,
    path: torchsde.BaseBrownian,
    adjoint: bool,
) -> Tensor:
    """Purify with torchsde.

    Args:
        network: predicts noise.
        images: (B, C, H, W) in [0, 1].
        noise: of the start.
        t_star: how far to noise the images.
        n_steps: Euler steps.
        path: of the reverse process.
        adjoint: the stochastic adjoint, as published; otherwise the graph of all steps.

    Returns:
        (B, C, H, W), nominally in [0, 1].
    """
    schedule = VP()
    x_in = 2 * images - 1
    x_t = schedule.scale(t_star) * (x_in + schedule.sigma(t_star) * noise(x_in, kind=Kind.FORWARD))
    integrate = torchsde.sdeint_adjoint if adjoint else torchsde.sdeint
    sde = ReverseVP(network, tuple(images.shape[1:]))
    y = x_t.flatten(1)
    states = integrate(sde, y, _clock(y, t_star), bm=path, method="euler", dt=t_star / n_steps)
    return (states[-1].reshape(images.shape) + 1) / 2


def _clock(like: Tensor, t_star: float) -> Tensor:
    return torch.tensor([1 - t_star, 1 - T_END], dtype=like.dtype, device=like.device)
