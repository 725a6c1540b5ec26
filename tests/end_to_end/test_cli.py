"""The commands as a user gives them: what they write, what they say, and how they refuse bad input."""

from __future__ import annotations

import json
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import layouts
from typer.testing import CliRunner, Result

import depura
from depura.cli import app
from depura.cli.methods import purifier_of
from depura.data import files
from depura.evaluation.study_file import StudySource
from depura.models.weights import read_safetensors
from depura.purifiers.fast import deviation
from processes import Depura
from slow import slow, slow_among

pytestmark = pytest.mark.usefixtures("without_clock")
TINY = [
    "-S",
    "images=2",
    "-S",
    "attack_steps=1",
    "-S",
    "eot=1",
    "-S",
    "report_draws=2",
    "-S",
    "curve=",
    "-S",
    "n_steps=1",
]
STUDY = str(Path(__file__).parents[2] / "studies" / "digits.py")


def depura_(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def fails(result: Result, *said: str) -> None:
    """Exit code 2 and one sentence, not a traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    for words in said:
        assert words in result.output


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """A test digit as an 8-bit grey PNG."""
    image = depura.load_digits("test").images[3, 0]
    file = tmp_path / "digit.png"
    Image.fromarray((image * 255).round().to(torch.uint8).numpy()).save(file)
    return file


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# demo, run, plan, report


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo, and what was said."""
    folder = tmp_path_factory.mktemp("demo") / "d"
    result = depura_("demo", "--out", folder, "--workers", 1, *TINY)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_demo_runs_reports_and_leaves_pictures_to_try(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder, said = demo
    assert {"report.html", "report.md", "study.json"} < tree(folder)
    assert "robust accuracy at most" in said
    page = (folder / "report.html").read_text()
    for word in (
        "robust accuracy at most",
        "95 % CI",
        "null",
        "Threat model",
        "depura demo -S images=2",
        "data:image/png",
    ):
        assert word in page
    again = depura_("purify", folder / "adversarial", "--out", tmp_path / "p")
    assert again.exit_code == 0, again.output
    assert tree(tmp_path / "p") == tree(folder / "adversarial") != set()


def test_the_page_needs_nothing_from_outside(demo: tuple[Path, str]) -> None:
    page = (demo[0] / "report.html").read_text()
    assert "<script src" not in page
    for attribute in ('src="http', 'href="http', "url(http", "@import"):
        assert attribute not in page
    assert page.count('src="data:image/png;base64,') == page.count("<img ")


def test_report_is_a_function_of_the_folder(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo[0], tmp_path / "d"))
    first = {n: (folder / n).read_bytes() for n in ("report.html", "report.md")}
    for name in first:
        (folder / name).unlink()
    assert depura_("report", folder).exit_code == 0
    assert {n: (folder / n).read_bytes() for n in first} == first


def test_a_run_that_is_not_complete_has_no_headline(tmp_path: Path) -> None:
    result = depura_("run", STUDY, "--out", tmp_path / "r", "--workers", 1, "--shard", "0/3", *TINY)
    assert result.exit_code == 0
    assert "No headline: 4 of 9 units are done" in result.output
    assert "robust accuracy" not in (tmp_path / "r" / "report.html").read_text()
    assert "robust accuracy" not in (tmp_path / "r" / "report.md").read_text()
    before = tree(tmp_path / "r")
    said = depura_("status", tmp_path / "r")
    assert said.exit_code == 0, said.output
    assert "4 of 9 units are done" in said.output
    assert "time left" in said.output
    assert tree(tmp_path / "r") == before


RAISES = """
import depura
import torch

class Raises(torch.nn.Module):
    def forward(self, images):
        if images.requires_grad and len(images) > 2:
            raise OSError("the [net] is gone")
        return images.mean((1, 2, 3))[:, None] * torch.arange(10.0)

def study():
    defence = depura.Defence(None, Raises())
    attack = depura.AttackRun("pgd", "PGD", depura.PGD(depura.Ball("linf", 0.1), n_steps=1), defence, defence)
    return depura.Study("raises", depura.load_digits("test").first(3), defence, (attack,))
"""


def test_an_error_of_a_unit_is_shown_by_status(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(RAISES)
    with pytest.raises(OSError, match="is gone"):
        depura.run(StudySource(tmp_path / "s.py").load(), tmp_path / "r")
    with (tmp_path / "r" / "errors.jsonl").open("a") as file:
        file.write('{"unit": "half of a li')
    said = depura_("status", tmp_path / "r")
    assert said.exit_code == 0, said.output
    assert "error    audit" in said.output
    assert "OSError: the [net] is gone." in said.output


def test_plan_prints_evaluations_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = depura_("plan", STUDY, *TINY)
    assert result.exit_code == 0, result.output
    assert "backward" in result.output
    assert not tree(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["eps=-0.1"], "eps in [0, inf)"),
        (["eps=abc"], "expected float, got 'abc'"),
        (["t_star=0"], "t_star in (0, 1]"),
        (["t_star=1.5"], "t_star in (0, 1]"),
        (["n_steps=0"], "n_steps from 1"),
        (["n_steps=1.5"], "expected int"),
        (["images=0"], "n at least 1"),
        (["attack_steps=0"], "n_steps from 1"),
        (["eot=0"], "eot at least 1"),
        (["report_draws=0"], "report_draws at least 1"),
        (["seed=-1"], "seed"),
        (["colour=red"], "a name among images"),
        (["eps"], "NAME=VALUE"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_unusable_settings(tmp_path: Path, command: str, settings: list[str], said: str) -> None:
    words = [w for s in settings for w in ("-S", s)]
    out = ["--out", tmp_path / "r"] if command == "run" else []
    fails(depura_(command, STUDY, *out, *words), said)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("shard", ["2/2", "x", "1", "-1/2", "1/0"])
def test_unusable_shards(tmp_path: Path, shard: str) -> None:
    fails(depura_("run", STUDY, "--out", tmp_path / "r", "--shard", shard))
    assert not (tmp_path / "r").exists()


def test_unusable_workers(tmp_path: Path) -> None:
    fails(depura_("run", STUDY, "--out", tmp_path / "r", "--workers", 0), "workers at least 1")
    fails(depura_("plan", STUDY, "--workers", 0, *TINY), "workers at least 1")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("device", ["abacus", "cuda:99", ""])
def test_unusable_devices(tmp_path: Path, device: str) -> None:
    fails(depura_("run", STUDY, "--out", tmp_path / "r", "--device", device), "--device")
    assert not (tmp_path / "r").exists()


def test_a_plan_for_a_device_that_is_not_here_is_priced_elsewhere() -> None:
    fails(depura_("plan", STUDY, "--device", "abacus"), "--device")
    result = depura_("plan", STUDY, "--device", "cuda:99", *TINY)
    assert result.exit_code == 0, result.output
    assert "There is no cuda:99 on this machine" in result.output
    assert "one a100" in result.output


def test_a_plan_for_another_machine_says_hours_money_and_images() -> None:
    def planned(*words: object) -> dict[str, Any]:
        result = depura_("plan", STUDY, "--json", *TINY, *words)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    slow, fast = planned("--as", "1 GFLOP/s"), planned("--as", "2 GFLOP/s", "--cards", 4)
    assert slow["rate"] == 1e9
    assert fast["workers"] == 4
    assert [row["seconds"] for row in slow["rows"]] == pytest.approx([2 * row["seconds"] for row in fast["rows"]])
    hours = sum(row["seconds"] for row in slow["rows"]) / 3600
    result = depura_("plan", STUDY, "--as", "1 GFLOP/s", "--price", 2, "--money", 100 * hours, *TINY)
    images = slow["rows"][0]["images"]
    assert f"{2 * hours:,.2f} at 2 an hour" in result.output
    assert f"buys about {int(50 * images):,} images" in result.output


def test_code_that_looks_at_values_cannot_be_priced_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        RAISES.replace('raise OSError("the [net] is gone")', "images = images + 1").replace(
            "images.mean((1, 2, 3))[:, None]", "torch.from_numpy(images.detach().numpy()).mean((1, 2, 3))[:, None]"
        )
    )
    result = depura_("plan", tmp_path / "s.py", "--as", "a100")
    fails(result, "can be counted without values")
    assert ".. " not in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--as", "abacus"], "one of a100, h200, rtx4090"),
        (["--as", "0 TFLOP/s"], "12 TFLOP/s"),
        (["--as", "a100", "--cards", 0], "cards"),
        (["--as", "a100", "--price", 0], "price"),
        (["--as", "a100", "--money", 5], "--price"),
        (["--price", 5], "Give --as"),
        (["--cards", 5], "Give --as"),
    ],
)
def test_what_a_plan_for_another_machine_cannot_be_asked(words: list[object], said: str) -> None:
    fails(depura_("plan", STUDY, *TINY, *words), said)


