"""The command that cleans image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from depura import _check
from depura.cleaner import Cleaner
from depura.cli.doors import door, one_thread, out, progress
from depura.cli.purifiers import DIGITS, Method, purifier_of
from depura.data import files
from depura.data.digits import SHAPE, digits_classifier
from depura.noise import Noise
from depura.reports.sketch import LARGEST, side_by_side

AT_ONCE = 64
"""Images purified in one call."""


@door
def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Image file (PNG, JPEG, NPZ) or a folder of them.")],
    to: Annotated[Path, typer.Option("--out", help="File to write, or a folder.")],
    method: Annotated[Method, typer.Option(help="Purification method.")] = Method.diffpure,
    t_star: Annotated[float | None, typer.Option(help="How far to noise, in (0, 1]; default: the method's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a walk; default: the method's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same result.")] = 0,
    denoiser: Annotated[
        str,
        typer.Option(
            help="'digits' (bundled: 8x8 grey images), a checkpoint file, a diffusers folder, or MODULE:FUNCTION."
        ),
    ] = DIGITS,
) -> None:
    """Clean images with a diffusion model and show them before and after."""
    one_thread()
    bundled = denoiser == DIGITS
    purifier = purifier_of(denoiser, method, where="purify", t_star=t_star, steps=steps)
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


def _targets(source: Path, to: Path, paths: list[Path]) -> list[Path]:
    """Where each file goes: TO itself for one file with a file's ending, else by its own name into the folder TO."""
    if not source.is_dir() and to.suffix.lower() in (*files.PICTURES, *files.ARRAYS):
        return [to]
    if to.is_file():
        _check.fail("purify", "a folder for --out, or a file name ending in .png, .jpg or .npz", f"{to}")
    return files.in_folder(to, paths, where="purify")


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
