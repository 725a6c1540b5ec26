"""A network as training calls it: in bfloat16 where that is safe, in channels-last memory, compiled."""

from __future__ import annotations

import torch
from torch import nn

from depura.fast import Door


def quick(network: nn.Module, *, bfloat16: bool, compiled: bool) -> nn.Module:
    """The same network behind a door; its weights, which stay float32, are trained through it.

    Args:
        network: takes images (B, C, H, W), and labels perhaps. Its convolutions are laid out anew, in place.
        bfloat16: run it under autocast. Results and gradients of weights are float32.
        compiled: by torch.compile.

    Returns:
        The network itself where nothing is asked for, else a module around it.
    """
    if not (bfloat16 or compiled):
        return network
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    door = Door(network, dtype=torch.bfloat16 if bfloat16 else None, channels_last=True)
    if compiled:
        door.compile_network(cuda_graphs=False)
    return door
