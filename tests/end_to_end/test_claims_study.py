"""studies/claims.py: what each claim compares; and the verdicts of experiments/claims.py, on made-up outcomes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import depura
from depura.evaluation.study import Study
from depura.evaluation.study_file import StudySource
from depura.methods.agdm import RobustGuide
from depura.records.describe import weights_sha256
from depura.statistics.intervals import mean_with_interval
from experiments import claims
from experiments.claims import FAILS, HOLDS, Decided, Part, Side

STUDY = Path(__file__).parents[2] / "studies" / "claims.py"
SMALL = {"attack_steps": "1", "eot": "1", "draws": "1", "images": "2"}
METHODS = {
    "diffpure-depth": {"t20", "t50", "t90", "t150", "t250", "t400"},
    "diffpure-solver": {"sde", "ode", "ldsde"},
    "diffpure-adjoint": {"steps10", "steps20", "steps50", "steps100"},
    "diffpure-noise": {"random", "fixed"},
    "mimic-distance": {"manhattan", "euclidean"},
    "mimic-terms": {"both", "long", "short"},
    "mimic-upsampling": {"none", "nearest", "bilinear", "bicubic", "blur"},
    "mimic-window": {"window", "all"},
    "mimic-jacobian": {"network", "constant"},
    "agdm-variants": {"diffpure-ddpm", "agdm", "agdm-no-label", "agdm-estimate", "agdm-trades", "agdm-features"},
}


def loaded(**settings: str) -> Study:
    return StudySource(STUDY, tuple({**SMALL, **settings}.items()), "").load()


@pytest.mark.parametrize("claim", METHODS)
def test_a_claim_compares_what_it_is_about(claim: str) -> None:
    study = loaded(claim=claim)
    assert {*study.methods} == METHODS[claim]
    denoisers = {id(c.denoiser) for defence in study.methods.values() if defence.core for c in defence.core.components}
    assert len(denoisers) == 1
    attacks = {repr(row.attack) for row in study.rows if row.kind in ("adaptive", "relaxed", "surrogate")}
    assert len(attacks) == 1


def test_one_guide_steers_three_denoisers() -> None:
    pytest.importorskip("diffusers")
    study = loaded(claim="agdm-denoisers")
    denoisers: dict[str, set[str]] = {"diffpure": set(), "agdm": set()}
    guides = set[str]()
    for name, defence in study.methods.items():
        assert isinstance(defence.purifier, depura.DiffusionPurifier)
        denoisers[name.partition("-")[2]].add(weights_sha256(defence.purifier.denoiser))
        if isinstance(defence.purifier.guidance, RobustGuide):
            assert isinstance(defence.purifier.guidance.features, nn.Module)
            guides.add(weights_sha256(defence.purifier.guidance.features))
    assert {name: len(its) for name, its in denoisers.items()} == {"diffpure": 3, "agdm": 3}
    assert denoisers["diffpure"] == denoisers["agdm"]
    assert len(guides) == 1


@pytest.mark.parametrize("threat", ["linf", "stadv", "noise"])
def test_all_methods_and_the_trained_networks_are_under_one_threat(threat: str) -> None:
    study = loaded(claim="unseen", threat=threat)
    expected = {"diffpure-ddpm", "agdm", "agdm-features", "mimic", "gdmp", "likelihood", "trades", "guide"}
    assert expected <= {*study.methods}
    original = depura.load_digits("test").first(2).images
    changed = float((study.data.images - original).abs().max())
    assert (changed > 0.1) == (threat == "noise")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"claim": "all"}, "expected claim among"),
        ({"claim": "mimic-terms", "threat": "l2"}, "expected threat=linf"),
        ({"claim": "agdm-denoisers", "on": "cifar10"}, "DEPURA_CIFAR10|expected -S on=digits"),
        ({"claim": "mimic-terms", "only": "neither"}, "expected methods among"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    settings: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPURA_CIFAR10", raising=False)
    with pytest.raises(depura.InputError, match=sentence):
        loaded(**settings)


def compared(first: list[float], second: list[float], margin: float, monkeypatch: pytest.MonkeyPatch) -> Decided:
    """A comparison of images of so many right draws of 4."""
    sides = {
        "a": np.array([[1.0] * round(4 * p) + [0.0] * (4 - round(4 * p)) for p in first]),
        "b": np.array([[1.0] * round(4 * p) + [0.0] * (4 - round(4 * p)) for p in second]),
    }
    monkeypatch.setattr(claims, "right", lambda _, side: sides[side.method])
    return claims.decided(Part("", Side("a"), Side("b"), margin), None)  # type: ignore[arg-type]


def test_a_verdict_needs_its_whole_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    all_right, all_wrong, half = [1.0] * 30, [0.0] * 30, [1.0, 0.0] * 15
    assert compared(all_right, all_wrong, 0.0, monkeypatch).verdict == HOLDS
    assert compared(all_wrong, all_right, 0.0, monkeypatch).verdict == FAILS
    assert compared(half, half, -0.05, monkeypatch).verdict.startswith("not decided")
    assert compared(all_right, half, 0.2, monkeypatch).verdict == HOLDS
    assert compared(all_right, half, 0.9, monkeypatch).verdict == FAILS
    few = compared([1.0] * 4 + [0.0] * 16, [0.0] * 3 + [1.0] + [0.0] * 16, 0.0, monkeypatch)
    # Differences of 0, 1: three of 20, sd 0.366; (1.96 + 0.84)^2 0.366^2 / 0.15^2 = 46.8 images.
    n = (1.95996 + 0.84162) ** 2 * np.var([1.0] * 3 + [0.0] * 17, ddof=1) / 0.15**2
    assert few.verdict == f"not decided (about {math.ceil(n)} images needed)"
    assert few.images == 20


def test_a_claim_holds_where_all_of_it_does() -> None:
    nothing = mean_with_interval(np.ones(2))

    def some(*verdicts: str) -> list[Decided]:
        return [Decided(its, nothing, nothing, "", 2) for its in verdicts]

    open_ = "not decided (about 80 images needed)"
    assert claims.verdict(some(HOLDS, HOLDS)) == HOLDS
    assert claims.verdict(some(HOLDS, open_)) == open_
    assert claims.verdict(some(open_, FAILS, HOLDS)) == FAILS


def test_every_comparison_names_methods_of_its_study() -> None:
    for part in {part for claim in claims.CLAIMS for part in claim.parts}:
        methods = METHODS.get(part.study)
        if methods is not None and part.on != "cifar10":
            assert {part.first.method, part.second.method} <= methods, part
