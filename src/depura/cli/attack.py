"""The command attack: a quick look at what an attack does to images of one's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack
from depura.attacks.catalogue import CATALOGUE, EOT, EPS, at_default, built, threat
from depura.attacks.threat import Ball, Threat
from depura.cli.console import door, fraction, out, progress
from depura.cli.methods import NAMES, named, purifier_of
from depura.data import files
from depura.data.digits import SHAPE
from depura.data.imageset import read_npz
from depura.defence import Defence, predicted, same_answers
from depura.evaluation.scoring import Scores, choose, eight_bit, score
from depura.models.by_name import DENOISERS, DIGITS, FORMS
from depura.models.by_name import classifier as classifier_named
from depura.noise import Noise, Stream
from depura.records.kinds import NOT_FINITE


@door
def attacks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the attacks: what each needs of a model, its norms, its price per image, and where it is from."""
    lines = [
        {
            "name": entry.name,
            "title": entry.title,
            "needs": entry.needs,
            "norms": ", ".join(entry.norms),
            "cost": entry.price,
            "default": str(at_default(entry).cost),
            "source": entry.source,
        }
        for entry in CATALOGUE
    ]
    if as_json:
        typer.echo(json.dumps(lines, indent=1))
        return
    for line in lines:
        out.print(f"[bold]{line['name']}[/bold]  {line['title']}", highlight=False)
        for key in ("source", "needs", "norms"):
            out.print(f"  {key:<8} {line[key]}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"  {'cost':<8} {line['cost']}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"  {'default':<8} {line['default']}", highlight=False, markup=False, soft_wrap=True)
    out.print("\nCost: evaluations of the model per image, at most; eot: draws of a randomised model per question.")


AT_ONCE = 64
"""Images attacked in one call."""

ROWS = 512
"""Images times draws put through the model at once, at most."""

SELECT_DRAWS = 16
"""Draws on which the candidates of an image are compared, where there are draws."""


class Norm(str, Enum):
    """Norms of the command line."""

    linf = "linf"
    l2 = "l2"
    l1 = "l1"
    flow = "flow"
    perceptual = "perceptual"


class Judged(NamedTuple):
    """What became of a group of images.

    Attributes:
        images: (B, C, H, W), the worst candidate of each.
        scores: of the images before, after, and after rounding to 8 bits.
        zero: (B,), share of draws whose gradient was zero; None of attacks without.
    """

    images: Tensor
    scores: tuple[Scores, Scores, Scores]
    zero: Tensor | None


