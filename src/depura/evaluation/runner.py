"""Running a study: one unit of work at a time, each committed at once, so that a run may be stopped at any moment.

A unit fixes its own batch composition and the order of its arithmetic, so its bytes do not depend on which worker,
shard or attempt computed it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Told
from depura.audit.audit import audit_gradient
from depura.defence import Defence
from depura.evaluation.counting import Counts, counted
from depura.evaluation.describe import code_sha256, describe
from depura.evaluation.fitting import rows_within
from depura.evaluation.hits import Watched, sees_what_is_judged
from depura.evaluation.indicators import compression, pinned_predictions, random_direction
from depura.evaluation.nothing import identity_difference
from depura.evaluation.records import RecordError, RunDirectory, Unit
from depura.evaluation.scoring import choose, eight_bit, score
from depura.evaluation.shortcuts import compares, shortcuts
from depura.evaluation.source import StudySource
from depura.evaluation.streams import Streams
from depura.evaluation.study import Row, Study, UnitKey, with_eps
from depura.schedules import vp_scale


class RefusedError(RecordError):
    """A run that would give numbers without meaning; the message says why."""


OnUnit = Callable[[UnitKey], None]
"""Told of each unit when it is committed."""

OnShare = Callable[[UnitKey, float], None]
"""Told, while a unit is attacked, of the share of its attack that is done."""

N_ESTIMATES = 10
"""Denoising steps shown of a pictured walk, at most."""


@dataclass(frozen=True)
class Shard:
    """Every n-th unit, beginning with the i-th.

    Attributes:
        index: i, from 0.
        count: n.
    """

    index: int = 0
    count: int = 1


def header(study: Study, *, command: str, source: StudySource | None = None) -> dict[str, Any]:
    """What a run directory says of its study.

    Args:
        study: the study.
        command: how to repeat it.
        source: the study file it came from, if any.

    Returns:
        A JSON value; all but the command and the source must agree for two runs to be of one study. A comparison
        describes each of its methods once, under "methods", and has no "defence" and no "rule" of its own.
    """
    data, ball, compared = study.data, study.ball, study.methods
    return {
        "command": command,
        "source": None if source is None else source.describe(),
        "name": study.name,
        "seed": study.seed,
        "data": {
            "name": data.name,
            "ids": list(data.ids),
            "labels": data.labels.tolist(),
            "classes": list(data.classes),
            "shape": list(data.images.shape[1:]),
            "images": describe(data.images),
        },
        "threat_model": {
            "norm": ball.norm,
            "eps": ball.eps,
            "box": [0, 1],
            "targeted": False,
            "quantised": False,
            "knows": "weights, purifier, step table, law of the noise; not the noise itself",
            "class": "spatial" if ball.norm == "flow" else "l_p",
            "queries": "no limit",
            "resubmissions": "no limit; any-of-N counts N of them",
            "stateful_detection": False,
            "time_per_image": "no limit beyond the attacks' steps",
        },
        "defence": None if compared else describe(study.defence),
        "rule": None if compared else describe(study.defence.rule),
        "note": "" if compared else _remarks(study.defence),
        "methods": [
            {
                "name": name,
                "baseline": name in study.baselines,
                "note": study.notes.get(name, _remarks(defence)),
                "defence": describe(defence),
                "rule": describe(defence.rule),
            }
            for name, defence in compared.items()
        ],
        "rows": [
            {
                "name": row.name,
                "title": row.title,
                "kind": row.kind,
                "method": row.method,
                "route": row.route,
                "null": study.null_of(row),
                "images": study.n_images(row),
                "judged": "defence" if row.method else _judged(study, row),
                "attack": describe(row.attack),
            }
            for row in study.rows
        ],
        "draws": {
            "select": study.select_draws,
            "report": study.report_draws,
            **({"kept": list(study.draws_kept)} if study.draws_kept else {}),
        },
        "memory": study.memory,
        "curve": {
            "eps": list(study.curve_eps),
            "images": min(study.curve_images, len(data.images)),
            "rows": list(study.curve_rows or (row.name for row in study.rows)),
        },
        "units": [{"unit": key.name, **key._asdict()} for key in study.units()],
        "versions": {name: importlib.metadata.version(name) for name in ("depura", "torch", "numpy")},
        "code": code_sha256(),
    }


def _remarks(defence: Defence) -> str:
    return "" if defence.purifier is None else "; ".join(defence.purifier.remarks)


def _judged(study: Study, row: Row) -> str:
    """What a row of no method judges: the undefended classifier, the study's defence or another one."""
    if study.methods:
        return "bare"
    bare = next((other.judged for other in study.rows if other.judged.purifier is None), None)
    return "bare" if row.judged is bare else "defence" if row.judged is study.defence else "other"


