"""Model cards: what a weight file is, written by the command that made it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

from depura.data.imageset import ImageSet
from depura.training.loop import Recipe


def write_card(
    path: Path,
    *,
    title: str,
    data: ImageSet,
    recipe: Recipe,
    command: str,
    parameters: int,
    sha256: str,
    measured: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
) -> None:
    """Write a card.

    Args:
        path: Markdown file to write.
        title: what the network is.
        data: what it was trained on.
        recipe: how.
        command: that trained it.
        parameters: how many.
        sha256: of the weight file.
        measured: results by name, as text.
        settings: what else is to be said of the training, by name.
    """
    lines = [
        f"# {title}",
        "",
        f"- parameters: {parameters:,}, stored in half precision (safetensors)",
        f"- sha256 of the weight file: `{sha256}`",
        f"- trained on: {data.name}, {len(data.images)} images, sha256 `{data.sha256()}`",
        f"- command: `{command}`",
        f"- recipe: {recipe.n_steps} steps of {recipe.batch} images, Adam, peak rate {recipe.rate:g}, "
        f"moving average {recipe.ema:g}, seed {recipe.seed}",
        *[f"- {name}: {value}" for name, value in (settings or {}).items()],
        f"- made with: torch {importlib.metadata.version('torch')}, one thread, {platform.machine()}",
        "",
        "## Measured by the same command",
        "",
        *[f"- {name}: {value}" for name, value in measured.items()],
        "",
        "## Reproducing",
        "",
        "The same command gives the same hash on the same kind of processor with the same torch build and one thread:",
        "batches and noise are addressed by the step number and the seed. On another processor or torch build sums are",
        "rounded otherwise, so the hash differs while the measured numbers agree to their scatter.",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
