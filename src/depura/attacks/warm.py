"""A warm start: the first steps of an attack go through a cheaper walk, its last ones through the walk itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from depura import _check
from depura.attacks.eot import Model, RandomModel


@dataclass(frozen=True)
class Warm:
    """Steps through a surrogate, before the attack's own.

    The surrogate is the model with one step of its walk for every `share` steps (Lee and Kim 2023, arXiv:2303.09051),
    which the model gives: `model.coarser(share)`, as a `Defence` does. What it finds is where the attack's own steps
    begin, and no more: its losses are not compared with the model's, nothing is finished on its word, and the
    candidates are points that the model itself has been asked about.

    Attributes:
        n_steps: gradient steps through the surrogate; one more gradient is taken at the start.
        share: steps of the walk for each step of the surrogate, at least 2.
        first: length of the first of the attack's own steps, as a share of the length it would have without this, in
            (0, 1]: from a full step the start would be lost.
    """

    n_steps: int = 50
    share: int = 5
    first: float = 0.25

    def __post_init__(self) -> None:
        _check.integer("Warm", "n_steps", self.n_steps, low=1, high=65535)
        _check.integer("Warm", "share", self.share, low=2)
        _check.number("Warm", "first", self.first, low=0.0, high=1.0, low_open=True)

    def surrogate(self, where: str, model: Model | RandomModel) -> Model | RandomModel:
        """The surrogate of a model.

        Args:
            where: the attack's name, for messages.
            model: what is attacked.

        Returns:
            A model of fewer steps.

        Raises:
            InputError: a model that has none.
        """
        coarser = getattr(model, "coarser", None)
        if not callable(coarser):
            what = "a model with a surrogate, model.coarser(share), such as a Defence with a purifier"
            _check.fail(where, what, type(model).__name__, "Leave the warm start out.")
        return cast("Callable[[int], RandomModel]", coarser)(self.share)