def run_unit(
    study: Study, key: UnitKey, *, device: str = "cpu", told: Told | None = None, recorded: Unit | None = None
) -> Unit:
    """Compute one unit.

    Args:
        study: the study.
        key: which unit.
        device: where to compute; the networks of the unit's row are moved there.
        told: called with the share of its attack that is done.
        recorded: of a unit of further draws, the one that has the examples.

    Returns:
        Its record.
    """
    if key.row in study.audits:
        return _audited(study, key, device=device)
    if key.since:
        assert recorded is not None
        return _more_draws(study, key, recorded, device=device)
    row = with_eps(study.row(key.row), key.eps)
    row.against.to(device)
    row.judged.to(device)
    images = study.data.images[key.first : key.last].to(device)
    labels = study.data.labels[key.first : key.last].to(device)
    ids = study.data.ids[key.first : key.last]
    judged, judging = counted(row.judged)
    attacking, more = Counts(), dict[str, Any]()
    if key.row.startswith("null-"):
        arrays, clean = _null(study, row, judged, images, labels, ids, counts=judging)
        more = {"clean": clean}
    else:
        main = key.eps == study.ball.eps
        arrays, attacking = _attacked(study, row, judged, images, labels, ids, main=main, told=told)
    meta = {
        "unit": key.name,
        **key._asdict(),
        "device": device.partition(":")[0],
        "evaluations": {
            "attack": [attacking.forward, attacking.backward],
            "score": [judging.forward, judging.backward],
        },
        **more,
    }
    everything = {"ids": np.asarray(ids, dtype=np.int64), "labels": labels, **arrays}
    return Unit({name: a.cpu().numpy() if isinstance(a, Tensor) else a for name, a in everything.items()}, meta)


def _more_draws(study: Study, key: UnitKey, recorded: Unit, *, device: str) -> Unit:
    """Recorded examples, or clean images and random corners, on draws that they have not been scored on."""
    row, draws = with_eps(study.row(key.row), key.eps), study.draws_of(key)
    judged, counts = counted(row.judged.to(device))
    images = study.data.images[key.first : key.last].to(device)
    labels = study.data.labels[key.first : key.last].to(device)
    ids, streams = study.data.ids[key.first : key.last], Streams(study.seed)
    arrays: dict[str, Any] = {"ids": np.asarray(ids, dtype=np.int64), "labels": labels}
    if key.row.startswith("null-"):
        # Select draws come first in the null's stream, then the clean and the random ones of each stage.
        noise, s, n = streams.null(ids), study.select_draws, len(draws)
        begin = s + 2 * key.since
        scores = score(judged, images, labels, noise, draws=range(begin, begin + n))
        corners = torch.stack([row.attack.ball.corner(images, noise, step=i) for i in range(row.attack.n_candidates)])
        choice = choose(judged, corners, labels, noise, draws=range(s))
        random = score(judged, choice.images, labels, noise, draws=range(begin + n, begin + 2 * n))
        arrays["random_predictions"] = random.predictions.to(torch.int32)
    else:
        examples = torch.from_numpy(recorded.arrays["adversarial"]).to(device)
        scores = score(judged, examples, labels, streams.report(ids), draws=draws)
    arrays |= {"predictions": scores.predictions.to(torch.int32), "margins": scores.margins}
    meta = {
        "unit": key.name,
        **key._asdict(),
        "device": device.partition(":")[0],
        "evaluations": {"attack": [0, 0], "score": [counts.forward, counts.backward]},
    }
    return Unit({name: a.cpu().numpy() if isinstance(a, Tensor) else a for name, a in arrays.items()}, meta)


