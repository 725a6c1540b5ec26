"""AGDM: adversarial guided diffusion models (Lin, Tao, Zhang, Tanaka and Zhao 2024, arXiv:2403.16067), RECONSTRUCTED:

    p(x_t | x_adv, y) ~ p(x_t) p_phi(x_adv | x_t) p_phi(y | x_t),   p_phi(x_adv | x_t) ~ exp(-s MSE(c(x_t), c(x_adv)))
    x_{t-1} ~ N(mu_theta(x_t) + Sigma_t g, Sigma_t),   g = -s grad MSE(c(x_t), c(x_adv)) + s grad log p_phi(y | x_t)

c are features and p_phi the class probabilities of an auxiliary network trained by TRADES (`depura train guide`). No
code was released; this follows the abstracts and public reviews. Known: t* = 70 of 1000 steps, the latent distance,
TRADES, a label term somewhere. Not known: s, the network, whether features see x_t or x0, whether the label is used at
inference. Choices of ours are in docs/deviations.md#agdm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.defence import predicted
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import State, mean_shift, minus_gradient
from depura.diffusion.schedules import VP, DiscreteLinear, Step, ddpm_steps, uniform_steps
from depura.diffusion.solvers import Ancestral, EulerMaruyamaVP, Solver
from depura.gradients import GradientRoute
from depura.methods.entry import Method, Setting
from depura.purifiers.purifier import DiffusionPurifier

Network = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [0, 1] to features (B, ...) or logits (B, K)."""


def on_estimate(at: State) -> Tensor:
    """Features see the estimate x0: images like those that the network was trained on."""
    return at.x0


def on_state(at: State) -> Tensor:
    """Features see x_t itself; for a network that was trained on noised images."""
    return at.step.scale * at.x


@dataclass(frozen=True)
class RobustGuide:
    """The gradient of log p_phi by x_t, weighted as the step's mean or as the score.

    Where the class head's logits of the input are not finite there is no label to go by. The displacement is then NaN,
    and so is the purified image.

    Attributes:
        features: c, of the auxiliary network.
        scale: s.
        classifier: class head of the auxiliary network for the label term, where the label is what it predicts for the
            input; None leaves the term out.
        label_scale: factor of the label term.
        sees: `on_estimate` or `on_state`.
        remark: shown by reports with every result.
        weight: `mean_shift`, which for Euler-Maruyama in x_t (`EulerMaruyamaVP`) is the same as adding to the score, or
            `score_shift`, for Euler-Maruyama in sigma^2 (`EulerMaruyama`).
    """

    remark: ClassVar[str] = "AGDM is reconstructed from abstracts and public reviews; no code was released"
    features: Network
    scale: float
    classifier: Network | None = None
    label_scale: float = 1.0
    sees: Callable[[State], Tensor] = on_estimate
    weight: Callable[[State], Tensor | float] = mean_shift

    def __call__(self, at: State, /) -> Tensor:
        """The displacement."""
        seen, target = (self.sees(at) + 1) / 2, (at.x_in + 1) / 2
        energy = self.scale * (self.features(seen) - self.features(target)).square().flatten(1).mean(1)
        if self.classifier is not None:
            label = predicted(self.classifier(target))
            surprise = F.cross_entropy(self.classifier(seen), label.clamp_min(0), reduction="none")
            factor = torch.ones_like(surprise).masked_fill(label < 0, torch.nan)  # no label; 1 changes no bit
            energy = energy + self.scale * self.label_scale * (factor * surprise)
        return self.weight(at) * minus_gradient(energy, at.x)


def agdm(
    denoiser: Denoiser,
    *,
    features: Network,
    scale: float,
    classifier: Network | None = None,
    n_noise: int = 70,
    n_steps: int | None = None,
    sees: Callable[[State], Tensor] = on_estimate,
    steps: Sequence[Step] | None = None,
    solver: Solver | None = None,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """AGDM's robust reverse process with DDPM steps, around any denoiser.

    Args:
        denoiser: D(x, sigma) -> x0.
        features: c, [0, 1] images to features; not the classifier that is defended, or say so.
        scale: s, strength of the guidance; not known from the paper.
        classifier: for the label term; default none.
        n_noise: noising depth in indices, 1000 t*.
        n_steps: reverse steps, a divisor of n_noise; default n_noise.
        sees: what the features see: `on_estimate` or `on_state`.
        steps: another step table.
        solver: default `Ancestral()`; its noise variance weights the guidance (it must have some).
        gradient: how the reverse process is differentiated; through the auxiliary network, of second order.

    Returns:
        The purifier.
    """
    _check.number("agdm", "scale", scale, low=0.0)
    return DiffusionPurifier(
        denoiser,
        steps=ddpm_steps(DiscreteLinear(), n_noise=n_noise, n_steps=n_steps) if steps is None else steps,
        solver=Ancestral() if solver is None else solver,
        guidance=RobustGuide(features, scale, classifier, sees=sees),
        gradient=gradient,
    )


def agdm_sde(
    denoiser: Denoiser,
    *,
    features: Network,
    scale: float,
    classifier: Network | None = None,
    t_star: float = 0.07,
    n_steps: int = 70,
    sees: Callable[[State], Tensor] = on_estimate,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """AGDM's robust reverse process as an SDE: the guidance is added to the score of DiffPure's reverse VP-SDE.

    Args:
        denoiser: D(x, sigma) -> x0.
        features: c, as for `agdm`.
        scale: s.
        classifier: for the label term; default none.
        t_star: how far to noise the input.
        n_steps: Euler-Maruyama steps.
        sees: what the features see.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier.
    """
    _check.number("agdm_sde", "scale", scale, low=0.0)
    return DiffusionPurifier(
        denoiser,
        steps=uniform_steps(VP(), t_start=t_star, n_steps=n_steps, t_end=1e-5),
        solver=EulerMaruyamaVP(),
        guidance=RobustGuide(features, scale, classifier, sees=sees),
        gradient=gradient,
    )


_ANY = {"features": nn.Identity(), "scale": 1.0}
METHOD = Method(
    "agdm",
    "AGDM",
    "Lin et al. 2024, arXiv:2403.16067",
    "agdm",
    (Setting("agdm_cifar", "agdm", partial(agdm, **_ANY)), Setting("agdm_sde", "agdm_sde", partial(agdm_sde, **_ANY))),
    "reconstruction: no code was released",
)
