"""Where units are computed: each worker has its device, each unit is committed once, what cannot be is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import depura
from depura.cli.machine import cluster_of, devices_of
from depura.evaluation import executors, on_ray
from depura.evaluation.study_file import StudySource
from processes import Depura

STUDY = """
import json, os, time
from multiprocessing import parent_process
from pathlib import Path
import depura

class Said(depura.Defence):
    def to(self, device):
        if parent_process() is None:  # where the price is measured
            return super().to(device)
        with self.said.open("a") as file:
            file.write(json.dumps([os.getpid(), device]) + "\\n")
        deadline = time.monotonic() + 60  # until all workers have begun, as one could do all the work before
        while len({line.partition(",")[0] for line in self.said.read_text().splitlines()}) < self.workers:
            assert time.monotonic() < deadline, "no other worker"
            time.sleep(0.01)
        return super().to(device)

def study(said: Path, workers: int):
    audited, attacked = depura.Defence(None, depura.digits_classifier()), Said(None, depura.digits_classifier())
    attacked.said, attacked.workers = said, workers
    attack = depura.PGD(depura.Ball("linf", 0.2), n_steps=1)
    rows = (depura.AttackRun("bare", "bare", attack, attacked, attacked),)
    draws = {"select_draws": 1, "report_draws": 1, "unit_images": 1}
    return depura.Study("said", depura.load_digits("test").first(4), audited, rows, **draws, reference=False)
"""
"""A study that writes down which process moved what is attacked to which device."""


def computed(folder: Path, name: str, *options: str, workers: int) -> tuple[set[tuple[int, str]], dict[str, bytes]]:
    """What a run by so many workers wrote down, and its units."""
    file, said, out = folder / "study.py", folder / f"{name}.said", folder / name
    file.write_text(STUDY, encoding="utf-8")
    words = ["run", file, "--out", out, "-S", f"said={said}", "-S", f"workers={workers}", "--yes", *options]
    assert Depura(words, folder, said=folder / f"{name}.txt", forked=True).wait() in (0, 1)
    lines = said.read_text().splitlines() if said.exists() else []
    moved = {(pid, device) for pid, device in map(json.loads, lines)}
    return moved, {unit.name: unit.read_bytes() for unit in (out / "units").iterdir()}


def test_each_worker_has_the_device_of_its_number(tmp_path: Path) -> None:
    """Two names of one device stand for two devices."""
    moved, apart = computed(tmp_path, "apart", "--devices", "cpu,cpu:0", workers=2)
    assert len({pid for pid, _ in moved}) == 2, "two workers"
    assert len(moved) == 2, "each on one device"
    assert {device for _, device in moved} == {"cpu", "cpu:0"}
    _, alone = computed(tmp_path, "alone", "--workers", "1", workers=1)
    assert len(apart) == 9  # one of the audit, four of the attack and four of clean images
    assert apart == alone


def test_a_worker_makes_its_gpu_the_one_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For code that asks for "cuda" and names none."""
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    class Source:
        def load(self) -> depura.Study:
            raise LookupError

    for device in ("cuda:1", "cpu"):
        with pytest.raises(LookupError):
            executors.Worker(Source(), device)  # type: ignore[arg-type]
    assert chosen == ["cuda:1"]


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of("cpu, cpu", workers=None, device=None) == ("cpu", "cpu")
    assert devices_of("", workers=3, device="cpu") == ("cpu",) * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("all", workers=None, device=None) == ("cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("names", "workers", "device", "said"),
    [
        ("cpu", 2, None, "no --workers"),
        ("cpu", None, "cpu", "no --device,"),
        ("cpu,abacus", None, None, "'abacus'"),
        ("cpu,", None, None, "--devices: expected a device"),
        ("cuda:98", None, None, "'cuda:98'"),
    ],
)
def test_unusable_devices(names: str, workers: int | None, device: str | None, said: str) -> None:
    with pytest.raises(depura.InputError, match=said):
        devices_of(names, workers=workers, device=device)


def test_all_devices_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(depura.InputError, match="--devices all: expected at least one GPU"):
        devices_of("all", workers=None, device=None)


ASKED = {"cpus": None, "gpus": None, "workers": None, "twice": False, "shared": False}


@pytest.mark.parametrize(
    ("address", "changes", "said"),
    [
        ("", {"cpus": 1.0}, "--cpus-per-unit: expected --ray"),
        ("", {"gpus": 0.0}, "--gpus-per-unit: expected --ray"),
        ("", {"twice": True}, "--twice: expected --ray"),
        ("", {"shared": True}, "--shared: expected --ray"),
        ("auto", {"twice": True, "shared": True}, "--twice: expected no --shared"),
        ("auto", {"others": ["--devices"]}, "--ray: expected no --devices"),
        ("auto", {"cpus": 0.0}, "--cpus-per-unit in"),
        ("auto", {"gpus": 2.0}, "--gpus-per-unit in"),
        ("auto", {"workers": 0}, "workers at least 1"),
    ],
)
def test_unusable_requests_of_ray(address: str, changes: dict[str, object], said: str) -> None:
    with pytest.raises(depura.InputError, match=said):
        cluster_of(address, **{**ASKED, **changes})  # type: ignore[arg-type]


def test_what_is_asked_of_ray() -> None:
    assert cluster_of("", **ASKED) is None  # type: ignore[arg-type]
    assert cluster_of("local", **ASKED) == on_ray.Cluster("local")  # type: ignore[arg-type]


def test_a_study_as_it_is_seen_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside it is named from there, what lies elsewhere by its whole path, and other texts stay."""
    folder, other = tmp_path / "studies", tmp_path / "weights"
    for its in (folder, other):
        its.mkdir()
    for file in (folder / "s.py", folder / "small.npz", other / "large.pt"):
        file.touch()
    monkeypatch.chdir(tmp_path)
    settings = {"a": "studies/small.npz", "b": "weights/large.pt", "c": "weights/", "d": "weights", "e": "8/255"}
    source = StudySource(Path("studies/s.py"), tuple(settings.items()), "quick")
    seen = (("a", "small.npz"), ("b", str(other / "large.pt")), ("c", str(other)), ("d", "weights"), ("e", "8/255"))
    assert source.seen_from_its_folder() == (folder, StudySource(Path("s.py"), seen, "quick"))
    in_file = StudySource(Path("studies/s.py:make")).seen_from_its_folder()
    assert in_file == (folder, StudySource(Path("s.py:make")))
    assert StudySource(Path("json:loads")).seen_from_its_folder() == (None, StudySource(Path("json:loads")))
    (tmp_path / "mine.py").touch()
    assert StudySource(Path("mine:study")).seen_from_its_folder() == (tmp_path, StudySource(Path("mine:study")))


def test_what_travels_with_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither runs nor virtual environments; and no more than a limit says."""
    for name in (
        "study.py", "part/more.py", ".git/index", "__pycache__/a.pyc", "venv/pyvenv.cfg", "venv/lib/a.py", ".hidden",
        "old/study.json", "old/units/a.npz", "out/anything.npz",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1234" if "more" in name else b"123")
    found = on_ray.travelling(tmp_path, without=tmp_path / "out")
    assert {file.as_posix(): size for file, size in found.items()} == {"study.py": 3, "part/more.py": 4}
    monkeypatch.setattr(on_ray, "LIMIT", 5)
    with pytest.raises(depura.InputError, match=r"--ray: expected a study in a folder of at most 0 MiB.*more.py"):
        on_ray.travelling(tmp_path, without=tmp_path / "out")
