"""Every published setting with its transcription: one table, which several files run through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

import transcriptions as by_hand
from depura.diffusion.denoisers import EpsDenoiser, EpsVarianceDenoiser
from depura.diffusion.schedules import VP, Cosine, DiscreteLinear, IndexLabel, TimeLabel, TruncatedLabel, karras_steps
from depura.diffusion.solvers import AncestralLarge, Heun
from depura.image_ops import ssim
from depura.methods import (
    adbm,
    agdm,
    baselines,
    diffpure,
    diffpure_ddpm,
    diffpure_langevin,
    gdmp,
    gradual,
    likelihood,
    mimicdiffusion,
    smoothing,
)
from depura.noise import Kind, Noise
from depura.purifiers.composed import Averaged, Mixed, Resized, Sequential
from depura.purifiers.purifier import Purifier
from toys import TanhClassifier, TanhNet, randn, tanh_edm


class PerThousand(nn.Module):
    """A small network that is told labels up to 1000; with `both` it predicts as many channels again."""

    def __init__(self, *, both: bool = False) -> None:
        super().__init__()
        self.eps = TanhNet(1)
        self.share = TanhNet(1, seed=5) if both else None

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        out = self.eps(x, label / 1000)
        return out if self.share is None else torch.cat([out, torch.tanh(self.share(x, label / 1000))], dim=1)


def told(network: nn.Module) -> by_hand.Eps:
    """The network for a transcription: one label for all rows."""
    return lambda x, label: network(x, torch.full((len(x),), label, dtype=x.dtype))


NET, LEARNED = PerThousand(), PerThousand(both=True)
EDM = tanh_edm(seed=3)
FEATURES = by_hand.convolution(2 * randn(4, 1, 3, 3, seed=31))
HEAD = TanhClassifier(16, seed=32)
INDEX = IndexLabel(DiscreteLinear())
EPS, EPS_VARIANCE = EpsDenoiser(NET, label=INDEX), EpsVarianceDenoiser(LEARNED, label=INDEX)
EPS_ADBM = EpsDenoiser(NET, label=IndexLabel(adbm.SCHEDULE))
EPS_TIME = EpsDenoiser(NET, label=TimeLabel(VP()))


@dataclass(frozen=True)
class Case:
    """A purifier, its transcription with the networks filled in, and the size of the images it is tried on."""

    purifier: Purifier
    transcription: Callable[[Tensor, Noise], Tensor]
    size: int = 4


def preset(setting: diffpure.Preset) -> Purifier:
    """A preset of DiffPure around the network that it is meant for."""
    return setting.purifier(EpsDenoiser(NET, label=setting.label))


def random_t_star(x: Tensor, noise: Noise) -> Tensor:
    """DiffPure, each row from the t* that it draws."""
    share = noise.uniform(torch.zeros(len(x), dtype=torch.float64), kind=Kind.T_STAR)
    stars = [0.1 + (int(30 * float(u)) - 15) / 1000 for u in share]
    rows = [by_hand.diffpure(told(NET), x[[k]], noise.take([k]), t_star=t, n=20) for k, t in enumerate(stars)]
    return torch.cat(rows)


def averaged(x: Tensor, noise: Noise) -> Tensor:
    """The mean of three surrogate processes."""
    paths = by_hand.gradual(told(NET), x.repeat_interleave(3, dim=0), noise.split(3), schedule=LEE_KIM_SHORT)
    return paths.reshape(len(x), 3, *x.shape[1:]).mean(1)


def one_after_another(x: Tensor, noise: Noise) -> Tensor:
    """GDMP in two short rounds, then ADBM in the round after those."""
    once = by_hand.gdmp(told(NET), x, noise, indices=range(5, -1, -1), rounds=2, guide_scale=6e4, ptb=8.0, batch=100)
    return by_hand.adbm(told(NET), once, noise.in_round(2))


LEE_KIM_SHORT = [(30, 1), (50, 1), (125, 5)]
DEPTHS = {name: [(d, d) for d in getattr(gradual, name)] for name in ("CIFAR10", "IMAGENET", "SVHN")}
IMAGENET_STEPS = [round(k * 999 / 249) for k in range(44, -1, -1)]
GDMP = {"indices": range(35, -1, -1), "rounds": 4, "guide_scale": 6e4, "ptb": 8.0, "batch": 100}
# The mean over so few pixels makes the published strength (a batch of 60) chaotic.
GDMP_IMAGENET = {"indices": IMAGENET_STEPS, "rounds": 1, "guide_scale": 1000.0, "ptb": 4.0, "batch": 6000}
AGDM = {"guide": HEAD, "features": FEATURES, "scale": 300.0}

CASES: dict[str, Case] = {
    # DiffPure
    "diffpure_cifar_linf": Case(preset(diffpure.CIFAR10_LINF), partial(by_hand.diffpure, told(NET), t_star=0.1, n=100)),
    "diffpure_cifar_l2": Case(preset(diffpure.CIFAR10_L2), partial(by_hand.diffpure, told(NET), t_star=0.075, n=75)),
    "diffpure_cifar_rn50": Case(
        preset(diffpure.CIFAR10_RESNET50), partial(by_hand.diffpure, told(NET), t_star=0.125, n=125)
    ),
    "diffpure_cifar, released noising": Case(
        diffpure.diffpure(EPS_TIME, start=diffpure.released_start(0.1)),
        partial(by_hand.diffpure, told(NET), t_star=0.1, n=100, start=by_hand.ABAR[99]),
    ),
    "diffpure_imagenet": Case(
        preset(replace(diffpure.IMAGENET, size=6)),
        partial(
            by_hand.resized,
            partial(by_hand.diffpure, told(NET), t_star=0.15, n=150, label=by_hand.fractional_label),
            size=6,
        ),
    ),
    "diffpure_imagenet, released labels": Case(
        Resized(diffpure.diffpure(EPS.with_label(TruncatedLabel(VP())), t_star=0.15, n_steps=150), size=6),
        partial(
            by_hand.resized,
            partial(by_hand.diffpure, told(NET), t_star=0.15, n=150, label=by_hand.truncated_label),
            size=6,
        ),
    ),
    "diffpure_celeba": Case(
        diffpure_ddpm.CELEBA.purifier(EpsDenoiser(NET, label=diffpure_ddpm.CELEBA.label)),
        partial(by_hand.ddpm, told(NET), n=500),
    ),
    "diffpure_ddpm, large variance": Case(
        diffpure_ddpm.diffpure_ddpm(EPS, n_noise=100, solver=AncestralLarge()),
        partial(by_hand.ddpm, told(NET), n=100, large=True),
    ),
    "diffpure_adm": Case(diffpure_ddpm.diffpure_adm(EPS_VARIANCE), partial(by_hand.adm, told(LEARNED), n=150)),
    "diffpure_ode": Case(
        diffpure.diffpure_ode(EPS_TIME), partial(by_hand.diffpure, told(NET), t_star=0.1, n=100, ode=True)
    ),
    "diffpure_ldsde": Case(diffpure_langevin.diffpure_langevin(EPS_TIME), partial(by_hand.langevin, told(NET))),
    "diffpure_random": Case(diffpure.diffpure_random(EPS_TIME, n_steps=20), random_t_star),
    # Lee and Kim
    "lk_gradual_cifar": Case(gradual.gradual(EPS), partial(by_hand.gradual, told(NET), schedule=DEPTHS["CIFAR10"])),
    "lk_gradual_imagenet": Case(
        gradual.gradual(EPS, depths=gradual.IMAGENET),
        partial(by_hand.gradual, told(NET), schedule=DEPTHS["IMAGENET"]),
    ),
    "lk_gradual_svhn": Case(
        gradual.gradual(EPS, depths=gradual.SVHN), partial(by_hand.gradual, told(NET), schedule=DEPTHS["SVHN"])
    ),
    "lk_surrogate_cifar": Case(gradual.surrogate(EPS), partial(by_hand.gradual, told(NET), schedule=LEE_KIM_SHORT)),
    "lk_surrogate_svhn": Case(
        gradual.surrogate(EPS, depths=(30, 50, 80)),
        partial(by_hand.gradual, told(NET), schedule=[(30, 1), (50, 1), (80, 5)]),
    ),
    "lk_single": Case(
        gradual.gradual(EPS, depths=(200,), n_steps=(5,)),
        partial(by_hand.gradual, told(NET), schedule=[(200, 5)]),
    ),
    # GDMP
    "gdmp_cifar": Case(gdmp.gdmp(EPS), partial(by_hand.gdmp, told(NET), **GDMP)),
    "gdmp_cifar, released noising": Case(
        gdmp.gdmp(EPS, start=gdmp.released_start(36)),
        partial(by_hand.gdmp, told(NET), **GDMP, start=by_hand.ABAR[36]),
    ),
    "gdmp_cifar, SSIM": Case(
        gdmp.gdmp(EPS, rounds=2, similarity=ssim, guide_scale=1000.0),
        partial(by_hand.gdmp, told(NET), **GDMP | {"rounds": 2, "guide_scale": 1000.0}, structural=True),
        size=8,
    ),
    "gdmp_imagenet": Case(
        gdmp.gdmp_imagenet(EPS_VARIANCE, batch_ref=6000),
        partial(
            by_hand.gdmp,
            told(LEARNED),
            **GDMP_IMAGENET,
            structural=True,
            fresh=False,
            variance="learned",
        ),
        size=8,
    ),
    # MimicDiffusion
    "mimic_cifar": Case(
        mimicdiffusion.mimicdiffusion(EPS, batch_ref=16_000),
        partial(by_hand.mimic, told(NET), batch=16_000, released=False),
    ),
    "mimic_cifar, released": Case(
        mimicdiffusion.mimicdiffusion(EPS, released=True), partial(by_hand.mimic, told(NET), released=True)
    ),
    "mimic_edm": Case(
        mimicdiffusion.mimicdiffusion(
            EDM, steps=karras_steps(sigma_max=80.0, n_steps=50), solver=Heun(), batch_ref=1600
        ),
        partial(by_hand.mimic_edm, told(EDM.network), n=50, batch=1600),
    ),
    # AGDM
    "agdm_cifar": Case(
        agdm.agdm(EPS, **AGDM, label=False, sees=agdm.on_estimate),
        partial(by_hand.agdm, told(NET), energy=by_hand.agdm_energy(FEATURES, 300.0)),
    ),
    "agdm_cifar, label": Case(
        agdm.agdm(EPS, **AGDM, sees=agdm.on_estimate),
        partial(by_hand.agdm, told(NET), energy=by_hand.agdm_energy(FEATURES, 300.0, classifier=HEAD)),
    ),
    "agdm_cifar, on x_t": Case(
        agdm.agdm(EPS, **AGDM, label=False),
        partial(by_hand.agdm, told(NET), energy=by_hand.agdm_energy(FEATURES, 300.0, on_state=True)),
    ),
    "agdm_cifar, label, on x_t": Case(
        agdm.agdm(EPS, **AGDM),
        partial(by_hand.agdm, told(NET), energy=by_hand.agdm_energy(FEATURES, 300.0, on_state=True, classifier=HEAD)),
    ),
    "agdm_sde": Case(
        agdm.agdm_sde(EPS_TIME, **AGDM, label=False, sees=agdm.on_estimate),
        partial(by_hand.diffpure, told(NET), t_star=0.07, n=70, energy=by_hand.agdm_energy(FEATURES, 300.0)),
    ),
    "agdm_sde, label, on x_t": Case(
        agdm.agdm_sde(EPS_TIME, **AGDM),
        partial(
            by_hand.diffpure,
            told(NET),
            t_star=0.07,
            n=70,
            energy=by_hand.agdm_energy(FEATURES, 300.0, on_state=True, classifier=HEAD),
        ),
    ),
    # few steps, optimisation, baselines
    "adbm_cifar": Case(adbm.adbm(EPS_ADBM), partial(by_hand.adbm, told(NET))),
    "adbm_cifar, released noising": Case(
        adbm.adbm(EPS_ADBM, start=adbm.released_start(100)), partial(by_hand.adbm, told(NET), start=100)
    ),
    "dds": Case(smoothing.one_step(EPS, std=0.25), partial(by_hand.one_step, told(NET), index=145)),
    "dds, cosine": Case(
        smoothing.one_step(EpsDenoiser(NET, label=IndexLabel(Cosine(4000))), std=0.25, schedule=Cosine(4000)),
        partial(by_hand.one_step, told(NET), index=1158, abar=by_hand.ABAR_COSINE),
    ),
    "lm_cifar_edm": Case(likelihood.likelihood(EDM), partial(by_hand.likelihood, EDM)),
    "scoreopt": Case(
        likelihood.scoreopt(EDM, n_steps=8, proximity=0.5),
        partial(by_hand.likelihood, EDM, n=8, residual=True, proximity=0.5),
    ),
    "noise_only": Case(baselines.noise_only(std=0.1), lambda x, noise: x + 0.1 * noise(x, kind=Kind.FORWARD)),
    "blur_only": Case(baselines.blur_only(std=0.7), partial(by_hand.blurred, std=0.7)),
    # compositions
    "averaged": Case(Averaged(gradual.surrogate(EPS), n_paths=3), averaged),
    "one after another": Case(Sequential(gdmp.gdmp(EPS, n_noise=6, rounds=2), adbm.adbm(EPS_ADBM)), one_after_another),
    "mixed": Case(Mixed(adbm.adbm(EPS_ADBM)), partial(by_hand.adbm, told(NET))),
}
"""By the names of the presets, and what they differ in."""

NFE = {
    "diffpure_cifar_linf": 100,
    "diffpure_cifar_l2": 75,
    "diffpure_cifar_rn50": 125,
    "diffpure_imagenet": 150,
    "diffpure_celeba": 500,
    "diffpure_ode": 100,
    "diffpure_ldsde": 10,
    "lk_gradual_cifar": 470,
    "lk_gradual_imagenet": 620,
    "lk_gradual_svhn": 380,
    "lk_surrogate_cifar": 7,
    "lk_single": 5,
    "gdmp_cifar": 144,
    "gdmp_imagenet": 45,
    "mimic_cifar": 100,
    "mimic_edm": 99,
    "agdm_cifar": 70,
    "adbm_cifar": 5,
    "lm_cifar_edm": 5,
    "dds": 1,
    "noise_only": 0,
}
"""Evaluations of the published settings, as the papers' numbers of steps give them."""
