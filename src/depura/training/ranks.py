"""Several processes that train one network, as torchrun starts them: who takes which images, and one gradient for all.

Gradients are averaged after the backward pass, in one buffer. (DistributedDataParallel would send them while it goes
on; but losses that attack the network inside a step, as TRADES does, go through it many times for one gradient.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from depura import _check


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is.

    Attributes:
        number: of this one, from 0.
        n: how many.
    """

    number: int = 0
    n: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """As the process group says; alone without one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this one writes files."""
        return self.number == 0

    def share(self, batch: int) -> list[int]:
        """Which rows of a batch are this one's: every n-th.

        Args:
            batch: rows.

        Returns:
            The rows.

        Raises:
            InputError: shares would differ in size.
        """
        if batch % self.n:
            _check.fail("train", f"a batch that {self.n} processes share evenly", f"{batch}", "Choose a multiple.")
        return list(range(self.number, batch, self.n))

    def average(self, gradients: Iterable[Tensor | None]) -> None:
        """Make gradients the mean over processes, in place; those without one have none in all."""
        present = [g for g in gradients if g is not None]
        if self.n == 1 or not present:
            return
        flat = torch.cat([g.reshape(-1) for g in present])
        dist.all_reduce(flat)
        flat /= self.n
        at = 0
        for g in present:
            g.copy_(flat[at : at + g.numel()].view_as(g))
            at += g.numel()

    def agreed(self, number: int | None) -> int | None:
        """What the first process says.

        Args:
            number: what this one would say.

        Returns:
            The first one's.
        """
        if self.n == 1:
            return number
        said: list[int | None] = [number]
        dist.broadcast_object_list(said, src=0)
        return said[0]


def started() -> str:
    """Join the process group where torchrun started this process; nothing happens where it did not.

    Returns:
        The device of this process: its own GPU if there are some, else the CPU.
    """
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not torch.cuda.is_available():
        return "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    return device
