"""How records scale: size on disk, time and memory of reading them, at one, two and four times a number of images.

    python -m benchmarks.records --images 10000 --attacks 20 --draws 1000

A record is made without a defence: predictions at random, examples at random in the ball around images of 8 bits. Each
command runs in a process of its own, whose peak memory is given; "import only" is what it is without work. Seconds are
of processor time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depura.analysis.summary import summarise
from depura.analysis.verification import file_verdict
from depura.data import files
from depura.records.directory import RunDirectory, Unit
from depura.records.packing import pack
from depura.records.schema import Header, UnitFacts
from depura.reports.export import file_bytes, run_columns
from depura.reports.page import reports, write_reports

UNIT, SIDE, STEPS, EPS, SELECT = 16, 32, 20, 8 / 255, 16
KINDS = ("adaptive", "bpda", "transfer", "black-box", "selective", "targeted", "random")
COMMANDS = ("import only", "summary", "report", "verify", "export", "pack")
"""What is measured, in order; the last one changes the record, and those before are measured again after it."""


def header(images: int, attacks: int, draws: int) -> Header:
    """The header of a record.

    Args:
        images: of the study.
        attacks: how many.
        draws: report draws.

    Returns:
        The header.
    """

    def row(k: int) -> dict[str, Any]:
        kind = KINDS[k % len(KINDS)]
        mode = {"bpda": "bpda", "transfer": "transfer", "black-box": "none", "random": "none"}.get(kind, "exact")
        return {
            "name": f"{kind}-{k}",
            "title": f"attack {k}",
            "kind": kind,
            "mode": mode,
            "null": "null-defence",
            "images": images,
            "judged": "defence",
            "attack": {"type": "depura.PGD", "n_steps": STEPS, "n_restarts": 1, "eot": 5},
        }

    rows = [row(k) for k in range(attacks)]
    names = ["null-defence", *(its["name"] for its in rows)]
    units = [
        {"unit": f"{name}_eps{EPS:.6g}_{first:05d}-{last:05d}", "row": name, "eps": EPS, "first": first, "last": last}
        for name in names
        for first in range(0, images, UNIT)
        for last in [min(first + UNIT, images)]
    ]
    rule = {"type": "depura.Single", "n_draws": 1}
    labels = np.random.default_rng(0).integers(0, 10, images)
    return Header.model_validate(
        {
            "name": "synthetic",
            "seed": 0,
            "data": {
                "name": "synthetic",
                "ids": list(range(images)),
                "labels": labels.tolist(),
                "classes": [f"class {k}" for k in range(10)],
                "shape": [3, SIDE, SIDE],
                "images": {"type": "Tensor", "sha256": "00"},
            },
            "threat_model": {
                "norm": "linf",
                "eps": EPS,
                "knows": "all",
                "family": "l_p",
                "queries": "no limit",
                "resubmissions": "no limit",
                "time_per_image": "no limit",
            },
            "methods": [{"defence": {"type": "depura.Defence", "purifier": {}, "classifier": {}}, "rule": rule}],
            "rows": rows,
            "draws": {"select": SELECT, "report": draws},
            "memory": 1,
            "curve": {"images": images},
            "units": units,
            "versions": {"depura": "0"},
            "code": "00",
        }
    )


def arrays(entry: Any, labels: np.ndarray, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """The arrays of a unit, with the types that a run gives them.

    Args:
        entry: of the header.
        labels: of its images.
        draws: report draws.
        rng: what is drawn from.

    Returns:
        Arrays by name.
    """
    n = len(labels)

    def predictions(k: int, wrong: float) -> np.ndarray:
        rates = rng.beta(0.5, 0.5 * (1 - wrong) / wrong, (n, 1))
        other = rng.integers(0, 10, (n, k))
        return np.where(rng.random((n, k)) < rates, other, labels[:, None]).astype(np.int32)

    made: dict[str, Any] = {
        "ids": np.arange(entry.first, entry.last, dtype=np.int64),
        "labels": labels,
        "margins": rng.standard_normal(n),
        "not_finite": np.zeros(n, dtype=np.int64),
    }
    if entry.row.startswith("null-"):
        return {**made, "predictions": predictions(draws, 0.1), "random_predictions": predictions(draws, 0.12)}
    images = rng.integers(0, 256, (n, 3, SIDE, SIDE)) / 255
    # Most pixels of an example are at the border of the ball.
    inside, border = rng.uniform(-1, 1, images.shape), np.sign(rng.random(images.shape) - 0.5)
    moves: NDArray[np.float64] = np.where(rng.random(images.shape) < 0.7, border, inside)
    wrong = predictions(draws, 0.5)
    return {
        **made,
        "predictions": wrong,
        "rounded_predictions": wrong[:, :SELECT],
        "select_errors": rng.integers(0, SELECT + 1, (n, 2)).astype(np.int32),
        "select_margins": rng.standard_normal(n),
        "chosen": np.ones(n, dtype=np.int32),
        "distance": np.full(n, EPS, dtype=np.float32),
        "farthest": np.full(n, EPS, dtype=np.float32),
        "adversarial": (images + EPS * moves).clip(0, 1).astype(np.float32),
        "loss": rng.standard_normal((n, STEPS)).astype(np.float32),
        "spent": np.full((n, 2), 5 * STEPS, dtype=np.int64),
        "finished": np.full(n, -1, dtype=np.int64),
        "seen_draws": np.full(n, 5 * STEPS, dtype=np.int64),
        "seen_errors": rng.integers(0, 5 * STEPS, n),
        "first_hit": rng.integers(0, 5 * STEPS, n),
        "zero_gradients": np.zeros(n),
        "bad_gradients": np.zeros(n),
        "zero_pixels": np.zeros(n),
        "agreement": rng.random((n, STEPS)),
        "spread": 1 + rng.random((n, STEPS)),
        "picture_rows": np.array([0, n - 1], dtype=np.int32),
        "picture_frames": rng.integers(0, 256, (2, 14, 3, SIDE, SIDE)).astype(np.uint8),
        "picture_titles": np.asarray(["clean", "adversarial", *(f"estimate {k}" for k in range(11)), "purified"]),
    }


def make(folder: Path, images: int, attacks: int, draws: int) -> float:
    """Write a record.

    Args:
        folder: where to.
        images: of the study.
        attacks: how many.
        draws: report draws.

    Returns:
        Seconds that its units took to be committed.
    """
    run, rng, spent = RunDirectory.create(folder, header(images, attacks, draws)), np.random.default_rng(0), 0.0
    labels = np.array(run.header.data.labels)
    for entry in run.header.units:
        facts = {**entry.model_dump(), "device": "cpu", "evaluations": {"attack": (1000, 500), "score": (1000, 0)}}
        unit = Unit(arrays(entry, labels[entry.first : entry.last], draws, rng), UnitFacts.model_validate(facts))
        begun = time.process_time()
        run.commit(unit)
        spent += time.process_time() - begun
    return spent


def work(command: str, folder: Path) -> None:
    """One command on a record, in this process."""
    if command == "summary":
        summarise(RunDirectory.open(folder))
    elif command == "report":
        write_reports(RunDirectory.open(folder))
    elif command == "verify":
        # Without the study: all files and digests, and the reports made anew.
        run = RunDirectory.open(folder)
        print(file_verdict(run)[0].sentence)
        texts = reports(summarise(run))
        there = {name: text for name, text in texts.items() if (folder / name).exists()}
        assert all((folder / name).read_text(encoding="utf-8") == text for name, text in there.items())
    elif command == "export":
        to = folder.with_suffix(".csv")
        files.write_all({to: file_bytes(run_columns(RunDirectory.open(folder)), to)}, where="export")
    elif command == "pack":
        list(pack(RunDirectory.open(folder)))


def measured(command: str, folder: Path) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a command in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.records", "--child", command, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def size(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files of a folder's units."""
    files = [file for file in (folder / "units").iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files), len(files)


