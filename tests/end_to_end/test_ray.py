"""Units computed by Ray, on a cluster of nodes that are processes here: lost nodes and killed runs change no byte.

`make test-ray` runs them, in a virtual environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import Depura

pytestmark = pytest.mark.ray
MEMORY = 80 * 2**20

STUDY = """
import json, os, time
from pathlib import Path
import depura
import torch
from depura.evaluation.demo import digits_purifier
from beside import N_STEPS

IN_RAY = "RAY_JOB_ID" in os.environ
pause, said, differs = 0.0, None, False

class Slow(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        begun = time.time()
        time.sleep(pause)
        logits = self.inner(images)
        if said is not None and IN_RAY:
            line = [os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), begun, time.time()]
            with said.open("a") as file:
                file.write(json.dumps(line) + "\\n")
        return logits + (os.getpid() % 100_000) * 1e-6 if differs and IN_RAY else logits

def study(pause_: float = 0.0, said_: Path | None = None, differs_: bool = False):
    global pause, said, differs
    pause, said, differs = pause_, said_, differs_
    data, known = depura.load_digits("test").first(4), 2 * depura.load_digits("train").first(10).images - 1
    purifier = digits_purifier(n_steps=N_STEPS).with_(denoiser=depura.empirical_denoiser(known))
    defence = depura.Defence(purifier, Slow(depura.digits_classifier()))
    attack = depura.PGD(depura.Ball("linf", 0.2), n_steps=1, eot=1)
    rows = depura.attack_suite(defence, attack, without=("undefended", "transfer"))
    draws = {"select_draws": 2, "report_draws": 2, "unit_images": 1, "pictures": 0}
    return depura.Study("brief", data, defence, rows, **draws, reference=False)
"""
"""Thirteen small units, on a denoiser in closed form, by a classifier that takes its time."""

UNITS = 13


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("study") / "study.py"
    file.write_text(STUDY, encoding="utf-8")
    (file.parent / "beside.py").write_text("N_STEPS = 1\n", encoding="utf-8")
    return file


def start(study: Path, out: Path, *options: object) -> Depura:
    """A run in a process of its own, which writes what it says beside its directory."""
    return Depura(["run", study.name, "--out", out, "--yes", *options], study.parent, said=out.with_suffix(".said"))


def said_of(out: Path) -> str:
    return " ".join(out.with_suffix(".said").read_text().split())


def units_in(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / "units").glob("[!.]*.npz")} if out.exists() else {}


def until(out: Path, n: int, process: Depura) -> None:
    """As many units are there; the run must go on."""
    deadline = time.monotonic() + 600
    while len(units_in(out)) < n:
        assert process.poll() is None, said_of(out)
        assert time.monotonic() < deadline, "no more units"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The units of a run in one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert start(study, out, "--workers", 1).wait() in (0, 1)
    units = units_in(out)
    assert len(units) == UNITS
    return units


# Without a cluster.


def children_of(pid: int) -> list[int]:
    """Processes that it started, and that those started."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for its in found:
        found += parents.get(its, [])
    return found


def listening(pids: list[int]) -> list[str]:
    """Addresses at which processes take connections."""
    sockets = set()
    for link in [link for pid in pids for link in Path(f"/proc/{pid}/fd").glob("*")]:
        with contextlib.suppress(OSError):
            sockets.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in sockets:
                raw = bytes.fromhex(local.partition(":")[0])
                raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found.append(socket.inet_ntop(family, raw))
    return found


def test_ray_on_this_machine_listens_to_it_alone_and_ends_with_ctrl_c(
    study: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "run"
    process = start(study, out, "--ray", "local", "-S", "pause_=0.05")
    until(out, 2, process)
    its = children_of(process.pid)
    servers = listening(its)
    assert servers
    assert {address for address in servers if "127.0.0.1" not in address} == set()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert "What is done is kept" in said_of(out)
    assert "Traceback" not in said_of(out)
    kept = units_in(out)
    assert {name: whole[name] for name in kept} == kept
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in its) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in its if Path(f"/proc/{pid}").exists()] == [], "Ray outlives the run"


