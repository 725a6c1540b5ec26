"""Whether a record holds: what can be recomputed of it. What is said of it is in `depura.analysis.verification`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.evaluation.rescoring import rebuilt
from depura.evaluation.scoring import score
from depura.evaluation.study import Study, UnitKey, with_eps
from depura.evaluation.study_file import StudySource
from depura.evaluation.units import run_unit
from depura.evaluation.without_images import examples_of, without_images
from depura.noise import Stream
from depura.records.directory import RecordError, RunDirectory, Unit, difference
from depura.records.kinds import NOT_FINITE, AttackKind
from depura.records.schema import Header, UnitEntry
from depura.statistics.intervals import Recount, Remade

T = TypeVar("T")

CODE = ("versions", "code")
"""Parts of a header that say what computed a record; the others say what was computed."""

NOT_OF_THE_STUDY = ("schema", "command", "source", "extensions", "left_out")
"""Parts of a header that a study rebuilt says nothing of."""


class Difference(NamedTuple):
    """A part of a header that a study rebuilt has otherwise.

    Attributes:
        part: its name.
        sentence: the first place, and both values.
    """

    part: str
    sentence: str


def differences(recorded: Header, rebuilt: Header) -> tuple[Difference, ...]:
    """Parts in which the header of a run and that of its study, built anew, differ, in the order of their names."""
    there, here = recorded.as_json(), rebuilt.as_json()
    if recorded.data.outputs is None:  # layout 5 did not say
        here["data"]["outputs"] = None
    if recorded.data.choice is None:  # records of before did not say
        here["data"]["choice"] = None
    parts = sorted(set(here) - set(NOT_OF_THE_STUDY))
    texts = ((part, difference(there[part], here[part], part)) for part in parts)
    return tuple(Difference(part, sentence) for part, sentence in texts if sentence)


def faults(unit: Unit, study: Study, *, outputs: int) -> tuple[str, ...]:
    """What cannot be true in the record of a unit.

    Args:
        unit: as it was read.
        study: what it is a unit of.
        outputs: how many logits its classifiers give.

    Returns:
        Sentences, none of a sound record: images, labels and ids are the study's; predictions are classes or not
        finite; counts are counts of the draws; examples lie in their ball and in [0, 1], at the distance recorded.
    """
    arrays, facts = unit.arrays, unit.facts
    part = slice(facts.first, facts.last)
    try:
        checks = [
            ("ids", np.array_equal(arrays["ids"], np.asarray(study.data.ids[part]))),
            ("labels", np.array_equal(arrays["labels"], study.data.labels[part].numpy())),
        ]
        if facts.row not in study.audits:
            checks += _said(arrays, study, outputs)
            if not facts.row.startswith("null-"):
                checks += _made(unit, study)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        return (f"{facts.unit}: its arrays do not fit together ({type(error).__name__}: {error})",)
    return tuple(f"{facts.unit}: {what}" for what, holds in checks if not holds)


def _said(arrays: Mapping[str, NDArray[Any]], study: Study, outputs: int) -> Iterator[tuple[str, bool]]:
    """That predictions are outputs of the classifier or not finite, and that there are as many as there were draws."""
    n = len(arrays["ids"])
    draws = {"predictions": study.report_draws, "random_predictions": study.report_draws}
    draws["rounded_predictions"] = len(study.rounded_draws)
    for name, k in draws.items():
        if name in arrays or name == "predictions":
            found = arrays[name]
            known = (found >= NOT_FINITE) & (found < outputs)
            yield f"{name} are not of {n} images and {k} draws", found.shape == (n, k)
            yield f"{name} are not all among the {outputs} outputs", bool(known.all())


def _made(unit: Unit, study: Study) -> Iterator[tuple[str, bool]]:
    """That candidates were counted on the draws there were, and that examples are where they may be."""
    arrays, facts = unit.arrays, unit.facts
    errors, chosen = arrays["select_errors"], arrays["chosen"]
    row = with_eps(study.row(facts.row), facts.eps)
    counted = (errors >= 0) & (errors <= study.select_draws)
    yield f"select_errors are not all from 0 to {study.select_draws} draws", bool(counted.all())
    yield "chosen is not one of the candidates", bool(((chosen >= 0) & (chosen < errors.shape[1])).all())
    most = errors[np.arange(len(chosen)), np.clip(chosen, 0, errors.shape[1] - 1)]
    yield "chosen is not a candidate of the most errors", np.array_equal(most, errors.max(1))
    images, examples = study.data.images[facts.first : facts.last], examples_of(unit, study)
    allowed = row.attack.ball.contains(examples, images)
    out = ", ".join(str(i) for i in arrays["ids"][~allowed.numpy()][:5])
    yield f"examples of image {out} are not within {row.attack.ball} and [0, 1]", bool(allowed.all())
    again = row.attack.ball.distance(examples, images).numpy()
    yield "distance is not that of the examples", np.allclose(again, arrays["distance"], rtol=1e-5, atol=1e-6)


def picked(n: int, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """A share of n images, at least one: distinct positions, in order."""
    return np.sort(rng.choice(n, size=max(1, math.ceil(share * n)), replace=False))


def recount(study: Study, units: Sequence[Unit], *, share: float = 0.05, seed: int = 0, device: str = "cpu") -> Recount:
    """Score a random share of a row's recorded examples once more, on draws that nothing else has used.

    Args:
        study: the study.
        units: of one row, or of one null baseline (whose examples are the clean images), at one radius.
        share: of the images, in (0, 1]; at least one is taken.
        seed: of the choice of images. The draws are those of the study's verify stream.
        device: where to compute.

    Returns:
        Wrong draws of each image taken, as recorded and now.

    Raises:
        InputError: a share outside (0, 1].
    """
    _check.number("verify", "share", share, low=0.0, high=1.0, low_open=True)
    name = units[0].facts.row
    judged = study.row(name).evaluated.to(device)
    joined = {key: np.concatenate([unit.arrays[key] for unit in units]) for key in ("ids", "labels", "predictions")}
    which = picked(len(joined["ids"]), share, np.random.default_rng(seed))
    examples = _examples(study, units, which, clean=name.startswith("null-"))
    ids, predictions = [int(i) for i in joined["ids"][which]], joined["predictions"][which]
    labels = torch.from_numpy(joined["labels"][which]).to(device)
    draws = range(predictions.shape[1])
    again = score(judged, examples.to(device), labels, study.noise(Stream.VERIFY, ids), draws=draws)
    return Recount(
        row=name,
        draws=len(draws),
        recorded=(predictions != joined["labels"][which][:, None]).sum(1),
        again=again.errors(labels).cpu().numpy(),
    )


def _examples(study: Study, units: Sequence[Unit], which: NDArray[np.int64], *, clean: bool) -> Tensor:
    """Some examples, or clean images, of several units, by their positions among all; no other unit's are read."""
    found: list[Tensor] = []
    first = 0
    for unit in units:
        its = slice(unit.facts.first, unit.facts.last)
        places = which[(which >= first) & (which < first + its.stop - its.start)] - first
        first += its.stop - its.start
        if len(places):
            found.append((study.data.images[its] if clean else examples_of(unit, study))[places])
    return torch.cat(found)


