import json
from functools import partial

import torch
from torch import nn

import depura
from depura.records.describe import describe, weights_sha256


def defence(**changes: object) -> depura.Defence:
    purifier = depura.diffpure(depura.digits_denoiser(), t_star=0.1, n_steps=4).with_(**changes)
    return depura.Defence(purifier, depura.digits_classifier())


def test_equal_defences_are_described_equally_and_in_json() -> None:
    assert json.dumps(describe(defence()), sort_keys=True) == json.dumps(describe(defence()), sort_keys=True)
    assert "0x" not in json.dumps(describe(defence()))


def test_parts_are_called_by_names_that_say_no_file() -> None:
    described = describe(defence())
    assert (described["type"], described["rule"]["type"]) == ("depura.Defence", "depura.Single")
    assert described["classifier"]["type"] == "depura.SmallClassifier"
    assert described["purifier"]["start"] == "depura.from_input"
    assert describe(depura.PGD(depura.Ball("linf", 0.1)))["loss"] == "depura.margin"
    assert describe(partial(depura.from_noise, 1, depth=2))["function"] == "depura.from_noise"


def test_every_part_is_in_the_description() -> None:
    plain = describe(defence())
    others = [
        {"solver": depura.Heun()},
        {"gradient": depura.StraightThrough()},
        {"gradient": depura.StoredState(segment=2)},
        {"steps": depura.uniform_steps(depura.VP(), t_start=0.2, n_steps=4)},
        {"start": depura.from_noise},
        {"rounds": 2},
        {"clamp": True},
    ]
    described = [describe(defence(**change)) for change in others]
    assert all(d != plain for d in described)
    assert len({json.dumps(d, sort_keys=True) for d in described}) == len(others)
    assert describe(defence().with_(rule=depura.Vote(3))) != plain


def test_one_changed_weight_changes_the_description() -> None:
    changed = defence()
    with torch.no_grad():
        next(changed.classifier.parameters()).view(-1)[0] += 1e-3
    assert describe(changed) != describe(defence())


def test_weights_are_told_by_name_dtype_and_value() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.load_state_dict(a.state_dict())
    assert weights_sha256(a) == weights_sha256(b)
    assert weights_sha256(a) != weights_sha256(nn.Sequential(a))
    assert weights_sha256(a) != weights_sha256(b.double())
