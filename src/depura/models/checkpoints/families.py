"""The families of published networks: how each is recognised, built, and made ready for use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from depura import _check
from depura.diffusion.denoisers import EdmDenoiser, EpsDenoiser, EpsVarianceDenoiser, ScoreDenoiser
from depura.diffusion.schedules import VP, Cosine, DiscreteLinear, IndexLabel, SigmaLabel, TimeLabel
from depura.models.networks import adm, attribute, ddpm, edm, preconditioned, resnet, score_sde, small, vit, wide_resnet
from depura.models.networks.adapters import OfClass, UnitRange
from depura.models.networks.blocks import Shapes
from depura.models.networks.wrappers import CIFAR10, CIFAR100, IMAGENET, Normalised, TwoLogits

Built = TypeVar("Built")

_DRAWING = {"normal_", "uniform_"}


def on_meta(build: Callable[[], Built]) -> Built:
    """What a function builds, on the meta device: shapes and names without numbers.

    Initial weights are not drawn: on that device drawing means nothing, and the first normal draw loads half of torch.
    """
    with torch.device("meta"), _NoDraws():
        return build()


class _NoDraws(TorchFunctionMode):
    """Leaves tensors as they are where initial weights would be drawn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        if getattr(func, "__name__", "") not in _DRAWING:
            return func(*args, **given)
        return args[0] if args else given["tensor"]  # a tensor's method, or the function of torch.nn.init


class Family(NamedTuple):
    """A family of networks.

    Attributes:
        name: short, for files and commands.
        title: for people.
        denoises: whether it is a denoiser; else it is a classifier.
        settings_of: the network's settings, read off shapes; None for another family's names. Its keyword arguments
            are what shapes do not tell.
        network: builds it from settings.
        ready: makes a `Denoiser` in [-1, 1] units or a classifier of images in [0, 1] of it. Its keyword arguments are
            what weights do not tell.
        licence: of the code and weights that are published in this layout.
        optional: ends of names that files may lack.
    """

    name: str
    title: str
    denoises: bool
    settings_of: Callable[..., dict[str, Any] | None]
    network: Callable[..., nn.Module]
    ready: Callable[..., nn.Module]
    licence: str
    optional: tuple[str, ...] = ()


def _ddpm(network: nn.Module) -> nn.Module:
    return EpsDenoiser(network, label=IndexLabel(DiscreteLinear()))


def _adm(
    label: IndexLabel, network: adm.AdmUNet, *, learned_variance: bool = False, class_index: int | None = None
) -> EpsDenoiser:
    """Ready under the labels of its schedule."""
    kind = EpsVarianceDenoiser if learned_variance else EpsDenoiser
    return kind(_conditioned(network, class_index), label=label)


def _conditioned(network: adm.AdmUNet, class_index: int | None) -> nn.Module:
    if network.classes is None:
        return network
    if class_index is None:
        _check.fail(
            "load_denoiser",
            "class_index for a class-conditional network",
            "none",
            f"Give the class, 0 .. {network.classes - 1}, that all images are cleaned as.",
        )
    return OfClass(network, class_index)


def _score_sde(network: score_sde.NcsnPP) -> nn.Module:
    if not network.fourier:
        return EpsDenoiser(network, label=TimeLabel(VP()))
    if not network.unit_range:
        return ScoreDenoiser(network, label=SigmaLabel())
    return ScoreDenoiser(UnitRange(network), label=SigmaLabel(0.5))


def _score_sde_ddpm(network: score_sde.ScoreSdeDdpm) -> nn.Module:
    return EpsDenoiser(network, label=TimeLabel(VP()))


def _edm(network: preconditioned.Preconditioned, *, class_index: int | None = None) -> nn.Module:
    return network if class_index is None else OfClass(network, class_index)


def _small_unet(network: small.SmallUNet, *, sigma_data: float | None = None) -> nn.Module:
    if sigma_data is None:
        _check.fail(
            "load_denoiser",
            "sigma_data, the standard deviation of the data in [-1, 1] units",
            "none",
            "Files that depura trains carry it.",
        )
    return EdmDenoiser(network, sigma_data=sigma_data)


def _as_it_is(network: nn.Module, *, mean: Sequence[float] = (), std: Sequence[float] = ()) -> nn.Module:
    return Normalised(network, mean=mean, std=std) if mean or std else network


