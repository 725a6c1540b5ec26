"""The published files that the papers use: what they are, where they are, under which licence.

Nothing is downloaded: the files are large, some are for research only, and some must be asked for in a browser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from depura.models.checkpoints.families import FAMILIES, on_meta


class PublishedFile(NamedTuple):
    """A published checkpoint.

    Attributes:
        family: name of its family.
        settings: of its network.
        file: its name as published.
        address: where it is.
        licence: of the weights.
        note: what a user must know.
        options: what neither shapes nor the family's defaults tell.
        md5: of the file, where it is published; else empty.
    """

    family: str
    settings: Mapping[str, Any]
    file: str
    address: str
    licence: str
    note: str = ""
    options: Mapping[str, Any] = {}
    md5: str = ""

    def build(self, *, device: str = "meta", **options: Any) -> Any:
        """The published network without its weights, made ready as the loaded one is: to be planned or measured with.

        On the "meta" device it takes no memory and no arithmetic; on another it gets random weights. Options are as for
        loading. Returned is a `Denoiser` in [-1, 1] units, or a classifier of images in [0, 1], in evaluation mode.
        """
        family = next(family for family in FAMILIES if family.name == self.family)

        def build() -> nn.Module:
            return family.ready(family.network(**self.settings), **{**self.options, **options})

        ready = on_meta(build) if device == "meta" else build().to(device)
        return ready.eval().requires_grad_(False)


_SCORE_SDE = "Apache-2.0 (repository)"
_OPENAI = "MIT"
_EDM = "CC BY-NC-SA 4.0 (non-commercial)"
_DIFFPURE = "NVIDIA Source Code License (non-commercial)"
_DRIVE = "https://drive.google.com/drive/folders/"
_EDM_CIFAR: Mapping[str, Any] = {
    "preconditioner": "EDMPrecond",
    "network": "SongUNet",
    "constants": {},
    "resolution": 32,
    "width": 128,
    "multipliers": (2, 2, 2),
    "blocks": 4,
    "attention": (1,),
    "fourier": False,
    "residual": False,
    "filter": (1, 1),
    "noise_multiplier": 1,
    "classes": None,
    "augment": 9,
    "channels": 3,
    "outputs": 3,
}

PUBLISHED: Mapping[str, PublishedFile] = {
    "score-sde-cifar10": PublishedFile(
        "score-sde",
        {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 8, "attention": (1,)},
        "checkpoint_8.pth",
        "https://drive.google.com/file/d/16_-Ahc6ImZV5ClUc0vM5Iivf8OJ1VSif/view",
        _SCORE_SDE,
        "vp/cifar10_ddpmpp_deep_continuous; its moving averages are used, its other entries are not",
    ),
    "adm-imagenet256": PublishedFile(
        "adm",
        {
            "width": 256,
            "multipliers": (1, 1, 2, 2, 4, 4),
            "blocks": 2,
            "attention": (3, 4, 5),
            "head_width": 64,
            "residual_resampling": True,
        },
        "256x256_diffusion_uncond.pt",
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",
        _OPENAI,
        "ImageNet, 256x256, unconditional, learned variances",
    ),
    "improved-cifar10": PublishedFile(
        "improved-diffusion",
        {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 3, "attention": (1, 2), "heads": 4},
        "cifar10_uncond_50M_500K.pt",
        "https://openaipublic.blob.core.windows.net/diffusion/march-2021/cifar10_uncond_50M_500K.pt",
        _OPENAI,
        "cosine schedule of 4000 levels, learned variances",
    ),
    "ddpm-celebahq256": PublishedFile(
        "ddpm",
        {"width": 128, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (4,)},
        "celeba_hq.ckpt",
        "https://image-editing-test-12345.s3-us-west-2.amazonaws.com/checkpoints/celeba_hq.ckpt",
        "of SDEdit's repository, MIT",
        "the address is reported to refuse downloads by now (403)",
    ),
    "ddpm-cifar10": PublishedFile(
        "ddpm",
        {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (1,)},
        "ema_diffusion_cifar10_model/model-790000.ckpt",
        "https://heibox.uni-heidelberg.de/f/2e4f01e2d9ee49bab1d5/?dl=1",
        "none stated (conversion of Ho et al.'s weights by pesser)",
        "the moving averages of Ho et al. 2020",
        md5="1fa350b952534ae442b1d5235cce5cd3",
    ),
    "edm-cifar10-uncond-vp": PublishedFile(
        "edm",
        _EDM_CIFAR,
        "edm-cifar10-32x32-uncond-vp.pkl",
        "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl",
        _EDM,
        "a pickle with code in it, which is not run here",
    ),
    "edm-cifar10-cond-vp": PublishedFile(
        "edm",
        {**_EDM_CIFAR, "classes": 10},
        "edm-cifar10-32x32-cond-vp.pkl",
        "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl",
        _EDM,
        "class-conditional; without class_index the class is left out, as in training with unknown classes",
    ),
    "edm-cifar10-uncond-ve": PublishedFile(
        "edm",
        {**_EDM_CIFAR, "fourier": True, "residual": True, "filter": (1, 3, 3, 1), "noise_multiplier": 2},
        "edm-cifar10-32x32-uncond-ve.pkl",
        "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-ve.pkl",
        _EDM,
        "NCSN++ under EDM's own preconditioner",
    ),
    "wrn-28-10": PublishedFile(
        "wide-resnet",
        {"depth": 28, "width": 10},
        "Standard.pt",
        "https://drive.google.com/file/d/1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC/view",
        "MIT (RobustBench)",
        "RobustBench's Standard for CIFAR-10; takes images in [0, 1] without normalisation",
    ),
    "wrn-70-16-dropout": PublishedFile(
        "wide-resnet",
        {"depth": 70, "width": 16},
        "weights.pt",
        f"{_DRIVE}1istqcnPNXJ-TQFdxRqNJuInzOtlYOG1b",
        _DIFFPURE,
        "DiffPure's wrn-70-16-dropout for CIFAR-10",
        {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)},
    ),
    "dmwrn-28-10": PublishedFile(
        "dm-wide-resnet",
        {"depth": 28, "width": 10},
        "Gowal2021Improving_28_10_ddpm_100m.pt",
        "https://github.com/RobustBench/robustbench",
        "of each entry, in RobustBench's LICENSE",
        "robust networks for guidance and reference; RobustBench fetches them by name",
    ),
    "dmwrn-70-16": PublishedFile(
        "dm-wide-resnet",
        {"depth": 70, "width": 16},
        "weights-best.pt",
        f"{_DRIVE}1OeuFx2r26xeHncs8bGuqgY6ns_N77Avi",
        _DIFFPURE,
        "DiffPure's wideresnet-70-16 for CIFAR-10; RobustBench's robust 70-16 networks have the same layout",
    ),
    "cifar10-resnet50": PublishedFile(
        "cifar-bottleneck",
        {},
        "weights.pt",
        f"{_DRIVE}1SEGilIEAnx9OC1JVhmOynreCF3oog7Fi",
        _DIFFPURE,
        "DiffPure's ResNet-50 for CIFAR-10",
    ),
    "cifar10-resnet20": PublishedFile(
        "cifar-resnet",
        {"n_blocks": (3, 3, 3)},
        "resnet20-12fca82f.th",
        "https://github.com/akamaster/pytorch_resnet_cifar10",
        "BSD-2-Clause",
        "normalised with ImageNet's constants",
    ),
    "celebahq-attribute": PublishedFile(
        "attribute",
        {},
        "net_best.pth",
        "http://latent-composition.csail.mit.edu/other_projects/gan_ensembling/zips/pretrained_classifiers.zip",
        "of gan-ensembling's repository",
        "one file per attribute; class 1 is the attribute",
    ),
}
"""By short names."""
