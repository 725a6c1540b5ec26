"""The page docs/claims.md, from the records of studies/claims.py:

    python -m experiments.claims

Claims, what is compared for each and what would decide it stand in CLAIMS; all numbers and verdicts are computed from
records, but for the memory of gradients, which this command measures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import depura
from benchmarks.memory import peak_bytes
from depura.analysis.results import Outcome, Results, longest
from depura.analysis.words import percent
from depura.methods.diffpure import T_STAR
from depura.records.directory import RunDirectory
from depura.records.kinds import AttackKind
from depura.reports.table import Table, markdown
from depura.statistics.intervals import Proportion, mean_with_interval, paired_difference
from depura.statistics.precision import spread

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "records"
ON = {"digits": "digits", "cifar10": "CIFAR-10"}
MOST_IMAGES = 100_000
STEPS = (10, 20, 50, 100)

HOLDS, FAILS = "holds here", "does not hold here"

CLEAN, ROBUST = "clean", "robust"
"""Quantities besides kinds of attack: without an attack, and under the strongest attack for each image."""

QUANTITIES = {
    CLEAN: "no attack",
    ROBUST: "strongest attack",
    "adaptive": "exact gradient",
    "relaxed": "relaxed gradient",
    "surrogate": "adjoint's gradient",
    "bpda": "BPDA",
}
"""In words; kinds of attack that are not here are their own word."""


class Side(NamedTuple):
    """An accuracy of a method.

    Attributes:
        method: its name in the record.
        quantity: CLEAN, ROBUST, or a kind of attack.
    """

    method: str
    quantity: str = ROBUST


class Part(NamedTuple):
    """One comparison of a claim: the first accuracy less the second is more than a margin.

    Attributes:
        study: whose record it is read from: the claim's name in studies/claims.py, with the threat where there is one.
        first: one accuracy.
        second: the other, of the same images.
        margin: in [-1, 1]; below 0 for "hardly less than".
        on: the data; both if empty.
    """

    study: str
    first: Side
    second: Side
    margin: float = 0.0
    on: str = ""


Line = tuple[str, ...]
"""Of a table."""


class Claim(NamedTuple):
    """A claim.

    Attributes:
        paper: whose.
        says: what, in a sentence.
        source: where it stands.
        parts: what must hold for it, all of it.
        note: what a reader must know of the setting here.
    """

    paper: str
    says: str
    source: str
    parts: tuple[Part, ...]
    note: str = ""


class Decided(NamedTuple):
    """What came of a comparison.

    Attributes:
        verdict: HOLDS, FAILS or "not decided (n images needed)".
        first: one accuracy.
        second: the other.
        difference: in points with its 95 % interval, and p.
        images: how many were compared.
    """

    verdict: str
    first: Proportion
    second: Proportion
    difference: str
    images: int


DIFFPURE, MIMIC, AGDM = "DiffPure", "MimicDiffusion", "AGDM"
NIE = "Nie et al. 2022, arXiv:2205.07460"
SONG = "Song et al. 2023, arXiv:2312.04802"
LIN = "Lin et al. 2024, arXiv:2403.16067"
ACCOUNTS = "as others cite it and its code runs it; the place in the paper was not looked up"
HUNDREDTH = 0.01
"""Of "the same memory": it may grow by so much of what the whole graph grows by."""
FIVE = 0.05
"""Of "as strong" and "loses nothing": 5 points."""


def _more(study: str, first: str, second: str, quantity: str = ROBUST, margin: float = 0.0, on: str = "") -> Part:
    return Part(study, Side(first, quantity), Side(second, quantity), margin, on)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        DIFFPURE,
        "Clean accuracy falls as images are noised further (larger t*).",
        f"{NIE}; {ACCOUNTS}",
        (
            _more("diffpure-depth", "t20", "t400", CLEAN, on="digits"),
            _more("diffpure-depth", "t10", "t100", CLEAN, on="cifar10"),
        ),
    ),
    Claim(
        DIFFPURE,
        "Robust accuracy is best at a middle t*: less noise leaves the perturbation, more destroys the image.",
        f"{NIE}; {ACCOUNTS}",
        (
            _more("diffpure-depth", "t90", "t20", on="digits"),
            _more("diffpure-depth", "t90", "t400", on="digits"),
            _more("diffpure-depth", "t50", "t10", on="cifar10"),
            _more("diffpure-depth", "t50", "t100", on="cifar10"),
        ),
        "The middle was fixed beforehand: the t* that all studies here use.",
    ),
    Claim(
        DIFFPURE,
        "Reversing the SDE is more robust than the probability flow ODE and than Langevin dynamics on the input.",
        f"{NIE}; {ACCOUNTS}",
        (_more("diffpure-solver", "sde", "ode"), _more("diffpure-solver", "sde", "ldsde")),
    ),
    Claim(
        DIFFPURE,
        "The stochastic adjoint gives an attack as strong as the exact gradient (at most 5 points more are left).",
        f"{NIE}, abstract: it computes full gradients of the reverse process by the adjoint method",
        tuple(
            Part("diffpure-adjoint", Side(f"steps{n}", "adaptive"), Side(f"steps{n}", "surrogate"), -FIVE)
            for n in STEPS
        ),
    ),
    Claim(
        DIFFPURE,
        "Noise that is drawn afresh for every purification makes the defence more robust than one noise for good.",
        f"{NIE}; {ACCOUNTS}",
        (_more("diffpure-noise", "random", "fixed"),),
    ),
    Claim(
        DIFFPURE,
        "It protects classifiers of different kinds.",
        f"{NIE}, abstract",
        tuple(
            _more("diffpure-classifiers", name, f"{name}-bare", on="cifar10")
            for name in ("resnet20", "resnet32", "vit")
        ),
        "ResNet-20 and ResNet-32 as published by Y. Idelbayev; a small ViT trained here.",
    ),
    Claim(
        DIFFPURE,
        "It outperforms adversarial training under linf attacks.",
        f"{NIE}, abstract",
        (_more("unseen-linf", "diffpure-ddpm", "trades"),),
        "The adversarially trained network is small, and so is the denoiser.",
    ),
    Claim(
        DIFFPURE,
        "It outperforms adversarial training under attacks that were not trained for: l2 and flows (StAdv).",
        f"{NIE}, abstract: threats need not be known beforehand",
        (
            _more("unseen-l2", "diffpure-ddpm", "trades"),
            _more("unseen-stadv", "diffpure-ddpm", "trades"),
        ),
    ),
    Claim(
        MIMIC,
        "Guidance by the Manhattan distance is more robust than by the Euclidean one.",
        f"{SONG}, abstract, for the parts; {ACCOUNTS}",
        (_more("mimic-distance", "manhattan", "euclidean"),),
        "Both gradients have the same length. The Euclidean one does not hide the input behind signs.",
    ),
    Claim(
        MIMIC,
        "Long- and short-range guidance together are more robust than either alone.",
        f"{SONG}, abstract, for the parts; {ACCOUNTS}",
        (_more("mimic-terms", "both", "long"), _more("mimic-terms", "both", "short")),
    ),
    Claim(
        MIMIC,
        "The up-sampling U of the short-range term helps: more robust with it (bilinear) than without (none).",
        f"{SONG}, abstract, for the parts; {ACCOUNTS}",
        (_more("mimic-upsampling", "bilinear", "none"),),
        "Which U the paper takes is not public; the released code's repeats the long-range term.",
    ),
    Claim(
        MIMIC,
        "Guiding inside the sampling window alone loses nothing (at most 5 points) against guiding all steps.",
        f"{SONG}; {ACCOUNTS}",
        (_more("mimic-window", "window", "all", margin=-FIVE),),
    ),
    Claim(
        MIMIC,
        "Holding the network's Jacobian constant, as the released code does, loses nothing (at most 5 points).",
        "released code against the paper's formula",
        (_more("mimic-jacobian", "constant", "network", margin=-FIVE),),
    ),
    Claim(
        MIMIC,
        "Robust accuracy lies close to clean accuracy (at most 10 points below).",
        f"{SONG}; {ACCOUNTS}",
        (Part("mimic-window", Side("window"), Side("window", CLEAN), -0.1),),
    ),
    Claim(
        MIMIC,
        "The usual adaptive attack measures it: other gradients find hardly more (at most 5 points).",
        f"{SONG}; {ACCOUNTS}",
        (
            Part("mimic-window", Side("window", "relaxed"), Side("window", "adaptive"), -FIVE),
            Part("mimic-window", Side("window", "bpda"), Side("window", "adaptive"), -FIVE),
        ),
        "Its exact gradient is zero, so that the usual attack does not move.",
    ),
    Claim(
        AGDM,
        "Its guidance is more robust than the same purification without (linf).",
        f"{LIN}, abstract",
        (_more("unseen-linf", "agdm", "diffpure-ddpm"),),
    ),
    Claim(
        AGDM,
        "Its guidance raises clean accuracy.",
        f"{LIN}, abstract of version 1",
        (_more("unseen-linf", "agdm", "diffpure-ddpm", CLEAN),),
    ),
    Claim(
        AGDM,
        "It is independent of the pre-trained model: one guide helps over any denoiser, none of which is retrained.",
        f"{LIN}, abstract of version 1",
        tuple(
            _more("agdm-denoisers", f"{name}-agdm", f"{name}-diffpure", on="digits")
            for name in ("edm", "diffusers", "empirical")
        ),
        "A U-Net of depura's, one of the diffusers library, and the exact denoiser of the training digits.",
    ),
    Claim(
        AGDM,
        "It helps under attacks that its guide was not trained for.",
        f"{LIN}, abstract of version 3",
        tuple(_more(f"unseen-{threat}", "agdm", "diffpure-ddpm") for threat in ("l2", "stadv", "low")),
    ),
    Claim(
        AGDM,
        "Under such attacks it is more robust than an adversarially trained network alone, which fails there.",
        f"{LIN}, as summaries and reviews of it say; the place in the paper was not looked up",
        tuple(_more(f"unseen-{threat}", "agdm", "trades") for threat in ("l2", "stadv", "low")),
    ),
)

INTRO = """# What the papers claim, and what was measured here

