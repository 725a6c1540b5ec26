"""Planted faults, and what an audit names; honest defences, and that it names nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura.audit.audit import Audit, audit_gradient
from depura.audit.checks import Light
from depura.audit.derivatives import FLOAT64, loose, normal, slope
from depura.audit.probes import Probe, examine
from depura.defence import Defence, MeanProb, Vote
from depura.diffusion.denoisers import Clipped, EpsDenoiser
from depura.diffusion.exact import GaussianDenoiser
from depura.diffusion.guidance import State, minus_gradient
from depura.diffusion.schedules import VP, Step, TimeLabel, uniform_steps
from depura.diffusion.solvers import Ancestral, Heun, StepResult, from_noise
from depura.gradients import ChainState, Direct, StoredState, StraightThrough
from depura.noise import Kind, Noise
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import GradientMode
from slow import slow, slow_among
from toys import TanhClassifier, TanhNet, Toward, TowardNoised, rand, randn, tanh_eps

X = rand(2, 1, 4, 4, seed=1)
STEPS = uniform_steps(VP(), t_start=0.3, n_steps=3, t_end=1e-3)


class Block(nn.Module):
    """x + 0.3 tanh(conv(x)); subclasses spoil it."""

    def __init__(self, width: int = 4, *, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1).double()
        with torch.no_grad():
            self.conv.weight.copy_(0.3 * randn(width, width, 3, 3, seed=seed))
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.tanh(self.conv(x))


class Detached(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class PartlyDetached(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.tanh(self.conv(x.detach()))


class Ungraphed(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Private(Block):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


class Remembering(Block):
    calls: int = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls)


class Reseeding(Block):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().forward(x)


class GradModeDependent(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.1 if x.requires_grad else 1.0)


class GradModeOffset(Block):
    """The derivative is right, the value is not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0.1 if x.requires_grad else 0.0)


class Broken(Block):
    """Values that are not numbers, which all parts after it are given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / torch.relu(x - 1e3)


class Affine(nn.Module):
    """Is given a tensor that is not divided by images, as long as the batch or a multiple."""

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        return torch.tanh(x * gain[:, None, None])


class AroundAffine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64))
        self.affine = Affine()

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x + x.detach(), self.gain)


class Shift(nn.Module):
    """Detaches the label, which is no fault: it does not depend on the image."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return x + torch.sin(label.detach())[:, None, None, None]


