"""Peak memory of a call, from the allocator itself."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from depura.gradients.stored import free_host_bytes

# The profiler's tracing library greets on stderr at each start and stop unless it is told to keep to errors.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def peak_bytes(f: Callable[[], object], *, device: torch.device) -> int:
    """The most that tensors held at once while f ran, above what they held before.

    Every allocation and release of torch's allocator counts, at its own size: results, saved activations, gradients
    and the workspaces that operators ask torch for. What a library takes behind torch's back (oneDNN's scratchpads,
    Python objects) does not. On the CPU the profiler reports them one by one, which slows the call a little, and what
    was held before counts as held throughout; on CUDA the allocator keeps the peak itself.

    Args:
        f: the call.
        device: where its tensors live.

    Returns:
        Bytes.
    """
    give_back()
    return _peak_on_cuda(f, device) if device.type == "cuda" else _peak_on_cpu(f)


def give_back() -> None:
    """Return what is free inside this process to the system, which otherwise counts it as used.

    After a graph of several gigabytes the C library keeps most of it for later (Linux with glibc; elsewhere nothing is
    done about it).
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def available_bytes(device: torch.device) -> int:
    """Memory that is free to be used now."""
    give_back()
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_bytes()


def _peak_on_cuda(f: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    f()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(f: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as trace:
        f()
    # The trace's own events: its Python summary of them would take longer than the call.
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak
