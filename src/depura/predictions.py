"""What a model takes images for: a class, or none where a number of its answer is not finite.

Nothing here makes the host wait for the device, but `same_answers`. That is why numbers are filled in by masked_fill:
torch.where copies a number of Python's to the device.
"""

from __future__ import annotations

from torch import Tensor

from depura.records.kinds import NOT_FINITE


def predicted(logits: Tensor) -> Tensor:
    """The class of the largest logit; the lowest of several.

    Args:
        logits: (..., K).

    Returns:
        (...), int64; `NOT_FINITE` (-1), which is no class, where any of the K logits is NaN or infinite.
    """
    return logits.argmax(-1).masked_fill(~logits.isfinite().all(-1), NOT_FINITE)


def all_finite(values: Tensor) -> Tensor:
    """Whether all numbers of each row are finite: (B, ...) to (B,), bool."""
    return values.flatten(1).isfinite().all(1)


def same_answers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape are equal to the last bit; NaN equals NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