class Rooted(Block):
    """The derivative of the root of zero is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.sqrt((x - x).square())


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Body(nn.Module):
    """A network of three blocks, the middle one given."""

    def __init__(self, middle: nn.Module | None = None, *, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, padding=1).double()
        self.body = nn.Sequential(Block(seed=1), middle or Block(seed=2), Block(seed=3))
        self.shift = Shift()
        self.head = nn.Conv2d(4, channels, 3, padding=1).double()
        with torch.no_grad():
            for k, (layer, size) in enumerate(((self.stem, 0.4), (self.head, 0.1))):
                layer.weight.copy_(size * randn(*layer.weight.shape, seed=20 + k))
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.head(self.body(self.shift(self.stem(x), label)))


def body(middle: nn.Module | None = None) -> EpsDenoiser:
    return EpsDenoiser(Body(middle), label=TimeLabel(VP(), factor=1.0))


def defence(denoiser=None, classifier=None, rule=None, *, resized: int = 0, n_pixels: int = 16, **parts) -> Defence:
    parts = {"steps": STEPS, "solver": Ancestral(), "guidance": Toward()} | parts
    purifier = DiffusionPurifier(body() if denoiser is None else denoiser, **parts)
    wrapped = Resized(purifier, size=resized) if resized else purifier
    return Defence(wrapped, TanhClassifier(n_pixels) if classifier is None else classifier, rule=rule)


def red(audit: Audit) -> set[str]:
    return {check.name for check in audit.checks if check.light is Light.RED}


def light(audit: Audit, name: str) -> Light:
    return next(check.light for check in audit.checks if check.name == name)


# honest defences


HONEST: dict[str, Callable[[], Defence]] = {
    "unguided": lambda: defence(guidance=None),
    "guided": defence,
    "guided by noise of its own": lambda: defence(guidance=TowardNoised()),
    "from noise, two rounds": lambda: defence(start=from_noise, rounds=2),
    "Heun": lambda: defence(solver=Heun()),
    "Resized": lambda: defence(resized=6),
    "clamped": lambda: defence(clamp=True),
    "vote": lambda: defence(rule=Vote(3)),
    "mean": lambda: defence(rule=MeanProb(2)),
    "a denoiser that is a function": lambda: defence(lambda x, sigma: torch.tanh(x) / (1 + sigma)),
    "kinks": lambda: defence(denoiser=body(nn.ReLU())),
    "kinks in place": lambda: defence(denoiser=body(nn.ReLU(inplace=True))),
    "bare classifier": lambda: Defence(None, TanhClassifier(16)),
    "full graph": lambda: defence(gradient=Direct()),
}


@pytest.mark.parametrize(
    ("n_images", "name"),
    [*((2, name) for name in HONEST), (1, "guided"), *(slow(1, name) for name in HONEST if name != "guided")],
)
def test_honest_defences_are_green(n_images: int, name: str) -> None:
    audit = audit_gradient(HONEST[name](), X[:n_images], ids=(7, 3)[:n_images])
    assert audit.light is Light.GREEN, [c for c in audit.checks if c.light is not Light.GREEN]
    assert audit.faults == ()
    assert audit.precision is FLOAT64
    assert audit.verdict.startswith("Green")


# planted faults: (defence, checks that fail, parts to blame)


@dataclass(frozen=True)
class NoGrad:
    """Guidance whose displacement has no graph."""

    @torch.no_grad()
    def __call__(self, at: State) -> Tensor:
        return 0.3 * torch.tanh(at.x_in - at.x0)


@dataclass(frozen=True)
class ForgetsReference:
    """Guidance that does not follow the path of the image through the reference."""

    def __call__(self, at: State) -> Tensor:
        return Toward()(at._replace(x_in=at.x_in.detach()))


@dataclass(frozen=True)
class ForgetsState:
    def __call__(self, at: State) -> Tensor:
        return 0.3 * torch.tanh(at.x_in - at.x0.detach())


@dataclass(frozen=True)
class FreesGraph:
    """The derivative of a distance without create_graph."""

    def __call__(self, at: State) -> Tensor:
        distance = (at.x0 - at.x_in).square().sum()
        return -0.2 * torch.autograd.grad(distance, at.x, retain_graph=True)[0]


@dataclass(frozen=True)
class BatchMean:
    """mse_loss over the batch: the strength is divided by B."""

    def __call__(self, at: State) -> Tensor:
        return 20 * minus_gradient(F.mse_loss(at.x0, at.x_in)[None], at.x)


@dataclass(frozen=True)
class Jittered:
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(1))

    def __call__(self, at: State) -> Tensor:
        return Toward()(at) + 0.1 * torch.randn(at.x.shape, generator=self.generator, dtype=at.x.dtype)


@dataclass(frozen=True)
class GlobalNoise:
    def __call__(self, at: State) -> Tensor:
        return Toward()(at) + 0.1 * torch.randn_like(at.x)


@dataclass(frozen=True)
class NoisyStep:
    """An ancestral step with a generator of its own."""

    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(1))

    def step(self, denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        x_next, x0, _ = Ancestral(eta=0.0).step(denoise, x, step, noise)
        return StepResult(x_next + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype), x0)


@dataclass(frozen=True)
class ReseededStep:
    """Reproducible, but row b gets the noise of position b, whatever the image."""

    def step(self, denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        x_next, x0, _ = Ancestral(eta=0.0).step(denoise, x, step, noise)
        generator = torch.Generator().manual_seed(step.index)
        return StepResult(x_next + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype), x0)


@dataclass(frozen=True)
class DetachedStep:
    def step(self, denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        x_next, x0, _ = Ancestral().step(denoise, x, step, noise)
        return StepResult(x_next.detach() + 0.5 * (x - x.detach()), x0)


class DetachedLate(nn.Module):
    """A denoiser that loses its graph at the last step only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tanh_eps()

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        x0 = self.inner(x, sigma)
        return x0.detach() if sigma == STEPS[-1].sigma else x0


