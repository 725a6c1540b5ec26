"""The command methods, and the purifiers of the command line: a method by name around a denoiser."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

from depura import _check
from depura.cli.console import door, out
from depura.defence import Defence
from depura.evaluation.counting import counted
from depura.methods.entry import Method, Setting
from depura.methods.table import METHODS
from depura.models.by_name import denoiser as denoiser_named
from depura.noise import Noise
from depura.purifiers.composed import Mixed, Resized
from depura.purifiers.optimisation import Optimised
from depura.purifiers.purifier import DiffusionPurifier, Purifier

BUILDS: dict[str, Callable[..., Purifier]] = {
    name: method.build for name, method in METHODS.items() if method.build is not None
}
"""How the command line builds each method that it has; the settings of a method are its function's keywords."""

NAMES = f"<{'|'.join(BUILDS)}>"
"""Names of methods, for the help of options."""


def named(name: str) -> str:
    """The name of a method of the command line, for options; a ValueError where there is no such method."""
    if name not in BUILDS:
        raise ValueError(f"{name!r} is not one of {', '.join(map(repr, BUILDS))}.")
    return name


@dataclass(frozen=True)
class Listed:
    """One line of the list.

    Attributes:
        setting: name.
        call: in Python, after `depura.` or `depura.methods.`.
        method: name of the method.
        paper: where it is from.
        start: how the reverse process begins.
        steps: of each round, and where they start.
        solver: one step.
        guidance: what displaces it.
        nfe: denoiser evaluations of one purification, counted.
        predictions: purifications per published prediction.
        deviations: where differences from paper and released code are described.
        remark: what a reader must know.
    """

    setting: str
    call: str
    method: str
    paper: str
    start: str
    steps: str
    solver: str
    guidance: str
    nfe: int
    predictions: int
    deviations: str
    remark: str


def listed() -> tuple[Listed, ...]:
    """All settings, described and counted, in the order of the papers."""
    return tuple(_listed(method, setting) for method in METHODS.values() for setting in method.settings)


def purifier_of(
    denoiser: str,
    method: str,
    *,
    where: str,
    t_star: float | None = None,
    steps: int | None = None,
    steps_option: str = "--steps",
) -> Purifier:
    """The method around the denoiser; a setting that it does not have is refused.

    Args:
        denoiser: its name, as `depura.models.by_name.denoiser` takes it.
        method: which.
        where: the command, for messages.
        t_star: how far to noise; default the method's.
        steps: of the reverse process; default the method's.
        steps_option: how the command calls `steps`.

    Returns:
        The purifier.

    Raises:
        InputError: a denoiser that is not there, or a setting that the method does not have.
    """
    options: dict[str, tuple[str, float | None]] = {"t_star": ("--t-star", t_star), "steps": (steps_option, steps)}
    given = {name: value for name, (_, value) in options.items() if value is not None}
    for name in given:
        having = [m for m, build in BUILDS.items() if name in inspect.signature(build).parameters]
        if method not in having:
            what = f"{options[name][0]} for a method that has it ({', '.join(having)})"
            _check.fail(where, what, f"--method {method}", "Leave it out.")
    if "t_star" in given:
        _check.number(where, "--t-star", given["t_star"], low=0.0, high=1.0, low_open=True)
    return BUILDS[method](denoiser_named(denoiser, where="--denoiser"), **given)


@door
def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List purification methods and their published settings: start, steps, guidance, evaluations, deviations."""
    lines = listed()
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines], indent=1))
        return
    form = "  {:<20} {:<22} {:<22} {:<13} {}"
    out.print(form.format("setting", "start", "steps", "guidance", "NFE"), style="bold", highlight=False)
    previous = ""
    for line in lines:
        if line.method != previous:
            out.print(f"[bold]{line.method}[/bold]  {line.paper}", highlight=False)
            previous = line.method
        votes = f" x{line.predictions}" if line.predictions > 1 else ""
        text = form.format(line.setting, line.start, line.steps, line.guidance, f"{line.nfe}{votes}")
        out.print(text, highlight=False, markup=False)
    out.print("\nNFE: denoiser evaluations of one purification (x purifications per published prediction).")
    for name, remark in dict.fromkeys((line.method, line.remark) for line in lines if line.remark):
        out.print(f"{name}: {remark}.", highlight=False)
    out.print("Calls in Python: depura methods --json. Differences from papers and codes: docs/deviations.md.")


class _Still(torch.nn.Module):
    """A denoiser of zero, with as many channels as are asked for."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return x.repeat(1, self.factor, 1, 1) * 0


def _listed(method: Method, setting: Setting) -> Listed:
    purifier = setting.build(_Still(2 if setting.learned else 1))
    first = purifier.components[0]
    return Listed(
        setting=setting.name,
        call=setting.call,
        method=method.title,
        paper=method.paper,
        start="input, t* drawn" if isinstance(purifier, Mixed) else _start(first),
        steps=_steps(purifier) + (f" at {purifier.size}x{purifier.size}" if isinstance(purifier, Resized) else ""),
        solver=type(
            first.solver if isinstance(first, DiffusionPurifier) else getattr(first, "optimiser", first)
        ).__name__,
        guidance=_guidance(first),
        nfe=_evaluations(purifier),
        predictions=setting.predictions,
        deviations=f"docs/deviations.md#{method.section}" if method.section else "",
        remark=method.remark,
    )


def _start(part: Purifier) -> str:
    if isinstance(part, Optimised):
        return "input"
    assert isinstance(part, DiffusionPurifier)
    start = getattr(part.start, "__name__", type(part.start).__name__)
    sigma = f"{part.steps[0].sigma:.3g}"
    words = {"from_input": f"input, sigma {sigma}", "from_unit_noise": "noise", "from_noise": "noise"}
    return words.get(start, {"as_it_is": "input", "FromBlurred": "input, blurred"}.get(start, start))


def _steps(purifier: Purifier) -> str:
    parts = purifier.components[:1] if isinstance(purifier, Mixed) else purifier.components
    counts = [f"{part.n_rounds}x{len(part.steps)}" if part.n_rounds > 1 else f"{len(part.steps)}" for part in parts]
    return " + ".join(counts)


def _guidance(part: Purifier) -> str:
    if isinstance(part, Optimised):
        return "optimisation"
    assert isinstance(part, DiffusionPurifier)
    return "-" if part.guidance is None else type(part.guidance).__name__


def _evaluations(purifier: Purifier) -> int:
    """Counted on one image of 8 x 8 pixels."""
    defence, counts = counted(Defence(purifier, lambda images: images.flatten(1)))
    with torch.no_grad():
        defence(torch.full((1, 3, 8, 8), 0.5), Noise(0, (0,)))
    return counts.forward