def test_a_cluster_that_is_not_there(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "run"
    assert start(study, out, "--ray", "auto").wait() == 2
    assert "--ray: expected a cluster at 'auto', got" in said_of(out)
    assert "Traceback" not in said_of(out)


# With one.


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
    try:
        its = Cluster(initialize_head=True, head_node_args=head)
    except Exception:  # a busy machine takes longer to start it than Ray waits
        its = Cluster(initialize_head=True, head_node_args=head)
    yield its
    its.shutdown()


def test_lost_nodes_and_killed_runs_end_in_the_same_bytes(
    study: Path, whole: dict[str, bytes], cluster: Any, tmp_path: Path
) -> None:
    """A node is lost in the middle; then the run is killed; the next is asked to end; the last ends by itself."""
    out, words = tmp_path / "run", ("--ray", cluster.address, "-S", "pause_=0.05")
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
    first = start(study, out, *words)
    until(out, 3, first)
    cluster.remove_node(nodes[0], allow_graceful=False)
    n = len(units_in(out))
    until(out, n + 2, first)
    first.kill()
    kept = units_in(out)
    assert len(kept) < UNITS - 2, "the run was over before it was killed"
    assert {name: whole[name] for name in kept} == kept

    second = start(study, out, *words)
    until(out, len(kept) + 1, second)
    os.kill(second.pid, signal.SIGTERM)
    assert second.wait(60) == 128 + signal.SIGTERM
    kept = units_in(out)
    assert len(kept) < UNITS, "the run was over before it was asked to end"

    # What is left is written by the workers themselves.
    assert start(study, out, "--ray", cluster.address, "--shared").wait() in (0, 1)
    assert units_in(out) == whole
    assert f"{UNITS - len(kept)} of {UNITS} units to do" in said_of(out)


def test_each_of_two_units_at_once_has_a_gpu_of_its_own_and_both_times_the_same_bytes(
    study: Path, whole: dict[str, bytes], cluster: Any, tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=MEMORY)
    out, said = tmp_path / "run", tmp_path / "said"
    words = ("--ray", cluster.address, "--gpus-per-unit", 1, "--device", "cpu", "-S", f"said_={said}")
    assert start(study, out, *words, "-S", "pause_=0.02", "--twice").wait() in (0, 1)
    cluster.remove_node(node, allow_graceful=False)
    assert units_in(out) == whole
    assert "on 2 workers" in said_of(out)
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    gpus = {pid: {gpu for process, gpu, *_ in lines if process == pid} for pid, *_ in lines}
    assert sorted(map(sorted, gpus.values())) == [["0"], ["1"]]
    a, b = ([(begun, ended) for pid, _, begun, ended in lines if pid == its] for its in gpus)
    assert any(x < v and u < y for x, y in a for u, v in b), "never at once"


def test_workers_that_do_not_agree(study: Path, cluster: Any, tmp_path: Path) -> None:
    """Both are named."""
    out = tmp_path / "run"
    node = cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
    words = ("--ray", cluster.address, "-S", "differs_=true", "--twice", "--despite-audit")
    assert start(study, out, *words).wait() == 2
    cluster.remove_node(node, allow_graceful=False)
    host = socket.gethostname()
    assert f"expected the same bytes whoever computes it, got others from {host} (process" in said_of(out)
    assert said_of(out).count(f"{host} (process") == 2
    assert "Traceback" not in said_of(out)


def test_units_that_no_node_has_room_for(study: Path, cluster: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(study, out, "--ray", cluster.address, "--cpus-per-unit", 99).wait() == 2
    assert "--ray: expected a node with 99 CPUs and 0 GPUs, got none" in said_of(out)
