"""The command methods: what there is, with the numbers of each published setting counted from the object itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from depura.cli.console import door, out
from depura.defence import Defence
from depura.diffusion.denoisers import Denoiser
from depura.evaluation.counting import counted
from depura.methods import (
    adbm,
    agdm,
    baselines,
    diffpure,
    diffpure_ddpm,
    diffpure_langevin,
    gdmp,
    gradual,
    likelihood,
    mimicdiffusion,
    smoothing,
)
from depura.noise import Noise
from depura.purifiers.composed import Mixed, Resized
from depura.purifiers.optimisation import Optimised
from depura.purifiers.purifier import DiffusionPurifier, Purifier


class Method(NamedTuple):
    """A method.

    Attributes:
        name: as people call it.
        paper: where it is from.
        section: of docs/deviations.md; empty if there is none.
        remark: what a reader must know.
    """

    name: str
    paper: str
    section: str
    remark: str = ""


DIFFPURE = Method("DiffPure", "Nie et al. 2022, arXiv:2205.07460", "diffpure")
MIMIC = Method(
    "MimicDiffusion",
    "Song et al. 2024, arXiv:2312.04802",
    "mimicdiffusion",
    "its exact gradient is zero: attack it through Relaxed",
)
AGDM = Method("AGDM", "Lin et al. 2024, arXiv:2403.16067", "agdm", "reconstruction: no code was released")
GDMP = Method("GDMP", "Wang et al. 2022, arXiv:2205.14969", "gdmp", "its strength depends on the attack's radius")
GRADUAL = Method("gradual schedule", "Lee and Kim 2023, arXiv:2303.09051", "gradual")
LIKELIHOOD = Method("likelihood", "Chen et al. 2023, arXiv:2305.15241", "likelihood-maximisation")
SCOREOPT = Method("ScoreOpt", "Zhang et al. 2023", "likelihood-maximisation", "reconstruction")
ONE_STEP = Method("one step", "Carlini et al. 2022, arXiv:2206.10550", "one-step-denoising")
ADBM = Method("ADBM", "Li et al. 2024, arXiv:2408.00315", "adbm", "the sampler; its network is fine-tuned")
BASELINE = Method("baseline", "", "", "no diffusion model")


def features(images: Tensor) -> Tensor:
    """Stands where the features of a robust network would."""
    return images


SETTINGS: tuple[tuple[str, str, Method, Callable[[Denoiser], Purifier], int], ...] = (
    ("diffpure_cifar_linf", "diffpure.CIFAR10_LINF", DIFFPURE, diffpure.CIFAR10_LINF.purifier, 1),
    ("diffpure_cifar_l2", "diffpure.CIFAR10_L2", DIFFPURE, diffpure.CIFAR10_L2.purifier, 1),
    ("diffpure_cifar_rn50", "diffpure.CIFAR10_RESNET50", DIFFPURE, diffpure.CIFAR10_RESNET50.purifier, 1),
    ("diffpure_imagenet", "diffpure.IMAGENET", DIFFPURE, diffpure.IMAGENET.purifier, 1),
    ("diffpure_celeba", "diffpure_ddpm.CELEBA", DIFFPURE, diffpure_ddpm.CELEBA.purifier, 1),
    ("diffpure_ode", "diffpure_ode", DIFFPURE, diffpure.diffpure_ode, 1),
    ("diffpure_adm", "diffpure_adm", DIFFPURE, diffpure_ddpm.diffpure_adm, 1),
    ("diffpure_ldsde", "diffpure_langevin", DIFFPURE, diffpure_langevin.diffpure_langevin, 1),
    ("diffpure_random", "diffpure_random", DIFFPURE, diffpure.diffpure_random, 1),
    ("mimic_cifar", "mimicdiffusion", MIMIC, mimicdiffusion.mimicdiffusion, 1),
    (
        "mimic_released",
        "mimicdiffusion(released=True)",
        MIMIC,
        lambda d: mimicdiffusion.mimicdiffusion(d, released=True),
        1,
    ),
    ("agdm_cifar", "agdm", AGDM, lambda d: agdm.agdm(d, features=features, scale=1.0), 1),
    ("agdm_sde", "agdm_sde", AGDM, lambda d: agdm.agdm_sde(d, features=features, scale=1.0), 1),
    ("gdmp_cifar", "gdmp", GDMP, gdmp.gdmp, 10),
    ("gdmp_imagenet", "gdmp_imagenet", GDMP, gdmp.gdmp_imagenet, 1),
    ("lk_gradual_cifar", "gradual", GRADUAL, gradual.gradual, gradual.N_VOTES),
    (
        "lk_gradual_imagenet",
        "gradual(depths=gradual.IMAGENET)",
        GRADUAL,
        lambda d: gradual.gradual(d, depths=gradual.IMAGENET),
        gradual.N_VOTES,
    ),
    (
        "lk_gradual_svhn",
        "gradual(depths=gradual.SVHN)",
        GRADUAL,
        lambda d: gradual.gradual(d, depths=gradual.SVHN),
        gradual.N_VOTES,
    ),
    ("lk_surrogate_cifar", "gradual.surrogate", GRADUAL, gradual.surrogate, 1),
    (
        "lk_single",
        "gradual(depths=(200,), n_steps=(5,))",
        GRADUAL,
        lambda d: gradual.gradual(d, depths=(200,), n_steps=(5,)),
        1,
    ),
    ("lm_cifar_edm", "likelihood", LIKELIHOOD, likelihood.likelihood, 1),
    ("scoreopt", "scoreopt", SCOREOPT, likelihood.scoreopt, 1),
    ("dds", "one_step", ONE_STEP, smoothing.one_step, 1),
    ("adbm_cifar", "adbm", ADBM, adbm.adbm, 1),
    ("noise", "noise_only(std=...)", BASELINE, lambda _: baselines.noise_only(std=0.1), 1),
    ("blur", "blur_only(std=...)", BASELINE, lambda _: baselines.blur_only(std=1.0), 1),
    ("jpeg", "jpeg_only(quality=...)", BASELINE, lambda _: baselines.jpeg_only(), 1),
)
"""Name, call in Python, method, how it is built, and purifications per published prediction (averages, votes)."""


@dataclass(frozen=True)
class Listed:
    """One line of the list.

    Attributes:
        setting: name.
        call: in Python, after `depura.` or `depura.methods.`.
        method: name of the method.
        paper: where it is from.
        start: how a walk begins.
        steps: of each round, and where they start.
        solver: one step.
        guidance: what displaces it.
        nfe: denoiser evaluations of one purification, counted.
        predictions: purifications per published prediction.
        deviations: where differences from paper and released code are described.
        remark: what a reader must know.
    """

    setting: str
    call: str
    method: str
    paper: str
    start: str
    steps: str
    solver: str
    guidance: str
    nfe: int
    predictions: int
    deviations: str
    remark: str


def listed() -> tuple[Listed, ...]:
    """All settings, described and counted.

    Returns:
        In the order of the papers.
    """
    return tuple(_listed(*setting) for setting in SETTINGS)


@door
def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List purification methods and their published settings: start, steps, guidance, evaluations, deviations."""
    lines = listed()
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines], indent=1))
        return
    form = "  {:<20} {:<22} {:<22} {:<13} {}"
    out.print(form.format("setting", "start", "steps", "guidance", "NFE"), style="bold", highlight=False)
    previous = ""
    for line in lines:
        if line.method != previous:
            out.print(f"[bold]{line.method}[/bold]  {line.paper}", highlight=False)
            previous = line.method
        votes = f" x{line.predictions}" if line.predictions > 1 else ""
        text = form.format(line.setting, line.start, line.steps, line.guidance, f"{line.nfe}{votes}")
        out.print(text, highlight=False, markup=False)
    out.print("\nNFE: denoiser evaluations of one purification (x purifications per published prediction).")
    for name, remark in dict.fromkeys((line.method, line.remark) for line in lines if line.remark):
        out.print(f"{name}: {remark}.", highlight=False)
    out.print("Calls in Python: depura methods --json. Differences from papers and codes: docs/deviations.md.")


