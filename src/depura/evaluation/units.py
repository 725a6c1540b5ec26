"""One unit of work: an audit, a clean baseline, or an attack with its scores and pictures.

A unit fixes its own batch composition and the order of its arithmetic, so its bytes do not depend on which worker,
shard or attempt computed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Progress
from depura.audit.audit import audit_gradient
from depura.audit.checks import Check, Light
from depura.audit.probes import error_line
from depura.data.origins import others_of
from depura.defence import Defence
from depura.diffusion.schedules import Step, vp_scale
from depura.evaluation.answer_log import AnswerLog, Counter
from depura.evaluation.counting import Counts, counted, counted_into, rows_within
from depura.evaluation.data_checks import IMAGES, bare_margins, purification_errors
from depura.evaluation.diagnostics import (
    Watched,
    compares,
    compression,
    identity_difference,
    pinned_predictions,
    random_direction,
    sees_what_is_judged,
    shortcuts,
)
from depura.evaluation.examples import POINTS, Attacked, along_the_way, by_gradients, in_contexts
from depura.evaluation.originals import Originals
from depura.evaluation.scoring import Scores, choose, eight_bit, score
from depura.evaluation.study import AttackRun, Study, UnitKey, with_eps
from depura.noise import Kind, Noise, Stream
from depura.records.directory import Unit
from depura.records.kinds import AttackKind, GradientMode
from depura.records.schema import Audit, AuditCheck, AuditFault, AuditLight, CleanCost, Evaluations, Identity, UnitFacts

THROUGH = (AttackKind.ADAPTIVE, AttackKind.RELAXED)
"""Attacks through the defence, at whose examples it is looked at once more."""

N_ESTIMATES = 10
"""Denoising steps shown of a pictured purification, at most."""


def run_unit(
    study: Study,
    key: UnitKey,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    originals: Originals | None = None,
    log: AnswerLog | None = None,
) -> Unit:
    """Compute one unit.

    Args:
        study: the study.
        key: which unit.
        device: where to compute; the networks of the unit's row are moved there.
        progress: called with the share of its attack that is done.
        originals: of the study before anything was computed; default taken now.
        log: of the answers that an interrupted computation of this unit has had; the caller removes it afterwards.

    Returns:
        Its record.
    """
    if key.row in study.audits:
        return _audited(study, key, device=device)
    row = with_eps(study.row(key.row), key.eps)
    whose = examined(study, row, key)
    if whose is not None and originals is None:
        originals = Originals(study)
    row.attacked.to(device)
    row.evaluated.to(device)
    images = study.data.images[key.first : key.last].to(device)
    labels = study.data.labels[key.first : key.last].to(device)
    ids = study.data.ids[key.first : key.last]
    judged, judging = counted(row.evaluated)
    attacking, clean, rows, checks = Counts(), None, None, tuple[AuditCheck, ...]()
    if log is not None:
        log.counters = tuple(Counter(its.numbers, its.add) for its in (judging, attacking))
    if key.row.startswith("null-"):
        arrays, clean = null(study, row, judged, images, labels, ids, counts=judging, log=log)
    else:
        against = counted_into(row.attacked, attacking)
        main = key.eps == study.ball.eps
        rows = rows_within(row.attacked, images[:1], study.memory)
        arrays = _attacked(
            study, row, against, judged, images, labels, ids, main=main, rows=rows, progress=progress, log=log
        )
    looking = Counts()
    if whose is not None and originals is not None:
        found = Attacked(
            images, arrays["adversarial"], labels, ids, arrays["predictions"], study.noise(Stream.REPORT, ids)
        )
        checks, looking = _at_examples(study, row, found, originals.of(whose, device), rows=rows, device=device)
    facts = UnitFacts(
        unit=key.name,
        **key._asdict(),
        device=device.partition(":")[0],
        evaluations=Evaluations(
            attack=(attacking.forward, attacking.backward),
            score=(judging.forward, judging.backward),
            checks=(looking.forward, looking.backward),
        ),
        rows_at_once=rows,
        clean=clean,
        at_examples=checks,
    )
    return Unit(on_cpu({"ids": np.asarray(ids, dtype=np.int64), "labels": labels, **arrays}), facts)


def on_cpu(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays and tensors by name, all as arrays."""
    return {name: a.cpu().numpy() if isinstance(a, Tensor) else a for name, a in arrays.items()}


