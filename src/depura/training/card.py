"""The model card of trained weights: what they are, how they were made, how good they are."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from depura.data.imageset import ImageSet
from depura.training.loop import COSINE, History, Recipe

TIME = "- time: "
"""How the one line begins that differs when the same command is given again."""


def write_model_card(
    path: Path,
    *,
    title: str,
    data: Sequence[ImageSet],
    weights: Sequence[float],
    recipe: Recipe,
    history: History,
    command: str,
    parameters: int,
    sha256: str,
    measured: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
) -> None:
    """Write a model card as Markdown.

    Each data set has its share (`weights`) in a batch. `measured` are results and `settings` more that is to be said of
    the training, both by name; `command` trains it so again.
    """
    decay = "cosine decay" if recipe.schedule == COSINE else f"constant, then decay over the last {recipe.decay:.0%}"
    n = torch.get_num_threads()
    threads = "one thread" if n == 1 else f"{n} threads"
    lines = [
        f"# {title}",
        "",
        f"- parameters: {parameters:,}, stored in half precision (safetensors)",
        f"- sha256 of the weight file: `{sha256}`",
        *[
            f"- trained on: {source.name}, {len(source.images)} images, sha256 `{source.sha256()}`"
            + (f", {share:.0%} of each batch" if len(data) > 1 else "")
            for source, share in zip(data, weights, strict=True)
        ],
        f"- command: `{command}`",
        f"- recipe: {history.n_steps} steps of {recipe.batch} images, Adam, peak rate {recipe.rate:g}, {decay}, "
        f"moving average {recipe.ema:g}, seed {recipe.seed}",
        *[f"- {name}: {value}" for name, value in (settings or {}).items()],
        f"- made with: torch {importlib.metadata.version('torch')}, {threads}, {platform.machine()}",
        f"{TIME}{history.seconds / 60:.0f} minutes of training, on {_machine()}",
        "",
        "## Measured by the same command",
        "",
        *[f"- {name}: {value}" for name, value in measured.items()],
        "",
        *_curve(history),
        "## Reproducing",
        "",
        "The same command gives the same hash on the same kind of processor with the same torch build and number of",
        "threads: batches and noise are addressed by the step number and the seed. On another processor or torch build",
        "sums are rounded otherwise, so the hash differs while the measured numbers agree to their scatter.",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


MOST_POINTS = 16
"""Rows of a model card's table of curves, about."""


def _curve(history: History) -> list[str]:
    """A table of what was watched, thinned; nothing where nothing was."""
    last = dict(history.curve[-1])
    watched = [name for name in last if name not in ("step", "seconds", "loss")]
    if not watched:
        return []
    every = -(-len(history.curve) // MOST_POINTS)
    points = [*history.curve[every - 1 : -1 : every], history.curve[-1]]
    return [
        "## Curves",
        "",
        "Loss: mean over the steps since the checkpoint before. The rest: with averaged weights, on held-out images.",
        "",
        "| step | loss | " + " | ".join(watched) + " |",
        "|---|---|" + "---|" * len(watched),
        *[
            f"| {point['step']:.0f} | {point['loss']:.4f} | "
            + " | ".join(f"{point[name]:.4f}" for name in watched)
            + " |"
            for point in points
        ],
        "",
    ]


def processor() -> str:
    """The name of the machine's processor, for people."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _machine() -> str:
    """What trained, for people."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
