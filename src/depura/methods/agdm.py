"""AGDM: adversarial guided diffusion models (Lin, Tao, Zhang, Tanaka and Zhao 2024, arXiv:2403.16067), RECONSTRUCTED:

    p(x_{t-1} | x_t, y, x') ~ p_theta(x_{t-1} | x_t) exp(-D(c(x'), c(x_t))) softmax(c(x_t))_y,        D = MSE,
    x_{t-1} ~ N(mu_theta(x_t) + Sigma_t g, Sigma_t),   g = s grad_{x_t} (log softmax(c(x_t))_y - D(c(x'), c(x_t)))

x' is the input and c an auxiliary network, of which the logits are taken, trained with the same D (`depura train
guide`). No code was released and the paper's text was not at hand: the first line is a public, machine-made summary's,
D and t* = 70 of 1000 steps are from public reviews, seen on 2026-11-30. Not known: s, the network, how y is had at
inference. Choices of ours are in docs/deviations.md#agdm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import State, chosen_class, mean_shift, minus_gradient
from depura.diffusion.schedules import VP, DiscreteLinear, Step, ddpm_steps, uniform_steps
from depura.diffusion.solvers import Ancestral, EulerMaruyamaVP, Solver
from depura.gradients import GradientRoute
from depura.methods.entry import Method, Setting
from depura.purifiers.purifier import DiffusionPurifier

Network = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [0, 1] to features (B, ...) or logits (B, K)."""


def on_estimate(at: State) -> Tensor:
    """The network sees the estimate x0; for one that was trained on clean images."""
    return at.x0


def on_state(at: State) -> Tensor:
    """The network sees x_t itself; for one that was trained on noised images."""
    return at.step.scale * at.x


@dataclass(frozen=True)
class RobustGuide:
    """s times the gradient by x_t of log softmax(c(x_t))_y - D(f(x'), f(x_t)), weighted as the mean or the score.

    Where the class head's logits of the input are not finite there is no label to go by. The displacement is then NaN,
    and so is the purified image. The label has no derivative: attack it through `depura.Relaxed` too, with a width of
    the size of its logits, and by examples made against the guide.

    Attributes:
        features: f, whose mean squared difference is D: c itself, or activations of a layer of it.
        scale: s.
        classifier: c, for the label term, where y is what it predicts for the input; None leaves the term out.
        label_scale: factor of the label term.
        sees: what the networks see of the state: `on_estimate` or `on_state`.
        remark: shown by reports with every result.
        weight: `mean_shift`, which for Euler-Maruyama in x_t (`EulerMaruyamaVP`) is the same as adding to the score, or
            `score_shift`, for Euler-Maruyama in sigma^2 (`EulerMaruyama`).
    """

    remark: ClassVar[str] = "AGDM is reconstructed from a public summary and reviews; no code was released"
    features: Network
    scale: float
    classifier: Network | None = None
    label_scale: float = 1.0
    sees: Callable[[State], Tensor] = on_estimate
    weight: Callable[[State], Tensor | float] = mean_shift

    def __call__(self, at: State, /) -> Tensor:
        """The displacement."""
        seen, target = (self.sees(at) + 1) / 2, (at.x_in + 1) / 2
        of_seen, of_target = self.features(seen), self.features(target)
        energy = self.scale * (of_seen - of_target).square().flatten(1).mean(1)
        if self.classifier is not None:
            same = self.classifier is self.features
            logits, of_input = (of_seen, of_target) if same else (self.classifier(seen), self.classifier(target))
            surprise = -(chosen_class(of_input) * logits.log_softmax(1)).sum(1)
            energy = energy + self.scale * self.label_scale * surprise
        return self.weight(at) * minus_gradient(energy, at.x)


def agdm(
    denoiser: Denoiser,
    *,
    guide: Network,
    scale: float,
    features: Network | None = None,
    label: bool = True,
    n_noise: int = 70,
    n_steps: int | None = None,
    sees: Callable[[State], Tensor] = on_state,
    steps: Sequence[Step] | None = None,
    solver: Solver | None = None,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """AGDM's robust reverse process with DDPM steps, around any denoiser.

    Args:
        denoiser: D(x, sigma) -> x0.
        guide: c, [0, 1] images to logits; not the classifier that is defended, or say so.
        scale: s, strength of the guidance; not known from the paper.
        features: what D compares instead of the logits, such as `Features(guide, "network.layer3")`.
        label: whether the label term is used, with the label that the guide predicts for the input.
        n_noise: noising depth in indices, 1000 t*.
        n_steps: reverse steps, a divisor of n_noise; default n_noise.
        sees: what the guide sees of the state: `on_state`, as the sources have it, which takes a guide that was trained
            on noised images (`depura train guide --noise-up-to`); or `on_estimate`, for one that was not.
        steps: another step table.
        solver: default `Ancestral()`; its noise variance weights the guidance (it must have some).
        gradient: how the reverse process is differentiated; through the auxiliary network, of second order.

    Returns:
        The purifier.
    """
    return DiffusionPurifier(
        denoiser,
        steps=ddpm_steps(DiscreteLinear(), n_noise=n_noise, n_steps=n_steps) if steps is None else steps,
        solver=Ancestral() if solver is None else solver,
        guidance=_guidance(guide, scale, features, label, sees),
        gradient=gradient,
    )


def agdm_sde(
    denoiser: Denoiser,
    *,
    guide: Network,
    scale: float,
    features: Network | None = None,
    label: bool = True,
    t_star: float = 0.07,
    n_steps: int = 70,
    sees: Callable[[State], Tensor] = on_state,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """AGDM's robust reverse process as an SDE: the guidance is added to the score of DiffPure's reverse VP-SDE.

    Args:
        denoiser: D(x, sigma) -> x0.
        guide: c, as for `agdm`.
        scale: s.
        features: what D compares instead of the logits.
        label: whether the label term is used.
        t_star: how far to noise the input.
        n_steps: Euler-Maruyama steps.
        sees: what the guide sees of the state.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier.
    """
    return DiffusionPurifier(
        denoiser,
        steps=uniform_steps(VP(), t_start=t_star, n_steps=n_steps, t_end=1e-5),
        solver=EulerMaruyamaVP(),
        guidance=_guidance(guide, scale, features, label, sees),
        gradient=gradient,
    )


def _guidance(
    guide: Network, scale: float, features: Network | None, label: bool, sees: Callable[[State], Tensor]
) -> RobustGuide:
    _check.number("agdm", "scale", scale, low=0.0)
    return RobustGuide(guide if features is None else features, scale, guide if label else None, sees=sees)


_ANY = {"guide": nn.Flatten(), "scale": 1.0}
METHOD = Method(
    "agdm",
    "AGDM",
    "Lin et al. 2024, arXiv:2403.16067",
    "agdm",
    (Setting("agdm_cifar", "agdm", partial(agdm, **_ANY)), Setting("agdm_sde", "agdm_sde", partial(agdm_sde, **_ANY))),
    "reconstructed from a public summary and reviews, seen 2026-11-30; no code was released",
)
