"""Rates of machines that one is not on, for the price of a study there: floating-point operations a second.

A rate is of a whole denoiser in 32-bit floats as PyTorch computes it by default, not of its matrix products alone. Each
says where it is from; those that nobody measured are marked.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from depura import _check


class Rate(NamedTuple):
    """A machine's rate.

    Attributes:
        machine: its name.
        per_second: floating-point operations a second, a multiplication and an addition counted as two.
        measured: whether anybody measured it on a denoiser.
        source: where it is from.
    """

    machine: str
    per_second: float
    measured: bool
    source: str


A100 = 37.1e9 / 2.07e-3
"""12,800 evaluations of score_sde's deep DDPM++ (37.1e9 operations each, as depura counts them) in 26.5 s."""

_SCALED = (
    "not measured: the A100's rate times {}, the smaller of the ratios of TF32 operations ({} to 156 TFLOP/s) and of "
    "memory bandwidth ({} to 2.0 TB/s) in the maker's data sheets"
)

RATES: dict[str, Rate] = {
    its.machine: its
    for its in (
        Rate("a100", A100, True, "published time of DiffBreak on CIFAR-10 (batches of 128): 2.07 ms an evaluation"),
        Rate("h200", 2.4 * A100, False, _SCALED.format(2.4, 495, 4.8)),
        Rate("rtx4090", 0.5 * A100, False, _SCALED.format(0.5, 83, 1.0)),
    )
}
"""By name; a device that is here can be measured by `python -m benchmarks.network`."""

_FLOPS = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[GT])FLOP/s")


def rate_named(text: str) -> Rate:
    """A rate by its machine's name, or by a number such as "12 TFLOP/s".

    Args:
        text: what was given.

    Returns:
        The rate.

    Raises:
        InputError: neither a name nor a number.
    """
    if text.lower() in RATES:
        return RATES[text.lower()]
    found = _FLOPS.fullmatch(text.strip())
    if found is None or float(found["number"]) == 0:
        _check.fail("--as", f"one of {', '.join(RATES)}, or a rate such as '12 TFLOP/s'", repr(text))
    return Rate(text, float(found["number"]) * {"G": 1e9, "T": 1e12}[found["unit"]], False, "as given")