def test_unusable_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails(depura_("run", STUDY, "--out", tmp_path / "file", *TINY), "--out")
    fails(depura_("run", STUDY, "--out", tmp_path / "file" / "r", *TINY), "can be written")
    fails(depura_("report", tmp_path), "study.json")
    fails(depura_("run", tmp_path / "none.py", "--out", tmp_path / "r"), "not there")
    other = tmp_path / "other"
    assert depura_("run", STUDY, "--out", other, "--workers", 1, *TINY).exit_code == 0
    fails(depura_("run", STUDY, "--out", other, *TINY, "-S", "eps=0.1"), "another one", "eps is 0.2 there and 0.1 here")
    next((other / "units").iterdir()).write_bytes(b"PK")
    fails(depura_("run", STUDY, "--out", other, "--workers", 1, *TINY), "Delete this file")
    fails(depura_("report", other), "Delete this file")


@pytest.mark.parametrize("workers", [1, slow(2)])
def test_labels_that_are_no_classes(tmp_path: Path, workers: int) -> None:
    """Found in a worker too, and the other units are not computed first."""
    (tmp_path / "s.py").write_text(
        "import torch, depura\nfrom dataclasses import replace\n"
        "from depura.evaluation.demo import study as digits\n\n\n"
        "def study() -> depura.Study:\n"
        "    made = digits(images=64, curve=(), attack_steps=1, eot=1, report_draws=2, n_steps=1)\n"
        "    return replace(made, data=made.data._replace(labels=made.data.labels + 1))\n"
    )
    words = ("run", tmp_path / "s.py", "--out", tmp_path / "r", "--workers", workers)
    said = "labels from 0 to 9, got labels from"
    if workers == 1:
        fails(depura_(*words), said)
    else:
        assert Depura(words, tmp_path, said=tmp_path / "said", forked=True).wait() == 2
        told = (tmp_path / "said").read_text()
        assert said in " ".join(told.split())
        assert "Traceback" not in told
    assert len(list((tmp_path / "r" / "units").iterdir())) < 12


