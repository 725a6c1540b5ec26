"""The command publish: a record that can be passed on where its images cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depura.cli.console import door, out
from depura.cli.recorded import StudyFile, Trust, source_of
from depura.evaluation.replay import as_recorded
from depura.evaluation.without_images import publish, published_header
from depura.records.directory import RecordError, RunDirectory
from depura.reports.page import write_reports


@door
def publish_run(
    directory: Annotated[Path, typer.Argument(help="Run directory, complete.")],
    to: Annotated[Path, typer.Option("--out", help="New folder.")],
    study: StudyFile = None,
    trust: Trust = False,
) -> None:
    """Copy a run without its images: of each adversarial example, how its bits differ from the image's.

    Who has the data can verify, rescore and replay the copy as the run itself; who has not sees all numbers, no image.
    """
    run = RunDirectory.open(directory)
    if run.header.left_out:
        raise RecordError(f"publish: expected a run with its images, got one without ({directory}). It can be copied.")
    rebuilt, _ = as_recorded(run, source_of(run.header, study=study, trust=trust))
    target = RunDirectory.create(to, published_header(run))
    publish(run, rebuilt, target)
    write_reports(target)
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    out.print(f"wrote {to}, {size / 1e6:.1f} MB, no image in it", highlight=False, soft_wrap=True)
