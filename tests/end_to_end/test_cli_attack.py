"""depura attacks and depura attack, as a user gives them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import depura
from depura.attacks.catalogue import CATALOGUE
from depura.cli import app
from depura.data import files
from depura.noise import Noise, Stream

DIGITS = depura.load_digits("test")
LINE = re.compile(
    r"^(\S+): label (\d+), before (\d+).*, after (\d+).*, 8-bit (\d+).*, changed by (\w+) ([\d.]+) ", re.M
)


def depura_(*words: str | Path | float) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def fails(result: Result, *said: str) -> None:
    """Exit code 2 and one sentence, not a traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    for words in said:
        assert words in result.output


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three test digits as 8-bit grey PNG, and three more in an NPZ file."""
    folder = tmp_path / "in"
    files.write_all({folder / f"{i}.png": files.encode(DIGITS.images[i : i + 1], Path("x.png")) for i in range(3)})
    np.savez(folder / "more.npz", image=DIGITS.images[3:6].numpy())
    return folder


def test_attacks_lists_every_attack() -> None:
    result = depura_("attacks")
    assert result.exit_code == 0
    found = json.loads(depura_("attacks", "--json").output)
    assert [line["name"] for line in found] == [entry.name for entry in CATALOGUE]
    for line in found:
        assert set(line) == {"name", "title", "needs", "norms", "cost", "default", "source"}
        for value in line.values():
            assert value in result.output.replace("\n", " ")
    by_name = {line["name"]: line for line in found}
    assert by_name["pgd"]["default"] == "20 gradients"
    assert by_name["selective"]["default"] == "1,500 gradients"


def test_attack_writes_examples_and_says_what_they_do(tmp_path: Path, pictures: Path) -> None:
    result = depura_("attack", pictures, "--eps", "0.2", "--out", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"0.png", "1.png", "2.png", "more.npz"}
    assert "at most 20 gradients per image" in result.output, "one draw per step"
    classifier = depura.digits_classifier()
    lines = LINE.findall(result.output)
    assert [line[0] for line in lines] == ["0.png", "1.png", "2.png", "more.npz[0]", "more.npz[1]", "more.npz[2]"]
    written = [files.load(tmp_path / "o" / f"{i}.png").images for i in range(3)]
    written = torch.cat([*written, files.load(tmp_path / "o" / "more.npz").images])
    clean = torch.cat([files.load(pictures / f"{i}.png").images for i in range(3)] + [DIGITS.images[3:6]])
    with torch.no_grad():
        before, after = classifier(clean).argmax(1).tolist(), classifier(written).argmax(1).tolist()
        rounded = classifier((written * 255).round() / 255).argmax(1).tolist()
    assert [int(line[2]) for line in lines] == before
    assert [int(line[1]) for line in lines] == before, "labels are the classifier's own"
    assert "what the classifier takes the clean images for" in result.output
    assert [int(line[4]) for line in lines] == rounded
    assert [int(line[3]) for line in lines[3:]] == after[3:]
    sizes = (written - clean).flatten(1).abs().amax(1)
    assert float(sizes[:3].max()) <= 51 / 255 + 1e-6, "0.2 is 51 levels"
    assert [float(line[6]) for line in lines] == pytest.approx(sizes.tolist(), abs=6e-4)
    wrong = sum(a != b for a, b in zip(after, before, strict=True))
    assert wrong >= 4
    assert f"wrong of 6: before 0, after {wrong}, 8-bit {wrong}" in result.output


def test_an_image_is_attacked_the_same_alone_and_in_a_folder(tmp_path: Path, pictures: Path) -> None:
    for source, to in ((pictures, "a"), (pictures / "1.png", "b")):
        words = ["--steps", 3, "--eps", "0.2", "--method", "diffpure", "--draws", 2, "--eot", 2]
        assert depura_("attack", source, "--out", tmp_path / to, *words).exit_code == 0
    assert (tmp_path / "a" / "1.png").read_bytes() == (tmp_path / "b" / "1.png").read_bytes()
    assert (tmp_path / "b" / "1.png").read_bytes() != (pictures / "1.png").read_bytes()


def test_attack_through_a_purifier(tmp_path: Path, pictures: Path) -> None:
    """The shares of wrong draws are those of the written images on the report stream, whatever was asked before."""
    words = ["--steps", 4, "--eps", "0.2", "--method", "diffpure", "--draws", 8, "--seed", 3]
    result = depura_("attack", pictures / "more.npz", "--out", tmp_path / "o", *words)
    assert result.exit_code == 0, result.output
    assert "at most 40 gradients per image" in result.output, "ten draws per step"
    item = files.load(tmp_path / "o" / "more.npz")
    purifier = depura.diffpure(
        depura.digits_denoiser(),
        t_star=depura.evaluation.demo.T_STAR,
        n_steps=depura.evaluation.demo.N_STEPS,
        t_end=0.0,
        solver=depura.Ancestral(),
    )
    defence, labels = depura.Defence(purifier, depura.digits_classifier()), DIGITS.labels[3:6]
    noise = Noise(3, item.ids, stream=Stream.REPORT)
    with torch.no_grad():
        logits = defence(item.images.repeat_interleave(8, 0), noise.expand(range(8)))
    wrong = (logits.argmax(1).reshape(3, 8) != labels[:, None]).double().mean(1)
    shares = [int(share) / 100 for share in re.findall(r"after \d \((\d+)% of draws wrong\)", result.output)]
    assert shares == pytest.approx(wrong.tolist(), abs=0.006)
    assert f"after {float(wrong.mean()):.0%}" in result.output.splitlines()[-1]
    assert float(wrong.max()) > 0.2


def test_labels_of_ones_own(tmp_path: Path, pictures: Path) -> None:
    """Given for all, for each, or stored; the attack goes away from them."""
    words = ["--eps", "0.05", "--steps", 2, "--out", tmp_path / "o"]
    result = depura_("attack", pictures / "0.png", pictures / "more.npz", "--label", 7, *words)
    assert [line[1] for line in LINE.findall(result.output)] == ["7"] * 4
    assert "labels   as given" in result.output
    each = [w for n in (1, 2, 3, 4) for w in ("--label", n)]
    result = depura_("attack", pictures / "0.png", pictures / "more.npz", *each, *words)
    assert [line[1] for line in LINE.findall(result.output)] == ["1", "2", "3", "4"]
    np.savez(pictures / "own.npz", image=DIGITS.images[3:5].numpy(), label=np.array([0, 9]))
    result = depura_("attack", pictures / "own.npz", *words)
    assert [line[1] for line in LINE.findall(result.output)] == ["0", "9"]
    assert "labels   from the files\n" in result.output
    result = depura_("attack", pictures / "own.npz", pictures / "0.png", *words)
    assert [line[1] for line in LINE.findall(result.output)][:2] == ["0", "9"]
    assert "for others what the classifier takes" in result.output
    fails(depura_("attack", pictures / "more.npz", "--label", 1, "--label", 2, *words), "one --label, or 3")
    fails(depura_("attack", pictures / "more.npz", "--label", 10, *words), "labels from 0 to 9")
    np.savez(pictures / "own.npz", image=DIGITS.images[3:5].numpy(), label=np.array([0]))
    fails(depura_("attack", pictures / "own.npz", *words), "own.npz", "one per image")


MINE = """
import torch