def test_an_error_in_the_users_own_code_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("def study():\n    return {}['missing']\n")
    result = depura_("plan", tmp_path / "s.py")
    assert isinstance(result.exception, KeyError)


# purify


def test_purify_cleans_a_png(tmp_path: Path, digit: Path) -> None:
    out = tmp_path / "clean.png"
    result = depura_("purify", digit, "--out", out, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert "mean change" in result.output
    assert "the bundled classifier sees a" in result.output
    with Image.open(out) as picture:
        found = np.asarray(picture)
        assert (picture.mode, picture.size) == ("L", (8, 8))
    loaded = files.load(digit)
    with torch.no_grad():
        expected = depura.evaluation.demo.digits_purifier()(loaded.images, depura.Noise(7, loaded.ids)).clamp(0, 1)
    assert np.array_equal(found, (expected[0, 0] * 255).round().to(torch.uint8).numpy())


def test_an_image_is_purified_the_same_alone_and_in_a_folder(tmp_path: Path, digit: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for k in range(3):
        (folder / f"{k}.png").write_bytes(digit.read_bytes())
    (folder / "digit.png").write_bytes(digit.read_bytes())
    assert depura_("purify", folder, "--out", tmp_path / "out").exit_code == 0
    assert depura_("purify", digit, "--out", tmp_path / "alone").exit_code == 0
    same = (tmp_path / "alone" / "digit.png").read_bytes()
    assert (tmp_path / "out" / "digit.png").read_bytes() == same
    assert (tmp_path / "out" / "0.png").read_bytes() != same


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mimicdiffusion", ("--steps", 20)),
        ("gdmp", ("--t-star", 0.04, "--steps", 8)),
        ("gradual", ()),
        ("likelihood", ("--steps", 3)),
        ("scoreopt", ()),
        ("one-step", ("--t-star", 0.05)),
        ("adbm", ()),
    ],
)
def test_purify_knows_the_methods(tmp_path: Path, digit: Path, method: str, options: tuple[object, ...]) -> None:
    result = depura_("purify", digit, "--out", tmp_path / "out.png", "--method", method, *options)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.png").read_bytes() != digit.read_bytes()


