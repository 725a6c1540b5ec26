"""How weights/digits-ddpm was trained: a U-Net of the diffusers library on the bundled digits, by that library's parts.

    python -m experiments.digits_ddpm --out weights/digits-ddpm

It is here as a denoiser that depura neither designed nor trained with its own loop: `diffusers.UNet2DModel` predicts
the noise of `diffusers.DDPMScheduler` (1,000 steps, linear), by torch's Adam on the mean squared error.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from depura import load_digits


def main() -> None:
    """Train, and write a folder that `depura.load_denoiser` and diffusers read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    library: Any = importlib.import_module("diffusers")
    network = library.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    )
    averaged: Any = torch.optim.swa_utils.AveragedModel(network, avg_fn=lambda mean, now, _: 0.999 * mean + 0.001 * now)
    scheduler = library.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, given.steps)
    images = 2 * load_digits("train").images - 1
    sum_of_losses = 0.0
    for step in range(1, given.steps + 1):
        x0 = images[torch.randint(len(images), (64,))]
        times, noise = torch.randint(1000, (64,)), torch.randn(x0.shape)
        predicted = network(scheduler.add_noise(x0, noise, times), times).sample
        loss = F.mse_loss(predicted, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()
        averaged.update_parameters(network)
        sum_of_losses += float(loss.detach())
        if step % 500 == 0:
            print(f"{step} steps, mean loss {sum_of_losses / 500:.4f}", flush=True)
            sum_of_losses = 0.0
    averaged.module.half().save_pretrained(given.out)
    scheduler.save_pretrained(given.out)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, half precision, in {given.out}")


if __name__ == "__main__":
    main()
