"""Recorded examples under another deployed rule: no new attacks, and therefore no attack on that rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from depura import _check
from depura.defence import Defence
from depura.evaluation.counting import counted
from depura.evaluation.describe import describe
from depura.evaluation.header import header
from depura.evaluation.imageless import examples_of
from depura.evaluation.records import RecordError, RunDirectory, Unit
from depura.evaluation.runner import missing
from depura.evaluation.scoring import choose, eight_bit, score
from depura.evaluation.source import StudySource
from depura.evaluation.streams import Streams
from depura.evaluation.study import Study, UnitKey, with_eps
from depura.rules import MeanLogit, MeanProb, Rule, Single, Vote

RULES: Mapping[str, type[Single | Vote | MeanProb | MeanLogit]] = {
    "single": Single,
    "vote": Vote,
    "mean-prob": MeanProb,
    "mean-logit": MeanLogit,
}
"""Rules by the names they have on the command line, from a number of purifications."""


def rule_named(name: str, k: int) -> Rule:
    """A deployed rule.

    Args:
        name: one of `RULES`.
        k: purifications per prediction, at least 1; 1 for single.

    Returns:
        The rule.

    Raises:
        InputError: an unknown name, or a number that the rule does not allow.
    """
    if name not in RULES:
        _check.fail("--rule", f"one of {', '.join(RULES)}", repr(name))
    return RULES[name](k)


def under(study: Study, rule: Rule, *, report_draws: int | None = None) -> Study:
    """A study with another deployed rule; its attacks stay those on the rule it had.

    Args:
        study: the study.
        rule: what is to be deployed; takes the place of the rule of the study's defence, or of every method that has a
            purifier. Rows that judge something else stay as they are.
        report_draws: predictions per image; default the study's.

    Returns:
        The study; attacks of its changed rows still differentiate the defence with the old rule.

    Raises:
        InputError: there is nothing to purify, or every rule is this one already.
    """
    judged = [defence for defence in (study.methods.values() or [study.defence]) if defence.purifier is not None]
    if not judged:
        _check.fail("rescore", "a study of a defence with a purifier", "one without")
    if all(defence.rule == rule for defence in judged):
        _check.fail("rescore", "another rule than the recorded one", f"{rule}")
    changed: dict[int, Defence] = {id(defence): defence.with_(rule=rule) for defence in judged}
    rows = tuple(
        replace(row, judged=changed[id(row.judged)], title=f"{row.title} (examples made against {row.judged.rule})")
        if id(row.judged) in changed
        else row
        for row in study.rows
    )
    draws = study.report_draws if report_draws is None else report_draws
    return replace(
        study, defence=changed.get(id(study.defence), study.defence), rows=rows, report_draws=draws, draws_kept=()
    )


def rescored_header(
    study: Study, rule: Rule, *, report_draws: int | None, source: StudySource | None, command: str = ""
) -> dict[str, Any]:
    """What a run directory of rescored examples says of its study.

    Args:
        study: the study as it was run.
        rule: what is deployed instead.
        report_draws: predictions per image; default the study's.
        source: where the study comes from.
        command: how to repeat it.

    Returns:
        A JSON value: that of `under`, and under "rescored_from" the rule that was attacked and what a reader must know.
    """
    old = sorted({str(defence.rule) for defence in (study.methods.values() or [study.defence])})
    said = (
        f"The examples were made against, and chosen under, {' and '.join(old)}, not {rule}: no attack here was "
        "adapted to the rule that is judged, and one that is may leave less."
    )
    derived = under(study, rule, report_draws=report_draws)
    return {
        **header(derived, command=command, source=source),
        "rescored_from": {
            "name": next(name for name, kind in RULES.items() if isinstance(rule, kind)),
            "k": rule.n_draws,
            "report": study.report_draws,
            "rules": [describe(defence.rule) for defence in (study.methods.values() or [study.defence])],
            "warning": said,
        },
    }


def rescore(
    study: Study,
    recorded: RunDirectory,
    directory: RunDirectory,
    *,
    device: str = "cpu",
    on_unit: Callable[[UnitKey], None] | None = None,
) -> None:
    """Score recorded examples, and the clean images, under another rule; one unit at a time, each committed at once.

    Args:
        study: the study under the other rule (see `under`).
        recorded: where the examples are.
        directory: where the new scores go; units that are there are left alone.
        device: where to compute.
        on_unit: told of each unit when it is committed.

    Raises:
        RecordError: a unit of the recorded run is missing or damaged.
    """
    for key in missing(study, directory):
        if not recorded.has(key.name):
            raise RecordError(
                f"unit {recorded.file(key.name)}: expected a complete run, got none of this unit. "
                "Run the rest first, by the command that made the run."
            )
        directory.commit(key.name, _again(study, key, recorded.load(key.name), device=device))
        if on_unit is not None:
            on_unit(key)


def _again(study: Study, key: UnitKey, unit: Unit, *, device: str) -> Unit:
    """A unit under the study's rule; audits, and rows of another rule on as many draws, as they are."""
    if key.row in study.audits:
        return unit
    row = with_eps(study.row(key.row), key.eps)
    same = not any(row.judged is defence for defence in study.audits.values()) or row.judged.purifier is None
    if same and unit.arrays["predictions"].shape[1] == study.report_draws:
        return unit
    judged, counts = counted(row.judged.to(device))
    images = study.data.images[key.first : key.last].to(device)
    labels = study.data.labels[key.first : key.last].to(device)
    ids = study.data.ids[key.first : key.last]
    s, k, streams = study.select_draws, study.report_draws, Streams(study.seed)
    meta = {**unit.meta, "device": device.partition(":")[0]}
    if key.row.startswith("null-"):
        noise = streams.null(ids)
        clean = score(judged, images, labels, noise, draws=range(s, s + k))
        meta["clean"] = {"predictions": clean.predictions.numel(), "evaluations": counts.forward}
        corners = torch.stack([row.attack.ball.corner(images, noise, step=i) for i in range(row.attack.n_candidates)])
        chosen = choose(judged, corners, labels, noise, draws=range(s)).images
        random = score(judged, chosen, labels, noise, draws=range(s + k, s + 2 * k))
        arrays = {"random_predictions": random.predictions.to(torch.int32)}
    else:
        examples = examples_of(unit, study).to(device)
        clean = score(judged, examples, labels, streams.report(ids), draws=range(k))
        rounded = score(judged, eight_bit(examples), labels, streams.report(ids), draws=study.rounded_draws)
        arrays = {"rounded_predictions": rounded.predictions.to(torch.int32)}
    arrays |= {"predictions": clean.predictions.to(torch.int32), "margins": clean.margins}
    meta["evaluations"] = {
        "attack": unit.meta["evaluations"]["attack"],
        "score": [counts.forward, counts.backward],
    }
    return Unit({**unit.arrays, **{name: array.cpu().numpy() for name, array in arrays.items()}}, meta)


def rebuilt(recorded: Mapping[str, Any], *, path: Path | None = None) -> tuple[Study, dict[str, Any]]:
    """The study of a run, built anew, and its header.

    Args:
        recorded: header of the run.
        path: the study file, if it is not where it was.

    Returns:
        The study as it is judged, and what a run directory says of it.

    Raises:
        InputError: the run was not made from a study file, or that cannot be read.
    """
    source = StudySource.of(recorded, path=path)
    study, derived = source.load(), recorded.get("rescored_from")
    if derived is None:
        return study, header(study, command="", source=source)
    rule, draws = rule_named(derived["name"], derived["k"]), recorded["draws"]["report"]
    return under(study, rule, report_draws=draws), rescored_header(study, rule, report_draws=draws, source=source)
