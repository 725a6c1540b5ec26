"""Training a robust classifier to guide purification: AGDM's objective, TRADES, and adversarial training.

AGDM (Lin et al. 2024, arXiv:2403.16067) guides by an auxiliary network c. A public summary of the paper (its text was
not at hand) gives its objective, with the distance D that the guidance takes too:

    min over weights of mean CE(c(x), y) + beta max over x' D(c(x), c(x')),    |x' - x|_inf <= eps.

Reviews of the paper call D a mean squared error and the training TRADES, whose D is the Kullback-Leibler divergence of
the predictions: Zhang et al. 2019, arXiv:1901.08573, equation 5 as released. Radius, steps and weight of AGDM are not
known; the defaults are those of the TRADES paper.

Madry et al. 2018, arXiv:1706.06083, equation 2.1: min over weights of mean max over x' CE(p(x'), y).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check
from depura.diffusion.schedules import VP
from depura.noise import Kind, Noise
from depura.training.classifier import Augmenting
from depura.training.loop import evaluating

START = 1e-3
"""Standard deviation of TRADES' start around the image, where the divergence and its gradient are zero."""

Logits = Callable[[Tensor], Tensor]
"""Images in [0, 1], (B, C, H, W), to logits, (B, K)."""


@dataclass(frozen=True)
class _Adversarial(Augmenting):
    """What both losses share: the network, the threat and the inner attack.

    Attributes:
        eps: linf radius of the inner attack, in (0, 1].
        step_size: length of its steps in each pixel.
        n_steps: their number.
        noise_up_to: where above zero, the network sees the images as a variance-preserving diffusion shows them at a
            time drawn uniformly from [0, noise_up_to], one time and one realisation per image, the same for x and x'.
            For guides whose features are read from noised states.
    """

    _: KW_ONLY
    eps: float = 8 / 255
    step_size: float = 2 / 255
    n_steps: int = 10
    noise_up_to: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__
        _check.number(
            where, "eps", self.eps, low=0.0, high=1.0, low_open=True, advice="It is in [0, 1] units, such as 8/255."
        )
        _check.number(where, "step_size", self.step_size, low=0.0, low_open=True)
        _check.integer(where, "n_steps", self.n_steps, low=1)
        _check.number(where, "noise_up_to", self.noise_up_to, low=0.0, high=1.0)

    def _logits(self, noise: Noise) -> Logits:
        """The network, behind noise of this training step if there is to be any."""
        if self.noise_up_to == 0:
            return self.network
        return lambda images: self.network(noised(images, noise, up_to=self.noise_up_to))

    def _ascend(self, loss: Callable[[Tensor], Tensor], origin: Tensor, start: Tensor) -> Tensor:
        """Where projected ascent of a loss arrives, with the network in evaluation mode."""
        x = _into_ball(start, origin, self.eps)
        with evaluating(self.network):
            for _ in range(self.n_steps):
                x = x.requires_grad_()
                (gradient,) = torch.autograd.grad(loss(x), x)
                x = _into_ball(x.detach() + self.step_size * gradient.sign(), origin, self.eps)
        return x