def _audited(study: Study, key: UnitKey, *, device: str) -> Unit:
    """The audit of a defence's gradient, and the classifier behind a purifier that does nothing."""
    images, labels = study.data.images[: key.last], study.data.labels[: key.last]
    ids, defence = study.data.ids[: key.last], study.audits[key.row]
    found = audit_gradient(defence, images, ids=ids, seed=study.seed, device=device)
    meta = {
        "unit": key.name,
        **key._asdict(),
        "device": device.partition(":")[0],
        "evaluations": {"attack": [0, 0], "score": [0, 0]},
        "audit": {
            "light": found.light.name,
            "verdict": found.verdict,
            "checks": [[c.name, c.light.name, c.sentence, _finite(c.measured)] for c in found.checks],
            "faults": [list(fault) for fault in found.faults],
        },
        "identity": identity_difference(defence, study.data.images.to(device), seed=study.seed),
    }
    return Unit({"ids": np.asarray(ids, dtype=np.int64), "labels": labels.numpy()}, meta)


def _finite(measured: float | None) -> float | None:
    """JSON has no other numbers."""
    return measured if measured is not None and math.isfinite(measured) else None


def _attacked(
    study: Study,
    row: Row,
    judged: Defence,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    *,
    main: bool,
    told: Told | None,
) -> tuple[dict[str, Any], Counts]:
    streams = Streams(study.seed)
    against, attacking = counted(row.against)
    rows = rows_within(row.against, images[:1], study.memory)
    model = Watched(against, ids, labels)
    found = row.attack(model, images, labels, init=streams.init(ids), eot=streams.eot(ids), rows=rows, told=told)
    _in_range(found.images, row.name)
    choice = choose(judged, found.images, labels, streams.select(ids), draws=range(study.select_draws))
    scores = score(judged, choice.images, labels, streams.report(ids), draws=range(study.first_draws))
    rounded = score(judged, eight_bit(choice.images), labels, streams.report(ids), draws=study.rounded_draws)
    arrays: dict[str, Any] = {
        "predictions": scores.predictions.to(torch.int32),
        "margins": scores.margins,
        "rounded_predictions": rounded.predictions.to(torch.int32),
        "select_errors": choice.errors.T.to(torch.int32),
        "select_margins": choice.margins,
        "chosen": choice.which.to(torch.int32),
        "distance": row.attack.ball.distance(choice.images, images),
        "farthest": torch.stack([row.attack.ball.distance(c, images) for c in found.images]).amax(0),
        "adversarial": choice.images,
        "loss": found.loss.T.contiguous(),
        "spent": found.spent,
        "finished": found.finished,
    }
    if sees_what_is_judged(row):
        arrays |= {"seen_draws": model.draws, "seen_errors": model.errors, "first_hit": model.first}
    if found.gradients is not None:
        seen = found.gradients
        arrays |= {
            "zero_gradients": seen.zero,
            "bad_gradients": seen.bad,
            "zero_pixels": seen.zero_pixels,
            "agreement": seen.agreement.T.contiguous(),
            "spread": seen.spread.T.contiguous(),
        }
    if main and compares(row):
        draws = range(row.attack.cost.at_once)
        compared = shortcuts(against, images, labels, streams.probe(ids), draws=draws, rows=rows)
        arrays |= {"cosine_bpda": compared.bpda, "cosine_surrogate": compared.surrogate}
    if main and row.judged.purifier is not None:
        arrays |= _indicators(study, judged, images, choice.images, ids)
    if main and study.pictures and row.judged.purifier is not None:
        arrays |= _pictures(study, judged, images, choice.images, scores.errors(labels), ids)
    return arrays, attacking