def test_purify_with_a_fast_network_says_what_it_changed(tmp_path: Path, digit: Path) -> None:
    result = depura_("purify", digit, "--out", tmp_path / "fast.png", "--seed", 7, "--fast")
    assert result.exit_code == 0, result.output
    purifier, loaded = depura.evaluation.demo.digits_purifier(), files.load(digit)
    fast = purifier.over(partial(depura.Fast, compiled=False))
    found = deviation(fast, loaded.images, depura.Noise(7, loaded.ids))
    assert f"fast network: {found}" in " ".join(result.output.split())
    with Image.open(tmp_path / "fast.png") as picture, torch.no_grad():
        expected = fast(loaded.images, depura.Noise(7, loaded.ids)).clamp(0, 1)
        assert np.array_equal(np.asarray(picture), (expected[0, 0] * 255).round().to(torch.uint8).numpy())
    fails(depura_("purify", digit, "--out", tmp_path / "x.png", "--compiled"), "--compiled with --fast")


def test_purify_refuses_settings_that_a_method_does_not_have(tmp_path: Path, digit: Path) -> None:
    to = tmp_path / "out.png"
    fails(depura_("purify", digit, "--out", to, "--method", "gradual", "--steps", 3), "expected --steps for a method")
    fails(depura_("purify", digit, "--out", to, "--method", "likelihood", "--t-star", 0.1), "expected --t-star for a")


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "float"])
def test_purify_takes_arrays_in_the_usual_layouts(tmp_path: Path, layout: str) -> None:
    images = depura.load_digits("test").images[:3]
    array = (images * 255).round().to(torch.uint8).numpy()
    array = {"NHW": array[:, 0], "NHWC": array.transpose(0, 2, 3, 1), "NCHW": array, "float": array / 255}[layout]
    np.savez(tmp_path / "x.npz", image=array)
    assert depura_("purify", tmp_path / "x.npz", "--out", tmp_path / "y.npz").exit_code == 0
    with np.load(tmp_path / "y.npz") as stored:
        found = stored["image"]
    assert (found.shape, found.dtype) == ((3, 1, 8, 8), np.float32)
    assert 0 <= found.min() < found.max() <= 1
    assert 0.01 < np.abs(found - images.numpy()).mean() < 0.2


def test_purify_reads_jpeg_and_writes_what_is_asked(tmp_path: Path, digit: Path) -> None:
    with Image.open(digit) as picture:
        picture.save(tmp_path / "digit.jpg")
    for name in ("a.png", "a.jpg", "a.npz"):
        assert depura_("purify", tmp_path / "digit.jpg", "--out", tmp_path / name).exit_code == 0
        assert files.load(tmp_path / name).images.shape == (1, 1, 8, 8)


