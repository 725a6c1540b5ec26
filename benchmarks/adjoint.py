"""How far the continuous adjoint is from the exact gradient: `python -m benchmarks.adjoint --out docs/figures`.

DiffPure's walk (t* = 0.1, reverse VP-SDE, Euler-Maruyama) around the exact denoiser of a mixture of ten Gaussians of
standard deviation s on 3x4x4 images, and around the bundled denoiser of digits, in float64. For every step length, the
gradient of a random linear function of the result by `Adjoint` is compared with that by `StoredState` on the same
noise, image by image; medians over 16 images. Writes adjoint.json (a list of {density, steps, dt, rel_error, cosine,
flips}) and adjoint.svg.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from depura import Adjoint, MixtureDenoiser, Noise, StoredState, diffpure, digits_denoiser, load_digits

T_STAR, STEPS, SPREADS, IMAGES = 0.1, (25, 50, 100, 200, 400), (0.1, 0.05, 0.02, 0.01), 16


def mixture(spread: float) -> tuple[nn.Module, Tensor]:
    """The denoiser of ten Gaussians around random means, and images drawn from them, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    means = 1.2 * torch.rand(10, 3, 4, 4, generator=generator, dtype=torch.float64) - 0.6
    chosen = torch.randint(10, (IMAGES,), generator=generator)
    x0 = means[chosen] + spread * torch.randn(IMAGES, 3, 4, 4, generator=generator, dtype=torch.float64)
    return MixtureDenoiser(means, std=spread), ((x0 + 1) / 2).clamp(0, 1)


def densities() -> dict[str, tuple[nn.Module, Tensor]]:
    """What is purified, by name."""
    found = {f"mixture, s = {spread:g}": mixture(spread) for spread in SPREADS}
    return {**found, "digits network": (digits_denoiser().double(), load_digits("test").images[:IMAGES].double())}


def compare(denoiser: nn.Module, images: Tensor, n_steps: int) -> dict[str, float]:
    """Medians over images of relative error, cosine and share of flipped signs."""
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    purifier = diffpure(denoiser, t_star=T_STAR, n_steps=n_steps)

    def gradient(route: Adjoint | StoredState) -> Tensor:
        leaf = images.clone().requires_grad_()
        out = purifier.with_(gradient=route)(leaf, Noise(0, tuple(range(len(images)))))
        return torch.autograd.grad((out * weights).sum(), leaf)[0].flatten(1)

    exact, ours = gradient(StoredState()), gradient(Adjoint())
    error = (ours - exact).norm(dim=1) / exact.norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(ours, exact, dim=1)
    flips = (ours.sign() != exact.sign()).double().mean(1)
    return {
        name: float(values.median()) for name, values in {"rel_error": error, "cosine": cosine, "flips": flips}.items()
    }


def figure(rows: list[dict[str, float | str]]) -> str:
    """Relative error against step length, one line per density."""
    with mpl.rc_context({"svg.hashsalt": "depura", "svg.fonttype": "none", "font.size": 10}):
        canvas = Figure(figsize=(7, 4.2), layout="constrained")
        axes = canvas.subplots()
        for name in dict.fromkeys(row["density"] for row in rows):
            mine = [row for row in rows if row["density"] == name]
            axes.loglog([r["dt"] for r in mine], [r["rel_error"] for r in mine], marker="o", label=name)
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.axvline(1e-3, color="0.6", linewidth=0.8, linestyle=":")
        axes.annotate("published step", (1e-3, axes.get_ylim()[1]), xytext=(3, -12), textcoords="offset points")
        axes.set_xlabel("step length dt (t* = 0.1)")
        axes.set_ylabel("relative error of the adjoint gradient")
        axes.legend(frameon=False)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+\n", "\n", buffer.getvalue())


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="Folder of adjoint.json and adjoint.svg.")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    table = Table(title="the continuous adjoint against the exact gradient, medians over images")
    for heading in ("density", "steps", "dt", "relative error", "cosine", "flipped signs"):
        table.add_column(heading)
    rows: list[dict[str, float | str]] = []
    for name, (denoiser, images) in densities().items():
        for n in STEPS:
            row = {"density": name, "steps": n, "dt": T_STAR / n, **compare(denoiser, images, n)}
            rows.append(row)
            shown = (f"{row['rel_error']:.2g}", f"{row['cosine']:.4f}", f"{100 * float(row['flips']):.1f} %")
            table.add_row(name, str(n), f"{T_STAR / n:g}", *shown)
    out.mkdir(parents=True, exist_ok=True)
    (out / "adjoint.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out / "adjoint.svg").write_text(figure(rows), encoding="utf-8")
    Console().print(table)


if __name__ == "__main__":
    main()