Written by `python -m experiments.claims` from the records in [records/](../records); nothing here was typed in by hand.

Every claim is tested in small: the bundled digits ({digits} test images, their denoiser, classifier and adversarially
trained networks), and CIFAR-10 where there is a record ({cifar10} images, a published ResNet-20, networks of
[weights/](../weights) trained on a processor). All that a claim compares is attacked alike, on the same images. **A
verdict is about this setting.** It says what can be read off here, not what large networks reach. *{holds}*: every
comparison of the claim lies on its side with its whole 95 % interval. *{fails}*: one lies on the other side with its
whole interval. *Not decided*: neither; in brackets how many images would show a difference of the size that was
seen (80 % power). A dash: no record yet. The accuracies are upper bounds under equal attacks: 10 steps with 2 draws
per gradient (20 steps for DiffPure's depth, solver and noise on the digits), through the exact gradient, or the relaxed
one where that is zero, beside examples made against the bare classifier. No correction is made for the number of
claims: of twenty, one may be decided by chance.
"""


@cache
def record(study: str, on: str) -> Results | None:
    """The results of a claim's study; None where there is no record."""
    path = FOLDER / _name(study, on)
    return Results.read(RunDirectory.open(path)) if path.is_dir() else None


def _name(study: str, on: str) -> str:
    return f"claim-{study}" + ("" if on == "digits" else f"-{on}")


def outcome(results: Results, side: Side) -> Outcome:
    """The predictions that an accuracy is made of."""
    its = results.only(side.method)
    rows = its.attacks or its.own_rows
    if side.quantity == CLEAN:
        return its.null_of(longest(rows)).outcome()
    if side.quantity == ROBUST:
        return its.strongest(rows)
    kind = AttackKind(side.quantity)
    return its.strongest([row for row in its.own_rows if row.kind == kind])


def right(results: Results, side: Side) -> np.ndarray:
    """Whether each draw of each image is right, (n, K), 0 or 1."""
    found = outcome(results, side)
    return (found.predictions == found.labels[:, None]).astype(np.float64)


def decided(part: Part, results: Results) -> Decided:
    """A comparison, on the images that both sides have."""
    sides = [right(results, side) for side in (part.first, part.second)]
    n = min(len(side) for side in sides)
    first, second = (side[:n] for side in sides)
    difference = paired_difference(first.mean(1), second.mean(1))
    if difference.low > part.margin:
        verdict = HOLDS
    elif difference.high < part.margin:
        verdict = FAILS
    else:
        away = abs(difference.value - part.margin)
        draws = min(first.shape[1], second.shape[1])
        needed = spread(first[:, :draws] - second[:, :draws]).images_to_detect(away) if away else MOST_IMAGES
        number = f"about {_rounded(needed):,}" if needed < MOST_IMAGES else f"{MOST_IMAGES:,} or more"
        verdict = f"not decided ({number} images needed)"
    words = f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f}), " + (
        f"p {difference.p:.3f}" if difference.p >= 0.001 else "p < 0.001"
    )
    return Decided(verdict, mean_with_interval(first.mean(1)), mean_with_interval(second.mean(1)), words, n)


