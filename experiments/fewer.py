"""Fewer evaluations for the same answer: few-step purifiers as defences of their own, and an attack's levers.

    python -m experiments.fewer --out FILE.json --runs FOLDER
    python -m experiments.fewer --out FILE.json --runs FOLDER --images FILE --classifier FILE --denoiser FILE

Printed, and written as JSON: for every solver and number of steps S the accuracy under the same adaptive attack, with
what a prediction costs; for every solver the smallest S whose accuracy under attack is not detectably below that of the
most steps, by a test paired by image; and what each lever of the attack saves on one defence. With the files of a
data set, a classifier and a denoiser the defence is theirs, else the bundled digits'. Every cell is a run of its own
in the folder: stopped, the same command goes on; cells that another version of the code has made are refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import depura
from depura import APGD, AdaptiveDraws, AttackRun, Ball, Defence, Study, WarmStart, diffpure
from depura.analysis.comparison import detectable_gap
from depura.analysis.results import RowResults
from depura.data.imageset import ImageSet
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.solvers import Ancestral, DpmSolverPP, Euler, EulerMaruyama, Heun, Solver
from depura.models.by_name import classifier, denoiser
from depura.records.directory import RunDirectory, Unit
from depura.statistics.intervals import Proportion, mean_with_interval, paired_difference

SOLVERS: dict[str, tuple[str, Solver]] = {
    "euler": ("Euler (DDIM)", Euler()),
    "heun": ("Heun", Heun()),
    "dpm": ("DPM-Solver++(2M)", DpmSolverPP()),
    "ancestral": ("Ancestral (DDPM)", Ancestral()),
    "eulermaruyama": ("Euler-Maruyama", EulerMaruyama()),
    "sde-dpm": ("SDE-DPM-Solver++(2M)", DpmSolverPP(stochastic=True)),
}
"""By the names of their runs."""
STEPS = (5, 10, 20, 50, 100)
LEVEL = 0.05


@dataclass(frozen=True)
class Subject:
    """What is defended, and how far it is noised.

    Attributes:
        name: for tables.
        data: images.
        classifier: behind the purifier.
        denoiser: of the purifier.
        t_star: how far to noise.
        ball: threat model.
        draws: that a point is judged on.
        unit: images at once.
    """

    name: str
    data: ImageSet
    classifier: Callable[[Tensor], Tensor]
    denoiser: Denoiser
    t_star: float
    ball: Ball
    draws: int
    unit: int

    def defence(self, solver: Solver, n_steps: int) -> Defence:
        """DiffPure with a solver in some steps, to sigma = 0."""
        shape = tuple(self.data.images.shape[1:])
        purifier = diffpure(
            self.denoiser,
            t_star=self.t_star,
            n_steps=n_steps,
            t_end=0.0,
            solver=solver,
            image_shape=(shape[0], shape[1], shape[2]),
        )
        return Defence(purifier, self.classifier)


class Cell(NamedTuple):
    """One attack on one defence.

    Attributes:
        accuracies: of one draw under attack, per image.
        clean: of one draw without.
        prediction: denoiser evaluations of a prediction.
        attack: denoiser evaluations of the attack per image, forward and backward, counted by a hook.
        spent: evaluations of the defence per image: with a gradient, without; then those of a surrogate.
        finished: images that the attack was content with early.
    """

    accuracies: NDArray[np.float64]
    clean: NDArray[np.float64]
    prediction: float
    attack: float
    spent: tuple[float, float, float, float]
    finished: int


def cell(units: Sequence[Unit], row: str) -> Cell:
    """What a run says of a row."""
    own = RowResults(tuple(unit for unit in units if unit.facts.row == row))
    null = RowResults(tuple(unit for unit in units if unit.facts.row.startswith("null-")))
    clean = [unit.facts.clean for unit in null.units if unit.facts.clean is not None]
    spent = own.array("spent").mean(0)
    cheap = own.array("spent_surrogate").mean(0) if own.has("spent_surrogate") else np.zeros(2)
    return Cell(
        accuracies=own.accuracies,
        clean=null.accuracies,
        prediction=sum(c.evaluations for c in clean) / sum(c.predictions for c in clean),
        attack=sum(sum(unit.facts.evaluations.attack) for unit in own.units) / own.n_images,
        spent=(float(spent[0]), float(spent[1]), float(cheap[0]), float(cheap[1])),
        finished=int((own.array("finished") >= 0).sum()),
    )


def done(study: Study, folder: Path) -> list[Unit]:
    """The units of a study, computed as far as they are missing."""
    directory: RunDirectory = depura.run(study, folder, command="python -m experiments.fewer")
    return list(directory.units())


def study_of(subject: Subject, name: str, defence: Defence, attacks: dict[str, tuple[str, APGD]]) -> Study:
    """Attacks through the whole of one defence, judged on it."""
    rows = tuple(
        AttackRun(row, f"purified; {title}", attack, defence, defence, "adaptive" if len(attacks) == 1 else "")
        for row, (title, attack) in attacks.items()
    )
    return Study(
        name=name,
        data=subject.data,
        defence=defence,
        rows=rows,
        select_draws=8,
        report_draws=subject.draws,
        unit_images=subject.unit,
        pictures=0,
        reference=False,  # its rows are compared with one another
    )


def by_steps(
    subject: Subject, attack: APGD, solvers: Sequence[str], steps: Sequence[int], runs: Path
) -> Iterator[dict[str, Any]]:
    """Every solver in every number of steps, and what the paired test says of it against the most steps."""
    for short in solvers:
        title, solver = SOLVERS[short]
        cells = dict[int, Cell]()
        for n_steps in steps:
            name = f"{short}-{n_steps}"
            study = study_of(subject, name, subject.defence(solver, n_steps), {"adaptive": ("adaptive attack", attack)})
            cells[n_steps] = cell(done(study, runs / name), "adaptive")
            print(f"  {name}: {100 * cells[n_steps].accuracies.mean():.1f} %", flush=True)
        most = cells[max(steps)]
        for n_steps, found in cells.items():
            apart = found.accuracies - most.accuracies
            tested = paired_difference(found.accuracies, most.accuracies)
            yield {
                "solver": title,
                "steps": n_steps,
                "prediction": found.prediction,
                "attack_evaluations": found.attack,
                "clean": estimate(found.clean),
                "adaptive": estimate(found.accuracies),
                "images": len(found.accuracies),
                "difference": [tested.value, tested.low, tested.high],
                "p": tested.p,
                "detectable": detectable_gap(apart),
                "below": tested.p < LEVEL and tested.value < 0,
                "saving": most.prediction / found.prediction,
            }


def named(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each solver the smallest number of steps that is not detectably below the most."""
    found = list[dict[str, Any]]()
    for solver in dict.fromkeys(line["solver"] for line in table):
        own = sorted((line for line in table if line["solver"] == solver), key=lambda line: line["steps"])
        found.append(next(line for line in own if not line["below"]))
    return found


