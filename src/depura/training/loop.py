"""One training loop: Adam, warm-up and cosine decay, moving average of the weights, checkpoints, resume.

Batches and noise are addressed by the step number (`depura.noise`), so the loop has no hidden state: stopping and
going on from a checkpoint gives the same weights as not stopping, on the same machine and thread count.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from depura import _atomic, _check
from depura.data.weights import read_safetensors
from depura.noise import Kind, Noise, Stream

Loss = Callable[[Tensor, Tensor, Noise], Tensor]
"""(images in [0, 1], labels, noise of the step) -> scalar."""

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What Adam remembers of a parameter."""

Progress = Callable[[int, float], None]
"""Called with (steps done, loss of the last step)."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        n_steps: gradient steps.
        batch: images per step, drawn with replacement.
        rate: peak learning rate.
        warmup: steps of linear warm-up.
        ema: decay of the weights' moving average per step (shortened early on).
        seed: seed of the initial weights, the batches and the noise.
    """

    n_steps: int
    batch: int = 128
    rate: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        _check.integer("Recipe", "n_steps", self.n_steps, low=1)
        _check.integer("Recipe", "batch", self.batch, low=1)
        _check.integer("Recipe", "seed", self.seed, low=0)
        _check.number("Recipe", "rate", self.rate, low=0.0, low_open=True)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return self.rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.n_steps))


M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], seed: int) -> M:
    """Build a network whose initial weights depend on the seed alone; the global generator is left as it was.

    Args:
        build: makes the network.
        seed: the seed.

    Returns:
        The network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def train(
    network: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    every: int = 500,
    progress: Progress | None = None,
) -> nn.Module:
    """Train a network in place and give it the averaged weights.

    Args:
        network: to be trained; its initial weights are the start.
        loss: of a batch.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        recipe: how.
        checkpoint: file to save the state to every `every` steps, and to go on from if it is there.
        every: steps between checkpoints.
        progress: told of each step.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: the checkpoint belongs to another recipe or network.
    """
    _check.images("train", images)
    _check.labels("train", labels, n_images=len(images))
    parameters = dict(network.named_parameters())
    average = {name: p.detach().clone() for name, p in parameters.items()}
    optimiser = torch.optim.Adam(parameters.values(), lr=recipe.rate, betas=(0.9, 0.99))
    start = 0
    if checkpoint is not None and checkpoint.exists():
        start = _restore(checkpoint, recipe, parameters, average, optimiser)
    network.train()
    for step in range(start, recipe.n_steps):
        noise = Noise(recipe.seed, tuple(range(recipe.batch)), draws=step, stream=Stream.TRAIN)
        rows = noise.bits((recipe.batch,), kind=Kind.T_STAR) % len(images)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        value = loss(images[rows], labels[rows], noise)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        for name, p in parameters.items():
            average[name].lerp_(p.detach(), 1 - decay)
        if progress is not None:
            progress(step + 1, float(value.detach()))
        if checkpoint is not None and (step + 1) % every == 0 and step + 1 < recipe.n_steps:
            _save(checkpoint, recipe, parameters, average, optimiser, step + 1)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(average[name])
    return network.eval()


def save_weights(network: nn.Module, path: Path, about: dict[str, object]) -> str:
    """Write a network's weights in half precision, in one atomic move, and round the network to what was written.

    Args:
        network: the network.
        path: safetensors file to write.
        about: what to store with them (architecture and the like).

    Returns:
        sha256 of the file.
    """
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in network.state_dict().items()}
    data = save(tensors, metadata={"depura": json.dumps(about, sort_keys=True)})
    _atomic.write(path, data)
    network.load_state_dict(tensors)
    return hashlib.sha256(data).hexdigest()


def _moments(optimiser: torch.optim.Adam, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {f"{moment}/{name}": optimiser.state[p][moment] for name, p in parameters.items() for moment in MOMENTS}


def _save(
    path: Path,
    recipe: Recipe,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimiser: torch.optim.Adam,
    step: int,
) -> None:
    tensors = {f"weight/{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"average/{name}": a for name, a in average.items()}
    tensors |= _moments(optimiser, parameters)
    _atomic.write(path, save(tensors, metadata={"recipe": json.dumps(asdict(recipe)), "step": str(step)}))


def _restore(
    path: Path,
    recipe: Recipe,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimiser: torch.optim.Adam,
) -> int:
    tensors, metadata = read_safetensors(path)
    names = {f"weight/{name}" for name in parameters}
    if json.loads(metadata.get("recipe", "null")) != asdict(recipe) or not names <= set(tensors):
        _check.fail(
            "train", "a checkpoint of the same recipe and network", str(path), "Delete it or choose another --out."
        )
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"weight/{name}"])
            average[name].copy_(tensors[f"average/{name}"])
            optimiser.state[p] = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
    return int(metadata["step"])
