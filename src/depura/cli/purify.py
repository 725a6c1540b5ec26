"""The command that cleans image files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from depura import _check
from depura.cleaner import Cleaner
from depura.cli.doors import door, named, one_thread, out, progress
from depura.data import files
from depura.data.digits import SHAPE, digits_classifier, digits_denoiser
from depura.demo import N_STEPS, T_STAR
from depura.denoisers import Denoiser
from depura.methods.adbm import adbm
from depura.methods.diffpure import diffpure
from depura.methods.gdmp import gdmp
from depura.methods.gradual import gradual
from depura.methods.likelihood import likelihood, scoreopt
from depura.methods.mimicdiffusion import mimicdiffusion
from depura.methods.smoothing import one_step
from depura.noise import Noise
from depura.reports.sketch import LARGEST, side_by_side
from depura.schedules import DiscreteLinear, ddpm_steps
from depura.solvers import Ancestral
from depura.starts import from_unit_noise

DIGITS = "digits"
AT_ONCE = 64
"""Images purified in one call."""


def _diffpure(denoiser: Denoiser, *, t_star: float = T_STAR, steps: int = N_STEPS) -> Cleaner:
    return diffpure(denoiser, t_star=t_star, n_steps=steps, t_end=0.0, solver=Ancestral())


def _mimicdiffusion(denoiser: Denoiser, *, steps: int = 100) -> Cleaner:
    table = ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=steps)
    return mimicdiffusion(denoiser, steps=table, start=from_unit_noise)


def _gdmp(denoiser: Denoiser, *, t_star: float = 0.036, steps: int = 36) -> Cleaner:
    return gdmp(denoiser, n_noise=round(1000 * t_star), n_steps=steps)


def _gradual(denoiser: Denoiser) -> Cleaner:
    return gradual(denoiser)


def _likelihood(denoiser: Denoiser, *, steps: int = 5) -> Cleaner:
    return likelihood(denoiser, n_steps=steps)


def _scoreopt(denoiser: Denoiser, *, steps: int = 5) -> Cleaner:
    return scoreopt(denoiser, n_steps=steps)


def _one_step(denoiser: Denoiser, *, t_star: float = 0.1) -> Cleaner:
    return one_step(denoiser, std=0.5 * DiscreteLinear().sigma(round(1000 * t_star) - 1))


def _adbm(denoiser: Denoiser, *, t_star: float = 0.1, steps: int = 5) -> Cleaner:
    return adbm(denoiser, n_noise=round(1000 * t_star), n_steps=steps)


class Method(str, Enum):
    """Purification methods of the command line."""

    diffpure = "diffpure"
    mimicdiffusion = "mimicdiffusion"
    gdmp = "gdmp"
    gradual = "gradual"
    likelihood = "likelihood"
    scoreopt = "scoreopt"
    one_step = "one-step"
    adbm = "adbm"


METHODS: Mapping[Method, Callable[..., Cleaner]] = {
    Method.diffpure: _diffpure,
    Method.mimicdiffusion: _mimicdiffusion,
    Method.gdmp: _gdmp,
    Method.gradual: _gradual,
    Method.likelihood: _likelihood,
    Method.scoreopt: _scoreopt,
    Method.one_step: _one_step,
    Method.adbm: _adbm,
}
"""How each is built; the settings that it has are the function's, with their defaults."""


@door
def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Image file (PNG, JPEG, NPZ) or a folder of them.")],
    to: Annotated[Path, typer.Option("--out", help="File to write, or a folder.")],
    method: Annotated[Method, typer.Option(help="Purification method.")] = Method.diffpure,
    t_star: Annotated[float | None, typer.Option(help="How far to noise, in (0, 1]; default: the method's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a walk; default: the method's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same result.")] = 0,
    denoiser: Annotated[
        str, typer.Option(help="'digits' (bundled: 8x8 grey images), or MODULE:FUNCTION that returns a denoiser.")
    ] = DIGITS,
) -> None:
    """Clean images with a diffusion model and show them before and after."""
    one_thread()
    bundled = denoiser == DIGITS
    purifier = _purifier(
        digits_denoiser() if bundled else named("--denoiser", denoiser, instead="'digits' or ")(),
        method,
        t_star=t_star,
        steps=steps,
    )
    loaded = [files.load(path) for path in files.find(source)]
    for item in loaded:
        _check.images(str(item.path), item.images, shape=SHAPE if bundled else None)
    targets = _targets(source, to, [item.path for item in loaded])
    classifier = digits_classifier() if bundled else None
    with progress() as bar:
        task = bar.add_task("purifying", total=sum(len(item.images) for item in loaded))

        def told(n: int) -> None:
            bar.update(task, advance=n)

        cleaned = [_clean(purifier, item, seed, told) for item in loaded]
    files.write_all({target: files.encode(after, target) for after, target in zip(cleaned, targets, strict=True)})
    for item, after, target in zip(loaded, cleaned, targets, strict=True):
        _show(item.images, after, f"{item.path} -> {target}", classifier)


def _purifier(denoiser: Denoiser, method: Method, **settings: float | None) -> Cleaner:
    """The method with the settings that were given; one that it does not have is refused."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        having = [m for m, build in METHODS.items() if name in inspect.signature(build).parameters]
        if method not in having:
            those = ", ".join(m.value for m in having)
            what = f"--{name.replace('_', '-')} for a method that has it ({those})"
            _check.fail("purify", what, f"--method {method.value}", "Leave it out.")
    if "t_star" in given:
        _check.number("purify", "--t-star", given["t_star"], low=0.0, high=1.0, low_open=True)
    return METHODS[method](denoiser, **given)


def _targets(source: Path, to: Path, paths: list[Path]) -> list[Path]:
    """Where each file goes: TO itself for one file with a file's ending, else a file of the same name in the folder TO.

    In a folder pictures become PNG, since JPEG would add errors of its own.
    """
    if not source.is_dir() and to.suffix.lower() in (*files.PICTURES, *files.ARRAYS):
        return [to]
    if to.is_file():
        _check.fail("purify", "a folder for --out, or a file name ending in .png, .jpg or .npz", f"{to}")
    targets = [to / (p.name if p.suffix.lower() in files.ARRAYS else f"{p.stem}.png") for p in paths]
    if len(set(targets)) != len(targets):
        _check.fail("purify", "files whose names differ in more than the ending", f"{[p.name for p in paths]}")
    return targets


@torch.no_grad()
def _clean(purifier: Cleaner, item: files.Loaded, seed: int, told: Callable[[int], None]) -> Tensor:
    parts: list[Tensor] = []
    for k in range(0, len(item.images), AT_ONCE):
        parts.append(purifier(item.images[k : k + AT_ONCE], Noise(seed, item.ids[k : k + AT_ONCE])).clamp(0, 1))
        told(len(parts[-1]))
    return torch.cat(parts)


@torch.no_grad()
def _show(before: Tensor, after: Tensor, title: str, classifier: Any) -> None:
    change = (after - before).abs()
    out.print(
        f"{title}: {len(before)} image{'s' if len(before) > 1 else ''}, mean change {float(change.mean()):.3f}, "
        f"largest {float(change.max()):.3f}",
        highlight=False,
        soft_wrap=True,
    )
    if classifier is not None and len(before) == 1:
        seen, now = (int(classifier(x).argmax(1)) for x in (before, after))
        out.print(f"the bundled classifier sees a {seen} before and a {now} after", highlight=False)
    if len(before) == 1 and max(before.shape[2:]) <= LARGEST and out.is_terminal:
        for line in side_by_side(before[0], after[0]):
            out.print(line)