class Forgetful(nn.Module):
    """A classifier that detaches between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Parameter(0.5 * randn(16, 6, seed=4))
        self.leave = nn.Parameter(randn(6, 3, seed=5))

    def forward(self, images: Tensor) -> Tensor:
        h = images.flatten(1) @ self.enter
        return (torch.tanh(h) + 0.5 * torch.sin(h).detach()) @ self.leave


@dataclass(frozen=True)
class Loudest:
    """A rule that hides the graph of its scores."""

    n_draws: int = 2

    def scores(self, logits: Tensor) -> Tensor:
        return logits.mean(1) + logits.detach().amax(1)


@dataclass(frozen=True)
class Counts:
    """A rule that counts labels: its scores have no gradient, and the slope of its counts is zero."""

    n_draws: int = 3

    def scores(self, logits: Tensor) -> Tensor:
        return nn.functional.one_hot(logits.argmax(2), logits.shape[2]).to(logits).mean(1)


class Labels(nn.Module):
    """A classifier that gives its label in the place of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TanhClassifier(16)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(images)


class Holes(nn.Module):
    """A block that loses a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.arange(4) == 1, torch.nan, x)


class Blind(TanhClassifier):
    """A classifier that takes pixels that are not finite for grey ones."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.nan_to_num(0.5))


class DarkFails(TanhClassifier):
    """A classifier that has no answer for images with a pixel of exactly 0, which audited images are kept away from."""

    def forward(self, images: Tensor) -> Tensor:
        black = (images == 0).flatten(1).any(1)
        return torch.where(black[:, None], torch.nan, super().forward(images))


@dataclass(frozen=True)
class Mislabelled:
    """A route that claims to be exact."""

    mode: ClassVar[GradientMode] = GradientMode.EXACT

    def __call__(self, advance, state: ChainState, x_in: Tensor, steps) -> ChainState:
        return StraightThrough()(advance, state, x_in, steps)

    def clamp(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1)


def closure_over(network: nn.Module) -> Callable[[Tensor, float], Tensor]:
    inner = EpsDenoiser(network, label=TimeLabel(VP(), factor=1.0))

    def mine(x: Tensor, sigma: float) -> Tensor:
        return inner(x, sigma)

    return mine


