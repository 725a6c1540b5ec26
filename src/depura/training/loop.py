"""One training loop: Adam, warm-up and decay, average of the weights, time budget, checkpoints, resume, ranks.

Batches and noise are addressed by the step number (`depura.noise`), and what a network itself draws from torch's
generator (dropout) is seeded by it, so the loop has no hidden state: stopping and going on from a checkpoint gives the
same weights as not stopping, on the same machine and thread count. A time budget decides the number of steps while the
rate is still constant, and a checkpoint keeps the decision: given that number, training again gives the same weights.

Only parameters are averaged. Buffers (the running statistics of batch normalisation) are kept in checkpoints and end as
the trained network left them: they are moving averages already, and since the learning rate decays to zero they
belong to weights close to the averaged ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from depura import _atomic, _check
from depura.models.weights import read_safetensors
from depura.noise import Kind, Noise, Stream
from depura.purifiers.fast import Door
from depura.training.mixture import Mixture
from depura.training.ranks import Ranks


def quick(network: nn.Module, *, bfloat16: bool, compiled: bool) -> nn.Module:
    """The same network run faster: under autocast to bfloat16, or compiled, its convolutions laid out anew in place.

    Its weights, which stay float32, are trained through what is returned; results and gradients are float32. Where
    nothing is asked for that is the network itself.
    """
    if not (bfloat16 or compiled):
        return network
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    fast = Door(network, dtype=torch.bfloat16 if bfloat16 else None, channels_last=True)
    if compiled:
        fast.compile_network(cuda_graphs=False)
    return fast


Loss = Callable[[Tensor, Tensor, Noise], Tensor]
"""(images in [0, 1], labels, noise of the step) -> scalar."""

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What Adam remembers of a parameter."""

HISTORY = ("step", "n_steps", "seconds", "curve", "losses", "seen")
"""What a checkpoint says of training so far, under the key `story`."""

COSINE, CONSTANT = "cosine", "constant-then-decay"
SCHEDULES = (COSINE, CONSTANT)

UNDECIDED = 10**9
"""Steps of a recipe whose time budget is to say how many."""

ASKED_EVERY = 10
"""Steps between readings of the clock."""


class Report(NamedTuple):
    """What is reported of a step.

    Attributes:
        step: steps done.
        n_steps: steps to do; `UNDECIDED` while a time budget has not said.
        loss: of the last step.
        seconds: of training so far, what came before an interruption included.
        left: seconds to go, by the time budget or else by the pace so far.
    """

    step: int
    n_steps: int
    loss: float
    seconds: float
    left: float


Progress = Callable[[Report], None]
Watch = Callable[[nn.Module, Report], Mapping[str, float]]
"""Called at checkpoints with the network at its averaged weights, in evaluation mode; gives numbers for the curves."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        n_steps: gradient steps; with a time budget, at most.
        batch: images per step, drawn with replacement.
        rate: peak learning rate.
        warmup: steps of linear warm-up.
        ema: decay of the weights' moving average per step (shortened early on).
        seed: seed of the initial weights, the batches and the noise.
        schedule: "cosine", or "constant-then-decay": constant, then linear to zero.
        decay: share of the steps over which the latter decays.
        minutes: time budget: when all but the share of the decay is spent, the number of steps is fixed so that the
            decay fills the rest. Needs the constant schedule.
    """

    n_steps: int
    batch: int = 128
    rate: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    seed: int = 0
    schedule: str = COSINE
    decay: float = 0.25
    minutes: float | None = None

    def __post_init__(self) -> None:
        _check.integer("Recipe", "n_steps", self.n_steps, low=1)
        _check.integer("Recipe", "batch", self.batch, low=1)
        _check.integer("Recipe", "warmup", self.warmup, low=0)
        _check.integer("Recipe", "seed", self.seed, low=0)
        _check.number("Recipe", "rate", self.rate, low=0.0, low_open=True)
        _check.number("Recipe", "ema", self.ema, low=0.0, high=1.0)
        _check.number("Recipe", "decay", self.decay, low=0.0, high=1.0)
        if self.schedule not in SCHEDULES:
            _check.fail("Recipe", f"schedule one of {', '.join(SCHEDULES)}", repr(self.schedule))
        if self.minutes is not None:
            _check.number("Recipe", "minutes", self.minutes, low=0.0, low_open=True)
            if self.schedule != CONSTANT:
                advice = "A cosine must know its end from the start."
                _check.fail("Recipe", f"the schedule {CONSTANT} with minutes", self.schedule, advice)

    def rate_at(self, step: int, n_steps: int | None = None) -> float:
        """Learning rate of a step, from 0, of `n_steps` where a time budget has set them, else as the recipe says."""
        total = self.n_steps if n_steps is None else n_steps
        warmup = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == COSINE:
            return self.rate * warmup * 0.5 * (1 + math.cos(math.pi * step / total))
        last = max(1.0, self.decay * total)
        return self.rate * warmup * min(1.0, (total - step) / last)

    def decided(self, step: int, seconds: float) -> int | None:
        """The number of steps if the time budget now says one, after `step` of them at the constant rate."""
        if self.minutes is None or seconds < 60 * self.minutes * (1 - self.decay):
            return None
        return min(self.n_steps, max(step + 1, math.ceil(step / (1 - self.decay)) if self.decay < 1 else step + 1))


