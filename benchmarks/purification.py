"""What a purification and its gradient cost in denoiser calls: `python -m benchmarks.purification`.

One thread, the bundled denoiser, medians of several repetitions in one run.
"""

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import depura
from benchmarks.timing import median_seconds

BATCH, STEPS, REPEATS = 128, 10, 7


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    data = depura.load_digits("test").first(BATCH)
    noise = depura.Noise(0, data.ids)
    denoiser = depura.digits_denoiser()
    purifier = depura.diffpure(denoiser, t_star=0.1, n_steps=STEPS, t_end=0.0, solver=depura.Ancestral())
    x = 2 * data.images - 1

    def forward() -> None:
        with torch.no_grad():
            denoiser(x, 0.3)

    def forward_and_back() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(denoiser(leaf, 0.3).sum(), leaf)

    def purify() -> None:
        with torch.no_grad():
            purifier(data.images, noise)

    def gradient(route: depura.GradientRoute) -> Callable[[], None]:
        routed = purifier.with_(gradient=route)

        def run() -> None:
            leaf = data.images.clone().requires_grad_()
            torch.autograd.grad(routed(leaf, noise).sum(), leaf)

        return run

    one = median_seconds(forward, repeats=REPEATS)
    b = median_seconds(forward_and_back, repeats=REPEATS) / one - 1
    table = Table(
        title=f"{STEPS} steps, batch {BATCH}, in units of {STEPS} forward calls; one backward call is {b:.2f}"
    )
    for heading in ("what", "ratio", "calls alone"):
        table.add_column(heading)
    rows: list[tuple[str, Callable[[], None], float]] = [
        ("purification", purify, 1.0),
        ("gradient, StraightThrough", gradient(depura.StraightThrough()), 1.0),
        ("gradient, Direct", gradient(depura.Direct()), 1 + b),
        ("gradient, StoredState", gradient(depura.StoredState()), 1 + b),
        ("gradient, StoredState(segment=1)", gradient(depura.StoredState(segment=1)), 2 + b),
        ("gradient, StoredState(segment=5)", gradient(depura.StoredState(segment=5)), 2 + b),
    ]
    for name, f, calls in rows:
        table.add_row(name, f"{median_seconds(f, repeats=REPEATS) / (STEPS * one):.2f}", f"{calls:.2f}")
    draw = median_seconds(lambda: noise(x, kind=depura.Kind.REVERSE), repeats=REPEATS)
    table.add_row("noise of one step, per forward call", f"{draw / one:.3f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