def detaching_function(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(x.detach()) / (1 + sigma)


def with_dropout() -> Defence:
    made = defence(denoiser=body(nn.Dropout(0.2)))
    made.get_submodule("purifier.denoiser.network.body.1").training = True
    return made


def with_batch_norm() -> Defence:
    made = defence(denoiser=body(Normed()))
    made.get_submodule("purifier.denoiser.network.body.1.norm").training = True
    return made


PLANTED: dict[str, tuple[Callable[[], Defence], set[str], set[str]]] = {
    "detach in a block": (
        lambda: defence(body(Detached())),
        {"differences"},
        {"denoiser.network.body.1 (Detached)"},
    ),
    "detach in a block, unguided": (
        lambda: defence(body(Detached()), guidance=None),
        {"differences"},
        {"denoiser.network.body.1 (Detached)"},
    ),
    "detach in one branch of a block": (
        lambda: defence(body(PartlyDetached())),
        {"differences"},
        {"denoiser.network.body.1 (PartlyDetached)"},
    ),
    "no_grad in a block": (
        lambda: defence(body(Ungraphed())),
        {"differences"},
        {"denoiser.network.body.1 (Ungraphed)"},
    ),
    "detach in a block, resized, two rounds": (
        lambda: defence(body(Detached()), resized=6, rounds=2),
        {"differences"},
        {"denoiser.network.body.1 (Detached)"},
    ),
    "detach in a block, vote": (
        lambda: defence(body(Detached()), rule=Vote(2)),
        {"differences"},
        {"denoiser.network.body.1 (Detached)"},
    ),
    "detach in a block behind a function": (
        lambda: defence(closure_over(Body(Detached()))),
        {"differences"},
        {"denoiser.inner.network.body.1 (Detached)"},
    ),
    "detach in a function": (
        lambda: defence(detaching_function, guidance=None),
        {"differences"},
        {"denoiser detaching_function"},
    ),
    "detach at the last step": (
        lambda: defence(DetachedLate(), guidance=None),
        {"differences"},
        {"denoiser DetachedLate"},
    ),
    "two detaches": (
        lambda: defence(body(Detached()), Forgetful()),
        {"differences"},
        {"denoiser.network.body.1 (Detached)", "classifier Forgetful"},
    ),
    "generator in a block": (
        lambda: defence(body(Private())),
        {"replay"},
        {"denoiser.network.body.1 (Private)"},
    ),
    "state in a block": (
        lambda: defence(body(Remembering())),
        {"replay"},
        {"denoiser.network.body.1 (Remembering)"},
    ),
    "reseeding in a block": (
        lambda: defence(body(Reseeding())),
        {"generators"},
        {"denoiser.network.body.1 (Reseeding)"},
    ),
    "another value with a graph": (
        lambda: defence(body(GradModeDependent()), guidance=None),
        {"differences", "second way"},
        {"denoiser.network.body.1 (GradModeDependent)"},
    ),
    "an offset with a graph": (
        lambda: defence(body(GradModeOffset()), guidance=None),
        {"differences", "second way"},
        {"denoiser.network.body.1 (GradModeOffset)"},
    ),
    "division by zero": (
        lambda: defence(body(Broken()), guidance=None),
        {"finite logits"},
        {"denoiser.network.body.1 (Broken)"},
    ),
    "a child that cannot be tried alone": (
        lambda: defence(body(AroundAffine())),
        {"differences"},
        {"denoiser.network.body.1 (AroundAffine)"},
    ),
    "root of zero": (
        lambda: defence(body(Rooted()), guidance=None),
        {"finite gradient"},
        {"denoiser.network.body.1 (Rooted)"},
    ),
    "dropout in training mode": (with_dropout, {"replay"}, {"denoiser.network.body.1 (Dropout)"}),
    "batch norm in training mode": (
        with_batch_norm,
        {"batch", "draws"},
        {"denoiser.network.body.1.norm (BatchNorm2d)"},
    ),
    "no_grad around guidance": (lambda: defence(guidance=NoGrad()), {"differences"}, {"guidance NoGrad"}),
    "detached reference": (
        lambda: defence(guidance=ForgetsReference()),
        {"differences"},
        {"guidance ForgetsReference"},
    ),
    "detached estimate": (lambda: defence(guidance=ForgetsState()), {"differences"}, {"guidance ForgetsState"}),
    "no create_graph": (lambda: defence(guidance=FreesGraph()), {"differences"}, {"guidance FreesGraph"}),
    "mean over the batch": (
        lambda: defence(guidance=BatchMean()),
        {"batch", "draws"},
        {"guidance BatchMean"},
    ),
    "generator in guidance": (lambda: defence(guidance=Jittered()), {"replay"}, {"guidance Jittered"}),
    "global generator in guidance": (lambda: defence(guidance=GlobalNoise()), {"replay"}, {"guidance GlobalNoise"}),
    "generator in the solver": (lambda: defence(solver=NoisyStep()), {"replay"}, {"solver NoisyStep"}),
    "noise by position": (
        lambda: defence(solver=ReseededStep()),
        {"batch", "order", "draws"},
        {"solver ReseededStep"},
    ),
    "detach in the solver": (lambda: defence(solver=DetachedStep()), {"differences"}, {"solver DetachedStep"}),
    "detach in the start": (
        lambda: defence(start=lambda x_in, step, noise: x_in.detach() + step.sigma * noise(x_in, kind=Kind.FORWARD)),
        {"differences"},
        {"start <lambda>"},
    ),
    "detach in the classifier": (
        lambda: defence(classifier=Forgetful()),
        {"differences"},
        {"classifier Forgetful"},
    ),
    "detach in a bare classifier": (
        lambda: Defence(None, Forgetful()),
        {"differences"},
        {"classifier Forgetful"},
    ),
    "detach behind a saturated classifier": (
        lambda: defence(body(Detached()), lambda images: torch.tanh(100 + images.flatten(1)[:, :3])),
        set(),
        {"denoiser.network.body.1 (Detached)"},
    ),
    "detach in the rule": (lambda: defence(rule=Loudest()), {"differences"}, {"rule Loudest"}),
    "counts in the rule": (lambda: defence(rule=Counts()), {"gradient"}, {"rule Counts"}),
    "labels for scores": (lambda: defence(classifier=Labels()), {"gradient"}, {"classifier Labels"}),
    "labels for scores, bare": (lambda: Defence(None, Labels()), {"gradient"}, {"classifier Labels"}),
    "labels for scores, counted": (
        lambda: defence(classifier=Labels(), rule=Counts()),
        {"gradient"},
        {"classifier Labels", "rule Counts"},
    ),
    "a lost pixel that the classifier hides": (
        lambda: defence(body(Holes()), Blind(16), guidance=None),
        {"finite logits"},
        {"denoiser.network.body.1 (Holes)"},
    ),
    "a route that is not exact": (lambda: defence(gradient=Mislabelled()), {"second way"}, set()),
}
LIKE_ANOTHER = {
    "detach in a block, unguided",
    "detach in one branch of a block",
    "detach in a block, resized, two rounds",
    "detach in a block, vote",
    "detach in a block behind a function",
    "two detaches",
    "an offset with a graph",
    "a child that cannot be tried alone",
    "detached estimate",
    "detach behind a saturated classifier",
    "labels for scores, counted",
}
"""Planted faults that are slow to find and differ from a quicker one in where or how often they stand."""


@pytest.mark.parametrize("name", slow_among(PLANTED, LIKE_ANOTHER))
def test_planted_faults_are_named(name: str) -> None:
    build, failed, guilty = PLANTED[name]
    audit = audit_gradient(build(), X)
    assert audit.light is Light.RED
    assert red(audit) == failed
    assert {fault.part for fault in audit.faults} == guilty
    for fault in audit.faults:
        assert fault.sentence.startswith(f"{fault.part}: expected ")
        assert fault.part in audit.verdict


def test_logits_that_are_not_finite_are_looked_for_at_the_images_themselves() -> None:
    images = X.clone()
    images[0, 0, 1, 1] = 0.0
    audit = audit_gradient(Defence(None, DarkFails(16)), images)
    assert red(audit) == {"finite logits"}
    assert {fault.part for fault in audit.faults} == {"classifier DarkFails"}
    assert audit_gradient(Defence(None, DarkFails(16)), X).light is Light.GREEN


def test_what_to_do_without_a_gradient_is_said() -> None:
    (fault,) = audit_gradient(defence(rule=Counts()), X).faults
    assert fault.sentence == (
        "rule Counts: expected a result with a gradient path to the logits, got one without. Give the rule's scores a "
        "gradient, as depura.Vote does (its counts have that of depura.MeanProb), or deploy depura.Vote or "
        "depura.MeanProb."
    )
    (fault,) = audit_gradient(defence(classifier=Labels()), X).faults
    assert fault.sentence == (
        "classifier Labels: expected a result with a gradient path to the images, got one without. Give it scores with "
        "a gradient, such as logits or probabilities, in the place of labels."
    )


def test_one_image_is_enough_to_see_a_mean_over_the_batch() -> None:
    audit = audit_gradient(defence(guidance=BatchMean()), X[:1])
    assert red(audit) == {"batch", "draws"}
    assert {fault.part for fault in audit.faults} == {"guidance BatchMean"}


def test_the_sentence_says_which_path_is_missing() -> None:
    (fault,) = audit_gradient(defence(guidance=ForgetsReference()), X).faults
    assert fault.sentence == (
        "guidance ForgetsReference: expected the derivative that finite differences give, got one without the path "
        "through at.x_in (relative error 1). Look for a detach or no_grad there."
    )


@pytest.mark.slow
def test_sentences_say_which_other_paths_are_missing() -> None:
    (fault,) = audit_gradient(defence(guidance=ForgetsState()), X).faults
    assert "without the path through at.x " in fault.sentence
    (fault,) = audit_gradient(defence(guidance=NoGrad()), X).faults
    assert "through at.x and at.x_in" in fault.sentence
    (fault,) = audit_gradient(defence(body(PartlyDetached())), X).faults
    assert "another by argument 1" in fault.sentence


def test_a_gradient_that_cannot_be_computed_is_red() -> None:
    """Direct differentiation of a distance frees the graph that the pull-back needs."""

    def frees(at: State) -> Tensor:
        return -0.2 * torch.autograd.grad((at.x0 - at.x_in).square().sum(), at.x)[0]

    audit = audit_gradient(defence(guidance=frees), X)
    assert red(audit) == {"gradient"}
    assert {fault.part for fault in audit.faults} == {"guidance frees"}
    said = next(check.sentence for check in audit.checks if check.name == "gradient")
    assert said.startswith("Expected a gradient, got RuntimeError: Trying to backward through the graph a second time")


class Once(torch.autograd.Function):
    """The identity, with a derivative that has none itself."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:
        return g


def test_guidance_that_needs_second_derivatives_of_a_denoiser_without_them() -> None:
    """Each is right by itself."""

    def once(x: Tensor, sigma: float) -> Tensor:
        return torch.tanh(Once.apply(x)) / (1 + sigma)

    plain = audit_gradient(defence(once, guidance=None), X)
    assert [check.name for check in plain.checks if check.light is not Light.GREEN] == ["own derivatives"]
    assert "autograd function Once" in plain.verdict or "own derivatives" in plain.verdict
    audit = audit_gradient(defence(once), X)
    assert audit.light is Light.RED
    assert {fault.part for fault in audit.faults} == {"guidance Toward with denoiser once"}


# amber


class Single32(nn.Module):
    """A network that computes in float32 whatever it is given: silently, or not."""

    def __init__(self, *, silent: bool, spoil: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(0.3 * randn(1, 1, 3, 3))
        self.silent, self.spoil = silent, spoil

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = self.conv(x).float() if self.silent else self.conv(x.float())
        return torch.tanh(h.detach() if self.spoil else h).to(x.dtype)


def single(**parts) -> Defence:
    denoiser = EpsDenoiser(Single32(**parts), label=TimeLabel(VP(), factor=1.0))
    return defence(denoiser, TanhClassifier(16).float())


@pytest.mark.parametrize("silent", [True, slow(False)])
def test_what_cannot_be_float64_is_audited_in_its_own_dtype(silent: bool) -> None:
    audit = audit_gradient(single(silent=silent), X.float())
    assert audit.precision == loose(torch.float32)
    assert audit.light is Light.AMBER
    assert {check.name for check in audit.checks if check.light is not Light.GREEN} == {"precision"}
    said = next(check.sentence for check in audit.checks if check.name == "precision")
    assert "Computed in float32" in said
    assert ("float32 inside" in said) == silent
    audit = audit_gradient(single(silent=silent, spoil=True), X.float())
    assert {fault.part for fault in audit.faults} == {"denoiser.network (Single32)"}


def test_labels_in_float32_are_no_obstacle_to_float64() -> None:
    class Embedding(TanhNet):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return super().forward(x, label.float())

    audit = audit_gradient(defence(EpsDenoiser(Embedding(), label=TimeLabel(VP(), factor=1.0))), X)
    assert (audit.light, audit.precision) == (Light.GREEN, FLOAT64)


def test_half_precision_inside_is_judged_by_its_own_rounding() -> None:
    """Single precision's 1e-4 would call an honest network dependent on the batch."""

    def coarse(x: Tensor, sigma: float) -> Tensor:
        return torch.tanh(x.to(torch.bfloat16)).to(x.dtype) / (1 + sigma)

    audit = audit_gradient(defence(coarse, TanhClassifier(16).float()), X.float())
    assert audit.light is Light.AMBER
    assert audit.precision == loose(torch.bfloat16)
    assert audit.precision.same > 0.05
    assert "Computed in float32 (bfloat16 inside)" in audit.checks[1].sentence


def test_a_float32_defence_is_audited_in_float64() -> None:
    """On a copy: the defence itself stays as it is."""
    model = EpsDenoiser(TanhNet().float(), label=TimeLabel(VP(), factor=1.0))
    made = defence(model, TanhClassifier(16).float())
    weights = {name: weight.clone() for name, weight in made.state_dict().items()}
    assert audit_gradient(made, X.float()).precision is FLOAT64
    assert all(torch.equal(weight, made.state_dict()[name]) for name, weight in weights.items())
    assert {weight.dtype for weight in made.state_dict().values()} == {torch.float32}
    assert made.purifier is not None
    assert made.purifier.gradient == StoredState()


def test_a_clipped_estimate_is_masked() -> None:
    """Pixels of the mean beyond 1 by far: the clamp cuts their gradient."""
    mean = torch.full((1, 4, 4), 0.2, dtype=torch.float64)
    mean[:, :3] = 3.0
    clipped = Clipped(GaussianDenoiser(mean, 0.2 * torch.ones_like(mean)))
    audit = audit_gradient(defence(clipped, guidance=None, steps=uniform_steps(VP(), t_start=0.3, n_steps=3)), X)
    zeros = next(check for check in audit.checks if check.name == "zeros")
    assert (audit.light, zeros.light, zeros.measured) == (Light.AMBER, Light.AMBER, 0.75)
    assert "75% of pixels" in zeros.sentence
    assert "Relaxed" in zeros.sentence
    assert audit.faults == ()
    assert audit.verdict == "Amber: nothing is wrong with the gradient as far as it was checked; read on zeros."


def test_a_piecewise_constant_estimate_is_masked() -> None:
    audit = audit_gradient(defence(lambda x, sigma: (4 * x).round() / 4, guidance=None, steps=STEPS[:1]), X)
    assert light(audit, "differences") is not Light.RED
    assert audit.faults == ()


def test_jumps_are_not_taken_for_a_wrong_gradient_in_float32() -> None:
    """Differences across jumps say nothing: amber, and no part is named."""
    made = defence(lambda x, sigma: 0.9 * x.float() + (64 * x.float()).round() / 640, TanhClassifier(16).float())
    audit = audit_gradient(made.with_(guidance=None), X.float())
    assert audit.faults == ()
    assert light(audit, "differences") is Light.AMBER


def test_the_studys_own_route_is_named_if_it_is_an_approximation() -> None:
    audit = audit_gradient(defence(gradient=StraightThrough()), X)
    assert (audit.light, light(audit, "route")) == (Light.AMBER, Light.AMBER)
    said = next(check.sentence for check in audit.checks if check.name == "route")
    assert "gradient is BPDA, not the exact gradient" in said


def test_training_mode_and_weights_that_require_grad() -> None:
    made = defence()
    made.get_submodule("purifier.denoiser.network.body").training = True
    made.get_parameter("purifier.denoiser.network.stem.weight").requires_grad_()
    audit = audit_gradient(made, X)
    said = next(check for check in audit.checks if check.name == "modes")
    assert said.light is Light.AMBER
    assert "purifier.denoiser.network.body in training mode" in said.sentence
    assert "purifier.denoiser.network.stem.weight requiring grad" in said.sentence


# what an audit leaves alone, and what it refuses


@pytest.mark.parametrize("guidance", [Toward(), GlobalNoise()], ids=["honest", "drawing"])
def test_global_generators_are_left_alone(guidance) -> None:
    made = defence(guidance=guidance)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    audit_gradient(made, X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), lambda: random.random(), lambda: np.random.seed(3)])
