"""How many rows of a batch fit into memory, as a number that does not depend on the machine."""

from __future__ import annotations

import torch
from torch import Tensor

from depura.defence import Defence
from depura.gradients import Direct, StoredState, graph_bytes
from depura.noise import Noise, Stream


def rows_within(defence: Defence, image: Tensor, memory: int) -> int:
    """Rows that can be differentiated in one call if each holds the graph of one step of the walk.

    That is what `StoredState` needs at least; with `Direct` it is the graph of all steps. Measured on the first, the
    middle and the last step, for one row.

    Args:
        defence: what is differentiated.
        image: (1, C, H, W) in [0, 1].
        memory: bytes of graph.

    Returns:
        At least 1.
    """
    return max(1, memory // max(1, bytes_per_row(defence, image)))


def bytes_per_row(defence: Defence, image: Tensor) -> int:
    """Bytes of graph that one row holds at once in a gradient of the defence (see `rows_within`)."""
    noise = Noise(0, (0,), stream=Stream.PROBE)
    if defence.purifier is None:
        return graph_bytes(lambda: _pull(defence, image, noise))
    whole = defence.purifier
    single = [whole.one_step(where).with_(gradient=StoredState(segment=1)) for where in (0.0, 0.5, 1.0)]
    short = [defence.with_(purifier=purifier) for purifier in single]
    one = max(graph_bytes(lambda d=d: _pull(d, image, noise)) for d in short)
    return one * whole.n_steps if isinstance(whole.route, Direct) else one


def _pull(defence: Defence, image: Tensor, noise: Noise) -> None:
    with torch.enable_grad():
        leaf = image.detach().clone().requires_grad_()
        total = defence(leaf, noise).sum()
        if total.requires_grad:  # what has no gradient holds its graph on the way forward all the same
            torch.autograd.grad(total, leaf)
