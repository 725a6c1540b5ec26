"""One training loop: Adam, warm-up and cosine decay, moving average of the weights, checkpoints, resume.

Batches and noise are addressed by the step number (`depura.noise`), and what a network itself draws from torch's
generator (dropout) is seeded by it, so the loop has no hidden state: stopping and going on from a checkpoint gives the
same weights as not stopping, on the same machine and thread count.

Only parameters are averaged. Buffers (the running statistics of batch normalisation) are kept in checkpoints and end as
the trained network left them: they are moving averages already, and since the learning rate decays to zero they
belong to weights close to the averaged ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
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


T = TypeVar("T")


def seeded(build: Callable[[], T], seed: int) -> T:
    """Call what draws from torch's generator, such as initial weights, so that the result depends on the seed alone.

    The global generator is left as it was.

    Args:
        build: makes the network, or whatever it is.
        seed: the seed.

    Returns:
        What was built.
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
    about: str = "",
    checkpoint: Path | None = None,
    every: int = 500,
    progress: Progress | None = None,
) -> nn.Module:
    """Train a network in place and give it the averaged weights.

    Args:
        network: to be trained; its initial weights are the start. Frozen parameters stay as they are.
        loss: of a batch.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        recipe: how.
        about: what a checkpoint must agree on besides the recipe and the network, such as the settings of the loss.
        checkpoint: file to save the state to every `every` steps, and to go on from if it is there.
        every: steps between checkpoints.
        progress: told of each step.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: the checkpoint belongs to another recipe, loss or network.
    """
    _check.images("train", images)
    _check.labels("train", labels, n_images=len(images))
    _check.integer("train", "every", every, low=1)
    state = _State(network, json.dumps([asdict(recipe), about]), recipe.rate)
    start = 0 if checkpoint is None or not checkpoint.exists() else state.restore(checkpoint)
    network.train()
    for step in range(start, recipe.n_steps):
        noise = Noise(recipe.seed, tuple(range(recipe.batch)), draws=step, stream=Stream.TRAIN)
        rows = noise.bits((recipe.batch,), kind=Kind.T_STAR) % len(images)
        word = int(noise.take([0]).bits((1,), kind=Kind.REVERSE))
        batch = images[rows], labels[rows], noise
        value = seeded(lambda batch=batch: loss(*batch), word)
        state.descend(value, rate=recipe.rate_at(step), decay=min(recipe.ema, (1 + step) / (10 + step)))
        if progress is not None:
            progress(step + 1, float(value.detach()))
        if checkpoint is not None and (step + 1) % every == 0 and step + 1 < recipe.n_steps:
            state.save(checkpoint, step + 1)
    with torch.no_grad():
        for name, p in state.parameters.items():
            p.copy_(state.average[name])
    return network.eval()


class _State:
    """All that changes in training: weights, their average, Adam's moments, and the network's buffers."""

    def __init__(self, network: nn.Module, identity: str, rate: float) -> None:
        self.identity = identity
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.buffers = dict(network.named_buffers())
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimiser = torch.optim.Adam(self.parameters.values(), lr=rate, betas=(0.9, 0.99))

    def descend(self, value: Tensor, *, rate: float, decay: float) -> None:
        """One step of Adam, and of the average."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        self.optimiser.step()
        for name, p in self.parameters.items():
            self.average[name].lerp_(p.detach(), 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, but for Adam's moments; writing to these tensors restores it."""
        groups = {"weight": self.parameters, "average": self.average, "buffer": self.buffers}
        return {f"{group}/{name}": t.detach() for group, members in groups.items() for name, t in members.items()}

    def save(self, path: Path, step: int) -> None:
        """Write a checkpoint."""
        tensors = {key: t.clone(memory_format=torch.contiguous_format) for key, t in self.tensors().items()}
        for name, p in self.parameters.items():
            moments: Mapping[str, Tensor] = self.optimiser.state.get(p, {})
            tensors |= {f"{moment}/{name}": t.contiguous() for moment, t in moments.items()}
        _atomic.write(path, save(tensors, metadata={"recipe": self.identity, "step": str(step)}))

    def restore(self, path: Path) -> int:
        """Take up a checkpoint, and say how many steps were done."""
        stored, metadata = read_safetensors(path)
        own = self.tensors()
        same = {key: t.shape for key, t in own.items()} == {
            key: t.shape for key, t in stored.items() if key.partition("/")[0] not in MOMENTS
        }
        if metadata.get("recipe") != self.identity or not same:
            _check.fail(
                "train",
                "a checkpoint of the same recipe, loss and network",
                str(path),
                "Delete it or choose another --out.",
            )
        for key, t in own.items():
            t.copy_(stored[key])
        for name, p in self.parameters.items():
            moments = {moment: stored[f"{moment}/{name}"] for moment in MOMENTS if f"{moment}/{name}" in stored}
            if moments:
                self.optimiser.state[p] = moments
        return int(metadata["step"])


def save_weights(network: nn.Module, path: Path, about: dict[str, object]) -> str:
    """Write a network's weights in half precision, in one atomic move, and round the network to what was written.

    Buffers are written as they are: a variance may exceed the range of half precision, and a counter its exactness.

    Args:
        network: the network.
        path: safetensors file to write.
        about: what to store with them (architecture and the like).

    Returns:
        sha256 of the file.
    """
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    tensors = {
        key: value.detach().cpu().to(torch.float16 if key in parameters else value.dtype, copy=True).contiguous()
        for key, value in network.state_dict().items()
    }
    data = save(tensors, metadata={"depura": json.dumps(about, sort_keys=True)})
    _atomic.write(path, data)
    network.load_state_dict(tensors)
    return hashlib.sha256(data).hexdigest()
