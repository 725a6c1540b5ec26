"""The purifier (images in, cleaned images out) and the defence (a purifier, a classifier, and the deployed rule)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.denoisers import Denoiser
from depura.gradients import FromEnd, GradientRoute, StoredState
from depura.guidance import Guidance, State
from depura.noise import Kind, Noise
from depura.schedules import NoiseSchedule, Step
from depura.solvers import Differential, Solver, StepResult


class Start(Protocol):
    """How the walk begins."""

    def __call__(self, x_in: Tensor, step: Step, noise: Noise, /) -> Tensor:
        """The first state, at step.sigma, from the image being purified (both (B, C, H, W))."""
        ...


def from_input(x_in: Tensor, step: Step, noise: Noise) -> Tensor:
    """The input, noised to the first level: x_in + sigma n."""
    return x_in + step.sigma * noise(x_in, kind=Kind.FORWARD)


def from_noise(x_in: Tensor, step: Step, noise: Noise) -> Tensor:
    """Pure noise, sigma n: the input enters through guidance only."""
    return step.sigma * noise(x_in, kind=Kind.FORWARD)


@dataclass(frozen=True)
class FromInputUnder:
    """The input, noised by another schedule than the one walked back on.

    x_t = scale (x_in + sigma n) under `schedule` at `t`, read in the first step's coordinates. DiffPure's released code
    noises with the discrete schedule and walks back on the continuous one.

    Attributes:
        schedule: schedule of the noising.
        t: its time.
    """

    schedule: NoiseSchedule
    t: float

    def __call__(self, x_in: Tensor, step: Step, noise: Noise, /) -> Tensor:
        """The first state."""
        x_t = self.schedule.scale(self.t) * (x_in + self.schedule.sigma(self.t) * noise(x_in, kind=Kind.FORWARD))
        return x_t / step.scale


class Moment(NamedTuple):
    """One step of a walk, as `Purifier.trajectory` shows it.

    Attributes:
        x: state before the step, x0 + sigma n coordinates.
        x0: the clean image as estimated there.
        x_next: state after the step.
        step: row of the step table.
        round: number of the round.
    """

    x: Tensor
    x0: Tensor
    x_next: Tensor
    step: Step
    round: int


class Purifier(nn.Module):
    """Images in [0, 1] to cleaned images: noise, walk back along the steps, guided or not; once or in several rounds.

    The only place where ranges change: inside, images are in [-1, 1]. As in the published methods the result is not
    clamped unless `clamp` is set, since a clamp has no gradient outside [0, 1].
    Weights of the denoiser are frozen and put in evaluation mode; gradients are with respect to images.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        steps: Sequence[Step],
        solver: Solver,
        guidance: Guidance | None = None,
        start: Start = from_input,
        gradient: GradientRoute | None = None,
        rounds: int = 1,
        clamp: bool = False,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Compose the parts.

        Args:
            denoiser: D(x, sigma) -> x0.
            steps: step table of one round (see `depura.schedules`).
            solver: one reverse step.
            guidance: displacement after each step.
            start: first state of each round.
            gradient: how the walk is differentiated; default `StoredState()`, exact.
            rounds: how many times the walk is made, each on the result of the last.
            clamp: clamp the result to [0, 1].
            image_shape: (C, H, W) that the denoiser takes, checked at the door if given.

        Raises:
            InputError: no steps, or no rounds.
        """
        super().__init__()
        if len(steps) == 0:
            _check.fail("Purifier", "at least one step", "an empty step table", "Make one with uniform_steps.")
        self.denoiser = denoiser
        self.steps = tuple(steps)
        self.solver = solver
        self.guidance = guidance
        self.start = start
        self.gradient: GradientRoute = StoredState() if gradient is None else gradient
        self.rounds = _check.integer("Purifier", "rounds", rounds, low=1, high=256)
        self.clamp = clamp
        self.image_shape = image_shape
        _freeze(self)

    def with_(self, **changes: Any) -> Purifier:
        """A copy with some parts replaced; weights are shared.

        Args:
            **changes: arguments of the constructor.

        Returns:
            The new purifier.

        Raises:
            InputError: a name that the constructor does not know.
        """
        parts = self._parts()
        unknown = sorted(set(changes) - set(parts))
        if unknown:
            _check.fail("Purifier.with_", f"names among {', '.join(parts)}", ", ".join(unknown))
        return Purifier(**(parts | changes))

    def same_walk(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same, however it is differentiated: the same denoiser, equal parts."""
        if not isinstance(other, Purifier):
            return False
        ours, theirs = self._parts(), other._parts()
        return all(_equal(ours[name], theirs[name]) for name in ours if name != "gradient")

    def _parts(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            "denoiser": self.denoiser,
            "steps": self.steps,
            "solver": self.solver,
            "guidance": self.guidance,
            "start": self.start,
            "gradient": self.gradient,
            "rounds": self.rounds,
            "clamp": self.clamp,
            "image_shape": self.image_shape,
        }

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Purify.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: the randomness, one image id per row; default `Noise.fresh`.

        Returns:
            (B, C, H, W), nominally in [0, 1]; differentiable by the gradient route.

        Raises:
            InputError: images of another range, shape or dtype.
        """
        noise = self._door(images, noise)
        x_in = 2 * images - 1
        image = x_in
        for number in range(self.rounds):
            tape = noise.in_round(number)
            x = self.start(image, self.steps[0], tape)
            image = self.steps[-1].scale_next * self.gradient(_Walk(self, tape), x, x_in, self.steps)
        return self._exit(image)

    def trajectory(self, images: Tensor, noise: Noise | None = None) -> Iterator[Moment]:
        """The walk of `forward`, step by step, without gradients.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: the randomness; the same noise gives the walk of `forward`.

        Returns:
            One `Moment` per step.
        """
        return self._walk(images, self._door(images, noise))

    def _walk(self, images: Tensor, noise: Noise) -> Iterator[Moment]:
        x_in = 2 * images.detach() - 1
        image = x_in
        for number in range(self.rounds):
            tape = noise.in_round(number)
            x = self.start(image, self.steps[0], tape)
            for step in self.steps:
                with torch.no_grad():
                    x_next, x0 = self.step(tape, x, x_in, step)
                yield Moment(x, x0, x_next, step, number)
                x = x_next
            image = self.steps[-1].scale_next * x

    def train(self, mode: bool = True) -> Purifier:
        """Purifiers stay in evaluation mode, whatever is asked."""
        super().train(False)
        return self

    def extra_repr(self) -> str:
        """The parts, for records."""
        first, last = self.steps[0], self.steps[-1]
        return (
            f"steps={len(self.steps)} (sigma {first.sigma:.6g} to {last.sigma_next:.6g}), solver={self.solver}, "
            f"guidance={self.guidance}, start={self.start}, gradient={self.gradient}, rounds={self.rounds}, "
            f"clamp={self.clamp}"
        )

    def _door(self, images: Tensor, noise: Noise | None) -> Noise:
        _check.images("Purifier", images, shape=self.image_shape)
        weight = next((p for p in self.parameters() if p.is_floating_point()), None)
        if weight is not None and weight.dtype != images.dtype:
            _check.fail(
                "Purifier", f"images of the denoiser's dtype {weight.dtype}", f"{images.dtype}", "Convert them."
            )
        return Noise.fresh(len(images)) if noise is None else noise

    def _exit(self, image: Tensor) -> Tensor:
        images = (image + 1) / 2
        return self.gradient.clamp(images) if self.clamp else images

    def step(self, noise: Noise, x: Tensor, x_in: Tensor, step: Step) -> StepResult:
        """One step, guided.

        Guidance may differentiate, so it always runs with a graph; the result has one only if the caller records: the
        value does not depend on grad mode.

        Args:
            noise: the randomness, in its round.
            x: state at step.sigma, (B, C, H, W).
            x_in: image being purified, [-1, 1] units.
            step: row of the step table.

        Returns:
            The next state and the estimate of x0.
        """
        if self.guidance is None:
            return self.solver.step(self.denoise, x, step, noise)
        recording = torch.is_grad_enabled() and (x.requires_grad or x_in.requires_grad)
        with torch.enable_grad():
            leaf = x if recording and x.requires_grad else x.detach().requires_grad_()
            x_next, x0 = self.solver.step(self.denoise, leaf, step, noise)
            x_next = x_next + self.guidance(State(leaf, x0, x_in, step, noise))
        return StepResult(x_next, x0) if recording else StepResult(x_next.detach(), x0.detach())

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The denoiser's estimate of x0, its shape checked; (B, C, H, W) -> (B, C, H, W)."""
        x0 = self.denoiser(x, sigma)
        if x0.shape != x.shape:
            _check.fail("Purifier", f"a denoiser that keeps the shape {tuple(x.shape)}", f"{tuple(x0.shape)}")
        return x0