def lines(args: argparse.Namespace, work_in: Path) -> Iterator[dict[str, Any]]:
    """Measure all commands at each size.

    Args:
        args: of the command line.
        work_in: folder for the records.

    Yields:
        What was measured, one command after another.
    """
    for times in args.times:
        images, folder = args.images * times, work_in / f"times-{times}"
        units = -(-images // UNIT) * (args.attacks + 1)
        shared = {"images": images, "attacks": args.attacks, "draws": args.draws, "units": units}
        took = make(folder, images, args.attacks, args.draws)
        yield {**shared, "command": "commit", "seconds": took, "bytes": size(folder)[0], "files": size(folder)[1]}
        for command in args.commands:
            seconds, peak = measured(command, folder)
            yield {**shared, "command": command, "seconds": seconds, "peak": peak}
        if "pack" in args.commands:
            yield {**shared, "command": "packed", "seconds": 0.0, "bytes": size(folder)[0], "files": size(folder)[1]}
            for command in args.commands:
                if command not in ("import only", "pack"):
                    seconds, peak = measured(command, folder)
                    yield {**shared, "command": f"{command}, packed", "seconds": seconds, "peak": peak}
        shutil.rmtree(folder)


def main() -> None:
    """Print a table, and JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--attacks", type=int, default=3)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4], help="multiples of --images")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--folder", type=Path, help="for the records; default a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--child", nargs=2, metavar=("COMMAND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        begun = time.process_time()
        work(args.child[0], Path(args.child[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps([time.process_time() - begun, peak]))
        return
    found: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    print(
        f"{'images':>7} {'units':>6}  {'command':<16} {'s':>8} {'s/1000 units':>12} {'ratio':>6} {'peak MiB':>9}  disk"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for line in lines(args, Path(folder)):
            found.append(line)
            seconds, per = line["seconds"], 1000 * line["seconds"] / line["units"]
            ratio = seconds / first.setdefault(line["command"], seconds) if seconds else 0.0
            peak = f"{line['peak'] / 2**20:9.0f}" if "peak" in line else " " * 9
            disk = f"{line['bytes'] / 1e6:.1f} MB in {line['files']} files" if "bytes" in line else ""
            where = f"{line['images']:>7} {line['units']:>6}  {line['command']:<16}"
            print(f"{where} {seconds:>8.2f} {per:>12.2f} {ratio:>6.2f} {peak}  {disk}", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
