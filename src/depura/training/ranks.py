"""Several processes that train one network, as torchrun starts them: who takes which images, and one gradient for all.

Gradients are averaged after the backward pass. (DistributedDataParallel would send them while it goes on; but losses
that attack the network inside a step, as TRADES does, go through it many times for one gradient.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from depura import _check


class Ranks(NamedTuple):
    """Which of how many processes this is.

    Attributes:
        number: of this one, from 0; the first one writes files.
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
        """Which rows of a batch are this one's: every n-th. Refused where shares would differ in size."""
        if batch % self.n:
            _check.fail("train", f"a batch that {self.n} processes share evenly", f"{batch}", "Choose a multiple.")
        return list(range(self.number, batch, self.n))

    def average(self, gradients: Iterable[Tensor | None]) -> None:
        """Make gradients the mean over processes, in place; those without one have none in all."""
        if self.n > 1:
            present = [g for g in gradients if g is not None]
            sums: list[Any] = [dist.all_reduce(g, async_op=True) for g in present]
            for pending in sums:
                pending.wait()
            for g in present:
                g /= self.n

    def agreed(self, number: int | None) -> int | None:
        """What the first process says, in the place of what this one would say."""
        numbers = [number]
        if self.n > 1:
            dist.broadcast_object_list(numbers, src=0)
        return numbers[0]


def started() -> str:
    """Join the process group where torchrun started this process; the device is its own GPU, else the CPU."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not torch.cuda.is_available():
        return "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    return device
