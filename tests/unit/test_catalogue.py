"""The catalogue of attacks says of each what the attack itself says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from attack_contract import INIT, B, bare
from depura.attacks.catalogue import CATALOGUE, Entry, at_default, threat
from toys import rand


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_every_norm_that_is_listed_is_taken(entry: Entry) -> None:
    for norm in entry.norms:
        attack = entry.build(threat(norm, 0.1))
        assert (attack.ball.norm, attack.ball.eps) == (norm, 0.1)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_what_an_attack_needs_is_enough(entry: Entry) -> None:
    """One that is listed as needing scores gets them without a gradient, and decisions alone where it needs those."""

    def scores(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return bare((1, 4, 4), 10)(images)

    def decisions(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(scores(images).argmax(1), 10).to(images.dtype)

    models: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "gradients": bare((1, 4, 4), 10),
        "scores": scores,
        "decisions": decisions,
    }
    attack = at_default(entry)
    small = {"n_steps": 1, "eot": 1, "n_restarts": 1, "n_queries": 9}
    having = {field.name for field in dataclasses.fields(attack)}  # type: ignore[arg-type]
    attack = dataclasses.replace(attack, **{k: v for k, v in small.items() if k in having})  # type: ignore[type-var]
    labels = torch.zeros(B, dtype=torch.int64)
    found = attack(models[entry.needs], rand(B, 1, 4, 4, seed=1), labels, init=INIT)
    assert found.images.shape == (attack.n_candidates, B, 1, 4, 4)
    assert (attack.cost.gradients > 0) == (entry.needs == "gradients")


def test_names_are_distinct_and_can_be_typed() -> None:
    names = [entry.name for entry in CATALOGUE]
    assert len(set(names)) == len(names)
    assert len({repr(at_default(entry)) for entry in CATALOGUE}) == len(names), "each is another attack"
    assert all(name == name.lower() and name.replace("-", "").isalnum() for name in names)
