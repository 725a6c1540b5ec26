"""Options that say where a run is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
import typer

from depura import _check
from depura.cli.console import seconds
from depura.evaluation.answer_log import EVERY
from depura.evaluation.executors import Executor, InProcess, OnShare, Processes, cores
from depura.evaluation.on_ray import Cluster, OnRay
from depura.evaluation.runner import Shard
from depura.evaluation.study import Study
from depura.evaluation.study_file import StudySource
from depura.records.directory import RunDirectory

Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
Workers = Annotated[int | None, typer.Option(help="Processes; default: one per core.")]

OneDevice = Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...", show_default="cpu")]
Devices = Annotated[
    str, typer.Option(help="A worker for each of these devices: cuda:0,cuda:1, or all, for all GPUs.", metavar="NAMES")
]
Ray = Annotated[
    str,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Compute by Ray: local starts it here, auto takes the cluster of this node, else a cluster's address.",
    ),
]
GpusPerUnit = Annotated[
    float | None, typer.Option(help="With --ray: GPUs of a worker, e.g. 1 or 0.5.", show_default="0")
]
CpusPerUnit = Annotated[float | None, typer.Option(help="With --ray: cores kept for a worker.", show_default="1")]
Twice = Annotated[
    bool, typer.Option("--twice", help="With --ray: compute each unit twice, on two nodes, and compare the bytes.")
]
SharedDisk = Annotated[
    bool, typer.Option("--shared", help="With --ray: --out is on a disk that all nodes have, and workers write there.")
]


CheckpointEvery = Annotated[
    str,
    typer.Option(
        metavar="TIME", help="How often a unit under way keeps what it was answered, e.g. 5min or 30s; or never."
    ),
]


def every(text: str) -> float | None:
    """Seconds of --checkpoint-every; None for never."""
    return None if text == "never" else seconds("--checkpoint-every", text)


class Machine(NamedTuple):
    """Where a run is computed; no part of its study.

    Attributes:
        devices: one for each worker, as torch names it.
        shard: which part of the units.
        budget: seconds that need no further word; None for any.
        cluster: of Ray, if it is to compute; then there is one device.
        every: seconds after which what a unit under way was answered is kept; None for never.
    """

    devices: Sequence[str]
    shard: Shard
    budget: float | None
    cluster: Cluster | None = None
    every: float | None = EVERY

    def executor(
        self, study: Study, source: StudySource, directory: RunDirectory, *, on_share: OnShare | None = None
    ) -> Executor:
        """What computes the units of a study; `on_share` is told of progress within a unit, in this process only."""
        if self.cluster is not None:
            return OnRay(study, source, directory, self.cluster, device=self.devices[0], every=self.every)
        if len(self.devices) > 1:
            return Processes(study, source, directory, devices=self.devices, every=self.every)
        return InProcess(study, directory, device=self.devices[0], on_share=on_share, source=source, every=self.every)


def workers_of(asked: int | None, device: str) -> int:
    """Processes, at least 1: as asked, else one per core, or one where a GPU does the work."""
    default = cores() if device == "cpu" else 1
    return _check.integer("run", "workers", default if asked is None else asked, low=1)


def one_kind(workers: int | None, device: str) -> tuple[str, ...]:
    """Devices of workers that compute on the same one."""
    _check.device("--device", device)
    return (device,) * workers_of(workers, device)


def devices_of(names: str, *, workers: int | None, device: str | None) -> tuple[str, ...]:
    """One device for each worker.

    Args:
        names: what --devices says: names with commas between them, "all" for all GPUs, or empty. A name that comes
            twice has two workers.
        workers: what --workers says.
        device: what --device says.

    Returns:
        Names of devices that are there.

    Raises:
        InputError: a device that is not there, or options that exclude each other.
    """
    if not names:
        return one_kind(workers, "cpu" if device is None else device)
    if workers is not None or device is not None:
        other = "--workers" if workers is not None else "--device"
        _check.fail("--devices", f"no {other}, as there is one worker for each device", f"both --devices and {other}")
    if names == "all":
        found = torch.cuda.device_count()
        if not found:
            _check.fail("--devices all", "at least one GPU", "none", "Give --workers, to compute on the CPU.")
        return tuple(f"cuda:{i}" for i in range(found))
    return tuple(_check.device("--devices", name.strip()) for name in names.split(","))


def cluster_of(
    address: str,
    *,
    cpus: float | None,
    gpus: float | None,
    workers: int | None,
    twice: bool,
    shared: bool,
    others: Sequence[str] = (),
) -> Cluster | None:
    """What is asked of Ray; None if nothing.

    Args:
        address: what --ray says.
        cpus: what --cpus-per-unit says.
        gpus: what --gpus-per-unit says.
        workers: what --workers says.
        twice: whether each unit is computed twice.
        shared: whether workers write.
        others: options that are given and that Ray excludes.

    Returns:
        The request.

    Raises:
        InputError: an option without --ray that needs it, one that it excludes, or a share that there is not.
    """
    needing = {"--cpus-per-unit": cpus, "--gpus-per-unit": gpus, "--twice": twice or None, "--shared": shared or None}
    given = [name for name, value in needing.items() if value is not None]
    if not address:
        if given:
            _check.fail(given[0], "--ray with it", "none", "Without Ray see --workers and --devices.")
        return None
    for other in others:
        _check.fail("--ray", f"no {other}", "both", "Ray finds the workers by itself.")
    if twice and shared:
        _check.fail("--twice", "no --shared, as what comes first is not written before it is compared", "both")
    return Cluster(
        address,
        cpus=_check.number("run", "--cpus-per-unit", 1.0 if cpus is None else cpus, low=0, low_open=True),
        gpus=_check.number("run", "--gpus-per-unit", 0.0 if gpus is None else gpus, low=0, high=1),
        workers=None if workers is None else _check.integer("run", "workers", workers, low=1),
        twice=twice,
        shared=shared,
    )