def _audited(study: Study, key: UnitKey, *, device: str) -> Unit:
    """The audit of a defence's gradient, the classifier behind a purifier that does nothing, and the study's images."""
    images, labels = study.data.images[: key.last], study.data.labels[: key.last]
    ids, defence = study.data.ids[: key.last], study.audits[key.row]
    audit = audit_gradient(defence, images, ids=ids, seed=study.seed, device=device)
    facts = UnitFacts(
        unit=key.name,
        **key._asdict(),
        device=device.partition(":")[0],
        evaluations=Evaluations(attack=(0, 0), score=(0, 0)),
        audit=Audit(
            light=AuditLight(audit.light.name),
            verdict=audit.verdict,
            checks=tuple(map(_check_facts, audit.checks)),
            faults=tuple(AuditFault(part=fault.part, sentence=fault.sentence) for fault in audit.faults),
        ),
        identity=Identity(**identity_difference(defence, study.data.images.to(device), seed=study.seed)),
    )
    measured = on_cpu(_of_the_images(study, defence.to(device), device))
    return Unit({"ids": np.asarray(ids, dtype=np.int64), "labels": labels.numpy(), **measured}, facts)


def _of_the_images(study: Study, defence: Defence, device: str) -> dict[str, Tensor]:
    """What says whether the images of a study are memorised, or easy ones (see `depura.evaluation.data_checks`)."""
    data, others = study.data, others_of(study.data)
    images, labels = data.images.to(device), data.labels.to(device)
    found = bare_margins(defence, study.ball, images, labels, others)
    if defence.purifier is not None:
        noise = study.noise(Stream.NULL, data.ids[:IMAGES])
        draw = study.select_draws + 2 * study.report_draws  # the first that no baseline uses
        known = None if others is None else others.images
        found |= purification_errors(defence.purifier, images[:IMAGES], known, noise, draw=draw)
    return found


def examined(study: Study, row: AttackRun, key: UnitKey) -> str | None:
    """Whose defence is looked at once more at the examples of a unit: the name of its audit's unit; None for nobody's.

    Once for each defence: after the first images of the first attack through it, at the radius of the table.
    """
    if key.first != 0 or key.eps != study.ball.eps or key.row.startswith("null-"):
        return None
    for whose, defence in study.audits.items():
        through = [r.name for r in study.rows if r.evaluated is defence and r.true_kind in THROUGH]
        if row.name in through[:1]:
            return whose
    return None


def _at_examples(
    study: Study,
    row: AttackRun,
    found: Attacked,
    anew: Mapping[str, Callable[[], Defence]],
    *,
    rows: int | None,
    device: str,
) -> tuple[tuple[AuditCheck, ...], Counts]:
    """The checks of a defence at the examples of an attack on it, and what they cost."""
    counts = Counts()
    judged = counted_into(row.evaluated, counts)
    ways = {how: partial(_counting, make, counts) for how, make in anew.items()}
    checks = [Check("history", Light.AMBER, NOT_COPIED)]
    if ways:
        checks = _tried("history", lambda: in_contexts(judged, ways, found))
    if row.mode is GradientMode.EXACT and row.attacked.differentiable:
        other = study.data.images[others(study, found.ids)]
        attacked = counted_into(row.attacked, counts)
        checks += _tried(
            "differences at examples",
            lambda: by_gradients(attacked, found, other, seed=study.seed, device=device, rows=rows),
        )
        checks += _tried("the way", lambda: [along_the_way(attacked, found, seed=study.seed, device=device)])
    return tuple(_check_facts(check) for check in checks), counts


