"""What a run directory says of its study; it decides whether two runs are of one study."""

from __future__ import annotations

import importlib.metadata

import torch

from depura import _check
from depura.data.imageset import ImageSet
from depura.data.origins import choice_of
from depura.defence import Defence
from depura.evaluation.meta_device import refuse_weightless
from depura.evaluation.study import AttackRun, Study, same_function
from depura.evaluation.study_file import StudySource
from depura.records.describe import code_sha256, describe
from depura.records.kinds import ChoiceKind
from depura.records.schema import (
    Choice,
    Curve,
    Data,
    DrawCounts,
    Header,
    Judged,
    Method,
    PublishedFigure,
    RowFacts,
    ThreatModel,
    UnitEntry,
)

FAMILIES = {"flow": "spatial", "perceptual": "perceptual"}
"""Families of threat models that are no l_p balls, by norm."""


def header(study: Study, *, command: str, source: StudySource | None = None) -> Header:
    """What a run directory says of its study.

    Args:
        study: the study.
        command: how to repeat it.
        source: the study file it came from, if any.

    Returns:
        The header; all but the command and the source must agree for two runs to be of one study.

    Raises:
        InputError: networks or images on the meta device, which cannot be run; or a classifier that has fewer logits
            than the data have classes.
    """
    refuse_weightless(study)
    data, ball, compared = study.data, study.ball, study.methods
    return Header(
        command=command,
        source=None if source is None else source.describe(),
        name=study.name,
        seed=study.seed,
        data=Data(
            name=data.name,
            ids=data.ids,
            labels=tuple(int(label) for label in data.labels),
            classes=data.classes,
            shape=tuple(data.images.shape[1:]),
            images=describe(data.images),
            outputs=n_outputs(study),
            choice=_choice(data),
        ),
        threat_model=ThreatModel(
            norm=ball.norm,
            eps=ball.eps,
            knows="weights, purifier, step table, law of the noise; not the noise itself",
            family=FAMILIES.get(ball.norm, "l_p"),
            queries="no limit",
            resubmissions="no limit; any-of-N counts N of them",
            time_per_image="no limit beyond the attacks' steps",
        ),
        methods=tuple(
            Method(
                name=name,
                baseline=name in study.baselines,
                note=study.notes.get(name, _remarks(defence)),
                defence=describe(defence),
                rule=describe(defence.rule),
            )
            for name, defence in (compared or {"": study.defence}).items()
        ),
        rows=tuple(
            RowFacts(
                name=row.name,
                title=row.title,
                kind=row.true_kind,
                method=row.method,
                mode=row.mode,
                null=study.null_of(row),
                images=study.n_images(row),
                judged=_judged(study, row),
                attack=describe(row.attack),
            )
            for row in study.all_rows
        ),
        draws=DrawCounts(select=study.select_draws, report=study.report_draws),
        memory=study.memory,
        curve=Curve(
            eps=study.curve_eps,
            images=min(study.curve_images, len(data.images)),
            rows=study.curve_rows or tuple(row.name for row in study.rows),
        ),
        units=tuple(UnitEntry(unit=key.name, **key._asdict()) for key in study.units()),
        published=tuple(PublishedFigure(**its._asdict()) for its in study.published),
        versions={name: importlib.metadata.version(name) for name in ("depura", "torch", "numpy")},
        code=code_sha256(),
    )


@torch.no_grad()
def n_outputs(study: Study) -> int:
    """The most logits that a classifier of a study gives, asked with its first image.

    An `InputError`: a classifier with fewer logits than the data have classes, which no prediction could name.
    """
    n, known = len(study.data.classes), dict[int, int]()
    for row in study.all_rows:
        for defence in (row.evaluated, row.attacked):
            if id(defence.classifier) in known:
                continue
            bare = Defence(None, defence.classifier)
            weight = next(bare.parameters(), study.data.images)
            image = study.data.images[:1].to(weight.device)
            known[id(defence.classifier)] = k = bare(image).shape[1]
            if k < n:
                _check.fail(
                    f"Study {study.name!r}",
                    f"a classifier of at least the {n} classes of {study.data.name}",
                    f"one with {k} logits (row {row.name})",
                    "Give the data and the classifier the same classes, in the same order.",
                )
    return max(known.values())


def _choice(data: ImageSet) -> Choice:
    """How the images of a study were chosen."""
    found = choice_of(data)
    if found is None:
        return Choice(kind=ChoiceKind.UNKNOWN)
    return Choice(kind=ChoiceKind(found.how), size=found.size, seed=found.seed)


def _remarks(defence: Defence) -> str:
    return "" if defence.core is None else "; ".join(defence.core.remarks)


def _judged(study: Study, row: AttackRun) -> Judged:
    """What a row judges: a method, the study's defence, the undefended classifier or something else."""
    if row.method or (not study.methods and same_function(row.evaluated, study.defence)):
        return Judged.DEFENCE
    return Judged.BARE if row.evaluated.core is None else Judged.OTHER