class History(NamedTuple):
    """How training went.

    Attributes:
        n_steps: done.
        seconds: they took, interruptions not counted.
        curve: at every checkpoint step, seconds, mean loss since the one before, and what was watched.
    """

    n_steps: int
    seconds: float
    curve: tuple[Mapping[str, float], ...]


T = TypeVar("T")


class Fitted(NamedTuple, Generic[T]):
    """A trained network.

    Attributes:
        model: what is used, in evaluation mode.
        weights: the module whose weights are its file.
        about: what its weight file says about itself.
        history: how training went.
    """

    model: T
    weights: nn.Module
    about: Mapping[str, object]
    history: History


def seeded(build: Callable[[], T], seed: int) -> T:
    """What `build` returns, which draws from torch's generator, such as initial weights: it depends on the seed alone.

    The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def train(
    network: nn.Module,
    loss: Loss,
    data: Mixture,
    recipe: Recipe,
    *,
    about: str = "",
    checkpoint: Path | None = None,
    every: int = 500,
    progress: Progress | None = None,
    watch: Watch | None = None,
    device: str | torch.device = "cpu",
) -> History:
    """Train a network in place and give it the averaged weights.

    Under torchrun, with a process group, each rank takes its share of every batch, and gradients are averaged.

    Args:
        network: to be trained; its initial weights are the start. Frozen parameters stay as they are. It ends in
            evaluation mode, on the device.
        loss: of a batch.
        data: what batches are drawn from.
        recipe: how.
        about: what a checkpoint must agree on besides the recipe and the network, such as the settings of the loss.
        checkpoint: file to save the state to every `every` steps, and to go on from if it is there.
        every: steps between checkpoints.
        progress: called after each step.
        watch: measures the averaged weights at every checkpoint and at the end.
        device: where to train.

    Returns:
        How it went.

    Raises:
        InputError: the checkpoint belongs to another recipe, loss or network; a batch that ranks cannot share.
    """
    _check.integer("train", "every", every, low=1)
    ranks = Ranks.here()
    mine = ranks.share(recipe.batch)
    network.to(device)
    state = _State(network, json.dumps([asdict(recipe), about, ranks.n]), recipe)
    if checkpoint is not None and checkpoint.exists():
        state.restore(checkpoint)
    begun = time.monotonic() - state.seconds
    network.train()
    while state.step < state.n_steps:
        step = state.step
        if state.undecided and step % ASKED_EVERY == 0:
            decided = ranks.agreed(recipe.decided(step, time.monotonic() - begun))
            if decided is not None and decided < state.n_steps:
                state.n_steps, state.seconds = decided, time.monotonic() - begun
                if checkpoint is not None and ranks.first:
                    state.save(checkpoint)
        noise = Noise(recipe.seed, tuple(range(recipe.batch)), draws=step, stream=Stream.TRAIN)
        rows = data.rows(noise)[mine]
        word = int(noise.take([0]).bits((1,), kind=Kind.REVERSE)) + ranks.number
        batch = data.images[rows].to(device), data.labels[rows].to(device), noise.take(mine)
        state.descend(seeded(lambda batch=batch: loss(*batch), word), ranks)
        report = state.report(time.monotonic() - begun)
        if progress is not None:
            progress(report)
        if state.step % every == 0 or state.step == state.n_steps:
            state.point(report, watch)
            if checkpoint is not None and state.step < state.n_steps and ranks.first:
                state.save(checkpoint)
    network.load_state_dict(state.average.module.state_dict())
    network.eval()
    return History(state.step, state.seconds, tuple(state.curve))


@dataclass
class _State:
    """All that changes in training: weights, their average, Adam's moments, the network's buffers, and the history."""

    network: nn.Module
    identity: str
    recipe: Recipe
    step: int = 0
    seconds: float = 0.0
    losses: float = 0.0
    seen: int = 0
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def __post_init__(self) -> None:
        self.n_steps = self.recipe.n_steps
        self.parameters = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.Adam(self.parameters.values(), lr=self.recipe.rate, betas=(0.9, 0.99))
        self.average = AveragedModel(self.network, avg_fn=self.averaged)
        self.average.n_averaged.fill_(1)  # of the initial weights
        self.average.eval()

    def averaged(self, average: Tensor, weights: Tensor, _: Tensor | int) -> Tensor:
        """The average after one step more; it forgets faster early on."""
        return average.lerp(weights.detach(), 1 - min(self.recipe.ema, (1 + self.step) / (10 + self.step)))

    @property
    def undecided(self) -> bool:
        """Whether a time budget may still lower the number of steps."""
        return self.recipe.minutes is not None and self.n_steps == self.recipe.n_steps

    def descend(self, value: Tensor, ranks: Ranks) -> None:
        """One step of Adam, and of the average."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate_at(self.step, self.n_steps)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        ranks.average([p.grad for p in self.parameters.values()])
        self.optimiser.step()
        self.average.update_parameters(self.network)
        self.step += 1
        self.last = float(value.detach())
        self.losses += self.last
        self.seen += 1

    def report(self, seconds: float) -> Report:
        """What to report of the step."""
        self.seconds = seconds
        left = seconds / self.step * (self.n_steps - self.step)
        if self.undecided and self.recipe.minutes is not None:
            left = min(left, max(0.0, 60 * self.recipe.minutes - seconds))
        return Report(self.step, self.n_steps, self.last, seconds, left)

    def point(self, report: Report, watch: Watch | None) -> None:
        """A point of the curves."""
        watched: Mapping[str, float] = {} if watch is None else watch(self.average.module, report)
        mean = self.losses / max(1, self.seen)
        self.curve.append({"step": report.step, "seconds": round(report.seconds, 1), "loss": mean, **watched})
        self.losses, self.seen = 0.0, 0

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, but for Adam's moments; writing to these tensors restores it."""
        average = {name: p for name, p in self.average.module.named_parameters() if name in self.parameters}
        groups = {"weight": self.parameters, "average": average, "buffer": dict(self.network.named_buffers())}
        return {f"{group}/{name}": t.detach() for group, members in groups.items() for name, t in members.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        tensors = {key: t.cpu().clone(memory_format=torch.contiguous_format) for key, t in self.tensors().items()}
        for name, p in self.parameters.items():
            moments: Mapping[str, Tensor] = self.optimiser.state.get(p, {})
            tensors |= {f"{moment}/{name}": t.cpu().contiguous() for moment, t in moments.items()}
        history = {key: getattr(self, key) for key in HISTORY}
        _atomic.write(path, save(tensors, metadata={"recipe": self.identity, "story": json.dumps(history)}))

    def restore(self, path: Path) -> None:
        """Take up a checkpoint."""
        stored, metadata = read_safetensors(path)
        own = self.tensors()
        moments = {key: stored.pop(key) for key in list(stored) if key.partition("/")[0] in MOMENTS}
        same = {key: t.shape for key, t in own.items()} == {key: t.shape for key, t in stored.items()}
        if metadata.get("recipe") != self.identity or "story" not in metadata or not same:
            wanted = "a checkpoint of the same recipe, loss and network"
            _check.fail("train", wanted, str(path), "Delete it or choose another --out.")
        for key, t in own.items():
            t.copy_(stored[key])
        state = {
            number: {moment: moments[f"{moment}/{name}"] for moment in MOMENTS}
            for number, name in enumerate(self.parameters)
            if f"{MOMENTS[0]}/{name}" in moments
        }
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        history: dict[str, Any] = json.loads(metadata["story"])
        for key in HISTORY:
            setattr(self, key, history[key])


@contextmanager
def evaluating(network: nn.Module) -> Generator[None]:
    """The network in evaluation mode, and afterwards each of its modules in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def save_weights(network: nn.Module, path: Path, about: dict[str, object]) -> str:
    """Write a network's weights in half precision, in one atomic move, and round the network to what was written.

    Buffers are written as they are: a variance may exceed the range of half precision, and a counter its exactness. The
    file also says what is in `about`, the architecture and the like. Returned is the sha256 of the file.
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
