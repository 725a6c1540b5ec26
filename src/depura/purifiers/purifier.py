"""What a purifier is, and the purifier that this library is about: the reverse process of a diffusion model."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from itertools import pairwise
from math import ceil
from types import MethodType
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import Guidance, State, recorded
from depura.diffusion.schedules import Step, coarser
from depura.diffusion.solvers import (
    AncestralLearned,
    Before,
    Differential,
    Multistep,
    Solver,
    Start,
    StepResult,
    from_input,
)
from depura.gradients import ChainState, FromEnd, GradientRoute, StoredState
from depura.noise import Noise

P = TypeVar("P", bound="Purifier")

EXACT = StoredState()
"""The gradient route where none is given."""


class TrajectoryStep(NamedTuple):
    """One step of a purification, as `Purifier.trajectory` gives it. R rows are purified together.

    Attributes:
        x: state before the step, (R, C, H, W), x0 + sigma n coordinates.
        x0: estimate of the clean image at that state, (R, C, H, W), [-1, 1] units.
        x_next: state after the step, (R, C, H, W).
        step: row of the step table.
        round: number of the round.
        rows: for each of the R rows, the row of the batch that it belongs to.
    """

    x: Tensor
    x0: Tensor
    x_next: Tensor
    step: Step
    round: int
    rows: tuple[int, ...]


class Stage(NamedTuple):
    """What one iterative purifier is given in the course of a purification.

    Attributes:
        purifier: the purifier.
        images: (R, C, H, W), nominally in [0, 1].
        noise: of R rows, in the purifier's first round.
        rows: for each of the R rows, the row of the batch that it belongs to.
    """

    purifier: IterativePurifier
    images: Tensor
    noise: Noise
    rows: tuple[int, ...]


Stages = Generator[Stage, Tensor, Tensor]
"""A purification as its stages: each is yielded, is sent the purified images, and the result is returned."""


class Purifier(nn.Module, ABC):
    """Images (B, C, H, W) in [0, 1] to purified images of the same shape.

    A subclass says in `stages` which iterative purifiers run, on which images and with which noise. Purification,
    trajectory and the audit's list of parts are three uses of it. Its settings are the arguments of its constructor,
    kept under the same names; copies and comparisons are made of them.

    Weights are frozen and stay in evaluation mode; gradients are with respect to images.
    """

    @abstractmethod
    def stages(self, images: Tensor, noise: Noise, rows: tuple[int, ...]) -> Stages:
        """The stages of a purification, in order.

        Args:
            images: (B, C, H, W), nominally in [0, 1].
            noise: the randomness, B rows; its round is the first one used.
            rows: for each of the B rows, the row of the whole batch that it belongs to.

        Yields:
            Every stage; the purified images are to be sent back.

        Returns:
            (B, C, H, W), nominally in [0, 1].
        """

    @property
    def inner(self) -> tuple[Purifier, ...]:
        """The purifiers that it is composed of."""
        found: list[nn.Module] = []
        for child in self.children():
            found += child if isinstance(child, nn.ModuleList) else [child]
        return tuple(child for child in found if isinstance(child, Purifier))

    @property
    def components(self) -> tuple[IterativePurifier, ...]:
        """The iterative purifiers that it is composed of, in order; itself, if it is one."""
        return tuple(component for purifier in self.inner for component in purifier.components)

    @property
    def n_rounds(self) -> int:
        """Rounds of noise that one purification uses, one after another."""
        return sum(purifier.n_rounds for purifier in self.inner)

    @property
    def n_steps(self) -> int:
        """Steps of one purification, over all rounds."""
        return sum(purifier.n_steps for purifier in self.inner)

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
        _check.images(type(self).__name__, images)
        return self.purify(images, Noise.fresh(len(images)) if noise is None else noise)

    def purify(self, images: Tensor, noise: Noise) -> Tensor:
        """As `forward`, for images that may leave [0, 1].

        Args:
            images: (B, C, H, W), nominally in [0, 1].
            noise: the randomness; its round is the first one used.

        Returns:
            (B, C, H, W), nominally in [0, 1].
        """
        stages, n_rounds = self.stages(images, noise, tuple(range(len(images)))), self.n_rounds
        try:
            stage = next(stages)
            while True:
                stage = stages.send(stage.purifier.sample(stage.images, stage.noise, n_rounds))
        except StopIteration as end:
            return end.value

    def trajectory(self, images: Tensor, noise: Noise | None = None) -> Iterator[TrajectoryStep]:
        """The steps of `forward`, without gradients.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: the randomness; the same noise gives the states of `forward`.

        Returns:
            One `TrajectoryStep` per step, of the rows that are purified together.
        """
        _check.images(type(self).__name__, images)
        noise = Noise.fresh(len(images)) if noise is None else noise
        stages = self.stages(images.detach(), noise, tuple(range(len(images))))
        with torch.no_grad():
            stage = next(stages, None)
        while stage is not None:
            purified = yield from stage.purifier.sample_steps(stage, stage.noise.round - noise.round)
            with torch.no_grad():  # not around the yield: the caller's own grad mode is left alone
                stage = _next_stage(stages, purified)

    def stages_of(self, images: Tensor, noise: Noise) -> list[Stage]:
        """Every stage of a purification of some images, without gradients.

        Args:
            images: (B, C, H, W), nominally in [0, 1].
            noise: the randomness.

        Returns:
            The stages, in order.
        """
        stages, passed = self.stages(images.detach(), noise, tuple(range(len(images)))), list[Stage]()
        with torch.no_grad():
            stage = next(stages, None)
            while stage is not None:
                passed.append(stage)
                stage = _next_stage(stages, stage.purifier.sample(stage.images, stage.noise, self.n_rounds))
        return passed

    @property
    def differentiable(self) -> bool:
        """Whether results have a gradient path to the images."""
        return all(component.differentiable for component in self.components if component is not self)

    @property
    def shortens(self) -> bool:
        """Whether there are copies of fewer steps (`coarser`)."""
        return all(component.shortens for component in self.components if component is not self)

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor, by name; an argument that takes any number of purifiers is a ModuleList."""
        return {name: getattr(self, name) for name in _arguments(type(self))[0]}

    def map(self: P, change: Callable[[IterativePurifier], IterativePurifier]) -> P:
        """A copy whose iterative purifiers are changed; weights are shared."""
        settings = {
            name: value.map(change) if isinstance(value, Purifier) else value for name, value in self.settings().items()
        }
        several = settings.pop(_arguments(type(self))[1], ())
        return type(self)(*(part.map(change) for part in several), **settings)

    def with_(self: P, **changes: Any) -> P:
        """A copy with some settings of its iterative purifiers replaced; weights are shared.

        Args:
            **changes: arguments of their constructors.

        Returns:
            The copy.

        Raises:
            InputError: a name that a constructor does not know.
        """
        return self.map(lambda component: component.with_(**changes))

    def over(self: P, wrap: Callable[[Denoiser], Denoiser]) -> P:
        """A copy whose denoisers are wrapped (for counting, casting and the like)."""
        return self.map(lambda component: component.with_(denoiser=wrap(component.denoiser)))

    def coarser(self: P, share: int) -> P:
        """A copy that takes one step for every `share` steps: a surrogate (Lee and Kim 2023, arXiv:2303.09051)."""
        return self.map(lambda component: component.coarser(share))

    def one_step(self: P, where: float) -> P:
        """A copy with a single step, the one at `where` (0 first .. 1 last) of the table, in one round."""
        return self.map(lambda component: component.one_step(where))

    def same_function(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same, however differentiated: the same denoiser, equal settings."""
        if not isinstance(other, type(self)):
            return False
        ours, theirs = self.settings(), other.settings()
        return all(_same(ours[name], theirs[name]) for name in ours if name != "gradient")

    @property
    def route(self) -> GradientRoute:
        """How the purification is differentiated (the first component's, where there are several)."""
        return self.components[0].gradient

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of results must know of its parts (their `remark`, such as that a method is reconstructed)."""
        parts = [part for component in self.components for part in component.settings().values()]
        texts = [getattr(part, "remark", "") for part in parts]
        return tuple(dict.fromkeys(text for text in texts if isinstance(text, str) and text))

    def train(self: P, mode: bool = True) -> P:
        """Purifiers stay in evaluation mode, whatever is asked."""
        return super().train(False)


class IterativePurifier(Purifier):
    """A purifier that makes steps from a first state to a last one, differentiated as a whole by its `gradient`.

    A state is a tuple of tensors (B, C, H, W), the image first; what else a step needs of the steps before comes after
    it. Inside, images are in [-1, 1]: this class is the only place where ranges change.

    Attributes:
        denoiser: D(x, sigma) -> x0.
        gradient: how the steps are differentiated.
        steps: the step table of one round.
        rounds: how many times the steps are made, each on the result of the last.
        clamp: clamp the result to [0, 1].
        image_shape: (C, H, W) that the denoiser takes, checked if given.
    """

    denoiser: Denoiser
    gradient: GradientRoute
    steps: tuple[Step, ...]
    rounds: int = 1
    clamp: bool
    image_shape: tuple[int, int, int] | None = None

    @abstractmethod
    def first(self, image: Tensor, noise: Noise) -> ChainState:
        """The first state of a round, from the image being purified or the result of the round before."""

    @abstractmethod
    def advance(self, state: ChainState, x_in: Tensor, step: Step, noise: Noise) -> tuple[ChainState, Tensor]:
        """One step.

        Args:
            state: the state before it.
            x_in: image being purified, (B, C, H, W) in [-1, 1].
            step: row of the step table.
            noise: the randomness, in its round.

        Returns:
            The next state, and the estimate of the clean image that the step saw. The value does not depend on grad
            mode.
        """

    @abstractmethod
    def differential(self, noise: Noise) -> FromEnd:
        """The steps as Euler's method on a differential equation (see `depura.gradients.Transition`)."""

    @abstractmethod
    def coarser(self: P, share: int) -> P:
        """A copy that takes one step for every `share` steps."""

    @abstractmethod
    def one_step(self: P, where: float) -> P:
        """A copy with a single step."""

    @property
    def components(self) -> tuple[IterativePurifier, ...]:
        """Itself."""
        return (self,)

    @property
    def n_rounds(self) -> int:
        """How many times the steps are made."""
        return self.rounds

    @property
    def n_steps(self) -> int:
        """Steps of one purification."""
        return self.rounds * len(self.steps)

    def stages(self, images: Tensor, noise: Noise, rows: tuple[int, ...]) -> Stages:
        """One stage: itself."""
        return (yield Stage(self, images, noise, rows))

    def sample(self, images: Tensor, noise: Noise, n_rounds: int) -> Tensor:
        """Make all steps.

        Args:
            images: (B, C, H, W), nominally in [0, 1].
            noise: the randomness; its round is the first one used.
            n_rounds: of the whole purification that this is a part of; they share the gradient route's memory.

        Returns:
            (B, C, H, W), nominally in [0, 1].

        Raises:
            InputError: images of another shape or dtype than the denoiser takes.
        """
        self.check(images)
        x_in = image = 2 * images - 1
        for number in range(self.rounds):
            drawn = noise.later(number, ahead=(step.index for step in self.steps))
            state = self.first(image, drawn)
            if torch.is_grad_enabled() and (state[0].requires_grad or x_in.requires_grad):
                state = self.gradient(FixedNoiseSteps(self, drawn, n_rounds), state, x_in, self.steps)
            else:
                for step in self.steps:
                    state, _ = self.advance(state, x_in, step, drawn)
            image = self.steps[-1].scale_next * state[0]
        purified = (image + 1) / 2
        return self.gradient.clamp(purified) if self.clamp else purified

    def sample_steps(self, stage: Stage, first_round: int) -> Generator[TrajectoryStep, None, Tensor]:
        """Make all steps of a stage one by one, without gradients; yields each, returns the purified images."""
        self.check(stage.images)
        x_in = image = 2 * stage.images - 1
        for number in range(self.rounds):
            drawn = stage.noise.later(number)
            state = self.first(image, drawn)
            for step in self.steps:
                with torch.no_grad():
                    after, x0 = self.advance(state, x_in, step, drawn)
                yield TrajectoryStep(state[0], x0, after[0], step, first_round + number, stage.rows)
                state = after
            image = self.steps[-1].scale_next * state[0]
        purified = (image + 1) / 2
        return purified.clamp(0, 1) if self.clamp else purified

    def check(self, images: Tensor) -> None:
        """Check, also inside a composition, that the denoiser takes such images.

        Args:
            images: (B, C, H, W).

        Raises:
            InputError: another shape than `image_shape`, or another dtype than the weights'.
        """
        where = type(self).__name__
        if self.image_shape is not None and tuple(images.shape[1:]) != self.image_shape:
            _check.image_shape(where, images, self.image_shape)
        weight = next((p for p in self.parameters() if p.is_floating_point()), None)
        if weight is not None and weight.dtype != images.dtype:
            _check.fail(where, f"images of the denoiser's dtype {weight.dtype}", f"{images.dtype}", "Convert them.")

    def map(self, change: Callable[[IterativePurifier], IterativePurifier]) -> Any:
        """The changed purifier."""
        return change(self)

    def with_(self: P, **changes: Any) -> P:
        """A copy with some settings replaced (see `Purifier.with_`)."""
        settings = self.settings()
        unknown = sorted(set(changes) - set(settings))
        if unknown:
            where = f"{type(self).__name__}.with_"
            _check.fail(where, f"names among {', '.join(settings)}", ", ".join(unknown))
        return type(self)(**(settings | changes))


@dataclass(frozen=True)
class FixedNoiseSteps:
    """The steps of one round with their noise fixed: what a gradient route differentiates.

    It is a `depura.gradients.Transition`.

    Attributes:
        purifier: whose steps.
        noise: in its round.
        rounds: of the whole purification.
    """

    purifier: IterativePurifier
    noise: Noise
    rounds: int = 1

    @property
    def images(self) -> tuple[int, ...]:
        """Image id of each row."""
        return self.noise.images

    def __call__(self, state: ChainState, x_in: Tensor, step: Step, /) -> ChainState:
        """The next state."""
        return self.purifier.advance(state, x_in, step, self.noise)[0]

    def take(self, rows: Sequence[int], /) -> FixedNoiseSteps:
        """The steps of some rows of the batch."""
        return FixedNoiseSteps(self.purifier, self.noise.take(rows), self.rounds)

    def differential(self) -> FromEnd:
        """The steps from their later ends."""
        return self.purifier.differential(self.noise)


class DiffusionPurifier(IterativePurifier):
    """Noise an image and run the reverse process along the steps, guided or not; once or in several rounds.

    As in the published methods the result is not clamped unless `clamp` is set, since a clamp has no gradient outside
    [0, 1]. With a solver that uses the estimate of the step before, the state is the image and that estimate.
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
            steps: step table of one round (see `depura.diffusion.schedules`).
            solver: one reverse step.
            guidance: displacement after each step.
            start: first state of each round.
            gradient: how the steps are differentiated; default `StoredState()`, exact.
            rounds: how many times the steps are made, each on the result of the last.
            clamp: clamp the result to [0, 1].
            image_shape: (C, H, W) that the denoiser takes, checked if given.

        Raises:
            InputError: no steps, no rounds, or a multistep solver on steps that do not follow from each other.
        """
        super().__init__()
        if len(steps) == 0:
            _check.fail("DiffusionPurifier", "at least one step", "an empty step table", "Make one with uniform_steps.")
        self.denoiser = denoiser
        self.steps = tuple(steps)
        self.solver = solver
        # Of a multistep solver: for the noise level at which a step starts, that at which the one before did.
        self._sigma_before = _levels_before(self.steps) if isinstance(solver, Multistep) else None
        self.guidance = guidance
        self.start = start
        self.gradient = EXACT if gradient is None else gradient
        self.rounds = _check.integer("DiffusionPurifier", "rounds", rounds, low=1, high=256)
        self.clamp = clamp
        self.image_shape = image_shape
        guides = modules_in(guidance)
        if guides:  # as children, so that they are frozen, moved to a device and described with their weights
            self.guides = nn.ModuleList(guides)
        self.requires_grad_(False).eval()

    def first(self, image: Tensor, noise: Noise) -> ChainState:
        """The start's state; beside it nothing is estimated yet."""
        x = self.start(image, self.steps[0], noise)
        return (x,) if self._sigma_before is None else (x, torch.zeros_like(x))

    def advance(self, state: ChainState, x_in: Tensor, step: Step, noise: Noise) -> tuple[ChainState, Tensor]:
        """One guided step (see `IterativePurifier.advance`).

        Guidance may differentiate, so it always runs with a graph; the result has one only if the caller records.
        """
        solver, guidance = self.solver, self.guidance
        if self._sigma_before is not None and step.sigma in self._sigma_before:
            solver = cast(Multistep, solver).after(Before(state[1], self._sigma_before[step.sigma]))
        if guidance is None:
            result = solver.step(self.denoise, state[0], step, noise)
        else:

            def guided(x: Tensor) -> StepResult:
                x_next, x0, variance = solver.step(self.denoise, x, step, noise)
                moved = x_next + guidance(State(x, x0, x_in, step, noise, variance))
                return StepResult(moved, x0, variance)

            result = recorded(guided, state[0], x_in)
        return (result.x_next,) if self._sigma_before is None else (result.x_next, result.x0), result.x0

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The denoiser's estimate of x0, its shape checked, in the state's dtype; (B, C, H, W) -> (B, C, H, W).

        For a solver that uses learned variances: (B, 2C, H, W).
        """
        x0 = self.denoiser(x, sigma).to(x.dtype)
        b, c, h, w = x.shape
        expected = (b, 2 * c if isinstance(self.solver, AncestralLearned) else c, h, w)
        if x0.shape != expected:
            _check.fail("DiffusionPurifier", f"a denoiser that gives the shape {expected}", f"{tuple(x0.shape)}")
        return x0

    def coarser(self, share: int) -> DiffusionPurifier:
        """A copy that takes one step for every `share` steps."""
        return self.with_(steps=coarser(self.steps, ceil(len(self.steps) / share)))

    def one_step(self, where: float) -> DiffusionPurifier:
        """A copy with a single step, the one at `where` (0 first .. 1 last) of the table, in one round."""
        k = round(where * (len(self.steps) - 1))
        return self.with_(steps=self.steps[k : k + 1], rounds=1)

    def differential(self, noise: Noise) -> FromEnd:
        """The steps as Euler's method on a differential equation, if the solver is one and nothing guides it."""
        solver = self.solver
        if not isinstance(solver, Differential) or self.guidance is not None:
            _check.fail(
                "Adjoint",
                "an unguided reverse process whose solver is Euler's method on a differential equation "
                "(EulerMaruyamaVP, EulerMaruyama, Euler, EulerVP)",
                f"solver={self.solver}, guidance={self.guidance}",
                "Use StoredState, which is exact for every solver.",
            )
        return lambda x, step: solver.from_end(self.denoise, x, step, noise)

    def extra_repr(self) -> str:
        """The parts."""
        first, last = self.steps[0], self.steps[-1]
        return (
            f"steps={len(self.steps)} (sigma {first.sigma:.6g} to {last.sigma_next:.6g}), solver={self.solver}, "
            f"guidance={self.guidance}, start={self.start}, gradient={self.gradient}, rounds={self.rounds}, "
            f"clamp={self.clamp}"
        )


def modules_in(part: Any) -> tuple[nn.Module, ...]:
    """Networks inside a part that is not a module itself: fields of a dataclass, methods of a module, partial calls.

    Guidance by a network holds one; who composes the part must move, freeze and describe it like its own.
    """
    if isinstance(part, nn.Module):
        return (part,)
    inner: list[Any] = []
    if is_dataclass(part) and not isinstance(part, type):
        inner = [getattr(part, f.name) for f in fields(part)]
    elif isinstance(part, partial):
        inner = [part.func, *part.args, *part.keywords.values()]  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(part, MethodType):
        inner = [part.__self__]
    return tuple(dict.fromkeys(module for value in inner for module in modules_in(value)))


def _levels_before(steps: Sequence[Step]) -> dict[float, float]:
    """For the noise level at which a step starts, that at which the one before did."""
    for a, b in pairwise(steps):
        if a.sigma_next != b.sigma or a.sigma <= b.sigma:
            _check.fail(
                "DiffusionPurifier",
                "steps that each start at the lower noise level where the one before ended, as the solver is multistep",
                f"a step from {a.sigma:.4g} to {a.sigma_next:.4g}, then one from {b.sigma:.4g}",
                "Use Euler or Ancestral, which know no step before.",
            )
    return {b.sigma: a.sigma for a, b in pairwise(steps)}


@cache
def _arguments(kind: type[Purifier]) -> tuple[tuple[str, ...], str]:
    """Names of the arguments of a constructor; and of the one that takes any number of values, "" if none does."""
    parameters = [p for p in inspect.signature(kind.__init__).parameters.values() if p.name != "self"]
    several = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), "")
    return tuple(p.name for p in parameters), several


def _next_stage(stages: Stages, purified: Tensor) -> Stage | None:
    """The stage after one whose images were purified; None after the last."""
    try:
        return stages.send(purified)
    except StopIteration:
        return None


def _same(a: Any, b: Any) -> bool:
    """Equality of settings; tensors and networks are equal only if they are one object."""
    if isinstance(a, Purifier):
        return a.same_function(b)
    if isinstance(a, nn.ModuleList) and isinstance(b, nn.ModuleList):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        return a is b or bool(a == b)
    except (RuntimeError, ValueError):
        return False
