"""The commands attack and purify before networks that give no numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from depura.cli import app

BROKEN = """
import torch

def classifier():
    def logits(x):
        level = x.flatten(1).mean(1)
        two = torch.stack([1 - level, level], 1)
        return torch.where((level > 0.5)[:, None], torch.nan, two)
    return logits

def denoiser():
    def denoise(x, sigma):
        dark = x.flatten(1).mean(1) < 0
        return torch.where(dark[:, None, None, None], torch.inf, 0.0 * x)
    return denoise
"""


def depura_(*words: str | Path | float) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dark image and a bright one, which the networks of the module `broken_networks` take in their own way."""
    (tmp_path / "broken_networks.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    both = np.stack([np.full((1, 8, 8), level, dtype=np.float32) for level in (0.2, 0.8)])
    np.savez(tmp_path / "both.npz", image=both)
    return tmp_path / "both.npz"


def test_a_clean_image_without_a_class_has_no_label(tmp_path: Path, images: Path) -> None:
    words = ["--classifier", "broken_networks:classifier", "--steps", 2, "--out", tmp_path / "o"]
    result = depura_("attack", images, *words)
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True)
    said = " ".join(result.output.split())
    assert (
        "both.npz: expected finite logits of the clean images, got 1 with NaN or infinite ones. Give --label." in said
    )
    result = depura_("attack", images, *words, "--label", 0)
    assert result.exit_code == 0, result.output
    lines = {line.partition(":")[0]: line for line in result.output.splitlines()}
    assert "label 0, before 0, after 0, 8-bit 0," in lines["both.npz[0]"]
    none = "no class (not finite)"
    assert f"label 0, before {none}, after {none}, 8-bit {none}," in lines["both.npz[1]"]
    assert "wrong of 2: before 1, after 1, 8-bit 1" in result.output


def test_a_purified_image_with_pixels_that_are_not_finite_is_not_written(tmp_path: Path, images: Path) -> None:
    words = ["--denoiser", "broken_networks:denoiser", "--out", tmp_path / "o.npz"]
    result = depura_("purify", images, *words)
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True)
    said = " ".join(result.output.split())
    assert "purify: both.npz: expected finite purified images, got 1 with NaN or infinite pixels." in said
    assert not (tmp_path / "o.npz").exists()
