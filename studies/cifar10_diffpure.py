"""DiffPure on CIFAR-10 in the published setting (t* = 0.1, 100 steps, linf 8/255), to be priced before it is paid for:

    depura plan studies/cifar10_diffpure.py -S data=cifar-10-batches-py --profile standard

The network has the size of the published one (106 million weights, DDPM++'s style). Weights are random unless
`denoiser` names a folder of a diffusers `UNet2DModel` trained by DDPM, and `classifier` a safetensors file of a CIFAR
ResNet-20: evaluations, memory and time do not depend on them, accuracies do. Needs diffusers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

import depura
from depura.models.networks.resnet import CifarResNet
from depura.models.networks.wrappers import Normalised

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Predicted(nn.Module):
    """The noise that a diffusers U-Net predicts."""

    def __init__(self, unet: UNet2DModel) -> None:
        """Wrap it."""
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) -> (B, C, H, W)."""
        return self.unet(x, label).sample


def unet(width: int, blocks: int) -> UNet2DModel:
    """Four levels of width 1, 2, 2 and 2 times `width`, attention at 16 x 16, random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=32,
            block_out_channels=(width, 2 * width, 2 * width, 2 * width),
            layers_per_block=blocks,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=2 * width,
            norm_num_groups=min(width // 4, 32),
        )


def study(
    *,
    data: Path,
    denoiser: Path | None = None,
    classifier: Path | None = None,
    images: int = 512,
    eps: float = 8 / 255,
    n_steps: int = 100,
    width: int = 128,
    blocks: int = 8,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: CIFAR-10 as published, as Parquet files or as NPZ: whatever `depura.load_images` takes.
        denoiser: folder of a diffusers model.
        classifier: safetensors file of a CIFAR ResNet-20.
        images: how many, the first ones.
        eps: linf radius in [0, 1] units.
        n_steps: reverse steps from t* = 0.1.
        width: channels of the first level of the random network.
        blocks: residual blocks a level.
        seed: of all noise.

    Returns:
        The study.
    """
    network = unet(width, blocks) if denoiser is None else UNet2DModel.from_pretrained(denoiser)
    residual = CifarResNet()
    if classifier is not None:
        residual.load_state_dict(load_file(classifier))
    label = depura.IndexLabel(depura.DiscreteLinear())
    d = depura.EpsDenoiser(Predicted(network), label=label)
    purifier = depura.diffpure(d, t_star=0.1, n_steps=n_steps, image_shape=(3, 32, 32))
    defence = depura.Defence(purifier, Normalised(residual, mean=MEAN, std=STD))
    ball = depura.Ball("linf", eps)
    attack = depura.APGD(ball, n_steps=50, eot=16)
    return depura.Study(
        name="cifar10-diffpure" + ("" if denoiser and classifier else "-random-weights"),
        data=depura.load_images(data, images=images),
        defence=defence,
        rows=depura.attack_suite(defence, attack, blind=depura.APGD(ball, common=0)),
        seed=seed,
    )