def _indicators(study: Study, judged: Defence, images: Tensor, chosen: Tensor, ids: Sequence[int]) -> dict[str, Tensor]:
    """What is told without gradients: how much of a perturbation is left, and predictions under one tape for all."""
    noise = Streams(study.seed).select(ids).draw(study.select_draws)  # the first that nothing else uses
    lengths = (chosen - images).to(torch.float64).flatten(1).square().sum(1).sqrt()
    random = random_direction(images, lengths, noise)
    return {
        "compression": compression(judged, images, chosen, noise),
        "compression_random": compression(judged, images, random, noise),
        "pinned_predictions": pinned_predictions(judged, chosen, noise).to(torch.int32),
        "pinned_clean": pinned_predictions(judged, images, noise).to(torch.int32),
    }


def _null(
    study: Study, row: Row, judged: Defence, images: Tensor, labels: Tensor, ids: Sequence[int], *, counts: Counts
) -> tuple[dict[str, Any], dict[str, int]]:
    """The scorer on clean images, and on random corners of the ball chosen as an attack's candidates are.

    With it what the predictions of clean images cost: how many there were, and evaluations of the denoiser.
    """
    noise, s, k = Streams(study.seed).null(ids), study.select_draws, study.first_draws
    clean = score(judged, images, labels, noise, draws=range(s, s + k))
    cost = {"predictions": clean.predictions.numel(), "evaluations": counts.forward}
    corners = torch.stack([row.attack.ball.corner(images, noise, step=i) for i in range(row.attack.n_candidates)])
    choice = choose(judged, corners, labels, noise, draws=range(s))
    random = score(judged, choice.images, labels, noise, draws=range(s + k, s + 2 * k))
    arrays = {
        "predictions": clean.predictions.to(torch.int32),
        "margins": clean.margins,
        "random_predictions": random.predictions.to(torch.int32),
    }
    return arrays, cost


def _pictures(
    study: Study, defence: Defence, images: Tensor, adversarial: Tensor, errors: Tensor, ids: Sequence[int]
) -> dict[str, Any]:
    """The walk of report draw 0 for the images with the most errors and for those with the fewest: frames
    (P, F, C, H, W) in 8 bits, and their titles.

    Frames are: clean, adversarial, noised, some estimates of the clean image, purified.
    """
    shown = _extremes(errors, study.pictures)
    chosen = adversarial[shown]
    noise = Streams(study.seed).report([ids[int(i)] for i in shown])
    noise = noise.split(defence.rule.n_draws).take(range(0, len(shown) * defence.rule.n_draws, defence.rule.n_draws))
    assert defence.purifier is not None
    walk = list(defence.purifier.trajectory(chosen, noise))
    steps = sorted({round(i * (len(walk) - 1) / (N_ESTIMATES - 1)) for i in range(N_ESTIMATES)})
    first = walk[0]
    frames = [images[shown], chosen, _unit_range(vp_scale(first.step.sigma) * first.x)]
    titles = ["clean", "adversarial", f"noised, sigma {first.step.sigma:.2f}"]
    for i in steps:
        frames.append(_unit_range(walk[i].x0))
        titles.append(f"estimate at sigma {walk[i].step.sigma:.2f}")
    with torch.no_grad():
        frames.append(defence.purifier(chosen, noise))
    titles.append("purified")
    size = frames[0].shape[2:]
    if any(f.shape[2:] != size for f in frames):
        frames = [torch.nn.functional.interpolate(f, size=size, mode="nearest") for f in frames]
    stack = torch.stack(frames, dim=1)
    return {
        "picture_rows": shown.to(torch.int32),
        "picture_frames": (stack.clamp(0, 1) * 255).round().to(torch.uint8),
        "picture_titles": np.asarray(titles),
    }


