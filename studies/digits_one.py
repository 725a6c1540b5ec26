"""One method on the bundled digits, to be judged by a profile:

    depura run studies/digits_one.py --profile quick -S method=mimic-released --out runs/mimic

Methods are those of `studies/digits_methods.py`, and "gdmp-batch-mean": GDMP guided by a mean over the batch, as it was
first published, so that an image's result depends on the others in its batch. Its run is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import depura
from depura.evaluation.demo import EPS
from depura.models.by_name import module_of


@dataclass(frozen=True)
class OverBatch:
    """Guidance that falls with the size of the batch, as the gradient of a mean over it does."""

    inner: depura.Guidance

    def __call__(self, at: depura.State) -> Tensor:
        """The displacement, (B, C, H, W)."""
        return self.inner(at) / len(at.x)


def known() -> dict[str, depura.Purifier]:
    """The methods, by name."""
    module = module_of("studies/digits_one.py", Path(__file__).with_name("digits_methods.py"))
    found: dict[str, depura.Purifier] = module.purifiers()
    gdmp = found["gdmp"]
    assert isinstance(gdmp, depura.DiffusionPurifier)
    assert gdmp.guidance is not None
    return {**found, "gdmp-batch-mean": gdmp.with_(guidance=OverBatch(gdmp.guidance))}


def study(*, method: str = "diffpure", images: int = 64, eps: float = EPS, seed: int = 0) -> depura.Study:
    """The study.

    Args:
        method: its name.
        images: how many test digits (up to 500).
        eps: linf radius in [0, 1] units.
        seed: of all noise.

    Returns:
        The study, with the rows of an honest first look; profiles put their own in the place of these.

    Raises:
        InputError: an unknown method.
    """
    purifiers = known()
    if method not in purifiers:
        raise depura.InputError(f"-S method: expected one of {', '.join(purifiers)}, got {method!r}.")
    defence = depura.Defence(purifiers[method], depura.digits_classifier())
    ball = depura.Ball("linf", eps)
    return depura.Study(
        name=f"digits-{method}",
        data=depura.load_digits("test").first(images),
        defence=defence,
        rows=depura.attack_suite(defence, depura.PGD(ball, n_steps=20, eot=5), blind=depura.PGD(ball, n_steps=20)),
        seed=seed,
        unit_images=8,
    )
