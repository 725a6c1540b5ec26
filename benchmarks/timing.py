"""Wall-clock times of calls."""

import statistics
import time
from collections.abc import Callable

import torch


def seconds(f: Callable[[], object]) -> float:
    """Time of one call, until its last kernel is done."""
    _wait()
    start = time.perf_counter()
    f()
    _wait()
    return time.perf_counter() - start


def median_seconds(f: Callable[[], object], *, repeats: int) -> float:
    """Median time of several calls, after one to warm up."""
    f()
    return statistics.median(seconds(f) for _ in range(repeats))


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
