"""Networks inside guidance belong to the purifier: frozen, moved, described."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from depura.analysis.summary import summarise
from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball
from depura.data.imageset import ImageSet
from depura.defence import Defence
from depura.evaluation.header import header
from depura.evaluation.runner import run
from depura.evaluation.study import AttackRun, Study, attack_suite
from depura.methods.agdm import RobustGuide, agdm
from depura.purifiers.composed import Sequential
from depura.purifiers.purifier import modules_in
from depura.records.describe import describe
from toys import NOISES, XS, TanhClassifier, tanh_eps


class Guide(TanhClassifier):
    def features(self, images: Tensor) -> Tensor:
        return torch.tanh((images - 0.5).flatten(1) @ self.enter)


def guided(guide: Guide):
    return agdm(tanh_eps(), guide=guide, features=guide.features, scale=1.0, n_noise=4)


def test_networks_are_found() -> None:
    guide, other = Guide(16), Guide(16)
    assert modules_in(RobustGuide(guide.features, 1.0, guide)) == (guide,)
    assert modules_in(partial(other.features)) == (other,)
    assert modules_in(partial(guide, other)) == (guide, other)
    assert modules_in(nn.functional.relu) == ()


def test_guides_are_frozen_moved_and_described() -> None:
    guide = Guide(16)
    purifier = guided(guide)
    assert not any(p.requires_grad for p in guide.parameters())
    assert not guide.training
    assert {id(p) for p in guide.parameters()} <= {id(p) for p in purifier.parameters()}
    before = describe(purifier)
    assert describe(guided(guide)) == before
    value = purifier(XS, NOISES)
    with torch.no_grad():
        guide.enter *= 2
    assert describe(purifier) != before
    assert not torch.equal(purifier(XS, NOISES), value)
    purifier.float()
    assert guide.enter.dtype == torch.float32
    assert purifier.same_function(guided(guide).with_(denoiser=purifier.denoiser))
    assert not purifier.same_function(guided(Guide(16)).with_(denoiser=purifier.denoiser))


@pytest.mark.slow
def test_a_reconstruction_is_called_one_in_every_report(tmp_path: Path) -> None:
    data = ImageSet("toys", XS, torch.tensor([0, 1, 2, 0]), (0, 1, 2, 3), ("a", "b", "c"))
    defence = Defence(guided(Guide(16)), TanhClassifier(16))
    attack = PGD(Ball("linf", 0.1), n_steps=1)
    study = Study("one", data, defence, (AttackRun("adaptive", "x", attack, defence, defence),), report_draws=2)
    summary = summarise(run(study, tmp_path / "one", command=""))
    assert any("AGDM is reconstructed" in text for text in summary.warnings)
    compared = Study("two", data, defence, attack_suite(defence, attack, method="ours"), report_draws=2)
    (method,) = header(compared, command="").methods
    assert "AGDM is reconstructed" in method.note
    assert Sequential(guided(Guide(16))).remarks == guided(Guide(16)).remarks