@dataclass(frozen=True)
class _Walk:
    """One round of a purifier with its noise fixed: what a gradient route folds."""

    purifier: Purifier
    noise: Noise

    @property
    def images(self) -> tuple[int, ...]:
        return self.noise.images

    @property
    def rounds(self) -> int:
        return self.purifier.rounds

    def __call__(self, x: Tensor, x_in: Tensor, step: Step, /) -> Tensor:
        return self.purifier.step(self.noise, x, x_in, step).x_next

    def take(self, rows: Sequence[int], /) -> _Walk:
        return _Walk(self.purifier, self.noise.take(rows))

    def differential(self) -> FromEnd:
        solver = self.purifier.solver
        if not isinstance(solver, Differential) or self.purifier.guidance is not None:
            what = f"solver={solver}, guidance={self.purifier.guidance}"
            _check.fail(
                "Adjoint",
                "an unguided walk whose solver is Euler's method on a differential equation (EulerMaruyamaVP, "
                "EulerMaruyama, Euler)",
                what,
                "Use StoredState, which is exact for every walk.",
            )
        return lambda x, step: solver.from_end(self.purifier.denoise, x, step, self.noise)


class Resized(nn.Module):
    """A purifier of another resolution: bilinear to `size`, purify, bilinear back; both in the gradient.

    DiffPure on ImageNet: 224 -> 256 -> 224, align_corners=False, no antialiasing.
    """

    def __init__(self, purifier: Purifier, *, size: int) -> None:
        """Wrap the purifier.

        Args:
            purifier: works on size x size images.
            size: its resolution.
        """
        super().__init__()
        self.purifier = purifier
        self.size = _check.integer("Resized", "size", size, low=1)

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser inside."""
        return self.purifier.denoiser

    @property
    def gradient(self) -> GradientRoute:
        """How the walk is differentiated."""
        return self.purifier.gradient

    @property
    def steps(self) -> tuple[Step, ...]:
        """Step table of one round."""
        return self.purifier.steps

    @property
    def rounds(self) -> int:
        """How many times the walk is made."""
        return self.purifier.rounds

    def with_(self, **changes: Any) -> Resized:
        """A copy whose purifier has some parts replaced (see `Purifier.with_`)."""
        return Resized(self.purifier.with_(**changes), size=self.size)

    def same_walk(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same (see `Purifier.same_walk`)."""
        return isinstance(other, Resized) and self.size == other.size and self.purifier.same_walk(other.purifier)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Purify images of any resolution, (B, C, H, W) in [0, 1] -> (B, C, H, W)."""
        _check.images("Resized", images)
        return _bilinear(self.purifier(_bilinear(images, (self.size, self.size)), noise), images.shape[2:])

    def trajectory(self, images: Tensor, noise: Noise | None = None) -> Iterator[Moment]:
        """The walk, at the purifier's resolution (see `Purifier.trajectory`)."""
        _check.images("Resized", images)
        return self.purifier.trajectory(_bilinear(images, (self.size, self.size)), noise)

    def train(self, mode: bool = True) -> Resized:
        """Purifiers stay in evaluation mode, whatever is asked."""
        super().train(False)
        return self


