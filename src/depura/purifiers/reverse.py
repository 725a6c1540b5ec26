"""The purifier: images in, cleaned images out. The only place where ranges change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import Guidance, State, recorded
from depura.diffusion.schedules import Step, coarser
from depura.diffusion.solvers import AncestralLearned, Before, Differential, Multistep, Solver, StepResult, solve
from depura.diffusion.starts import Start, from_input
from depura.gradients import FromEnd, GradientRoute, StoredState
from depura.noise import Noise
from depura.purifiers.base import Leaf, Moment, Walk, freeze, modules_in


class Purifier(Leaf):
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
            steps: step table of one round (see `depura.diffusion.schedules`).
            solver: one reverse step.
            guidance: displacement after each step.
            start: first state of each round.
            gradient: how the walk is differentiated; default `StoredState()`, exact.
            rounds: how many times the walk is made, each on the result of the last.
            clamp: clamp the result to [0, 1].
            image_shape: (C, H, W) that the denoiser takes, checked at the door if given.

        Raises:
            InputError: no steps, no rounds, or a multistep solver on steps that do not follow from each other.
        """
        super().__init__()
        if len(steps) == 0:
            _check.fail("Purifier", "at least one step", "an empty step table", "Make one with uniform_steps.")
        self.denoiser = denoiser
        self.steps = tuple(steps)
        self.solver = solver
        self._width = 2 if isinstance(solver, Multistep) else 1  # asked of every step, and slow to find out
        self._sigma_before = _levels_before(self.steps) if self._width == 2 else {}
        self.guidance = guidance
        self.start = start
        self.gradient = StoredState() if gradient is None else gradient
        self.rounds = _check.integer("Purifier", "rounds", rounds, low=1, high=256)
        self.clamp = clamp
        self.image_shape = image_shape
        guides = modules_in(guidance)
        if guides:  # as children, so that they are frozen, moved to a device and described with their weights
            self.guides = nn.ModuleList(guides)
        freeze(self)

    @property
    def width(self) -> int:
        """One image; two where the solver is told the estimate before."""
        return self._width

    @property
    def n_rounds(self) -> int:
        """How many times the walk is made."""
        return self.rounds

    @property
    def n_steps(self) -> int:
        """Steps of all rounds."""
        return len(self.steps) * self.rounds

    def coarser(self, share: int) -> Purifier:
        """A copy that takes one step for every `share` steps."""
        return self.with_(steps=coarser(self.steps, ceil(len(self.steps) / share)))

    def one_step(self, where: float) -> Purifier:
        """A copy with a single step, the one at `where` (0 first .. 1 last) of the table, in one round."""
        k = round(where * (len(self.steps) - 1))
        return self.with_(steps=self.steps[k : k + 1], rounds=1)

    def parts(self) -> dict[str, Any]:
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

    def purify(self, images: Tensor, noise: Noise, *, n_rounds: int | None = None) -> Tensor:
        """As `forward`, for images that may leave [0, 1] (see `Cleaner.purify`)."""
        self.fits(images)
        x_in = 2 * images - 1
        image = x_in
        for number in range(self.rounds):
            tape = noise.later(number)
            x = self.start(image, self.steps[0], tape)
            drawn = tape.ahead(step.index for step in self.steps)
            walk = Walk(self, drawn, self.rounds if n_rounds is None else n_rounds)
            image = self.steps[-1].scale_next * self._walked(walk, x, x_in)
        return self._exit(image)

    def walk(self, images: Tensor, noise: Noise) -> Iterator[Moment]:
        """As `trajectory`, for images that may leave [0, 1] (see `Cleaner.walk`)."""
        self.fits(images)
        x_in = 2 * images - 1
        image = x_in
        for number in range(self.rounds):
            tape = noise.later(number)
            x = self.start(image, self.steps[0], tape)
            before = None
            for step in self.steps:
                with torch.no_grad():
                    x_next, x0, _ = self.step(tape, x, x_in, step, before)
                yield Moment(x, x0, x_next, step, number)
                x, before = x_next, Before(x0, step.sigma)
            image = self.steps[-1].scale_next * x

    def extra_repr(self) -> str:
        """The parts, for records."""
        first, last = self.steps[0], self.steps[-1]
        return (
            f"steps={len(self.steps)} (sigma {first.sigma:.6g} to {last.sigma_next:.6g}), solver={self.solver}, "
            f"guidance={self.guidance}, start={self.start}, gradient={self.gradient}, rounds={self.rounds}, "
            f"clamp={self.clamp}"
        )

    def _walked(self, walk: Walk, x: Tensor, x_in: Tensor) -> Tensor:
        """The image after the last step, by the route. A wider state starts with nothing beside the image."""
        if self.width == 1:
            return self.gradient(walk, x, x_in, self.steps)
        state, reference = torch.cat([x, torch.zeros_like(x)], dim=1), torch.cat([x_in, x_in], dim=1)
        return self.gradient(walk, state, reference, self.steps).chunk(2, dim=1)[0]

    def _exit(self, image: Tensor) -> Tensor:
        images = (image + 1) / 2
        return self.gradient.clamp(images) if self.clamp else images

    def step(self, noise: Noise, x: Tensor, x_in: Tensor, step: Step, before: Before | None = None) -> StepResult:
        """One step, guided.

        Guidance may differentiate, so it always runs with a graph; the result has one only if the caller records: the
        value does not depend on grad mode.

        Args:
            noise: the randomness, in its round.
            x: state at step.sigma, (B, C, H, W).
            x_in: image being purified, [-1, 1] units.
            step: row of the step table.
            before: of the step before in this round, for a solver that uses it.

        Returns:
            The next state and the estimate of x0.
        """
        guidance, solver = self.guidance, self.solver
        if guidance is None:
            return solve(solver, self.denoise, x, step, noise, before)

        def guided(leaf: Tensor) -> StepResult:
            x_next, x0, variance = solve(solver, self.denoise, leaf, step, noise, before)
            return StepResult(x_next + guidance(State(leaf, x0, x_in, step, noise, variance)), x0, variance)

        return recorded(guided, x, x_in)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The denoiser's estimate of x0, its shape checked, in the state's dtype; (B, C, H, W) -> (B, C, H, W).

        For a solver that uses learned variances: (B, 2C, H, W).
        """
        x0 = self.denoiser(x, sigma).to(x.dtype)
        b, c, h, w = x.shape
        expected = (b, 2 * c if isinstance(self.solver, AncestralLearned) else c, h, w)
        if x0.shape != expected:
            _check.fail("Purifier", f"a denoiser that gives the shape {expected}", f"{tuple(x0.shape)}")
        return x0

    def advance(self, noise: Noise, x: Tensor, x_in: Tensor, step: Step) -> Tensor:
        """The next state: one guided step; for a multistep solver, (B, 2C, H, W), the image and the estimate before."""
        if self.width == 1:
            return self.step(noise, x, x_in, step).x_next
        image, x0_before = x.chunk(2, dim=1)
        sigma = self._sigma_before.get(step.sigma)
        before = None if sigma is None else Before(x0_before, sigma)
        x_next, x0, _ = self.step(noise, image.contiguous(), x_in.chunk(2, dim=1)[0], step, before)
        return torch.cat([x_next, x0], dim=1)

    def differential(self, noise: Noise) -> FromEnd:
        """The walk as Euler's method on a differential equation, if the solver is one and nothing guides it."""
        solver = self.solver
        if not isinstance(solver, Differential) or self.guidance is not None:
            _check.fail(
                "Adjoint",
                "an unguided walk whose solver is Euler's method on a differential equation (EulerMaruyamaVP, "
                "EulerMaruyama, Euler, EulerVP)",
                f"solver={self.solver}, guidance={self.guidance}",
                "Use StoredState, which is exact for every walk.",
            )
        return lambda x, step: solver.from_end(self.denoise, x, step, noise)


def _levels_before(steps: Sequence[Step]) -> dict[float, float]:
    """For the noise level at which a step starts, that at which the one before did."""
    for a, b in pairwise(steps):
        if a.sigma_next != b.sigma or a.sigma <= b.sigma:
            _check.fail(
                "Purifier",
                "steps that each start at the lower noise level where the one before ended, as the solver is multistep",
                f"a step from {a.sigma:.4g} to {a.sigma_next:.4g}, then one from {b.sigma:.4g}",
                "Use Euler or Ancestral, which know no step before.",
            )
    return {b.sigma: a.sigma for a, b in pairwise(steps)}