def test_another_denoiser_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch, depura\n"
        "def grey():\n    return depura.GaussianDenoiser(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 1e-6))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "x.npz", image=np.random.default_rng(0).random((2, 3, 4, 4)))
    result = depura_("purify", tmp_path / "x.npz", "--out", tmp_path / "y.npz", "--denoiser", "mine:grey")
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "y.npz") as stored:
        assert stored["image"] == pytest.approx(0.5, abs=1e-3)
    for name in ("mine", "mine:other", "nothing:grey"):
        fails(depura_("purify", tmp_path / "x.npz", "--out", tmp_path / "z.npz", "--denoiser", name), "--denoiser")


def class_folders(folder: Path) -> depura.ImageSet:
    """Digits 0 to 3 of the test set as pictures in folders of their classes; the set in the order of the folders."""
    data = depura.load_digits("test").first(4)
    for image, label, number in zip(data.images, data.labels.tolist(), data.ids, strict=True):
        (folder / f"{label}").mkdir(parents=True, exist_ok=True)
        path = folder / f"{label}" / f"{number}.png"
        path.write_bytes(files.encode(image[None], path))
    return data.take(np.lexsort((np.array([str(i) for i in data.ids]), data.labels.numpy())).tolist())


def test_purify_turns_a_data_set_into_one_file_with_labels_and_ids(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in")
    result = depura_("purify", tmp_path / "in", "--out", tmp_path / "out", "--seed", 5, "--images", 3)
    assert result.exit_code == 0, result.output
    made = depura.load_npz(tmp_path / "out" / "in.npz")
    assert made.ids == (0, 1, 2)
    known = sorted(set(data.labels.tolist()))
    assert made.labels.tolist() == [known.index(label) for label in data.labels.tolist()[:3]]
    eight_bit = (data.images[:3] * 255).round() / 255
    purifier = purifier_of("digits", "diffpure", where="here")
    by_hand = purifier(eight_bit, depura.Noise(5, (0, 1, 2))).clamp(0, 1)
    torch.testing.assert_close(made.images, by_hand, atol=1e-5, rtol=0)
    fails(depura_("purify", tmp_path / "in", "--out", tmp_path / "a.png"), "a name ending in .npz")
    fails(depura_("purify", tmp_path / "in", "--out", tmp_path / "b.npz", "--split", "test"), "has parts")
    fails(depura_("purify", tmp_path / "in", "--out", tmp_path / "b.npz", "--labels", "Smiling"), "several labels")
    fails(depura_("purify", tmp_path / "in", "--out", tmp_path / "b.npz", "--channels", 3), "(1, 8, 8)")


def test_purify_of_an_array_file_keeps_labels_and_ids(tmp_path: Path) -> None:
    data = depura.load_digits("test").first(3)
    np.savez(tmp_path / "x.npz", image=data.images.numpy(), label=data.labels.numpy(), ids=np.array(data.ids))
    np.savez(tmp_path / "bare.npz", image=data.images.numpy())
    for words in (("--images", 2), ()):
        assert depura_("purify", tmp_path / "x.npz", "--out", tmp_path / "y.npz", *words).exit_code == 0
        made = depura.load_npz(tmp_path / "y.npz")
        n = 2 if words else 3
        assert (made.ids, made.labels.tolist()) == (data.ids[:n], data.labels.tolist()[:n])
    assert depura_("purify", tmp_path / "bare.npz", "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as stored:
        assert stored.files == ["image"]
    fails(depura_("purify", tmp_path / "x.npz", "--out", tmp_path / "y.npz", "--resize", 8), "for pictures only")
    fails(depura_("purify", tmp_path / "x.npz", "--out", tmp_path / "y.npz", "--split", "test"), "has parts")


def test_purify_prepares_pictures_as_asked(tmp_path: Path) -> None:
    """Large coloured pictures become 8 x 8 and grey; the first of a folder are taken."""
    for name in ("a", "b", "c"):
        Image.effect_noise((20, 30), 90).convert("RGB").save(tmp_path / f"{name}.png")
    words = ("--resize", 10, "--crop", 8, "--channels", 1, "--images", 2)
    result = depura_("purify", tmp_path, "--out", tmp_path / "out", *words)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert files.load(tmp_path / "out" / "a.png").images.shape == (1, 1, 8, 8)


def test_a_published_study_takes_cifar_as_published(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    folder = layouts.cifar10_python(tmp_path, layouts.pixels(18), np.arange(18) % 10)
    study = Path(STUDY).with_name("cifar10_diffpure.py")
    small = (("width", "32"), ("blocks", "1"), ("n_steps", "1"), ("images", "2"))
    loaded = StudySource(study, (("data", str(folder)), *small)).load()
    assert (loaded.data.name, loaded.data.ids) == ("cifar10-test", (0, 1))
    fails(depura_("plan", study, "-S", f"data={tmp_path / 'none'}"), "load_images", "not there")


BAD_FILES = {
    "missing.png": None,
    "empty.png": b"",
    "text.png": b"hello",
    "truncated.png": "truncated",
    "large.png": ("L", (16, 16)),
    "colour.png": ("RGB", (8, 8)),
    "alpha.png": ("RGBA", (8, 8)),
    "deep.png": ("I;16", (8, 8)),
    "empty.npz": b"",
    "truncated.npz": "truncated",
    "unnamed.npz": {"x": np.zeros((1, 8, 8))},
    "none.npz": {"image": np.zeros((0, 8, 8))},
    "nan.npz": {"image": np.full((1, 8, 8), np.nan)},
    "range.npz": {"image": np.full((1, 8, 8), 2.0)},
    "signed.npz": {"image": np.full((1, 8, 8), -0.5)},
    "whole.npz": {"image": np.zeros((1, 8, 8), dtype=np.int64)},
    "flat.npz": {"image": np.zeros((8, 8))},
    "pickled.npz": {"image": np.array([{}], dtype=object)},
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_unusable_files(tmp_path: Path, digit: Path, name: str) -> None:
    """Named in the message, and nothing is written, not even for the good file beside it."""
    folder, content = tmp_path / "in", BAD_FILES[name]
    folder.mkdir()
    file = folder / name
    (folder / "good.png").write_bytes(digit.read_bytes())
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(file, **content)
    elif isinstance(content, tuple):
        Image.new(*content).save(file)
    elif content == "truncated":
        whole = tmp_path / f"whole{file.suffix}"
        if file.suffix == ".png":
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(whole)
        else:
            np.savez(whole, image=np.zeros((4, 8, 8)))
        file.write_bytes(whole.read_bytes()[:80])
    source = file if content is None else folder
    fails(depura_("purify", source, "--out", tmp_path / "out"), name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--t-star", "0"], "--t-star in (0, 1]"),
        (["--t-star", "1.2"], "--t-star in (0, 1]"),
        (["--t-star", "nan"], "--t-star in (0, 1]"),
        (["--steps", "0"], "n_steps from 1"),
        (["--seed", "-1"], "seed"),
        (["--method", "prayer"], "diffpure"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_unusable_options(tmp_path: Path, digit: Path, options: list[str], said: str) -> None:
    fails(depura_("purify", digit, "--out", tmp_path / "out.png", *options), said)
    assert not (tmp_path / "out.png").exists()


def test_unusable_places_to_write(tmp_path: Path, digit: Path) -> None:
    (tmp_path / "file").touch()
    fails(depura_("purify", digit, "--out", tmp_path / "file" / "x.png"), "can be written")
    fails(depura_("purify", digit, "--out", tmp_path / "file"), "a folder for --out")
    fails(depura_("purify", tmp_path / "file", "--out", tmp_path / "x.png"), "readable PNG, JPEG")
    (tmp_path / "void").mkdir()
    fails(depura_("purify", tmp_path / "void", "--out", tmp_path / "out"), "which has none")
    np.savez(tmp_path / "two.npz", image=np.zeros((2, 8, 8)))
    fails(depura_("purify", tmp_path / "two.npz", "--out", tmp_path / "x.png"), "one image for a picture file")
    assert not (tmp_path / "x.png").exists()


# train


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guides are measured by an attack of two steps."""
    monkeypatch.setattr("depura.cli.train.MEASURED_STEPS", 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["denoiser", "classifier", "guide"])
def test_train_writes_weights_and_a_card_with_their_hash(tmp_path: Path, kind: str) -> None:
    result = depura_("train", kind, "--out", tmp_path, "--steps", 3, "--batch", 8)
    assert result.exit_code == 0, result.output
    assert tree(tmp_path) == {f"digits-{kind}.{ending}" for ending in ("safetensors", "md", "curve.json")}
    card = (tmp_path / f"digits-{kind}.md").read_text()
    assert f"depura train {kind} --data digits " in card
    assert " --steps 3 --batch 8 " in card


@pytest.mark.usefixtures("quick")
def test_train_takes_data_of_ones_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", image=rng.random((20, 3, 6, 6)), label=rng.integers(0, 4, 20))
    words = ["--data", tmp_path / "mine.npz", "--test", tmp_path / "mine.npz", "--out", tmp_path / "o", "--steps", 2]
    for kind in ("denoiser", "classifier", "guide"):
        result = depura_("train", kind, *words, "--batch", 4)
        assert result.exit_code == 0, result.output
    assert "mine-classifier.safetensors" in tree(tmp_path / "o")
    assert f" --test {tmp_path / 'mine.npz'} " in (tmp_path / "o" / "mine-guide.md").read_text()
    assert depura_("train", "classifier", *words, "--batch", 4, "--name", "own", "--flip").exit_code == 0
    assert " --flip --steps 2 " in (tmp_path / "o" / "own.md").read_text()
    assert " --name own " in (tmp_path / "o" / "own.md").read_text()


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"image": np.zeros((4, 8, 8))}, [], "label"),
        ({"image": np.zeros((4, 8, 8)), "label": np.zeros(3, dtype=int)}, [], "one per image"),
        ({"image": np.zeros((4, 8, 8)), "label": np.full(4, -1)}, [], "labels from 0"),
        ({"image": np.zeros((4, 7, 8)), "label": np.zeros(4, dtype=int)}, [], "even height and width"),
        (None, [], "not there"),
        ("digits", ["--steps", "0"], "n_steps at least 1"),
        ("digits", ["--batch", "0"], "batch at least 1"),
        ("digits", ["--rate", "0"], "rate in (0, inf)"),
        ("digits", ["--seed", "-3"], "seed"),
        ("digits", ["--minutes", "1", "--schedule", "cosine"], "constant-then-decay"),
        ("digits", ["--preset", "cifar10-small"], "--steps or --minutes"),
        ("digits", ["--preset", "cifar10-small", "--width", "8"], "--width"),
        ("digits", ["--weight", "1", "--weight", "2"], "one weight for each of 1"),
        ("digits", ["--held-out", "1297"], "1296"),
        ("digits", ["--every", "0"], "every at least 1"),
    ],
)
def test_unusable_training(tmp_path: Path, arrays: dict | str | None, options: list[str], said: str) -> None:  # type: ignore[type-arg]
    data = "digits" if arrays == "digits" else tmp_path / "x.npz"
    if isinstance(arrays, dict):
        np.savez(tmp_path / "x.npz", **arrays)
    fails(depura_("train", "denoiser", "--data", data, "--out", tmp_path / "o", *options), said)
    assert not tree(tmp_path / "o") if (tmp_path / "o").exists() else True


GUIDES = {
    "trades": (
        ["--eps", "1/8", "--beta", "3"],
        "Trades(shift=1, flip=False, eps=0.125, step_size=0.03125, n_steps=10, noise_up_to=0.0, beta=3.0)",
    ),
    "at": (
        ["--attack-steps", "2"],
        "AdversarialTraining(shift=1, flip=False, eps=0.2, step_size=0.05, n_steps=2, noise_up_to=0.0)",
    ),
    "standard": ([], "ShiftedCrossEntropy(shift=1, flip=False)"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("loss", slow_among(GUIDES, {"at", "standard"}))
def test_the_card_of_a_guide_says_how_it_was_trained_and_how_robust_it_is(tmp_path: Path, loss: str) -> None:
    options, said = GUIDES[loss]
    words = ["--loss", loss, *options, "--steps", 2, "--batch", 4]
    assert depura_("train", "guide", "--out", tmp_path / "a", *words).exit_code == 0
    card = (tmp_path / "a" / "digits-guide.md").read_text()
    assert f"- loss: {said}\n" in card
    eps = "0.125" if loss == "trades" else "0.2"
    for part in ("train", "test"):
        for whose in ("", "for comparison, digits-classifier: "):
            assert f"- {whose}accuracy, digits-{part}: " in card
            assert f"- {whose}accuracy under PGD (linf, eps {eps}, 2 steps), digits-{part}: " in card
    command = next(line for line in card.splitlines() if line.startswith("- command: "))
    again = shlex.split(command.removeprefix("- command: `").removesuffix("`").replace("DIR", str(tmp_path / "b")))
    assert depura_(*again[1:]).exit_code == 0
    for name in ("digits-guide.safetensors", "digits-guide.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_network_of_ones_own_may_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges.py").write_text(
        "from torch import nn\n\n\n"
        "def judge():\n    return nn.Sequential(nn.Flatten(), nn.Linear(63, 5), nn.BatchNorm1d(5))\n\n\n"
        "def nothing():\n    return None\n\n\nnumber = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "odd.npz", image=rng.random((20, 9, 7)), label=np.arange(20) % 5)
    words = ["--data", tmp_path / "odd.npz", "--steps", 2, "--batch", 4, "--out", tmp_path / "o"]
    result = depura_("train", "guide", *words, "--network", "judges:judge")
    assert result.exit_code == 0, result.output
    card = (tmp_path / "o" / "odd-guide.md").read_text()
    assert "--network judges:judge" in card
    assert "eps=0.0313" in card
    assert "for comparison" not in card
    tensors, metadata = read_safetensors(tmp_path / "o" / "odd-guide.safetensors")
    assert set(tensors) >= {"1.weight", "2.running_var"}
    assert '"network": "judges:judge"' in metadata["depura"]
    for name, said in {
        "judges": "MODULE:FUNCTION",
        "judges:none": "importable",
        "nowhere:judge": "importable",
        "judges:number": "a function without arguments",
        "judges:nothing": "torch.nn.Module, got NoneType",
    }.items():
        fails(depura_("train", "guide", *words, "--network", name), "--network", said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--loss", "hinge"], "trades"),
        (["--eps", "0"], "eps in (0, 1]"),
        (["--eps", "8"], "8/255"),
        (["--eps", "-1/255"], "eps in (0, 1]"),
        (["--eps", "wide"], "a number such as"),
        (["--eps", "1/0"], "a number such as"),
        (["--loss", "standard", "--eps", "2"], "eps in (0, 1]"),
        (["--step-size", "0"], "step_size"),
        (["--attack-steps", "0"], "n_steps at least 1"),
        (["--beta", "-1"], "beta"),
        (["--noise-up-to", "2"], "noise_up_to"),
        (["--loss", "at", "--beta", "6"], "--beta"),
        (["--loss", "standard", "--attack-steps", "3"], "--attack-steps"),
        (["--loss", "standard", "--noise-up-to", "0.1"], "--noise-up-to"),
        (["--every", "0"], "every at least 1"),
        (["--steps", "0"], "n_steps at least 1"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_unusable_options_of_a_guide(tmp_path: Path, options: list[str], said: str) -> None:
    fails(depura_("train", "guide", "--out", tmp_path / "o", *options), said)
    assert not (tmp_path / "o").exists()
