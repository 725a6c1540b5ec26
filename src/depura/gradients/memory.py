"""Memory: what a graph holds, what the machine has left, and going on after running out."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

_active = threading.local()


class Ledger:
    """Bytes of the tensors that autograd keeps for backward passes and that are still alive.

    Every storage counts once, however many nodes keep it; weights are not counted, since they stay anyway. Ledgers
    nest: what an inner one sees, the outer one sees too. The numbers depend on the program and torch's version, not
    on the device. The meta device, where nothing is computed, gives them too (and counts two numbers for each feature
    of a batch norm that the CPU does not keep).

    Attributes:
        alive: bytes alive now.
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        """Begin with nothing; `watch` records."""
        self.alive = 0
        self.peak = 0
        self._outer: Ledger | None = getattr(_active, "ledger", None)
        self._owners: dict[int, int] = {}

    def watch(self) -> _Watch:
        """A context in which tensors saved for backward are entered."""
        return _Watch(self)

    def enter(self, storage: int, size: int) -> None:
        """A saved tensor has come."""
        owners = self._owners.get(storage, 0)
        self._owners[storage] = owners + 1
        if owners == 0:
            self.alive += size
            self.peak = max(self.peak, self.alive)
        if self._outer is not None:
            self._outer.enter(storage, size)

    def leave(self, storage: int, size: int) -> None:
        """A saved tensor has gone."""
        owners = self._owners.pop(storage) - 1
        if owners:
            self._owners[storage] = owners
        else:
            self.alive -= size
        if self._outer is not None:
            self._outer.leave(storage, size)


class _Watch:
    """Saved-tensor hooks that enter into a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: _Saved(t, ledger), _Saved.unpack)
        self._before: Ledger | None = None

    def __enter__(self) -> Ledger:
        self._before = getattr(_active, "ledger", None)
        _active.ledger = self._ledger
        self._hooks.__enter__()
        return self._ledger

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)
        _active.ledger = self._before


class _Saved:
    """A tensor kept for backward.

    Hooks switch off autograd's check for changes in place, so it is made here. The tensor is held without its graph,
    which autograd ties to it again: a node that holds its own result holds itself and is never freed.
    """

    __slots__ = ("_ledger", "_size", "_storage", "_tensor", "_version")

    def __init__(self, tensor: Tensor, ledger: Ledger) -> None:
        self._tensor = tensor.detach()
        self._version: int = tensor._version
        storage = tensor.untyped_storage()
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        # On the meta device there is no memory to have an address; the storage itself has one.
        own: int = storage._cdata  # pyright: ignore[reportPrivateUsage]
        self._storage = own if tensor.is_meta else storage.data_ptr()
        self._size = 0 if weight else storage.nbytes()
        self._ledger = ledger
        if self._size:
            ledger.enter(self._storage, self._size)

    def unpack(self) -> Tensor:
        if self._tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"tensor of shape {tuple(self._tensor.shape)} is at version {self._tensor._version}; expected version "
                f"{self._version}. Look for operations in place in the network or the guidance."
            )
        return self._tensor

    def __del__(self) -> None:
        if self._size:
            self._ledger.leave(self._storage, self._size)


def graph_bytes(f: Callable[[], object]) -> int:
    """The most memory that autograd graphs hold at once while a function runs, in bytes.

    Counts the storages of tensors saved for backward, each once, weights apart; graphs that `StoredState` keeps or
    rebuilds inside are seen. The memory that an operation needs while it works is not, nor are results without graph.

    Args:
        f: what to run, for instance a forward pass with its gradient.

    Returns:
        Bytes.
    """
    ledger = Ledger()
    with ledger.watch():
        f()
    return ledger.peak


def spare_bytes(device: torch.device) -> int:
    """How much memory graphs may take on a device if nobody says: half of what is free.

    On a CPU that half is divided by the number of cores, so that one process per core fits. Where the system does not
    tell what is free, half of all memory counts as free.

    Args:
        device: a device.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + kept) // 2
    return free_host_bytes() // (2 * (os.cpu_count() or 1))


def unless_out_of_memory(f: Callable[[], T]) -> T | None:
    """Call a function; None if there was not enough memory.

    What the failed call held is let go before this returns, so that the caller may try with less.

    Args:
        f: the function; it must not return None.

    Returns:
        Its value, or None.
    """
    try:
        return f()
    except (RuntimeError, MemoryError) as error:
        if not _says_out_of_memory(error):
            raise
    return None


def _says_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator: " in str(error)


def free_host_bytes() -> int:
    """Memory that this process may still take, in bytes: what the system or its control group has left.

    Where the system does not tell, half of all there is.
    """
    limits = [_read(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo"), 1024)]
    group = Path("/sys/fs/cgroup")
    most, used = _read(r"(\d+)", group / "memory.max", 1), _read(r"(\d+)", group / "memory.current", 1)
    if most is not None and used is not None:
        limits.append(most - used)
    known = [limit for limit in limits if limit is not None]
    if known:
        return max(0, min(known))
    sysconf: Any = getattr(os, "sysconf", None)
    return sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE") // 2 if sysconf is not None else 2**31


def _read(pattern: str, file: Path, unit: int) -> int | None:
    try:
        found = re.search(pattern, file.read_text(encoding="utf-8"))
    except OSError:
        return None
    return None if found is None else int(found.group(1)) * unit
