"""Attacks cut down to a few evaluations, whatever they are made of."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from depura.attacks.attack import Attack
from depura.attacks.ensembles import InTurn, Together

FEW = {
    "n_steps": 2,
    "n_queries": 6,
    "n_points": 4,
    "eot": 2,
    "n_restarts": 1,
    "n_pairs": 2,
    "n_targets": 2,
    "common": 2,
}
"""Settings of a small attack, by the name that attacks give them."""


def shrunk(attack: Attack, **settings: Any) -> Attack:
    """The same attack with fewer steps, draws, restarts and so on: none grows, and zeros stay.

    Args:
        attack: any attack, also one made of several.
        **settings: in the place of `FEW`.

    Returns:
        The small attack.
    """
    few = FEW | settings
    if isinstance(attack, (Together, InTurn)):
        return type(attack)(tuple(shrunk(part, **few) for part in attack.attacks))
    own = {field.name: getattr(attack, field.name) for field in dataclasses.fields(cast("Any", attack))}
    fewer = {name: few[name] for name, value in own.items() if isinstance(value, int) and few.get(name, value) < value}
    return cast("Attack", dataclasses.replace(cast("Any", attack), **fewer))
