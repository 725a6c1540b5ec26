"""The log of answers: an attack that is killed and begun again asks for nothing twice, and ends in the same bytes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depura
from attack_contract import random_defence
from depura import AttackRun, Ball, Defence, Study
from depura.attacks.attack import Attack
from depura.attacks.catalogue import CATALOGUE, Entry, at_default
from depura.evaluation.answer_log import AnswerLog, Counter
from depura.evaluation.study import UnitKey
from depura.evaluation.units import run_unit
from depura.records.directory import Unit
from shrunk import shrunk
from toys import rand

SHAPE = (1, 8, 8)


class KilledError(BaseException):
    """Stands for the end of a process."""


class Mortal(nn.Module):
    """A classifier that counts its calls and ends one of them."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier, self.calls, self.last = classifier, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        if self.calls == self.last:
            raise KilledError
        self.calls += 1
        return self.classifier(images)


def study_of(attack: Attack, ball: Ball) -> tuple[Study, Mortal]:
    toy = random_defence(SHAPE).to(torch.float32)
    mortal = Mortal(toy.classifier)  # type: ignore[arg-type]
    defence = toy.with_(classifier=mortal) if attack.cost.at_once > 1 else Defence(None, mortal)
    images = rand(4, *SHAPE, seed=1, dtype=torch.float32)
    data = depura.ImageSet("random", images, torch.tensor([0, 1, 2, 3]), (5, 6, 7, 8), tuple("abcde"))
    rows = (AttackRun("attack", "attack", attack, defence, defence, "adaptive"),)
    return (
        Study(name="s", data=data, defence=defence, rows=rows, report_draws=4, select_draws=2, pictures=0),
        mortal,
    )


def made(study: Study, mortal: Mortal, log: AnswerLog | None, *, after: int = -1) -> Unit | None:
    """The unit of the attack; None where it was killed after some calls."""
    mortal.last = -1 if after < 0 else mortal.calls + after
    try:
        return run_unit(study, UnitKey("attack", study.ball.eps, 0, 4), log=log)
    except KilledError:
        return None


def same(one: Unit, other: Unit) -> None:
    assert one.facts == other.facts
    assert one.arrays.keys() == other.arrays.keys()
    for name, values in one.arrays.items():
        assert values.dtype == other.arrays[name].dtype
        np.testing.assert_array_equal(values, other.arrays[name], err_msg=name)


@pytest.mark.parametrize("entry", CATALOGUE, ids=[entry.name for entry in CATALOGUE])
def test_a_killed_attack_loses_what_was_asked_since_the_last_file(entry: Entry, tmp_path: Path) -> None:
    attack = shrunk(at_default(entry), n_steps=3)
    study, mortal = study_of(attack, attack.ball)
    undisturbed = made(study, mortal, None)
    assert undisturbed is not None
    alone, every, kills, random = mortal.calls, 5, 0, Random(0)
    unit, mortal.calls = None, 0
    while unit is None:
        log = AnswerLog(tmp_path / "unit", "study", every=every, now=lambda: float(mortal.calls))
        unit = made(study, mortal, log, after=random.randint(1, alone) if kills < 10 else -1)
        kills += unit is None
    same(unit, undisturbed)
    log.write()
    spent, mortal.calls = mortal.calls, 0
    again = made(study, mortal, AnswerLog(tmp_path / "unit", "study"))
    assert again is not None
    same(again, undisturbed)
    unkept = mortal.calls  # indicators and the like, after the scores: no log is kept of them
    assert unkept < alone
    assert kills > 0
    assert spent <= alone + kills * (every + 1 + unkept)


def test_files_of_another_study_and_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    def log(identity: str = "study") -> AnswerLog:
        return AnswerLog(tmp_path / "unit", identity, every=0)

    def asked(where: AnswerLog, value: float) -> float:
        (answer,) = where.answer((torch.tensor([1.0]), "what"), lambda: (torch.tensor([value]),))
        return float(answer)

    assert asked(log(), 1.0) == 1.0
    assert asked(log(), 2.0) == 1.0
    assert asked(log("another"), 3.0) == 3.0
    for file in (tmp_path / "unit").iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
    assert asked(log(), 4.0) == 4.0
    log().forget()
    assert not (tmp_path / "unit").exists()


def test_a_counter_rises_as_if_it_had_been_asked(tmp_path: Path) -> None:
    def counted() -> tuple[int, int]:
        log, count, spent = AnswerLog(tmp_path / "unit", "study", every=0), np.zeros(1, np.int64), torch.zeros(1).long()
        log.counters = (Counter.of(count),)

        def part() -> tuple[Tensor, ...]:
            count[0] += 2
            return (torch.zeros(1),)

        def whole() -> tuple[Tensor, ...]:
            log.answer((2,), part)
            log.answer((3,), part)
            spent.add_(5)
            return (torch.ones(1),)

        log.answer((1,), whole, spent=spent)
        return int(count[0]), int(spent)

    assert counted() == (4, 5)
    assert counted() == (4, 5)


def test_what_is_held_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depura.evaluation.answer_log.MOST", 100)
    log, files = AnswerLog(tmp_path / "unit", "study"), list[int]()
    for number in range(6):
        log.answer((number,), lambda: (torch.zeros(12),))  # 48 bytes
        files.append(len(list((tmp_path / "unit").glob("*.npz"))))
    assert files == [0, 0, 1, 1, 1, 2]