@door
def attack(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="PNG, JPEG or NPZ files, or folders.")],
    to: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the attacked images go.")],
    classifier: Annotated[str, typer.Option(help=f"{FORMS}; the last returns a callable to logits.")] = DIGITS,
    label: Annotated[
        list[int] | None, typer.Option(help="True class of all images, or once for each; default: see above.")
    ] = None,
    name: Annotated[str, typer.Option("--attack", help="As `depura attacks` lists them.")] = CATALOGUE[0].name,
    norm: Annotated[Norm, typer.Option(help="Norm of the change.")] = Norm.linf,
    eps: Annotated[
        float | None,
        typer.Option(
            parser=fraction,
            metavar="NUMBER",
            help="Largest change; default 8/255, l2 0.5, l1 12, flow .05, perceptual .05 of (1 - SSIM) / 2.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the attack; default: the attack's.")] = None,
    eot: Annotated[
        int | None, typer.Option(help=f"Draws per step; default: 1, or at least {EOT} where the answer is random.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(parser=named, metavar=NAMES, help="Attack through this purifier; default: none.")
    ] = None,
    denoiser: Annotated[str, typer.Option(help=f"Of the purifier: {DENOISERS}.")] = DIGITS,
    t_star: Annotated[float | None, typer.Option(help="Of the purifier: how far to noise, in (0, 1].")] = None,
    purifier_steps: Annotated[int | None, typer.Option(help="Of the purifier: steps of the reverse process.")] = None,
    draws: Annotated[int, typer.Option(help="Fresh draws to judge on, where the answer is random.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of all noise; the same seed gives the same result.")] = 0,
) -> None:
    """Make adversarial examples of images, for a quick look; `depura run` is what judges a defence.

    The true class of an image is --label; else the array label of an NPZ file; else what the classifier takes the clean
    image for, without a purifier. Pictures are written as 8-bit PNG, arrays as they are.
    """
    _check.integer("attack", "--draws", draws, low=1)
    if method is None:
        _need_a_method({"--t-star": t_star, "--purifier-steps": purifier_steps})
    judge = classifier_named(classifier, where="--classifier")
    purifier = None
    if method is not None:
        purifier = purifier_of(
            denoiser, method, where="attack", t_star=t_star, steps=purifier_steps, steps_option="--purifier-steps"
        )
    defence = Defence(purifier, judge)
    radius = EPS[norm.value] if eps is None else eps
    most = 1.0 if norm is Norm.linf else math.inf
    advice = "It is a radius in [0, 1] units, such as 8/255."
    _check.number("attack", "--eps", radius, low=0.0, high=most, low_open=True, advice=advice)
    ball = threat(norm.value, radius)
    loaded = [files.load(path, where="attack") for source in images for path in files.find(source, where="attack")]
    bundled = classifier == DIGITS or (method is not None and denoiser == DIGITS)
    for item in loaded:
        _check.images(str(item.path), item.images, shape=SHAPE if bundled else None)
    targets = _targets(to, [item.path for item in loaded])
    labels, whose = _labels(loaded, label, defence)
    random = method is not None or _is_random(defence, loaded[0].images[:1])
    made = built(name, ball, random=random, steps=steps, eot=eot)
    head = f"attack   {name}, {ball.norm} of radius {ball.eps:.4g}: at most {made.cost} per image"
    out.print(head, highlight=False, soft_wrap=True)
    out.print(f"labels   {whose}", highlight=False, soft_wrap=True)
    found = _attack_all(made, defence, loaded, labels, seed=seed, draws=draws if random else 1)
    attacked = [torch.cat([result.images for result in results]) for results in found]
    files.write_all({t: files.encode(x, t) for t, x in zip(targets, attacked, strict=True)}, where="attack")
    for item, target, own, results in zip(loaded, targets, labels, found, strict=True):
        for k, result in enumerate(results):
            title = target.name if len(results) == 1 else f"{target.name}[{k}]"
            words = _words(result, item.images[k : k + 1], own[k : k + 1], ball, random=random)
            out.print(f"{title}: {words}", highlight=False, markup=False, soft_wrap=True)
    _sum_up([result for results in found for result in results], torch.cat(labels), random=random, draws=draws)


def _need_a_method(options: dict[str, float | None]) -> None:
    for option, value in options.items():
        if value is not None:
            _check.fail("attack", f"{option} together with --method", f"{value} without", "It is the purifier's.")


def _targets(to: Path, paths: list[Path]) -> list[Path]:
    if to.is_file() or to.suffix.lower() in (*files.PICTURES, *files.ARRAYS):
        _check.fail("attack", "a folder for --out", f"{to}")
    targets = files.in_folder(to, paths, where="attack")
    for path in paths:
        if path.resolve() in {target.resolve() for target in targets}:
            _check.fail("attack", "a folder for --out other than that of the images", f"{to}, which has {path.name}")
    return targets


@torch.no_grad()
def _labels(loaded: list[files.Loaded], given: list[int] | None, defence: Defence) -> tuple[list[Tensor], str]:
    """The true classes of each file's images, and in words where they are from."""
    bare = defence.with_(purifier=None)
    counts = [len(item.images) for item in loaded]
    if given:
        if len(given) not in (1, sum(counts)):
            _check.fail("attack", f"one --label, or {sum(counts)}, one for each image", f"{len(given)}")
        every = torch.tensor(given * sum(counts) if len(given) == 1 else given)
        return list(torch.split(every, counts)), "as given"
    labels: list[Tensor] = []
    stored = 0
    for item in loaded:
        arrays = read_npz(item.path) if item.path.suffix.lower() in files.ARRAYS else {}
        if "label" in arrays:
            stored += 1
            own = torch.from_numpy(arrays["label"])
            labels.append(_check.labels(f"attack: {item.path.name}", own, n_images=len(item.images)).long())
        else:
            seen = torch.cat([predicted(bare(part)) for part in torch.split(item.images, AT_ONCE)])
            if bool((seen == NOT_FINITE).any()):
                got = f"{int((seen == NOT_FINITE).sum())} with NaN or infinite ones"
                _check.fail(f"attack: {item.path.name}", "finite logits of the clean images", got, "Give --label.")
            labels.append(seen)
    guessed = "what the classifier takes the clean images for, as no label is given; it may be wrong already"
    if stored == len(loaded):
        return labels, "from the files"
    return labels, f"from the files that have them; for others {guessed}" if stored else guessed


@torch.no_grad()
def _is_random(defence: Defence, images: Tensor) -> bool:
    """Whether a classifier answers differently when it is asked twice."""
    return not same_answers(defence(images), defence(images))


