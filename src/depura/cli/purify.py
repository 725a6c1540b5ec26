"""The command that cleans image files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from depura import _check
from depura.cli.console import door, out, progress
from depura.cli.methods import NAMES, named, purifier_of
from depura.cli.studies import pairs
from depura.data import files
from depura.data.digits import SHAPE
from depura.data.pictures import Frame
from depura.data.sources import is_data_set, load_images
from depura.data.table import Request
from depura.defence import predicted
from depura.evaluation.study_file import literal
from depura.models.by_name import DENOISERS, DIGITS, foreign
from depura.models.digits import digits_classifier
from depura.noise import Noise
from depura.purifiers.fast import Fast, deviation
from depura.purifiers.purifier import Purifier
from depura.wrapping import check_settings, wrap

AT_ONCE = 64
"""Images purified in one call."""
COMPARED = 4
"""Images that --fast is compared on with the plain network."""


@door
def purify(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="Image file (PNG, JPEG, NPZ) or a folder of them, or a data set (CIFAR, Parquet, class folders, ...).",
        ),
    ],
    to: Annotated[Path, typer.Option("--out", help="File to write, or a folder; data sets become one .npz file.")],
    method: Annotated[str, typer.Option(parser=named, metavar=NAMES, help="Purification method.")] = "diffpure",
    t_star: Annotated[float | None, typer.Option(help="How far to noise, in (0, 1]; default: the method's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the reverse process; default: the method's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same result.")] = 0,
    denoiser: Annotated[
        str,
        typer.Option(help=f"{DENOISERS}."),
    ] = DIGITS,
    fast: Annotated[
        bool, typer.Option("--fast", help="Run the network in bfloat16 and channels-last; the change is printed.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="With --fast: compile the network, too. Takes minutes; for many images.")
    ] = False,
    own: Annotated[
        str,
        typer.Option("--purifier", metavar="FILE.py:NAME", help="A purifier of your own, in the place of a method."),
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("-S", metavar="NAME=VALUE", help="With --purifier: a setting of depura.wrap, e.g. -S range=-1,1."),
    ] = None,
    images: Annotated[int | None, typer.Option(help="Only the first so many images.", min=1)] = None,
    split: Annotated[str | None, typer.Option(help="Part of a data set: train, test, ...")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Labels of a data set that has several: coarse_label, a column, an attribute.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Repeat grey images, or make RGB grey (1).", min=1)] = None,
    resize: Annotated[
        int | None, typer.Option(help="Short side of pictures in pixels; 256 for ImageNet.", min=1)
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Side of the middle cut out of pictures; 224 for ImageNet.", min=1)
    ] = None,
) -> None:
    """Clean images with a diffusion model, and say how much each changed."""
    bundled = denoiser == DIGITS and not own
    if settings and not own:
        _check.fail("purify", "-S with --purifier", "-S alone")
    if own and (t_star is not None or steps is not None or method != "diffpure" or denoiser != DIGITS):
        got = "it with --method, --denoiser, --t-star or --steps"
        _check.fail(
            "purify", "--purifier alone", got, "Give settings of your purifier with -S set=..., or leave it out."
        )
    purifier = (
        named_purifier(own, {name: literal(value) for name, value in pairs(settings)})
        if own
        else purifier_of(denoiser, method, where="purify", t_star=t_star, steps=steps)
    )
    if compiled and not fast:
        _check.fail("purify", "--compiled with --fast", "--compiled alone")
    if fast:
        purifier = purifier.over(partial(Fast, compiled=compiled))
    chosen = _Chosen(images, split, labels, Frame(resize, crop, channels))
    one_set = labels is not None or is_data_set(source)
    loaded = [_data_set(source, chosen)] if one_set else _files(source, chosen)
    for item in loaded:
        _check.images(str(item.path), item.images, shape=SHAPE if bundled else None)
    targets = _targets(source, to, loaded, one_set)
    classifier = digits_classifier() if bundled else None
    with progress() as bar:
        advance = partial(bar.advance, bar.add_task("purifying", total=sum(len(item.images) for item in loaded)))
        cleaned = [_purified(purifier, item, seed, advance) for item in loaded]
    results = zip(loaded, cleaned, targets, strict=True)
    files.write_all(
        {target: files.encode(x, target, labels=item.labels, numbers=item.numbers) for item, x, target in results}
    )
    if fast:
        first = loaded[0].first(COMPARED)
        out.print(f"fast network: {deviation(purifier, first.images, Noise(seed, first.ids))}", highlight=False)
    for item, after, target in zip(loaded, cleaned, targets, strict=True):
        _show(item.images, after, f"{item.path} -> {target}", classifier)


def named_purifier(name: str, settings: Mapping[str, Any]) -> Purifier:
    """Somebody's own purifier by name: depura's as it is, anything else wrapped.

    Args:
        name: MODULE:NAME or FILE.py:NAME.
        settings: arguments of `depura.wrap`.

    Returns:
        The purifier.

    Raises:
        InputError: nothing of the name, or a setting that `wrap` does not have.
    """
    thing = foreign("--purifier", name)
    check_settings("-S", settings)
    return thing if isinstance(thing, Purifier) else wrap(thing, **settings)


class _Chosen(NamedTuple):
    """Which images, and what is done to them first."""

    images: int | None
    split: str | None
    labels: str | None
    frame: Frame


def _data_set(source: Path, chosen: _Chosen) -> files.Loaded:
    data = load_images(source, split=chosen.split, labels=chosen.labels, images=chosen.images, **chosen.frame._asdict())
    return files.Loaded(Path(f"{data.name}.npz"), data.images, data.ids, data.labels, data.ids)


def _files(source: Path, chosen: _Chosen) -> list[files.Loaded]:
    if chosen.split is not None:
        Request(source, chosen.split).without_parts("purify")
    paths = files.find(source)
    if chosen.images is None:
        return [files.load(path, frame=chosen.frame) for path in paths]
    left = chosen.images
    loaded: list[files.Loaded] = []
    for path in paths:
        if left > 0:
            loaded.append(files.load(path, frame=chosen.frame).first(left))
            left -= len(loaded[-1].images)
    return loaded


def _targets(source: Path, to: Path, loaded: list[files.Loaded], one_set: bool) -> list[Path]:
    """Where each item goes: TO itself for one with a file's ending, else by its own name into the folder TO."""
    ending = to.suffix.lower()
    if one_set and ending in files.WRITTEN:
        _check.fail("purify", "a name ending in .npz, or a folder, for the images of a data set", f"{to}")
    if ending in files.ARRAYS if one_set else ending in (*files.WRITTEN, *files.ARRAYS) and not source.is_dir():
        return [to]
    if to.is_file():
        _check.fail("purify", "a folder for --out, or a file name ending in .png, .jpg or .npz", f"{to}")
    return files.in_folder(to, [item.path for item in loaded], where="purify")


@torch.no_grad()
def _purified(purifier: Purifier, item: files.Loaded, seed: int, advance: Callable[[int], None]) -> Tensor:
    parts: list[Tensor] = []
    for k in range(0, len(item.images), AT_ONCE):
        cleaned = purifier(item.images[k : k + AT_ONCE], Noise(seed, item.ids[k : k + AT_ONCE]))
        broken = int((~cleaned.isfinite().flatten(1).all(1)).sum())
        if broken:
            got, advice = f"{broken} with NaN or infinite pixels", "Try other --steps, or leave --fast out."
            _check.fail(f"purify: {item.path.name}", "finite purified images", got, advice)
        parts.append(cleaned.clamp(0, 1))
        advance(len(cleaned))
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
        seen, now = (int(predicted(classifier(x))) for x in (before, after))
        out.print(f"the bundled classifier sees a {seen} before and a {now} after", highlight=False)