def _rounded(n: int) -> int:
    """Two digits, upwards."""
    unit = 10 ** max(0, int(math.log10(n)) - 1)
    return math.ceil(n / unit) * unit


def verdict(found: Sequence[Decided]) -> str:
    """Of a claim, from its comparisons."""
    verdicts = [its.verdict for its in found]
    if FAILS in verdicts:
        return FAILS
    return next((its for its in verdicts if its != HOLDS), HOLDS)


def on_data(claim: Claim, on: str) -> list[tuple[Part, Decided]]:
    """The comparisons of a claim that there are records of; empty unless there are all."""
    parts = [part for part in claim.parts if part.on in ("", on)]
    found = [(part, results) for part in parts if (results := record(part.study, on)) is not None]
    return [(part, decided(part, results)) for part, results in found] if len(found) == len(parts) else []


def memory() -> tuple[str, Table]:
    """Peak memory of one gradient through a purification of 10 to 100 steps: verdict and table."""
    torch.set_num_threads(1)
    classifier, d = depura.digits_classifier(), depura.digits_denoiser()
    images = depura.load_digits("test").first(8)
    noise = depura.Noise(0, images.ids)
    routes: dict[str, depura.GradientRoute] = {
        "adjoint": depura.Adjoint(),
        "exact, one step at a time": depura.StoredState(segment=1),
        "whole graph": depura.Direct(),
    }
    peaks: dict[str, list[float]] = {name: [] for name in routes}
    for name, route in routes.items():
        for steps in STEPS:
            purifier = depura.diffpure(d, t_star=T_STAR, n_steps=steps, gradient=route)

            def gradient(purifier: depura.DiffusionPurifier = purifier) -> object:
                leaf = images.images.clone().requires_grad_()
                return torch.autograd.grad(classifier(purifier(leaf, noise)).sum(), leaf)

            peaks[name].append(peak_bytes(gradient, device=torch.device("cpu")) / 2**20)
    lines = [(name, *(f"{its:.2f}" for its in found)) for name, found in peaks.items()]
    grown = {name: found[-1] - found[0] for name, found in peaks.items()}
    table = Table(("gradient, MiB for 8 digits", *(f"{n} steps" for n in STEPS)), tuple(lines))
    return HOLDS if grown["adjoint"] <= HUNDREDTH * grown["whole graph"] else FAILS, table