class Rule(Protocol):
    """How a prediction is made from several purifications of one image."""

    @property
    def n_draws(self) -> int:
        """Purifications per prediction."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Combine.

        Args:
            logits: (B, n_draws, K).

        Returns:
            (B, K), whose largest entry is the deployed prediction.
        """
        ...


@dataclass(frozen=True)
class Single:
    """One purification, its logits."""

    n_draws: int = 1

    def __post_init__(self) -> None:
        if self.n_draws != 1:
            _check.fail("Single", "n_draws = 1", f"{self.n_draws}", "Use Vote or MeanProb.")

    def scores(self, logits: Tensor) -> Tensor:
        """The logits themselves."""
        return logits[:, 0]


@dataclass(frozen=True)
class MeanProb:
    """The mean of the softmax probabilities of several purifications; scores are its logarithm."""

    n_draws: int

    def __post_init__(self) -> None:
        _check.integer("MeanProb", "n_draws", self.n_draws, low=1)

    def scores(self, logits: Tensor) -> Tensor:
        """log mean softmax."""
        return torch.logsumexp(torch.log_softmax(logits, dim=2), dim=1) - torch.log(
            torch.tensor(float(self.n_draws), dtype=logits.dtype, device=logits.device)
        )


@dataclass(frozen=True)
class Vote:
    """The most frequent label of several purifications.

    Ties go to the class of the lowest mean rank (0 for the highest logit of a draw), then to the lowest index. Scores
    are log shares of the votes, smoothed by 1 / K of a vote, with half a vote more for the winner. Votes are
    piecewise constant, so the gradient is that of `MeanProb` with as many draws.
    """

    n_draws: int

    def __post_init__(self) -> None:
        _check.integer("Vote", "n_draws", self.n_draws, low=1)

    def winner(self, logits: Tensor) -> Tensor:
        """The deployed label, (B,) int64, of logits (B, n_draws, K)."""
        _, n, k = logits.shape
        order = logits.argsort(dim=2, descending=True, stable=True)
        ranks = order.argsort(dim=2).sum(1)
        votes = F.one_hot(order[:, :, 0], k).sum(1)
        index = torch.arange(k, device=logits.device)
        return ((votes * (n * k) + (n * k - 1 - ranks)) * k + (k - 1 - index)).argmax(1)

    def scores(self, logits: Tensor) -> Tensor:
        """Smoothed log shares of the votes."""
        k = logits.shape[2]
        counts = F.one_hot(logits.argmax(2), k).sum(1).to(logits.dtype)
        votes = counts + 0.5 * F.one_hot(self.winner(logits), k) + 1 / k
        value = torch.log(votes / votes.sum(1, keepdim=True))
        soft = MeanProb(self.n_draws).scores(logits)
        return value.detach() + (soft - soft.detach())