def _tried(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Checks; where they end in an error, one that says so: what an attack has found is not lost for them."""
    try:
        return look()
    except Exception as error:  # whatever a foreign defence raises in a context that it was not made for
        return [Check(name, Light.AMBER, f"This could not be looked at: {error_line(error)}")]


NOT_COPIED = "The defence cannot be copied, so that nothing tells what it answers from what it remembers."


def _counting(make: Callable[[], Defence], counts: Counts) -> Defence:
    """A copy whose evaluations are added to the counts."""
    return counted_into(make(), counts)


def others(study: Study, ids: Sequence[int]) -> list[int]:
    """Positions of two images, drawn at random from those of a study that are not among some."""
    left = [k for k, identity in enumerate(study.data.ids) if identity not in set(ids)] or list(range(len(ids)))
    words = Noise(study.seed, (0,), stream=Stream.PROBE).bits((1, POINTS), kind=Kind.ATTACK, step=0)
    return [left[int(word) % len(left)] for word in words[0]]


def _check_facts(check: Check) -> AuditCheck:
    return AuditCheck(
        name=check.name, light=AuditLight(check.light.name), sentence=check.sentence, measured=_finite(check.measured)
    )


def _finite(measured: float | None) -> float | None:
    """JSON has no other numbers."""
    return measured if measured is not None and math.isfinite(measured) else None


def _attacked(
    study: Study,
    row: AttackRun,
    against: Defence,
    judged: Defence,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    *,
    main: bool,
    rows: int,
    progress: Progress | None,
    log: AnswerLog | None,
) -> dict[str, Any]:
    model = Watched(against, ids, labels, log=log)
    if log is not None:
        log.counters += tuple(map(Counter.of, (model.draws, model.errors, model.first)))
    found = row.attack(
        model,
        images,
        labels,
        init=study.noise(Stream.INIT, ids),
        eot=study.noise(Stream.EOT, ids),
        rows=rows,
        progress=progress,
    )
    low, high = float(found.images.amin()), float(found.images.amax())
    if not (0 <= low <= high <= 1):  # that candidates are in the ball is checked on the record
        _check.fail(f"row {row.name}", "candidates in [0, 1]", f"values in [{low:.6g}, {high:.6g}]", "Mend the attack.")
    select = study.noise(Stream.SELECT, ids)
    choice = choose(judged, found.images, labels, select, draws=range(study.select_draws), log=log)
    scores, arrays = reported(study, judged, choice.images, labels, ids, log=log)
    arrays |= {
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
    if found.surrogate is not None:
        arrays["spent_surrogate"] = found.surrogate
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
        compared = shortcuts(against, images, labels, study.noise(Stream.PROBE, ids), draws=draws, rows=rows)
        arrays |= {"cosine_bpda": compared.bpda, "cosine_surrogate": compared.surrogate}
    if main and row.evaluated.purifier is not None:
        arrays |= _indicators(study, judged, images, choice.images, ids)
    if main and study.pictures and row.evaluated.purifier is not None:
        arrays |= _pictures(study, judged, images, choice.images, scores.errors(labels), ids)
    return arrays


def _indicators(study: Study, judged: Defence, images: Tensor, chosen: Tensor, ids: Sequence[int]) -> dict[str, Tensor]:
    """Indicators without gradients: what is left of a perturbation, and predictions under one noise sample for all."""
    noise = study.noise(Stream.SELECT, ids).draw(study.select_draws)  # the first that nothing else uses
    lengths = (chosen - images).to(torch.float64).flatten(1).square().sum(1).sqrt()
    random = random_direction(images, lengths, noise)
    return {
        "compression": compression(judged, images, chosen, noise),
        "compression_random": compression(judged, images, random, noise),
        "pinned_predictions": pinned_predictions(judged, chosen, noise).to(torch.int32),
        "pinned_clean": pinned_predictions(judged, images, noise).to(torch.int32),
    }


def reported(
    study: Study,
    judged: Defence,
    examples: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    *,
    log: AnswerLog | None = None,
) -> tuple[Scores, dict[str, Any]]:
    """The scores of examples that are reported, as they are and after rounding to 8 bits.

    Args:
        study: the study.
        judged: the deployed defence.
        examples: (B, C, H, W) in [0, 1].
        labels: (B,).
        ids: of the images.
        log: of answers that were had before.

    Returns:
        The scores of the examples as they are; and all arrays of a record, by name.
    """
    noise = study.noise(Stream.REPORT, ids)
    scores = score(judged, examples, labels, noise, draws=range(study.report_draws), log=log)
    rounded = score(judged, eight_bit(examples), labels, noise, draws=study.rounded_draws, log=log)
    arrays = {
        "predictions": scores.predictions.to(torch.int32),
        "margins": scores.margins,
        "not_finite": scores.not_finite,
        "rounded_predictions": rounded.predictions.to(torch.int32),
    }
    return scores, arrays


def null(
    study: Study,
    row: AttackRun,
    judged: Defence,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    *,
    counts: Counts,
    log: AnswerLog | None = None,
) -> tuple[dict[str, Any], CleanCost]:
    """A clean baseline: the scores of clean images, and of random corners of the ball chosen as candidates are.

    Args:
        study: the study.
        row: the first of the rows that it is the baseline of.
        judged: the deployed defence, with its evaluations counted.
        images: (B, C, H, W) in [0, 1].
        labels: (B,).
        ids: of the images.
        counts: what the defence's evaluations are added to; nothing is counted yet.
        log: of answers that were had before.

    Returns:
        Arrays by name; and what the predictions of clean images cost.
    """
    noise, s, k = study.noise(Stream.NULL, ids), study.select_draws, study.report_draws
    clean = score(judged, images, labels, noise, draws=range(s, s + k), log=log)
    cost = CleanCost(predictions=clean.predictions.numel(), evaluations=counts.forward)
    corners = torch.stack([row.attack.ball.corner(images, noise, step=i) for i in range(row.attack.n_candidates)])
    choice = choose(judged, corners, labels, noise, draws=range(s), log=log)
    random = score(judged, choice.images, labels, noise, draws=range(s + k, s + 2 * k), log=log)
    arrays = {
        "predictions": clean.predictions.to(torch.int32),
        "margins": clean.margins,
        "not_finite": clean.not_finite,
        "random_predictions": random.predictions.to(torch.int32),
    }
    return arrays, cost


def _pictures(
    study: Study, defence: Defence, images: Tensor, adversarial: Tensor, errors: Tensor, ids: Sequence[int]
) -> dict[str, Any]:
    """The purification by report draw 0 of the images with the most errors and of those with the fewest: frames
    (P, F, C, H, W) in 8 bits, and their titles.

    Frames are: clean, adversarial, noised, some estimates of the clean image, purified.
    """
    order, n = torch.argsort(errors, descending=True, stable=True), min(study.pictures, len(errors))
    shown = torch.cat([order[: n - n // 2], order[len(order) - n // 2 :]])  # the worst first, then the luckiest
    chosen = adversarial[shown]
    noise = study.noise(Stream.REPORT, [ids[int(i)] for i in shown])
    noise = noise.split(defence.rule.n_draws).take(range(0, len(shown) * defence.rule.n_draws, defence.rule.n_draws))
    assert defence.purifier is not None
    of_row = [list[tuple[Step, Tensor, Tensor]]() for _ in shown]  # step, state and estimate, of each image
    for at in defence.purifier.trajectory(chosen, noise):
        for row in set(at.rows):
            place = at.rows.index(row)
            of_row[row].append((at.step, at.x[place], at.x0[place]))
    n_steps = len(of_row[0])
    first = torch.stack([vp_scale(steps[0][0].sigma) * steps[0][1] for steps in of_row])
    frames = [images[shown], chosen, (first + 1) / 2]
    titles = ["clean", "adversarial", f"noised, sigma {of_row[0][0][0].sigma:.2f}"]
    for i in sorted({round(i * (n_steps - 1) / (N_ESTIMATES - 1)) for i in range(N_ESTIMATES)}):
        frames.append((torch.stack([steps[i][2] for steps in of_row]) + 1) / 2)
        titles.append(f"estimate at sigma {of_row[0][i][0].sigma:.2f}")
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