def levers(subject: Subject, n_steps: int, runs: Path) -> list[dict[str, Any]]:
    """The attack with each of its levers, with all of them, and with as little as they save but without them."""
    plain = APGD(subject.ball, n_steps=50, eot=16)
    adaptive = AdaptiveDraws(16, start=4, agreement=0.5)
    attacks = {
        "plain": ("APGD 50 x 16", plain),
        "growth": ("draws grown from 4 to 16 where halves disagree", replace(plain, eot=adaptive)),
        "warm": (
            "30 steps through a fifth of the steps, then 20",
            WarmStart(replace(plain, n_steps=20), n_steps=30, share=5),
        ),
        "retired": ("images retired at 32 of 32 wrong draws", replace(plain, common=32, finish=1.0)),
        "all": (
            "all three",
            WarmStart(replace(plain, n_steps=20, eot=adaptive, common=32, finish=1.0), n_steps=30, share=5),
        ),
        "fewer-draws": ("control: 4 draws instead of 16", replace(plain, eot=4)),
        "fewer-steps": ("control: 20 steps instead of 50", replace(plain, n_steps=20)),
    }
    study = study_of(subject, "levers", subject.defence(Ancestral(), n_steps), attacks)
    units = done(study, runs / "levers")
    base = cell(units, "plain")
    lines = list[dict[str, Any]]()
    for row, (title, _) in attacks.items():
        found = cell(units, row)
        tested = paired_difference(found.accuracies, base.accuracies)
        lines.append(
            {
                "lever": title,
                "gradients": found.spent[0],
                "forwards": found.spent[1],
                "surrogate": sum(found.spent[2:]),
                "attack_evaluations": found.attack,
                "saving": base.attack / found.attack,
                "adaptive": estimate(found.accuracies),
                "difference": [tested.value, tested.low, tested.high],
                "p": tested.p,
                "retired": found.finished,
                "images": len(found.accuracies),
            }
        )
    return lines


def estimate(accuracies: NDArray[np.float64]) -> list[float]:
    """Mean and its 95 % interval over the images."""
    found: Proportion = mean_with_interval(accuracies)
    return [found.value, found.low, found.high]