def unseen(on: str) -> list[str]:
    """Every method under every threat, with the difference to DiffPure with the same denoiser and steps."""
    threats = {
        "linf": "linf",
        "l2": "l2",
        "stadv": "flows (StAdv)",
        "low": "low frequencies",
        "noise": "noise",
        "blur": "blur",
    }
    found = {threat: its for threat in threats if (its := record(f"unseen-{threat}", on)) is not None}
    if not found:
        return []
    known = {threat: {m.name for m in its.header.methods} for threat, its in found.items()}
    first = next(iter(found))
    head = ("method", "clean", *(threats[threat] for threat in found))
    absolute: list[Line] = []
    relative: list[Line] = []
    for name in dict.fromkeys(m.name for its in found.values() for m in its.header.methods):
        sides = [(CLEAN, first), *((ROBUST, threat) for threat in found)]
        numbers = [
            percent(mean_with_interval(right(found[t], Side(name, what)).mean(1))) if name in known[t] else "–"
            for what, t in sides
        ]
        absolute.append((name, *numbers))
        part = Part("", Side(name), Side("diffpure-ddpm"))
        if name != "diffpure-ddpm":
            relative.append((name, *(decided(part, found[t]).difference if name in known[t] else "–" for t in found)))
    said = ", ".join(f"{threats[t]}: {its.header.name} ({len(its.header.data.ids)} images)" for t, its in found.items())
    return [
        f"### {ON[on]}",
        "",
        f"Accuracy of one draw under the strongest attack for each image, with its 95 % interval. Studies: {said}.",
        "",
        *markdown(Table(head, tuple(absolute))),
        "",
        "Points more than DiffPure with the same denoiser and steps (diffpure-ddpm), paired by image:",
        "",
        *markdown(Table(("method", *head[2:]), tuple(relative))),
        "",
    ]


