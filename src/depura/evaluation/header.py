"""What a run directory says of its study; it decides whether two runs are of one study."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from depura.defence import Defence
from depura.evaluation.describe import code_sha256, describe
from depura.evaluation.source import StudySource
from depura.evaluation.study import Row, Study
from depura.evaluation.weightless import refuse_weightless


def header(study: Study, *, command: str, source: StudySource | None = None) -> dict[str, Any]:
    """What a run directory says of its study.

    Args:
        study: the study.
        command: how to repeat it.
        source: the study file it came from, if any.

    Returns:
        A JSON value; all but the command and the source must agree for two runs to be of one study. A comparison
        describes each of its methods once, under "methods", and has no "defence" and no "rule" of its own.

    Raises:
        InputError: networks or images on the meta device, which cannot be run.
    """
    refuse_weightless(study)
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
        **({"published": [its._asdict() for its in study.published]} if study.published else {}),
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
