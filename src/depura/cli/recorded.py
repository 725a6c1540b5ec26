"""What commands on a record share: where its study comes from. A study is code; a record alone runs none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from depura.cli.console import err
from depura.evaluation.study_file import DEMO, JUDGE, StudySource, code_named
from depura.records.schema import Header

StudyFile = Annotated[
    Path | None,
    typer.Option(
        "--study",
        metavar="FILE",
        help="The study: FILE.py, FILE.py:FUNCTION or MODULE:FUNCTION. It is code and is run.",
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the study file that the record names; its path is printed first.")
]


def source_of(
    header: Header, *, study: Path | None, trust: bool, settings: tuple[tuple[str, str], ...] = ()
) -> StudySource:
    """Where the study of a record comes from; `StudyNotGivenError` where neither --study nor --trust was given.

    Settings take the place of recorded ones, or come on top. What the record names is printed, on standard error,
    before anybody can run it.
    """
    source = StudySource.of(header, path=study, trust=trust)
    if study is None and header.source is not None and header.source.file != DEMO:
        its = source.path.absolute() if header.source.file != JUDGE else code_named(header.source)
        text = f"study    runs {its}, as the record says"
        err.print(text, markup=False, highlight=False, soft_wrap=True)
    return replace(source, settings=tuple({**dict(source.settings), **dict(settings)}.items()))