class Bright(torch.nn.Module):
    def forward(self, images):
        z = images.flatten(1).mean(1) - 0.5
        return torch.stack([-z, z, z - 9], dim=1)


class Shaky(Bright):
    def forward(self, images):
        return super().forward(images + 0.01 * torch.randn_like(images))


def number():
    return 7
"""


def test_a_classifier_and_pictures_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimum of a linear model: every pixel brighter by the radius; pictures of several sizes, colour, JPEG."""
    (tmp_path / "mine_to_attack.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    for name, mode, size in (("a.png", "RGB", (5, 4)), ("b.png", "L", (3, 3)), ("c.jpg", "RGB", (8, 8))):
        Image.new(mode, size, color=(115, 115, 115) if mode == "RGB" else 115).save(tmp_path / name)
    sources = [tmp_path / name for name in ("a.png", "b.png", "c.jpg")]
    words = ["--classifier", "mine_to_attack:Bright", "--eps", "16/255", "--attack", "pgd-momentum"]
    result = depura_("attack", *sources, "--out", tmp_path / "o", *words)
    assert result.exit_code == 0, result.output
    for source in sources:
        found = files.load(tmp_path / "o" / f"{source.stem}.png").images
        torch.testing.assert_close(found, files.load(source).images + 16 / 255)
    assert "wrong of 3: before 0, after 3, 8-bit 3" in result.output
    words[3:] = ["1/255"]
    result = depura_("attack", *sources, "--out", tmp_path / "o", *words)
    assert "wrong of 3: before 0, after 0, 8-bit 0" in result.output
    result = depura_("attack", sources[1], "--out", tmp_path / "o", "--norm", "l2", *words[:2])
    assert LINE.findall(result.output)[0][5:] == ("l2", "0.5000")
    result = depura_(
        "attack", sources[1], "--out", tmp_path / "o", "--classifier", "mine_to_attack:Shaky", "--steps", 2
    )
    assert "at most 20 gradients" in result.output
    assert "of 32 fresh draws" in result.output
    for name in ("mine_to_attack", "mine_to_attack:other", "mine_to_attack:number"):
        fails(depura_("attack", *sources, "--out", tmp_path / "o", "--classifier", name), "--classifier")
    monkeypatch.setitem(sys.modules, "timm", None)
    result = depura_("attack", *sources, "--out", tmp_path / "o", "--classifier", "timm:resnet18")
    fails(result, "--classifier: expected timm to be installed")
    assert "pip install 'depura[timm]'" in result.output


def test_rounding_may_undo_an_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels 127, 127, 127, 128: the mean passes 127.5 with 0.4 added, which rounds away."""
    (tmp_path / "mine_to_round.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    levels = np.array([[127, 127], [127, 128]], dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    words = ["--classifier", "mine_to_round:Bright", "--eps", "2/1275", "--out", tmp_path / "o"]
    result = depura_("attack", tmp_path / "a.png", *words)
    assert "before 0, after 1, 8-bit 0, changed by linf 0.0016 (8-bit 0.0000)" in result.output
    assert "wrong of 1: before 0, after 1, 8-bit 0" in result.output
    with Image.open(tmp_path / "o" / "a.png") as picture:
        assert np.asarray(picture).tolist() == levels.tolist()


def test_settings_of_the_purifier_reach_it(tmp_path: Path, pictures: Path) -> None:
    words = ["--method", "diffpure", "--steps", 1, "--eot", 1, "--draws", 4]
    results = [
        depura_("attack", pictures / "0.png", "--out", tmp_path / "o", *words, *more).output
        for more in (["--t-star", 0.001, "--purifier-steps", 1], ["--t-star", 1, "--purifier-steps", 1])
    ]
    assert "(0% of draws wrong)" in results[0]
    assert float(re.findall(r"before \d \((\d+)%", results[1])[0]) > 20, "all of the image is noised away"


def test_gradients_that_are_zero_are_pointed_out(tmp_path: Path, pictures: Path) -> None:
    words = ["--method", "mimicdiffusion", "--purifier-steps", 4, "--steps", 1, "--eot", 1, "--draws", 2]
    result = depura_("attack", pictures / "0.png", "--out", tmp_path / "o", *words)
    assert result.exit_code == 0, result.output
    assert "100% of the gradients were zero" in result.output
    result = depura_("attack", pictures / "0.png", "--out", tmp_path / "o", "--steps", 1)
    assert "zero" not in result.output


def test_sizes_of_a_threat_model_without_a_norm(tmp_path: Path, pictures: Path) -> None:
    """Beside the dissimilarity, at most what was asked for, the line has the largest change and the length."""
    words = ["--attack", "low-frequency", "--norm", "perceptual", "--eps", "0.003", "--steps", 40, "--label", 3]
    result = depura_("attack", pictures / "more.npz", "--out", tmp_path / "o", *words)
    assert result.exit_code == 0, result.output
    assert "perceptual of radius 0.003" in result.output
    x, clean = (files.load(folder / "more.npz").images for folder in (tmp_path / "o", pictures))
    said = r"changed by perceptual ([\d.]+) \(8-bit [\d.]+\), linf ([\d.]+), l2 ([\d.]+)$"
    shown = re.findall(said, result.output, re.M)
    sizes = torch.stack([depura.dssim(x, clean), (x - clean).abs().amax((1, 2, 3)), (x - clean).flatten(1).norm(dim=1)])
    assert [float(v) for line in shown for v in line] == pytest.approx(sizes.T.flatten().tolist(), abs=6e-5)
    assert 0.002 < float(sizes[0].max()) <= 0.003 + 1e-6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attack", "prayer"], "pgd"),
        (["--eps", "8"], "8/255"),
        (["--eps", "0"], "--eps in (0, 1]"),
        (["--eps", "wide"], "a number such as"),
        (["--norm", "l1", "--attack", "fab"], "linf"),
        (["--norm", "flow"], "linf"),
        (["--norm", "perceptual"], "linf"),
        (["--attack", "low-frequency"], "--norm perceptual"),
        (["--steps", "0"], "n_steps from 1"),
        (["--eot", "0"], "eot at least 1"),
        (["--draws", "0"], "--draws at least 1"),
        (["--seed", "-1"], "seed"),
        (["--method", "prayer"], "diffpure"),
        (["--t-star", "0.1"], "--t-star together with --method"),
        (["--purifier-steps", "3"], "--purifier-steps together with --method"),
        (["--method", "gradual", "--purifier-steps", "3"], "--purifier-steps for a method"),
        (["--method", "diffpure", "--t-star", "2"], "--t-star in (0, 1]"),
        (["--method", "diffpure", "--denoiser", "nowhere:none"], "--denoiser"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_unusable_options(tmp_path: Path, pictures: Path, options: list[str], said: str) -> None:
    fails(depura_("attack", pictures / "0.png", "--out", tmp_path / "o", *options), said)
    assert not (tmp_path / "o").exists()


def test_unusable_files(tmp_path: Path, pictures: Path) -> None:
    """Nothing is written over, and nothing is written where one file is bad."""
    fails(depura_("attack", pictures, "--out", pictures), "other than that of the images")
    fails(depura_("attack", pictures / "0.png", "--out", tmp_path / "x.png"), "a folder for --out")
    fails(depura_("attack", tmp_path / "none.png", "--out", tmp_path / "o"), "attack: expected an image file")
    (pictures / "bad.png").write_bytes(b"hello")
    fails(depura_("attack", pictures, "--out", tmp_path / "o"), "attack: expected a readable", "bad.png")
    Image.new("L", (16, 16)).save(pictures / "bad.png")
    fails(depura_("attack", pictures, "--out", tmp_path / "o"), "bad.png", "(1, 8, 8)")
    (tmp_path / "other").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "other" / "0.png")
    twice = depura_("attack", pictures / "0.png", tmp_path / "other" / "0.png", "--out", tmp_path / "o")
    fails(twice, "whose names differ")
    assert not (tmp_path / "o").exists()
