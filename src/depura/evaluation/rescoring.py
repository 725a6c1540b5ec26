"""Recorded examples under another deployed rule or on more draws: no new attacks, into a new run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from depura import _check
from depura.defence import Defence, MeanLogit, MeanProb, Rule, Single, Vote
from depura.evaluation.counting import counted
from depura.evaluation.header import header
from depura.evaluation.runner import missing
from depura.evaluation.study import Study, UnitKey, with_eps
from depura.evaluation.study_file import StudySource
from depura.evaluation.units import null, on_cpu, reported
from depura.evaluation.without_images import examples_of
from depura.records.describe import describe
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.schema import Evaluations, Header, RescoredFrom

RULES: Mapping[str, type[Single | Vote | MeanProb | MeanLogit]] = {
    "single": Single,
    "vote": Vote,
    "mean-prob": MeanProb,
    "mean-logit": MeanLogit,
}
"""Rules by the names they have on the command line, from a number of purifications."""


def rule_named(name: str, k: int) -> Rule:
    """A rule by its name in `RULES`, with k >= 1 purifications per prediction (single: 1); others are refused."""
    if name not in RULES:
        _check.fail("--rule", f"one of {', '.join(RULES)}", repr(name))
    return RULES[name](k)


def under(study: Study, rule: Rule | None = None, *, report_draws: int | None = None) -> Study:
    """A study with another deployed rule or other report draws; its attacks stay those that were made.

    Args:
        study: the study.
        rule: what is to be deployed; takes the place of the rule of the study's defence, or of every method that has a
            purifier. Rows that judge something else stay as they are. None: the rules that there are.
        report_draws: predictions per image; default the study's.

    Returns:
        The study; attacks of its changed rows still differentiate the defence with the old rule.

    Raises:
        InputError: there is nothing to purify, or nothing changes.
    """
    judged = [defence for defence in (study.methods.values() or [study.defence]) if defence.core is not None]
    draws = study.report_draws if report_draws is None else report_draws
    if not judged:
        _check.fail("rescore", "a study of a defence with a purifier", "one without")
    kept = rule is None or all(defence.rule == rule for defence in judged)
    if kept and draws == study.report_draws:
        _check.fail("rescore", "another rule or another number of draws than is recorded", f"{judged[0].rule}, {draws}")
    # No attack is made again: those of depura's own are rows as the others are, and keep to the radius of the table.
    curve_rows = study.curve_rows or tuple(row.name for row in study.rows)
    recorded = replace(study, rows=study.all_rows, reference=False, curve_rows=curve_rows, report_draws=draws)
    if kept or rule is None:
        return recorded
    changed: dict[int, Defence] = {id(defence): defence.with_(rule=rule) for defence in judged}
    rows = tuple(
        replace(
            row, evaluated=changed[id(row.evaluated)], title=f"{row.title} (examples made against {row.evaluated.rule})"
        )
        if id(row.evaluated) in changed
        else row
        for row in recorded.rows
    )
    return replace(recorded, defence=changed.get(id(study.defence), study.defence), rows=rows)


def rescored_header(
    study: Study, rule: Rule | None, *, report_draws: int | None, source: StudySource | None, command: str = ""
) -> Header:
    """What a run directory of rescored examples says of its study.

    Args:
        study: the study as it was run.
        rule: what is deployed instead; None: what was deployed.
        report_draws: predictions per image; default the study's.
        source: where the study comes from.
        command: how to repeat it.

    Returns:
        That of `under`, and under `rescored_from` the rule that was attacked and what a reader must know.
    """
    rules = [defence.rule for defence in (study.methods.values() or [study.defence])]
    warning = ""
    if rule is not None and any(its != rule for its in rules):
        old = " and ".join(sorted({str(its) for its in rules}))
        warning = (
            f"The examples were made against, and chosen under, {old}, not {rule}: no attack here was adapted to the "
            "rule that is judged, and one that is may leave less."
        )
    said = RescoredFrom(
        name=None if rule is None else next(name for name, kind in RULES.items() if isinstance(rule, kind)),
        k=None if rule is None else rule.n_draws,
        report=study.report_draws,
        rules=tuple(describe(its) for its in rules),
        warning=warning,
    )
    derived = header(under(study, rule, report_draws=report_draws), command=command, source=source)
    return derived.model_copy(update={"rescored_from": said})


def rescore(
    study: Study,
    recorded: RunDirectory,
    directory: RunDirectory,
    *,
    device: str = "cpu",
    on_unit: Callable[[UnitKey], None] | None = None,
) -> None:
    """Score recorded examples and clean images anew; one unit at a time, each committed at once.

    Args:
        study: the study under the other rule or with other draws (see `under`).
        recorded: where the examples are.
        directory: where the new scores go; units that are there are left alone.
        device: where to compute.
        on_unit: called with each unit when it is committed.

    Raises:
        RecordError: a unit of the recorded run is missing or damaged.
    """
    for key in missing(study, directory):
        if not recorded.has(key.name):
            raise RecordError(
                f"unit {recorded.file(key.name)}: expected a complete run, got none of this unit. "
                "Run the rest first, by the command that made the run."
            )
        directory.commit(_again(study, key, recorded.load(key.name), device=device))
        if on_unit is not None:
            on_unit(key)


def _again(study: Study, key: UnitKey, unit: Unit, *, device: str) -> Unit:
    """A unit under the study's rule; audits, and rows of another rule on as many draws, as they are."""
    if key.row in study.audits:
        return unit
    row = with_eps(study.row(key.row), key.eps)
    same = not any(row.evaluated is defence for defence in study.audits.values()) or row.evaluated.core is None
    if same and unit.arrays["predictions"].shape[1] == study.report_draws:
        return unit
    judged, counts = counted(row.evaluated.to(device))
    images = study.data.images[key.first : key.last].to(device)
    labels = study.data.labels[key.first : key.last].to(device)
    ids = study.data.ids[key.first : key.last]
    clean = None
    if key.row.startswith("null-"):
        arrays, clean = null(study, row, judged, images, labels, ids, counts=counts)
    else:
        _, arrays = reported(study, judged, examples_of(unit, study).to(device), labels, ids)
    spent = Evaluations(attack=unit.facts.evaluations.attack, score=(counts.forward, counts.backward))
    new = {"device": device.partition(":")[0], "evaluations": spent}
    facts = unit.facts.model_copy(update=new if clean is None else {**new, "clean": clean})
    return Unit({**unit.arrays, **on_cpu(arrays)}, facts)


def rebuilt(recorded: Header, source: StudySource) -> Study:
    """The study of a run, built anew, as it is judged; an `InputError` where it cannot be made."""
    study, derived = source.load(), recorded.rescored_from
    return study if derived is None else under(study, _rule_of(derived), report_draws=recorded.draws.report)


def rebuilt_header(recorded: Header, source: StudySource) -> tuple[Study, Header]:
    """As `rebuilt`, with what a run directory would say of the study; all weights are hashed for it."""
    derived = recorded.rescored_from
    if derived is None:
        study = rebuilt(recorded, source)
        return study, header(study, command="", source=source)
    study, rule, draws = source.load(), _rule_of(derived), recorded.draws.report
    return under(study, rule, report_draws=draws), rescored_header(study, rule, report_draws=draws, source=source)


def _rule_of(derived: RescoredFrom) -> Rule | None:
    """The rule that a rescored run deploys; None for that of the run it was made of."""
    return None if derived.name is None or derived.k is None else rule_named(derived.name, derived.k)
