"""How often the checks of a run warn of an honest study:

    python -m experiments.false_alarms            # 50 runs of 12 digits and 50 of 64
    python -m experiments.false_alarms --images 12 --seeds 10
    python -m experiments.false_alarms --images 64 --steps 20 --eot 4 --only 13 20     # two seeds, a stronger attack

The study is few-step DiffPure (3 steps) around the bundled denoiser and classifier, under PGD of 10 steps with 2 draws
per gradient, linf 0.2 (`--steps`, `--eot`). Each run has a seed of its own for its noise, and images drawn by it.
Printed are the sentences of all checks that warn or fail, the number of runs whose headline is withheld or failed, of
those with a warning, and how often each check warns or fails.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import torch

import depura
from depura.analysis.summary import Summary, summarise
from depura.analysis.verdicts import Status
from depura.evaluation.demo import EPS
from depura.evaluation.runner import run


def control(n: int, seed: int, *, steps: int = 10, eot: int = 2) -> depura.Study:
    """The honest study."""
    purifier = depura.diffpure(depura.digits_denoiser(), t_star=0.09, n_steps=3, t_end=0.0, solver=depura.Ancestral())
    defence = depura.Defence(purifier, depura.digits_classifier())
    return depura.Study(
        name="control",
        data=depura.load_digits("test").draw(n, seed),
        defence=defence,
        rows=depura.attack_suite(defence, depura.PGD(depura.Ball("linf", EPS), n_steps=steps, eot=eot)),
        seed=seed,
        report_draws=32,
        pictures=0,
    )


def summary(study: depura.Study) -> Summary:
    """What is said of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return summarise(run(study, Path(folder) / "run"))


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[12, 64])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=10, help="of PGD")
    parser.add_argument("--eot", type=int, default=2, help="draws per gradient")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, nargs="*", default=[], help="these seeds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for n in given.images:
        refused = warned = 0
        by_check: Counter[str] = Counter()
        for seed in given.only or range(given.first, given.first + given.seeds):
            found = summary(control(n, seed, steps=given.steps, eot=given.eot))
            said = [v for v in found.verdicts if v.status in (Status.WARN, Status.FAIL)]
            refused, warned = refused + found.refused, warned + bool(said)
            by_check.update(f"{v.id} {v.status.value}" for v in said)
            for v in said:
                print(f"  {n} images, seed {seed}: {v.id} {v.status.value}: {v.sentence}", flush=True)
        each = ", ".join(f"{name} x{times}" for name, times in sorted(by_check.items())) or "none"
        runs = f"{len(given.only) or given.seeds} runs of {n} images"
        print(f"{runs}: no headline in {refused}, a warning in {warned} ({each})", flush=True)


if __name__ == "__main__":
    main()
