"""What is said of a named method: its entry, which stands at the end of the method's own file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from depura.diffusion.denoisers import Denoiser
from depura.purifiers.purifier import Purifier


class Setting(NamedTuple):
    """A published setting of a method.

    Attributes:
        name: of the setting, such as "diffpure_imagenet".
        call: in Python, after `depura.` or `depura.methods.`.
        build: from a denoiser to the purifier.
        predictions: purifications per published prediction (averages, votes).
        learned: whether the denoiser is an `EpsVarianceDenoiser`, with a variance that was learned.
    """

    name: str
    call: str
    build: Callable[[Denoiser], Purifier]
    predictions: int = 1
    learned: bool = False


class Method(NamedTuple):
    """A named method.

    Attributes:
        name: on the command line and in studies.
        title: as its paper calls it.
        paper: where it is from; empty if it is from none.
        section: of docs/deviations.md; empty if there is none.
        settings: the published ones.
        remark: what a reader must know.
        build: how the command line builds it: a function of a denoiser with those of the keywords `t_star` (how far to
            noise, in (0, 1]) and `steps` (of the reverse process) that the method has. None: it takes more than a
            denoiser.
    """

    name: str
    title: str
    paper: str
    section: str
    settings: tuple[Setting, ...]
    remark: str = ""
    build: Callable[..., Purifier] | None = None