class Defence(nn.Module):
    """Purify, classify, decide: a module from images in [0, 1] to logits, differentiable by the purifier's route.

    Any attack on an `nn.Module` works on it unchanged. Weights of the classifier are frozen and in evaluation mode.
    """

    def __init__(
        self, purifier: Purifier | Resized | None, classifier: Callable[[Tensor], Tensor], *, rule: Rule | None = None
    ) -> None:
        """Compose.

        Args:
            purifier: the purifier, or None for the bare classifier.
            classifier: [0, 1] images (B, C, H, W) to logits (B, K); normalisation belongs inside it.
            rule: how a prediction is made; default `Single()`.
        """
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier
        self.rule: Rule = Single() if rule is None else rule
        _freeze(self)
        if next(self.parameters(), None) is None:
            # Attack libraries look for a model's device at its first parameter.
            self.register_parameter("device_marker", nn.Parameter(torch.zeros(0), requires_grad=False))

    def with_(self, **changes: Any) -> Defence:
        """A copy with some parts replaced; weights are shared.

        Args:
            **changes: purifier, classifier or rule; any other name is a part of the purifier (see `Purifier.with_`).

        Returns:
            The new defence.

        Raises:
            InputError: an unknown name, or a purifier's part where there is no purifier.
        """
        own: dict[str, Any] = {"purifier": self.purifier, "classifier": self.classifier, "rule": self.rule}
        own |= {name: changes.pop(name) for name in list(changes) if name in own}
        if changes:
            if own["purifier"] is None:
                _check.fail(
                    "Defence.with_", "purifier, classifier or rule", ", ".join(changes), "There is no purifier."
                )
            own["purifier"] = own["purifier"].with_(**changes)
        return Defence(**own)

    @property
    def route(self) -> str:
        """Code of the gradient route; G0 for the bare classifier."""
        return "G0" if self.purifier is None else self.purifier.gradient.code

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits of the deployed rule.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: the randomness, one image id per row; default `Noise.fresh`. A draw of a rule with n draws uses
                purifications draw * n .. draw * n + n - 1.

        Returns:
            (B, K).

        Raises:
            InputError: images of another range, shape or dtype, or a classifier that does not give (B, K).
        """
        _check.images("Defence", images)
        if self.purifier is None:
            return self._classify(images)
        n = self.rule.n_draws
        if n == 1:
            return self.rule.scores(self._classify(self.purifier(images, noise))[:, None])
        noise = Noise.fresh(len(images)) if noise is None else noise
        logits = self._classify(self.purifier(images.repeat_interleave(n, dim=0), noise.split(n)))
        return self.rule.scores(logits.reshape(len(images), n, -1))

    def train(self, mode: bool = True) -> Defence:
        """Defences stay in evaluation mode, whatever is asked."""
        super().train(False)
        return self

    def extra_repr(self) -> str:
        """The rule, for records."""
        return f"rule={self.rule}"

    def _classify(self, images: Tensor) -> Tensor:
        logits = self.classifier(images)
        if logits.ndim != 2 or len(logits) != len(images):
            _check.fail("Defence", f"a classifier giving logits ({len(images)}, K)", f"shape {tuple(logits.shape)}")
        return logits


def _equal(a: Any, b: Any) -> bool:
    """Equality of parts; parts that cannot be compared (tensors inside) are equal only if they are one object."""
    try:
        return a is b or bool(a == b)
    except (RuntimeError, ValueError):
        return False


def _freeze(module: nn.Module) -> None:
    module.requires_grad_(False)
    module.eval()


def _bilinear(images: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(images, size=list(size), mode="bilinear", align_corners=False, antialias=False)