def _section(number: int, claim: Claim, shown: set[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Text of a claim, and its verdicts by data; whole studies that are shown already are not shown again."""
    out = [
        f"## {number}. {claim.paper}: {claim.says}",
        "",
        f"Source: {claim.source}.{' ' + claim.note if claim.note else ''}",
        "",
    ]
    verdicts: list[str] = []
    for on, name in ON.items():
        found = on_data(claim, on)
        said = verdict([its for _, its in found]) if found else "–"
        verdicts.append(said)
        if not found:
            continue
        studies = dict.fromkeys(part.study for part, _ in found)
        out += [f"**{name}: {said}.** Made by", ""]
        for study in studies:
            results = record(study, on)
            assert results is not None
            out.append(f"    {results.header.command}")
        lines: list[Line] = [
            (
                _words(part.first, part.study),
                percent(its.first),
                _words(part.second, part.study),
                percent(its.second),
                its.difference,
                f"> {100 * part.margin:+.0f}" if part.margin else "> 0",
                f"{its.images}",
                its.verdict,
            )
            for part, its in found
        ]
        head = ("first", "%", "second", "%", "first - second, points", "claimed", "images", "")
        out += ["", *markdown(Table(head, tuple(lines))), ""]
        for study in studies:
            results = record(study, on)
            if results is not None and not study.startswith("unseen-") and (study, on) not in shown:
                shown.add((study, on))
                out += ["All purifications of the study:", "", *markdown(of_all(results)), ""]
    return out, verdicts


def of_all(results: Results) -> Table:
    """Accuracy of every purification of a study without an attack and under each, and what one purification costs."""
    kinds = list(dict.fromkeys(row.kind.value for row in results.header.rows if row.method))
    quantities = (CLEAN, *kinds, ROBUST)
    lines: list[Line] = []
    for method, its in results.each():
        there = {row.kind.value for row in its.own_rows} | {CLEAN, ROBUST}
        numbers = [
            percent(mean_with_interval(right(results, Side(method.name, name)).mean(1))) if name in there else "–"
            for name in quantities
        ]
        cost = its.null_of(longest(its.own_rows)).evaluations_per_prediction
        lines.append((method.name, *numbers, "–" if cost is None else f"{cost:g}"))
    head = ("", *(QUANTITIES.get(name, name) for name in quantities), "evaluations of the denoiser")
    return Table(head, tuple(lines))


def _words(side: Side, study: str) -> str:
    where = study.removeprefix("unseen-") if study.startswith("unseen-") else ""
    return f"{side.method}, {QUANTITIES.get(side.quantity, side.quantity)}{', ' + where if where else ''}"


def page() -> str:
    """The page."""
    sections: list[str] = []
    summary: list[Line] = []
    shown = set[tuple[str, str]]()
    for number, claim in enumerate(CLAIMS, 1):
        text, verdicts = _section(number, claim, shown)
        sections += text
        summary.append((str(number), claim.paper, claim.says, *verdicts))
    said, table = memory()
    number = len(CLAIMS) + 1
    says = "The gradient needs the same memory for any number of steps."
    summary.append((str(number), DIFFPURE, says, said, "–"))
    sections += [
        f"## {number}. {DIFFPURE}: {says}",
        "",
        f"Source: {NIE}, abstract. Held: from 10 to 100 steps the paper's adjoint grows by at most 1 % of what the "
        "whole graph grows by (noise is drawn for some steps ahead, which is what grows). Beside it the exact "
        "gradient: with the graph of one step at a time, whose states are kept, and with the whole "
        "graph. Measured by this command, from torch's allocator.",
        "",
        f"**digits: {said}.**",
        "",
        *markdown(table),
        "",
    ]
    sizes = {on: max((len(its.header.data.ids) for its in _records(on)), default=0) for on in ON}
    out = [INTRO.format(**sizes, holds=HOLDS.capitalize(), fails=FAILS.capitalize())]
    out += [*markdown(Table(("", "paper", "claim", *ON.values()), tuple(summary))), "", *sections]
    out += ["## Every method under every threat", "", *unseen("digits"), *unseen("cifar10")]
    out += ["## Records", "", "`depura verify records/NAME --study studies/claims.py` checks one.", ""]
    lines: list[Line] = [
        (f"[{path.name}](../records/{path.name}/report.md)", str(len(its.header.units)), f"`{its.header.command}`")
        for on in ON
        for path, its in _found(on)
    ]
    return "\n".join([*out, *markdown(Table(("record", "units", "command"), tuple(lines))), ""])


def _found(on: str) -> list[tuple[Path, Results]]:
    names = dict.fromkeys(part.study for claim in CLAIMS for part in claim.parts)
    names |= dict.fromkeys(["agdm-variants", "unseen-noise", "unseen-blur"])
    return [(FOLDER / _name(name, on), its) for name in names if (its := record(name, on)) is not None]


def _records(on: str) -> list[Results]:
    return [its for _, its in _found(on)]


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "claims.md")
    given = parser.parse_args()
    if not any(map(_found, ON)):
        parser.exit(
            2,
            f"experiments.claims: expected records named claim-NAME in {FOLDER}, got none. Make them "
            "as the first lines of studies/claims.py say, then: depura publish RUN --out records/claim-NAME\n",
        )
    given.to.write_text(page(), encoding="utf-8")
    print(f"wrote {given.to}")


if __name__ == "__main__":
    main()
