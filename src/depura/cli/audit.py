"""The command audit-gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from depura import _check
from depura.audit.audit import Audit, audit_gradient
from depura.audit.checks import Light
from depura.cli.console import door, out
from depura.cli.machine import Device
from depura.cli.studies import Settings, pairs
from depura.evaluation.study_file import StudySource

STYLES = {Light.GREEN: "green", Light.AMBER: "yellow", Light.RED: "red"}


@door
def audit(
    study: Annotated[Path, typer.Argument(help="Python file with a function study() -> Study.")],
    settings: Settings = None,
    images: Annotated[int, typer.Option(help="How many of the study's images, the first ones.")] = 2,
    seed: Annotated[int | None, typer.Option(help="Of all noise; default: the study's.")] = None,
    method: Annotated[str | None, typer.Option(help="Of a comparison, which one; default: its `defence`.")] = None,
    device: Device = "cpu",
) -> None:
    """Check that the gradient of a study's defence is its derivative; exit code 1 and the guilty part if it is not."""
    _check.device("--device", device)
    loaded = StudySource(study, pairs(settings)).load()
    if method is not None and method not in loaded.methods:
        _check.fail("--method", f"a method of the study ({', '.join(loaded.methods) or 'it has none'})", repr(method))
    defence = loaded.defence if method is None else loaded.methods[method]
    _check.integer("audit-gradient", "images", images, low=1, high=len(loaded.data.images))
    seed = loaded.seed if seed is None else _check.integer("audit-gradient", "seed", seed, high=2**64 - 1)
    out.print(f"study      {loaded.name}: {images} of {len(loaded.data.images)} images of {loaded.data.name}")
    with out.status("auditing"):
        found = audit_gradient(
            defence, loaded.data.images[:images], ids=loaded.data.ids[:images], seed=seed, device=device
        )
    _show(found)
    if found.light is Light.RED:
        raise typer.Exit(1)


def _show(found: Audit) -> None:
    for check in found.checks:
        head = Text.assemble((f"{check.light.name.lower():<6}", STYLES[check.light]), f" {check.name:<15} ")
        out.print(head + Text(check.sentence), soft_wrap=True, highlight=False)
    for fault in found.faults:
        out.print(Text.assemble(("guilty ", "bold red"), fault.sentence), soft_wrap=True, highlight=False)
    out.print(Text(f"\n{found.verdict}", style=f"bold {STYLES[found.light]}"), soft_wrap=True, highlight=False)