def interval(values: Sequence[float], *, signed: bool = False) -> str:
    """In per cent."""
    value, low, high = (f"{100 * v:+.1f}" if signed else f"{100 * v:.1f}" for v in values)
    return f"{value} ({low} to {high})"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def printed(result: dict[str, Any]) -> str:
    """The tables, as docs/fewer-evaluations.md has them."""
    steps = [
        [
            line["solver"],
            str(line["steps"]),
            f"{line['prediction']:.0f}",
            interval(line["clean"]),
            interval(line["adaptive"]),
            interval(line["difference"], signed=True) if line["saving"] != 1 else "",
            f"{line['p']:.3f}" if line["saving"] != 1 else "",
            f"{100 * line['detectable']:.1f}" if line["detectable"] == line["detectable"] else "",
        ]
        for line in result["steps"]
    ]
    headings = ("solver", "S", "evaluations", "clean, %", "adaptive, %", "less the most steps'", "p", "detectable gap")
    words = [markdown(headings, steps)] if steps else []
    words += [
        f"{line['solver']}: S = {line['steps']} is the smallest that is not detectably below; a prediction costs "
        f"{line['prediction']:.0f} evaluations, {line['saving']:.3g} times fewer."
        for line in result["named"]
    ]
    if result["levers"]:
        headings = ("attack", "gradients", "forwards", "of a surrogate", "network evaluations", "saving", "adaptive, %")
        headings = (*headings, "less the plain attack's", "p", "retired")
        rows = [
            [
                line["lever"],
                *(f"{line[k]:,.0f}" for k in ("gradients", "forwards", "surrogate", "attack_evaluations")),
                f"{line['saving']:.2f}",
                interval(line["adaptive"]),
                interval(line["difference"], signed=True),
                f"{line['p']:.3f}",
                str(line["retired"]),
            ]
            for line in result["levers"]
        ]
        words.append(markdown(headings, rows))
    return "\n\n".join(words)


def subject_of(given: argparse.Namespace) -> Subject:
    """The bundled digits, or what the files hold."""
    if given.images is None:
        name, data = "digits", depura.load_digits("test")
        network, cleans = depura.digits_classifier(), depura.digits_denoiser()
    else:
        name, data = Path(given.images).stem, depura.load_images(given.images)
        network, cleans = classifier(given.classifier), denoiser(given.denoiser)
    ball = Ball("linf", given.eps)
    return Subject(name, data.first(given.n), network, cleans, given.t_star, ball, given.draws, given.unit)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--n", type=int, default=64, help="images")
    parser.add_argument("--eps", type=float, default=0.2, help="linf radius")
    parser.add_argument("--t-star", type=float, default=0.09, help="how far to noise")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="numbers of steps")
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), default=list(SOLVERS), help="default all")
    parser.add_argument("--attack-steps", type=int, default=20, help="of APGD")
    parser.add_argument("--eot", type=int, default=4, help="draws per gradient")
    parser.add_argument("--common", type=int, default=8, help="draws that the point to return to is settled on")
    parser.add_argument("--draws", type=int, default=32, help="draws that a point is judged on")
    parser.add_argument("--unit", type=int, default=16, help="images at once")
    parser.add_argument(
        "--lever-steps", type=int, default=10, help="steps of the purifier that levers are tried on; 0: none"
    )
    parser.add_argument("--images", help="data set file; default the bundled digits, with their networks")
    parser.add_argument("--classifier", help="checkpoint file, with --images")
    parser.add_argument("--denoiser", help="checkpoint file, with --images")
    given = parser.parse_args()
    if given.images is not None and (given.classifier is None or given.denoiser is None):
        parser.error("--images needs --classifier and --denoiser")
    return given


def main() -> None:
    """Compute what is missing, write, print."""
    given = arguments()
    torch.set_num_threads(1)
    subject = subject_of(given)
    attack = APGD(subject.ball, n_steps=given.attack_steps, eot=given.eot, common=given.common)
    table = list(by_steps(subject, attack, given.solvers, given.steps, given.runs)) if given.steps != [0] else []
    result = {
        "defence": f"DiffPure on {subject.name}, t* = {given.t_star}, linf {given.eps}",
        "attack": f"APGD {given.attack_steps} x {given.eot}, {given.n} images, {given.draws} draws",
        "steps": table,
        "named": named(table),
        "levers": levers(subject, given.lever_steps, given.runs) if given.lever_steps else [],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{result['defence']}; {result['attack']}\n\n{printed(result)}")


if __name__ == "__main__":
    main()