class _Still(torch.nn.Module):
    """A denoiser of zero, with as many channels as are asked for."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return x.repeat(1, self.factor, 1, 1) * 0


def _listed(name: str, call: str, method: Method, build: Callable[[Denoiser], Purifier], predictions: int) -> Listed:
    learned = name in {"diffpure_adm", "gdmp_imagenet"}
    purifier = build(_Still(2 if learned else 1))
    first = purifier.components[0]
    return Listed(
        setting=name,
        call=call,
        method=method.name,
        paper=method.paper,
        start="input, t* drawn" if isinstance(purifier, Mixed) else _start(first),
        steps=_steps(purifier) + (f" at {purifier.size}x{purifier.size}" if isinstance(purifier, Resized) else ""),
        solver=type(
            first.solver if isinstance(first, DiffusionPurifier) else getattr(first, "optimiser", first)
        ).__name__,
        guidance=_guidance(first),
        nfe=_evaluations(purifier),
        predictions=predictions,
        deviations=f"docs/deviations.md#{method.section}" if method.section else "",
        remark=method.remark,
    )


def _start(part: Purifier) -> str:
    if isinstance(part, Optimised):
        return "input"
    assert isinstance(part, DiffusionPurifier)
    start = getattr(part.start, "__name__", type(part.start).__name__)
    sigma = f"{part.steps[0].sigma:.3g}"
    words = {"from_input": f"input, sigma {sigma}", "from_unit_noise": "noise", "from_noise": "noise"}
    return words.get(start, {"as_it_is": "input", "FromBlurred": "input, blurred"}.get(start, start))


def _steps(purifier: Purifier) -> str:
    parts = purifier.components[:1] if isinstance(purifier, Mixed) else purifier.components
    counts = [f"{part.n_rounds}x{len(part.steps)}" if part.n_rounds > 1 else f"{len(part.steps)}" for part in parts]
    return " + ".join(counts)


def _guidance(part: Purifier) -> str:
    if isinstance(part, Optimised):
        return "optimisation"
    assert isinstance(part, DiffusionPurifier)
    return "-" if part.guidance is None else type(part.guidance).__name__


def _evaluations(purifier: Purifier) -> int:
    """Counted on one image of 8 x 8 pixels."""
    defence, counts = counted(Defence(purifier, lambda images: images.flatten(1)))
    with torch.no_grad():
        defence(torch.full((1, 3, 8, 8), 0.5), Noise(0, (0,)))
    return counts.forward
