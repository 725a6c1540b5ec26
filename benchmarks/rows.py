"""Rows of a table of ratios measured in one run, and the machine that they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import seconds
from depura.training.card import processor


@dataclass(frozen=True)
class Row:
    """One measurement beside another of the same run.

    Attributes:
        section: which question it answers.
        name: what was measured.
        than: what it is compared with.
        value: measured, in `unit`.
        against: the same of what it is compared with.
        ratio: value over against; of times, the median over the rounds of the ratio within a round.
        spread: half the range of those ratios, None where there is one.
        deviation: by how much the two results differ, None where they are not compared.
        deviation_of: in words, such as "purified images, median, in 1/255".
        unit: of value and against.
        note: for the reader.
    """

    section: str
    name: str
    than: str
    value: float
    against: float
    ratio: float
    spread: float | None = None
    deviation: float | None = None
    deviation_of: str = ""
    unit: str = "s"
    note: str = ""


def rounds(calls: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """Times of several calls in turn, round by round, after one of each to warm up.

    A machine that slows down slows all calls of a round; the order is turned round in every other one.

    Args:
        calls: by name.
        repeats: rounds.

    Returns:
        Seconds of each round, by name.
    """
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            found[name].append(seconds(calls[name]))
    return found


def compared(section: str, name: str, than: str, times: Mapping[str, list[float]], **more: Any) -> Row:
    """The row of two calls that were timed in turn.

    Args:
        section: of the table.
        name: of the call.
        than: of the other.
        times: what `rounds` gave.
        **more: further fields of the row; `share` divides the value and `other_share` what it is compared with.

    Returns:
        The row.
    """
    share, other = more.pop("share", 1), more.pop("other_share", 1)
    mine, theirs = [t / share for t in times[name]], [t / other for t in times[than]]
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return Row(
        section=section,
        name=name,
        than=than,
        value=statistics.median(mine),
        against=statistics.median(theirs),
        ratio=statistics.median(ratios),
        spread=(max(ratios) - min(ratios)) / 2 if len(ratios) > 1 else None,
        **more,
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What a reader must know of the machine."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_matrices": _flag("amx_bf16"),
        "bfloat16_vectors": _flag("avx512_bf16"),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return facts


def _flag(name: str) -> bool | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = [line for line in lines if line.startswith("flags")]
    return name in flags[0].split() if flags else None