def _extremes(errors: Tensor, n: int) -> Tensor:
    """Positions of n images: half of them (rounded up) with the most errors, worst first, then the luckiest."""
    order = torch.argsort(errors, descending=True, stable=True)
    n = min(n, len(order))
    return torch.cat([order[: n - n // 2], order[len(order) - n // 2 :]])


def run(
    study: Study,
    out: Path,
    *,
    command: str = "",
    shard: Shard | None = None,
    device: str = "cpu",
    on_unit: OnUnit | None = None,
    despite_audit: bool = False,
) -> RunDirectory:
    """Compute what is missing of a study, in this process.

    Args:
        study: the study.
        out: run directory, new or of the same study.
        command: how to repeat it, for the report.
        shard: which part of the units; default all.
        device: where to compute, as torch names it.
        on_unit: told of each unit when it is committed.
        despite_audit: go on though the audit of a gradient is red; there will be no headline.

    Returns:
        The run directory.

    Raises:
        RefusedError: a red audit; nothing is attacked then.
    """
    _check.device("run", device)
    directory = RunDirectory.create(out, header(study, command=command))
    todo = missing(study, directory, shard)
    compute(study, directory, todo, device=device, on_unit=on_unit, despite_audit=despite_audit)
    return directory


def compute(
    study: Study,
    directory: RunDirectory,
    todo: Sequence[UnitKey],
    *,
    device: str = "cpu",
    on_unit: OnUnit | None = None,
    on_share: OnShare | None = None,
    despite_audit: bool = False,
) -> None:
    """Compute units in this process, audits of gradients first.

    Args:
        study: the study.
        directory: its run directory.
        todo: the units.
        device: where to compute.
        on_unit: told of each unit when it is committed.
        on_share: told of the progress within a unit.
        despite_audit: go on though the audit of a gradient is red; there will be no headline.

    Raises:
        RefusedError: a red audit; nothing is attacked then.
    """
    _compute(study, directory, [key for key in todo if key.row in study.audits], device, on_unit, on_share)
    if not despite_audit:
        admit(study, directory)
    _compute(study, directory, [key for key in todo if key.row not in study.audits], device, on_unit, on_share)


def admit(study: Study, directory: RunDirectory) -> None:
    """Refuse to go on where the audit of a defence's gradient is red.

    Args:
        study: the study.
        directory: its run directory; all audits must be done.

    Raises:
        RefusedError: a red audit.
    """
    for key in study.units():
        if key.row in study.audits:
            audit = directory.load(key.name).meta["audit"]
            if audit["light"] == "RED":
                found = " ".join(fault[1] for fault in audit["faults"])
                found = found or " ".join(check[2] for check in audit["checks"] if check[1] == "RED")
                raise RefusedError(
                    f"run refused: an attack by this gradient would say nothing ({key.row}). {audit['verdict']} "
                    f"{found} "
                    "Mend it, or go on without a headline by --despite-audit."
                )


def _compute(
    study: Study,
    directory: RunDirectory,
    todo: Sequence[UnitKey],
    device: str,
    on_unit: OnUnit | None,
    on_share: OnShare | None,
) -> None:
    for key in todo:
        told = None if on_share is None else partial(on_share, key)
        recorded = _recorded(directory, key)
        directory.commit(key.name, run_unit(study, key, device=device, told=told, recorded=recorded))
        if on_unit is not None:
            on_unit(key)


def compute_parallel(
    study: Study,
    source: StudySource,
    directory: RunDirectory,
    todo: Sequence[UnitKey],
    *,
    workers: int,
    device: str = "cpu",
    on_unit: OnUnit | None = None,
    despite_audit: bool = False,
) -> None:
    """Compute units in several processes of one thread each; audits of gradients first, in this one.

    Args:
        study: the study.
        source: where the study comes from; every worker loads it by itself.
        directory: its run directory.
        todo: the units, at least one.
        workers: processes.
        device: where to compute.
        on_unit: told of each unit when it is committed.
        despite_audit: go on though the audit of a gradient is red; there will be no headline.

    Raises:
        RefusedError: a red audit; nothing is attacked then.
        RecordError: a worker was killed.
    """
    audits = [key for key in todo if key.row in study.audits]
    compute(study, directory, audits, device=device, on_unit=on_unit, despite_audit=despite_audit)
    todo = [key for key in todo if key.row not in study.audits]
    if not todo:
        return
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(todo)),
        mp_context=get_context("spawn"),
        initializer=_begin_worker,
        initargs=(source, directory, device, os.getpid()),
    )
    try:
        # Further draws of an example need the unit that has it.
        for stage in ([key for key in todo if not key.since], [key for key in todo if key.since]):
            with _interrupts_ignored():
                jobs = {pool.submit(_work, key): key for key in stage}
            for job in as_completed(jobs):
                job.result()
                if on_unit is not None:
                    on_unit(jobs[job])
    except BrokenProcessPool as error:
        raise RecordError(
            "run: expected every worker to live, but one was ended from outside (perhaps for want of memory). "
            "What is done is kept; give the same command again, with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def missing(study: Study, directory: RunDirectory, shard: Shard | None = None) -> tuple[UnitKey, ...]:
    """Units not yet done, in order; those that are done are read once, so that damage is found before the work begins.

    Args:
        study: the study.
        directory: its run directory.
        shard: which part of the units; default all. Audits of gradients belong to every part.

    Returns:
        The keys.

    Raises:
        RecordError: a damaged unit, or files that are no units of this study.
    """
    shard = Shard() if shard is None else shard
    if not 0 <= shard.index < shard.count:
        _check.fail("run", "a shard i/n with 0 <= i < n", f"{shard.index}/{shard.count}", "Shards count from 0.")
    foreign = list(directory.foreign())
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise RecordError(
            f"run directory {directory.path}: expected only units of this study, got {foreign[0]}{more}. "
            "Move what is foreign away; what was recorded is kept."
        )
    audits = [key for key in study.units() if key.row in study.audits]
    others = [key for key in study.units() if key.row not in study.audits]
    part = {key._replace(since=0) for key in [k for k in others if not k.since][shard.index :: shard.count]}
    keys = (*audits, *(key for key in others if key._replace(since=0) in part))
    for key in keys:
        if directory.has(key.name):
            directory.read(key.name)
    return tuple(key for key in keys if not directory.has(key.name))


_worker: list[tuple[Study, RunDirectory, str]] = []


def _begin_worker(source: StudySource, directory: RunDirectory, device: str, parent: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker.append((source.load(), directory, device))


@contextlib.contextmanager
def _interrupts_ignored() -> Generator[None, None, None]:
    """Processes started meanwhile ignore Ctrl-C from their first moment on.

    It reaches the whole process group: the parent stops handing out work, workers finish the unit under way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _work(key: UnitKey) -> None:
    study, directory, device = _worker[0]
    directory.commit(key.name, run_unit(study, key, device=device, recorded=_recorded(directory, key)))


def _recorded(directory: RunDirectory, key: UnitKey) -> Unit | None:
    """The examples that a unit of further draws is about."""
    return directory.read(key._replace(since=0).name) if key.since else None


def _end_with(parent: int) -> None:
    """Leave when the parent is gone: a killed run must not leave workers behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _in_range(candidates: Tensor, name: str) -> None:
    """No defence takes other images. That candidates are in the ball is checked on the record."""
    if not bool(((candidates >= 0) & (candidates <= 1)).all()):
        low, high = float(candidates.min()), float(candidates.max())
        _check.fail(f"row {name}", "candidates in [0, 1]", f"values in [{low:.6g}, {high:.6g}]", "Mend the attack.")


def _unit_range(x: Tensor) -> Tensor:
    return (x + 1) / 2