def _dm_wide_resnet(
    network: wide_resnet.DmWideResNet, *, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> nn.Module:
    constants = CIFAR100 if network.logits.out_features == 100 else CIFAR10
    return _as_it_is(network, mean=mean or constants[0], std=std or constants[1])


def _attribute(network: nn.Module) -> nn.Module:
    return Normalised(TwoLogits(network), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _adm_settings(
    residual_resampling: bool, shapes: Shapes, *, heads: int = 4, head_width: int | None = None
) -> dict[str, Any] | None:
    """Settings of those that change resolutions in one way: inside residual blocks (ADM), or by convolutions."""
    settings = adm.settings_of(shapes, heads=heads, head_width=head_width)
    return settings if settings is not None and settings["residual_resampling"] == residual_resampling else None


PRECONDITIONERS: Mapping[str, Callable[..., nn.Module]] = {
    "EDMPrecond": preconditioned.EdmPreconditioned,
    "VPPrecond": preconditioned.VpPreconditioned,
    "VEPrecond": preconditioned.VePreconditioned,
    "iDDPMPrecond": preconditioned.IddpmPreconditioned,
}
"""By the names of the published classes."""


def _edm_settings(
    shapes: Shapes, *, preconditioner: str = "", head_width: int = 64, constants: Mapping[str, float] | None = None
) -> dict[str, Any] | None:
    inner = {key.removeprefix("model."): shape for key, shape in shapes.items() if key.startswith("model.")}
    if len(inner) + ("u" in shapes) != len(shapes):
        return None
    song, dhariwal = edm.song_settings(inner), edm.dhariwal_settings(inner, head_width=head_width)
    if song is None and dhariwal is None:
        return None
    name = preconditioner or ("iDDPMPrecond" if "u" in shapes else "EDMPrecond")
    if name not in PRECONDITIONERS:
        _check.fail("identify", f"a preconditioner of {', '.join(PRECONDITIONERS)}", name)
    return {
        "preconditioner": name,
        "network": "DhariwalUNet" if song is None else "SongUNet",
        "constants": {**({"steps": shapes["u"][0] - 1} if "u" in shapes else {}), **(constants or {})},
        **(song or dhariwal or {}),
    }


def _edm_network(*, preconditioner: str, network: str, constants: Mapping[str, float], **settings: Any) -> nn.Module:
    unet = {"SongUNet": edm.SongUNet, "DhariwalUNet": edm.DhariwalUNet}[network]
    return PRECONDITIONERS[preconditioner](unet(**settings), **constants)


COUNTERS = ("num_batches_tracked",)

FAMILIES: tuple[Family, ...] = (
    Family(
        "score-sde",
        "NCSN++ / DDPM++ of score_sde",
        True,
        score_sde.ncsnpp_settings,
        score_sde.NcsnPP,
        _score_sde,
        "code Apache-2.0; weights published with it",
        ("sigmas",),
    ),
    Family(
        "score-sde-ddpm",
        "DDPM of score_sde",
        True,
        score_sde.ddpm_settings,
        score_sde.ScoreSdeDdpm,
        _score_sde_ddpm,
        "code Apache-2.0; weights published with it",
        ("sigmas",),
    ),
    Family(
        "adm",
        "ADM U-Net of guided-diffusion",
        True,
        partial(_adm_settings, True),
        adm.AdmUNet,
        partial(_adm, IndexLabel(DiscreteLinear())),
        "MIT, code and weights",
    ),
    Family(
        "improved-diffusion",
        "U-Net of improved-diffusion (cosine schedule, 4000 levels)",
        True,
        partial(_adm_settings, False),
        adm.AdmUNet,
        partial(_adm, IndexLabel(Cosine(4000), factor=0.25)),
        "MIT, code and weights",
    ),
    Family(
        "ddpm",
        "DDPM U-Net (Ho et al. in PyTorch: SDEdit, pesser, ddim)",
        True,
        ddpm.settings_of,
        ddpm.DdpmUNet,
        _ddpm,
        "of the repository it came from: MIT for SDEdit, none stated for pesser's conversion",
    ),
    Family(
        "edm",
        "SongUNet or DhariwalUNet of EDM with its preconditioner",
        True,
        _edm_settings,
        _edm_network,
        _edm,
        "CC BY-NC-SA 4.0, code and weights (non-commercial)",
    ),
    Family(
        "wide-resnet",
        "WideResNet (RobustBench and DiffPure)",
        False,
        wide_resnet.wide_resnet_settings,
        wide_resnet.WideResNet,
        _as_it_is,
        "of the entry it came from; RobustBench's code is MIT",
        COUNTERS,
    ),
    Family(
        "dm-wide-resnet",
        "WideResNet of DeepMind's robust networks (RobustBench)",
        False,
        wide_resnet.dm_wide_resnet_settings,
        wide_resnet.DmWideResNet,
        _dm_wide_resnet,
        "of the entry it came from; DeepMind's code is Apache-2.0",
        COUNTERS,
    ),
    Family(
        "cifar-bottleneck",
        "ResNet with bottlenecks for CIFAR (DiffPure's ResNet-50)",
        False,
        resnet.cifar_bottleneck_settings,
        resnet.CifarBottleneckResNet,
        partial(_as_it_is, mean=CIFAR10[0], std=CIFAR10[1]),
        "NVIDIA Source Code License (non-commercial), code and weights",
        COUNTERS,
    ),
    Family(
        "cifar-resnet",
        "ResNet-20 family for CIFAR",
        False,
        resnet.cifar_resnet_settings,
        resnet.CifarResNet,
        partial(_as_it_is, mean=IMAGENET[0], std=IMAGENET[1]),
        "BSD-2-Clause, code and weights (akamaster)",
        COUNTERS,
    ),
    Family(
        "attribute",
        "CelebA attribute network",
        False,
        attribute.settings_of,
        attribute.AttributeNet,
        _attribute,
        "NVIDIA Source Code License (non-commercial) for DiffPure's code",
        ("lod_in", *COUNTERS),
    ),
    Family(
        "small-unet",
        "small U-Net of depura train denoiser",
        True,
        small.unet_settings,
        small.SmallUNet,
        _small_unet,
        "of whoever trained it",
    ),
    Family(
        "small-classifier",
        "small classifier of depura train classifier and guide",
        False,
        small.classifier_settings,
        small.SmallClassifier,
        _as_it_is,
        "of whoever trained it",
    ),
    Family(
        "vit",
        "Vision Transformer without class token, of depura train classifier and guide",
        False,
        vit.vit_settings,
        vit.SmallViT,
        _as_it_is,
        "of whoever trained it",
    ),
)
"""All of them; the first that fits exactly is taken."""
