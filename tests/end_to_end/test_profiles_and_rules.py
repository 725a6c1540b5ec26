"""Every profile under every deployed rule, the user's own among them: small attacks on two digits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import depura
from depura.audit.checks import Light
from depura.defence import Rule
from depura.evaluation.profiles import PROFILES, SuiteRuns
from depura.evaluation.scoring import choose, score
from depura.evaluation.units import run_unit
from shrunk import shrunk
from slow import slow_among
from toys import Streams

BALL = depura.Ball("linf", 0.2)
DATA = depura.load_digits("test").first(2)
STREAMS = Streams(0)
WALK = depura.diffpure(depura.digits_denoiser(), t_star=0.09, n_steps=2, t_end=0.0, solver=depura.Ancestral())
CLASSIFIER = depura.digits_classifier()


@dataclass(frozen=True)
class MeanTanh:
    """A rule of one's own: bounded votes."""

    n_draws: int = 3

    def scores(self, logits: Tensor) -> Tensor:
        return torch.tanh(logits).mean(1)


@dataclass(frozen=True)
class HardVote:
    """A rule of one's own that counts labels, which have no gradient."""

    n_draws: int = 3

    def scores(self, logits: Tensor) -> Tensor:
        return nn.functional.one_hot(logits.argmax(2), logits.shape[2]).to(logits).mean(1)


class OneHot(nn.Module):
    """A classifier that gives its label in the place of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = depura.digits_classifier()

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(self.inner(images).argmax(1), 10).float()


RULES: tuple[Rule, ...] = (
    depura.Single(),
    depura.Vote(3),
    depura.MeanProb(3),
    depura.MeanLogit(3),
    MeanTanh(),
)


"""Rules whose scores have a gradient."""

FEWER = {"eot": 1, "common": 1, "n_targets": 1, "n_pairs": 1, "n_points": 3, "n_queries": 3}


def attack_suite(profile: str, defence: depura.Defence) -> tuple[depura.AttackRun, ...]:
    return PROFILES[profile](defence, BALL, n_classes=10, n_values=64).rows


def defence_under(rule: Rule) -> depura.Defence:
    return depura.Defence(WALK, CLASSIFIER, rule=rule)


def study(defence: depura.Defence, rows: tuple[depura.AttackRun, ...]) -> depura.Study:
    return depura.Study("rules", DATA, defence, rows, select_draws=2, report_draws=2, pictures=1)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("profile", slow_among(PROFILES, {"standard", "paper"}))
def test_the_attacks_of_a_profile_run_under_a_rule(profile: str, rule: Rule) -> None:
    """Through what the row differentiates, and judged on what it judges. Rows that are alike when small run once."""
    rows = [replace(row, attack=shrunk(row.attack, **FEWER)) for row in attack_suite(profile, defence_under(rule))]
    for row in {(row.attack, id(row.attacked), id(row.evaluated)): row for row in rows}.values():
        attack = row.attack
        found = attack(row.attacked, DATA.images, DATA.labels, init=STREAMS.init(DATA.ids), eot=STREAMS.eot(DATA.ids))
        for candidate in found.images:
            assert bool(attack.ball.contains(candidate, DATA.images).all()), row.name
        choice = choose(row.evaluated, found.images, DATA.labels, STREAMS.select(DATA.ids), draws=range(1))
        scores = score(row.evaluated, choice.images, DATA.labels, STREAMS.report(DATA.ids), draws=range(2))
        assert bool((scores.predictions >= 0).all()), row.name
        assert bool((found.spent <= torch.tensor(attack.cost[:2])).all()), row.name


@pytest.mark.parametrize("rule", [depura.Vote(3), MeanTanh()], ids=repr)
def test_the_units_of_a_study_run_under_a_rule(rule: Rule) -> None:
    """The audit, the nulls and the rows of the smallest profile; a vote's answers are those of its purifications."""
    defence = defence_under(rule)
    rows = tuple(replace(row, attack=shrunk(row.attack)) for row in attack_suite("smoke", defence))
    made = study(defence, rows)
    units = {key.row: run_unit(made, key) for key in made.units() if key.row in {"audit", "null-unchanged", "adaptive"}}
    audit = units["audit"].facts.audit
    assert audit is not None
    assert audit.light.value == "GREEN"
    noise = STREAMS.report(DATA.ids)
    examples = torch.from_numpy(units["adaptive"].arrays["adversarial"])
    with torch.no_grad():
        several = [
            torch.stack([CLASSIFIER(WALK(examples, noise.draw(k * rule.n_draws + i))) for i in range(rule.n_draws)], 1)
            for k in range(2)
        ]
    expected = torch.stack([rule.scores(logits).argmax(1) for logits in several], dim=1)
    assert units["adaptive"].arrays["predictions"].tolist() == expected.tolist()


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_the_smallest_attack_of_a_profile_runs_as_it_is(profile: str) -> None:
    defence = defence_under(depura.Vote(3))
    rows = [row for row in attack_suite(profile, defence) if row.attacked is defence and row.attack.cost.gradients]
    smallest = min(rows, key=lambda row: row.attack.cost.gradients + row.attack.cost.forwards)
    made = study(defence, (smallest,))
    unit = run_unit(made, next(key for key in made.units() if key.row == smallest.name))
    assert unit.arrays["spent"].tolist() == [list(smallest.attack.cost[:2])] * 2


WITHOUT: dict[str, tuple[depura.Defence, str]] = {
    "rule": (
        depura.Defence(WALK, CLASSIFIER, rule=HardVote()),
        "rule HardVote: expected a result with a gradient path",
    ),
    "classifier": (depura.Defence(WALK, OneHot()), "classifier OneHot: expected a result with a gradient path"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_has_no_gradient_ends_in_a_sentence(name: str, tmp_path: Path) -> None:
    """From the audit, from a run, from a run despite the audit, and from attacks; attacks by scores run."""
    defence, said = WITHOUT[name]
    audit = depura.audit_gradient(defence, DATA.images, ids=DATA.ids)
    assert audit.light is Light.RED
    assert audit.faults[0].sentence.startswith(said)
    runs = SuiteRuns(defence, BALL)
    made = study(defence, (runs.adaptive(depura.PGD(BALL, n_steps=1)),))
    with pytest.raises(depura.RefusedError, match=said):
        depura.run(made, tmp_path / "run")
    path = "expected logits with a gradient path to the images, got logits without one"
    with pytest.raises(depura.InputError, match=path):
        depura.run(made, tmp_path / "despite", despite_audit=True)
    for attack in (depura.PGD(BALL, n_steps=1), depura.APGD(BALL, n_steps=1, common=2), depura.Selective(BALL)):
        with pytest.raises(depura.InputError, match=f"{type(attack).__name__}: {path}"):
            attack(defence, DATA.images, DATA.labels, eot=STREAMS.eot(DATA.ids))
    square = depura.Square(BALL, n_queries=4, eot=2, common=2)
    found = square(defence, DATA.images, DATA.labels, init=STREAMS.init(DATA.ids), eot=STREAMS.eot(DATA.ids))
    assert bool(BALL.contains(found.images[0], DATA.images).all())
