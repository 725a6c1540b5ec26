"""A noise predictor of DDPM++'s style with random weights: its price is that of a trained one."""

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from depura import VP, EpsDenoiser, TimeLabel

CHANNELS, PIXELS = 3, 32


class Unwrapped(nn.Module):
    """A diffusers U-Net as a plain function of (images, labels)."""

    def __init__(self, unet: UNet2DModel) -> None:
        """Wrap the U-Net."""
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Predict the noise, (B, C, H, W) and (B,) -> (B, C, H, W)."""
        return self.unet(x, label).sample


def ddpmpp(width: int, *, seed: int = 0) -> Unwrapped:
    """A U-Net in DDPM++'s style (Song et al. 2021, arXiv:2011.13456, appendix H), frozen.

    Four levels of `width` times 1, 2, 2 and 2 channels from 32x32 pixels down to 4x4, two residual blocks a level on
    the way down and three on the way up, attention with one head at 16x16, residual blocks that change the resolution,
    and sine features of 999 t. The last convolution is scaled so that the prediction for white noise has unit mean
    square, as noise has.

    Args:
        width: channels of the first level, a multiple of 4.
        seed: of the weights.

    Returns:
        The network, in evaluation mode.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=PIXELS,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(width, 2 * width, 2 * width, 2 * width),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=2 * width,
            norm_num_groups=min(width // 4, 32),
            norm_eps=1e-6,
            flip_sin_to_cos=False,
            freq_shift=1,
        )
        noise = torch.randn(8, CHANNELS, PIXELS, PIXELS)
    network = Unwrapped(unet).eval().requires_grad_(False)
    loudness = network(noise, torch.full((len(noise),), 50.0)).square().mean().sqrt()
    for parameter in unet.conv_out.parameters():
        parameter.div_(loudness)
    return network


def denoiser_of(network: nn.Module) -> EpsDenoiser:
    """The denoiser around it, labelled as score_sde's networks are."""
    return EpsDenoiser(network, label=TimeLabel(VP()))
