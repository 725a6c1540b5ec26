"""The command publish: a record that can be passed on where its images cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depura.cli.console import door, one_thread, out
from depura.cli.recorded import StudyFile, Trust, source_of
from depura.evaluation.rescoring import rebuilt_header
from depura.evaluation.verification import CODE, differences
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
    one_thread()
    run = RunDirectory.open(directory)
    if run.header.left_out:
        raise RecordError(f"publish: expected a run with its images, got one without ({directory}). It can be copied.")
    study_built, anew = rebuilt_header(run.header, source_of(run.header, study=study, trust=trust))
    other = [part for part in differences(run.header, anew) if part.part not in CODE]
    if other:
        raise RecordError(f"publish: expected the study of {directory}, got another one ({other[0].sentence}).")
    target = RunDirectory.create(to, published_header(run))
    publish(run, study_built, target)
    write_reports(target)
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    out.print(f"wrote {to}, {size / 1e6:.1f} MB, no image in it", highlight=False, soft_wrap=True)