@dataclass(frozen=True)
class Trades(_Adversarial):
    """CE(p(x), y) + beta KL(p(x) || p(x')), x moved as `Augmenting` does; differentiated through p(x) and p(x').

    x' is found by linf PGD on the divergence from x + 1e-3 N(0, 1), in the ball and in [0, 1]. Zhang et al. 2019,
    equation 5 and algorithm 1; 8/255, 2/255, 10 and 6 are their values for CIFAR-10.

    Attributes:
        beta: weight of the divergence, the paper's 1 / lambda.
    """

    _: KW_ONLY
    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.number(type(self).__name__, "beta", self.beta, low=0.0)

    def __call__(self, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Loss of a batch, see `depura.training.loop.Loss`."""
        x = self.moved(images, noise)
        attacked = self.attack(x, noise)
        logits = self._logits(noise)
        clean = logits(x)
        return F.cross_entropy(clean, labels) + self.beta * self.distance(clean, logits(attacked)).mean()

    def attack(self, x: Tensor, noise: Noise) -> Tensor:
        """x' (B, C, H, W) within eps of x and in [0, 1], the images that the network tells apart most from x."""
        logits = self._logits(noise)
        with torch.no_grad(), evaluating(self.network):
            clean = logits(x)
        return self._ascend(
            lambda images: self.distance(clean, logits(images)).sum(), x, x + START * noise(x, kind=Kind.ATTACK)
        )

    @staticmethod
    def distance(clean: Tensor, attacked: Tensor) -> Tensor:
        """KL(p(x) || p(x')), (B,), of logits (B, K)."""
        return divergence(clean, attacked)


@dataclass(frozen=True)
class LogitDistance(Trades):
    """CE(c(x), y) + beta D(c(x), c(x')) with the mean squared difference D of the logits; the rest as `Trades`.

    AGDM's objective as a public summary of the paper has it, with the D that its reviews name.

    Attributes:
        beta: weight of the distance, the summary's lambda, which is not known.
    """

    @staticmethod
    def distance(clean: Tensor, attacked: Tensor) -> Tensor:
        """D = mean over the classes of the squared difference, (B,), of logits (B, K)."""
        return (clean - attacked).square().mean(1)


@dataclass(frozen=True)
class AdversarialTraining(_Adversarial):
    """CE(p(x'), y) where x' is found by linf PGD on it from a uniform point of the ball, x moved as `Augmenting` does.

    Madry et al. 2018, section 2.1.
    """

    def __call__(self, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Loss of a batch, see `depura.training.loop.Loss`."""
        attacked = self.attack(self.moved(images, noise), labels, noise)
        return F.cross_entropy(self._logits(noise)(attacked), labels)

    def attack(self, x: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """x' (B, C, H, W) within eps of x and in [0, 1], the images that the network gets wrong most."""
        logits = self._logits(noise)
        start = x + self.eps * (2 * noise.uniform(x, kind=Kind.ATTACK) - 1)
        return self._ascend(lambda images: F.cross_entropy(logits(images), labels, reduction="sum"), x, start)


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k (log p_k - log q_k), (B,), of the logits (B, K) of p (clean) and q (attacked)."""
    log_p, log_q = clean.log_softmax(1), attacked.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def noised(images: Tensor, noise: Noise, *, up_to: float) -> Tensor:
    """Images as a variance-preserving diffusion shows them at a random time, in the units of images.

    Every image has a time of its own, uniform in [0, up_to]; see `noised_to`. The addresses of the noise decide on
    times and noise.
    """
    drawn = noise.uniform(torch.empty(len(images), dtype=torch.float64), kind=Kind.T_STAR, step=1)
    return noised_to(images, noise, times=[up_to * float(u) for u in drawn])


def noised_to(images: Tensor, noise: Noise, *, times: Sequence[float]) -> Tensor:
    """Images (B, C, H, W) at given times (B values in [0, 1]) of a variance-preserving diffusion.

    x_t = sqrt(abar(t)) x0 + sqrt(1 - abar(t)) n with x0 = 2 images - 1; given back as (x_t + 1) / 2, which is not
    confined to [0, 1].
    """
    schedule = VP()
    scale, sigma = (
        torch.tensor([f(t) for t in times], dtype=images.dtype, device=images.device)[:, None, None, None]
        for f in (schedule.scale, schedule.sigma)
    )
    x_t = scale * (2 * images - 1 + sigma * noise(images, kind=Kind.FORWARD))
    return (x_t + 1) / 2


def _into_ball(x: Tensor, origin: Tensor, eps: float) -> Tensor:
    return x.clamp(origin - eps, origin + eps).clamp(0, 1)
