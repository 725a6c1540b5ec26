"""Published files from the command line: identified, converted, used to purify and to attack; bad ones refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import checkpoints as made
from typer.testing import CliRunner, Result

from depura.cli import app
from depura.models.checkpoints import PUBLISHED


def depura_(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_identify_says_what_a_file_is(tmp_path: Path) -> None:
    made.score_sde_file(tmp_path / "checkpoint_8.pth")
    result = depura_("checkpoint", "identify", tmp_path / "checkpoint_8.pth")
    assert result.exit_code == 0, result.output
    for words in ("score-sde: NCSN++ / DDPM++", "189,347", "moving averages", "Apache-2.0", "width=16"):
        assert words in " ".join(result.output.split())
    said = json.loads(depura_("checkpoint", "identify", tmp_path / "checkpoint_8.pth", "--json").output)
    assert said["settings"]["multipliers"] == [1, 2]
    assert said["parameters"] == 189_347


def test_list_names_every_published_file() -> None:
    result = depura_("checkpoint", "list")
    assert result.exit_code == 0
    for name, file in PUBLISHED.items():
        assert name in result.output
        assert file.address in result.output


@pytest.mark.parametrize("kind", ["score-sde", "edm"])
def test_a_published_file_purifies_as_its_conversion_does(kind: str, tmp_path: Path, picture: Path) -> None:
    source = tmp_path / ("edm.pkl" if kind == "edm" else "checkpoint_8.pth")
    (made.edm_pickle if kind == "edm" else made.score_sde_file)(source)
    result = depura_("checkpoint", "convert", source, "--out", tmp_path / "new.safetensors")
    assert result.exit_code == 0, result.output
    for name, denoiser in (("a", source), ("b", tmp_path / "new.safetensors")):
        out = tmp_path / f"{name}.png"
        result = depura_("purify", picture, "--out", out, "--denoiser", denoiser, "--steps", 2)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != picture.read_bytes()


def test_a_published_classifier_is_attacked_through_a_published_denoiser(tmp_path: Path, picture: Path) -> None:
    made.score_sde_file(tmp_path / "checkpoint_8.pth")
    torch.save({"state_dict": made.prefixed(made.network("wide-resnet").state_dict())}, tmp_path / "wrn.pt")
    Image.fromarray(np.kron(np.asarray(Image.open(picture)), np.ones((2, 2, 1), np.uint8))).save(picture)
    command = ["attack", picture, "--out", tmp_path / "out", "--classifier", tmp_path / "wrn.pt", "--label", 0]
    options = ["--denoiser", tmp_path / "checkpoint_8.pth", "--method", "diffpure", "--purifier-steps", 1]
    result = depura_(*command, *options, "--eps", "8/255", "--draws", 2, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "picture.png").is_file()


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("command", ["identify", "convert", "purify"])
@pytest.mark.parametrize("bad", ["truncated", "optimizer", "classifier", "harm", "absent", "size"])
def test_bad_files_are_refused_in_one_sentence(command: str, bad: str, tmp_path: Path, picture: Path) -> None:
    file, witness, out = tmp_path / "file.pth", tmp_path / "witness", tmp_path / "out.safetensors"
    words = {
        "truncated": "truncated or damaged",
        "optimizer": "state of an optimizer",
        "classifier": "a classifier",
        "harm": "Nothing of it was run",
        "absent": "not there" if command == "purify" else "No such file",
        "size": "divisible by 2",
    }[bad]
    if bad == "truncated":
        made.score_sde_file(file)
        file.write_bytes(file.read_bytes()[:-3000])
    elif bad == "optimizer":
        torch.save(torch.optim.Adam(made.network("ddpm").parameters()).state_dict(), file)
    elif bad == "classifier":
        torch.save(made.network("cifar-resnet").state_dict(), file)
    elif bad == "harm":
        file.write_bytes(pickle.dumps({"ema": Harm(witness)}))
    elif bad == "size":
        made.score_sde_file(file)
        Image.open(picture).resize((15, 15)).save(picture)
    if command == "purify":
        result = depura_("purify", picture, "--out", tmp_path / "clean.png", "--denoiser", file, "--steps", 1)
    else:
        result = depura_("checkpoint", command, file, *(["--out", out] if command == "convert" else []))
    assert not witness.exists()
    if bad in ("classifier", "size") and command != "purify":
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not out.exists()
    assert not (tmp_path / "clean.png").exists()


def test_options_are_given_by_name(tmp_path: Path) -> None:
    torch.save(made.network("wide-resnet").state_dict(), tmp_path / "file.pt")
    options = ["--set", "mean=[0.1,0.2,0.3]", "--set", "std=[1,1,1]"]
    result = depura_("checkpoint", "convert", tmp_path / "file.pt", "--out", tmp_path / "new.safetensors", *options)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "new.json").read_text())["options"] == {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    result = depura_("checkpoint", "identify", tmp_path / "file.pt", "--set", "heads")
    assert result.exit_code == 2
    assert "NAME=VALUE" in result.output