def _attack_all(
    made: Attack, defence: Defence, loaded: list[files.Loaded], labels: list[Tensor], *, seed: int, draws: int
) -> list[list[Judged]]:
    """What became of each image of each file; images of one shape go together."""
    places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for i, item in enumerate(loaded):
        for k in range(len(item.images)):
            places.setdefault(tuple(item.images.shape[1:]), []).append((i, k))
    found: dict[tuple[int, int], Judged] = {}
    with progress() as bar:
        task = bar.add_task("attacking", total=sum(len(group) for group in places.values()))
        for group in places.values():
            for first in range(0, len(group), AT_ONCE):
                part, before = group[first : first + AT_ONCE], len(found)

                def advance(share: float, before: int = before, n: int = len(part)) -> None:
                    bar.update(task, completed=before + share * n)

                images = torch.stack([loaded[i].images[k] for i, k in part])
                classes = torch.stack([labels[i][k] for i, k in part])
                noise = Noise(seed, tuple(loaded[i].ids[k] for i, k in part))
                result = _attacked(made, defence, images, classes, noise, draws, advance)
                found |= {place: _row(result, row) for row, place in enumerate(part)}
    return [[found[i, k] for k in range(len(item.images))] for i, item in enumerate(loaded)]


def _attacked(
    made: Attack,
    defence: Defence,
    images: Tensor,
    labels: Tensor,
    noise: Noise,
    draws: int,
    progress: Callable[[float], None],
) -> Judged:
    """Attack some images, choose the worst candidates on draws of their own, and judge them on others."""
    proposed = made(
        defence, images, labels, init=noise.on(Stream.INIT), eot=noise.on(Stream.EOT), rows=ROWS, progress=progress
    )
    select = range(1 if draws == 1 else SELECT_DRAWS)
    worst = choose(defence, proposed.images, labels, noise.on(Stream.SELECT), draws=select).images
    report = noise.on(Stream.REPORT)
    before, after, rounded = (
        score(defence, x, labels, report, draws=range(draws)) for x in (images, worst, eight_bit(worst))
    )
    zero = None if proposed.gradients is None else proposed.gradients.zero
    return Judged(worst, (before, after, rounded), zero)


def _row(judged: Judged, row: int) -> Judged:
    """One image of a group."""
    at = slice(row, row + 1)
    before, after, rounded = (Scores(*(values[at] for values in s)) for s in judged.scores)
    return Judged(judged.images[at], (before, after, rounded), None if judged.zero is None else judged.zero[at])


def _words(result: Judged, clean: Tensor, label: Tensor, ball: Threat, *, random: bool) -> str:
    """One line about one image."""
    parts = [f"label {int(label)}"]
    for when, scores in zip(("before", "after", "8-bit"), result.scores, strict=True):
        most = int(scores.predictions.mode(1).values)
        seen = "no class (not finite)" if most == NOT_FINITE else most
        wrong = f" ({float(scores.errors(label)) / scores.predictions.shape[1]:.0%} of draws wrong)" if random else ""
        parts.append(f"{when} {seen}{wrong}")
    sizes = [float(ball.distance(x, clean)) for x in (result.images, eight_bit(result.images))]
    parts.append(f"changed by {ball.norm} {sizes[0]:.4f} (8-bit {sizes[1]:.4f})")
    if ball.norm == "perceptual":
        parts += [f"{norm} {float(Ball(norm, 0).distance(result.images, clean)):.4f}" for norm in ("linf", "l2")]
    return ", ".join(parts)


def _sum_up(results: list[Judged], labels: Tensor, *, random: bool, draws: int) -> None:
    """How much was wrong, and whether gradients were zero."""
    parts: list[str] = []
    for k, when in enumerate(("before", "after", "8-bit")):
        wrong = [
            float(r.scores[k].errors(labels[i : i + 1])) / r.scores[k].predictions.shape[1]
            for i, r in enumerate(results)
        ]
        parts.append(f"{when} {sum(wrong) / len(wrong):.0%}" if random else f"{when} {round(sum(wrong))}")
    what = f"wrong of {draws} fresh draws" if random else f"wrong of {len(results)}"
    out.print(f"\n{what}: {', '.join(parts)}", highlight=False, soft_wrap=True)
    zero = [float(r.zero) for r in results if r.zero is not None]
    if zero and sum(zero) / len(zero) > 0.5:
        out.print(
            f"{sum(zero) / len(zero):.0%} of the gradients were zero: this attack had no direction to go, which says "
            "nothing about robustness. Try a smooth stand-in in Python (Relaxed), or an attack without gradients.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