def test_draws_from_other_generators_are_seen(draw) -> None:
    def drawing(at: State) -> Tensor:
        draw()
        return Toward()(at)

    audit = audit_gradient(defence(guidance=drawing), X)
    assert red(audit) == {"generators"}
    assert {fault.part for fault in audit.faults} == {"guidance drawing"}


def test_what_cannot_be_copied_is_audited_in_place() -> None:
    class Stubborn(Block):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    made = defence(body(Stubborn()))
    before = made.purifier.gradient
    audit = audit_gradient(made, X)
    assert light(audit, "precision") is Light.AMBER
    assert "no copies" in next(check.sentence for check in audit.checks if check.name == "precision")
    assert red(audit) == set()
    assert made.purifier.gradient is before


def test_unusable_input() -> None:
    with pytest.raises(ValueError, match="expected a Defence, got TanhClassifier"):
        audit_gradient(TanhClassifier(16), X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images in \[0, 1\]"):
        audit_gradient(defence(), 2 * X)
    with pytest.raises(ValueError, match="one id for each of 2 images, got 1"):
        audit_gradient(defence(), X, ids=(1,))
    with pytest.raises(ValueError, match="seed"):
        audit_gradient(defence(), X, seed=-1)
    with pytest.raises(ValueError, match="device"):
        audit_gradient(defence(), X, device="abacus")


# the measure itself


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("wrong_by", [0.0, 3e-5, 1e-2, 1.0])
def test_errors_of_a_known_size(wrong_by: float, scale: float) -> None:
    x, weights = randn(3, 5, seed=1), randn(3, 5, seed=2)
    exact = scale * torch.cos(x) * weights
    found = slope(lambda z: scale * torch.sin(z), x, (1 - wrong_by) * exact, weights, precision=FLOAT64, seed=0)
    assert found.wrong(FLOAT64) == (wrong_by > 1e-5)
    assert not found.undecided(FLOAT64)
    assert found.error == pytest.approx(wrong_by, rel=0.01, abs=1e-5)


def test_rounding_is_not_taken_for_an_error() -> None:
    """A slope of 1e-14 on a value of 1 is beyond what differences in float64 can see."""
    x, weights = randn(4, seed=1), randn(4, seed=2)
    found = slope(lambda z: 1 + 1e-14 * z, x, 2e-14 * weights, weights, precision=FLOAT64, seed=0)
    assert found.undecided(FLOAT64)


def test_widths_follow_the_size_of_the_argument() -> None:
    """A part that saturates at 1e-4 is tried in steps of its own size."""

    def call(inputs, rows):
        sharp = torch.tanh(1e4 * inputs[0])
        return (sharp + 0.5 * sharp.detach(),)

    x = 1e-4 * randn(2, 8, dtype=torch.float32)
    fault = examine(Probe("part", call, (x,), ("x",), 2), loose(torch.float32), 0)
    assert fault is not None
    assert "another by x (relative error 0.33)" in fault.sentence


def test_probing_numbers_are_normal_and_their_own() -> None:
    a, b = (normal(torch.zeros(40, 50, dtype=torch.float64), 3, k) for k in (0, 1))
    assert abs(float(a.mean())) < 0.1
    assert float(a.std()) == pytest.approx(1, abs=0.05)
    assert abs(float((a * b).mean())) < 0.1
    assert normal(torch.tensor(1.0), 3, 0).shape == ()