def recounts(
    run: RunDirectory,
    source: StudySource,
    names: Sequence[str],
    *,
    share: float,
    seed: int,
    device: str,
    processes: int,
) -> list[Recount]:
    """Score a random share of the examples of some rows once more, each row in a process of its own.

    A defence that keeps something from one call to the next has it from no other row then.

    Args:
        run: the run.
        source: where its study comes from.
        names: of rows and clean baselines, in the order in which they are begun.
        share: of the images, in (0, 1].
        seed: of the choice of images.
        device: where to compute.
        processes: at once.

    Returns:
        One recount for each name.
    """
    work = partial(_recounted, run.path, source, share=share, seed=seed, device=device)
    return in_processes(work, names, processes)


def _recounted(path: Path, source: StudySource, name: str, *, share: float, seed: int, device: str) -> Recount:
    torch.set_num_threads(1)
    run = RunDirectory.open(path)
    study = rebuilt(run.header, source)
    own = [entry for entry in run.header.units if (entry.row, entry.eps) == (name, study.ball.eps)]
    units = [run.load(entry.unit) for entry in own if run.has(entry.unit)]
    return recount(study, units, share=share, seed=seed, device=device)


def remakes(run: RunDirectory, source: StudySource, names: Sequence[str], *, device: str) -> list[Remade]:
    """Make units again, each in a process of its own, and compare them with the record."""
    return in_processes(partial(_remade_anew, run.path, source, device=device), names, 1)


def _remade_anew(path: Path, source: StudySource, name: str, *, device: str) -> Remade:
    torch.set_num_threads(1)
    run = RunDirectory.open(path)
    study = rebuilt(run.header, source)
    return remade(study, run.load(name), device=device)


def in_processes(work: Callable[[str], T], names: Sequence[str], processes: int) -> list[T]:
    """The results of a piece of work, which can be pickled, for each name, each in a fresh process, so many at once.

    A `RecordError` where a process was killed.
    """
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        # Fresh processes are forked from one that has imported this module and done nothing else.
        context.set_forkserver_preload([__name__])

    def alone(name: str) -> T:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(work, name).result()

    try:
        with ThreadPoolExecutor(max(1, processes)) as threads:
            return list(threads.map(alone, names))
    except BrokenProcessPool as error:
        raise RecordError(
            "verify: expected every process to live, but one was ended from outside (perhaps for want of memory). "
            "Give a smaller --share."
        ) from error


def remade(study: Study, unit: Unit, *, device: str = "cpu") -> Remade:
    """Make a recorded unit of an attack again: the attack, the choice among its candidates, and the scores.

    Pictures are not compared; of a record without images, the differences from the images are.
    """
    facts, recorded = unit.facts, unit.arrays
    again = run_unit(study, UnitKey(facts.row, facts.eps, facts.first, facts.last), device=device)
    new = again.arrays if "adversarial" in recorded else without_images(again, study).arrays
    names = sorted(name for name in recorded if not name.startswith("picture_"))
    differing = tuple(name for name in names if name not in new or recorded[name].tobytes() != new[name].tobytes())
    labels = recorded["labels"][:, None]
    wrong = ((a["predictions"] != labels).sum(1) for a in (recorded, new))
    return Remade(facts.unit, differing, Recount(facts.row, recorded["predictions"].shape[1], *wrong))


def to_remake(header: Header, entries: Sequence[UnitEntry], *, n: int, seed: int = 0) -> tuple[UnitEntry, ...]:
    """Some of the units that are there, drawn at random from those of the attacks that the headline rests on.

    Of adaptive attacks if there are any, else of any that attack what is judged; none of rescored runs, whose attacks
    are in another run.
    """
    if header.rescored_from is not None:
        return ()
    kinds = {row.name: row.kind for row in header.rows if row.attacks_defence}
    own = [entry for entry in entries if kinds.get(entry.row) in (AttackKind.ADAPTIVE, AttackKind.RELAXED)]
    own = own or [entry for entry in entries if entry.row in kinds]
    chosen = np.random.default_rng(seed).permutation(len(own))[:n]
    return tuple(own[int(k)] for k in sorted(chosen))
