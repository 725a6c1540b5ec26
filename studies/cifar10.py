"""CIFAR-10: purification before a published ResNet-20, one method alone or all of them under one protocol.

    export DEPURA_CIFAR10=test.npz DEPURA_RESNET20=resnet20.th
    depura run studies/cifar10.py --profile quick --out runs/few              # few-step DiffPure under an attack suite
    depura run studies/cifar10.py -S table=transfer -S images=512 --out runs/t # it under the blind attack, all images
    depura plan studies/cifar10.py -S table=methods                           # the price of the comparison
    depura run studies/cifar10.py -S table=methods --out runs/m --workers 2   # all methods beside baselines, ranked

The images are CIFAR-10's test images, in any form that `depura.load_images` takes, and the classifier any file that
`depura.load_classifier` takes: Y. Idelbayev's ResNet-20 in docs/results.md. The denoiser and the adversarially trained
network are this project's own, small and trained for hours on a processor (weights/): numbers are about methods under
equal conditions, not about what large networks reach.

`-S table=` chooses: `few` (few-step DiffPure, the default), `transfer` (the same under the blind attack alone, which is
cheap enough for all images), `methods`, `depths` (few-step DiffPure from several t*), `steps` (with several numbers of
steps). `-S threat=l2` judges at l2 0.5 instead of linf 8/255. Purifiers have fewer steps than published ones, and
those that noise the input noise it to one t*, chosen on training images. Strengths are as released; AGDM's, which is
not known, was chosen on training images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import depura
from depura import AttackRun, Defence, DiscreteLinear
from depura.evaluation.diagnostics import surrogate
from depura.methods.diffpure import few_steps

WEIGHTS = Path(__file__).parents[1] / "weights"
THREATS = {"linf": depura.Ball("linf", 8 / 255), "l2": depura.Ball("l2", 0.5)}
T_STAR = 0.05
FEW = 5
AGDM_SCALE = 1000.0
DEPTHS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1)
STEPS = (1, 2, 5, 10, 20)
SIGN = 4 * 8 / 255
"""Width of the smoothed sign that zero gradients are replaced by."""
MOST_BARE = 64
"""Of many images under the blind attack, how many are also attacked without a purifier: a few say that none is left."""
NOTES = {
    "mimic": "the input enters through signs only: its exact gradient is zero, read the relaxed and the BPDA row",
    "mimic-released": "the same; guidance as the released code computes it",
    "agdm": "AGDM is reconstructed from abstracts and public reviews; no code was released",  # as its record says
    "trades": "adversarially trained for this study at linf 8/255 (weights/cifar10-guide.md); no purification",
    "jpeg": "its exact gradient is zero, read the relaxed and the BPDA row",
}


def given(value: Path | None, name: str, what: str) -> Path:
    """A path from a setting, else from the environment."""
    found = value or os.environ.get(name)
    if found is None:
        raise depura.InputError(f"studies/cifar10.py: expected {what}, got none. Set {name} or give -S.")
    return Path(found)


def few_step(d: depura.Denoiser, t_star: float = T_STAR, n_steps: int = FEW) -> depura.DiffusionPurifier:
    """DiffPure with a few ancestral steps."""
    return few_steps(d, t_star=t_star, steps=n_steps)


def methods(d: depura.Denoiser, guide: Callable[..., object]) -> dict[str, depura.Purifier]:
    """What is compared, by name."""
    noisy = depura.ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=20)
    mimic = {"steps": noisy, "start": depura.from_unit_noise}
    return {
        "diffpure-few": few_step(d),
        "diffpure-sde": depura.diffpure(d, t_star=T_STAR, n_steps=20),
        "diffpure-ode": depura.diffpure_ode(d, t_star=T_STAR, n_steps=10),
        "mimic": depura.mimicdiffusion(d, **mimic),
        "mimic-released": depura.mimicdiffusion(d, released=True, **mimic),
        "agdm": depura.agdm(
            d,
            guide=guide,
            features=depura.Features(guide, "network.layer3"),
            label=False,
            sees=depura.on_estimate,
            scale=AGDM_SCALE,
            n_noise=round(1000 * T_STAR),
            n_steps=10,
        ),
        "gdmp": depura.gdmp(d, n_steps=6),
        "gradual": depura.gradual(d, n_steps=(2,) * 4 + (2,) * 2 + (5,) * 2),
        "likelihood": depura.likelihood(d),
        "noise": depura.noise_only(std=0.5 * depura.VP().sigma(T_STAR)),
        "jpeg": depura.jpeg_only(),
    }


def further(name: str, defence: Defence, attack: depura.PGD, images: int) -> tuple[AttackRun, ...]:
    """Attacks on two of the methods besides those that all have: through a cheaper surrogate, and by queries alone."""
    square = depura.Square(attack.ball, n_queries=200, eot=4)
    title = "purified; adaptive attack through a fifth of the steps"
    before = f"{name}-" if name else ""
    rows = {
        "diffpure-sde": AttackRun(f"{before}surrogate", title, attack, surrogate(defence), defence, "surrogate", name),
        "diffpure-few": AttackRun(
            f"{before}square", "purified; Square", square, defence, defence, "black-box", name, images
        ),
    }
    return tuple(row for method, row in rows.items() if name in ("", method))


def study(
    *,
    data: Path | None = None,
    classifier: Path | None = None,
    denoiser: Path = WEIGHTS / "cifar10-small.safetensors",
    guide: Path = WEIGHTS / "cifar10-guide.safetensors",
    table: str = "few",
    only: str = "",
    threat: str = "linf",
    images: int = 32,
    attack_steps: int = 20,
    eot: int = 4,
    draws: int = 16,
    t_star: float = T_STAR,
    n_steps: int = FEW,
    seed: int = 0,
) -> depura.Study:
    """The study; its defence is few-step DiffPure where that is among what is judged.

    Args:
        data: CIFAR-10's test images; default what DEPURA_CIFAR10 names.
        classifier: a file of a classifier; default what DEPURA_RESNET20 names.
        denoiser: a file of a denoiser.
        guide: a file of an adversarially trained CIFAR ResNet.
        table: `few`, `transfer`, `methods`, `depths` or `steps`.
        only: names of methods, separated by blanks; default all.
        threat: `linf` (8/255) or `l2` (0.5).
        images: how many, the first ones.
        attack_steps: gradient steps of the attacks.
        eot: draws per gradient.
        draws: fresh draws that each example is judged on.
        t_star: of few-step DiffPure.
        n_steps: of few-step DiffPure.
        seed: of all noise.

    Returns:
        The study.
    """
    if threat not in THREATS:
        raise depura.InputError(f"studies/cifar10.py: expected threat among {', '.join(THREATS)}, got {threat!r}.")
    ball = THREATS[threat]
    d = depura.load_denoiser(denoiser)
    plain = depura.load_classifier(given(classifier, "DEPURA_RESNET20", "a classifier's file"))
    robust = depura.load_classifier(guide)
    few = few_step(d, t_star, n_steps)
    tables = {
        "few": lambda: {"few": few},
        "transfer": lambda: {"few": few},
        "methods": lambda: {**methods(d, robust), "diffpure-few": few},
        "depths": lambda: {f"t{1000 * t:g}": few_step(d, t, n_steps) for t in DEPTHS},
        "steps": lambda: {f"s{s}": few_step(d, t_star, s) for s in STEPS},
    }
    if table not in tables:
        raise depura.InputError(f"studies/cifar10.py: expected table among {', '.join(tables)}, got {table!r}.")
    purifiers = tables[table]()
    known = [*purifiers, *(["trades"] if table == "methods" else [])]
    chosen = only.split() or known
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise depura.InputError(f"studies/cifar10.py: expected methods among {', '.join(known)}, got {unknown}.")
    attack = depura.PGD(ball, n_steps=attack_steps, eot=eot)
    blind = depura.PGD(ball, n_steps=2 * attack_steps)
    some = max(1, images // 4)
    rows: list[AttackRun] = []
    if table in ("few", "transfer"):
        defence = Defence(few, plain)
        if table == "few":
            rows += (*depura.attack_suite(defence, attack, blind=blind), *further("", defence, attack, some))
        else:
            bare, transferred = depura.attack_suite(defence, attack, blind=blind, without=("adaptive", "bpda"))
            rows += (replace(bare, images=MOST_BARE), transferred)
    elif compared := {name: purifiers[name] for name in chosen if name in purifiers}:
        relaxed = {name: SIGN for name in compared if name.startswith(("mimic", "jpeg"))}
        rows += depura.attack_suites(compared, plain, attack, blind=blind, relaxed=relaxed)
        for name, defence in {row.method: row.evaluated for row in rows if row.method}.items():
            rows += further(name, defence, attack, some)
    if "trades" in chosen:
        rows += depura.bare_suite(Defence(None, robust), blind, method="trades")
    judged = {
        row.evaluated for row in rows if row.method in ("", "diffpure-few") and row.evaluated.purifier is not None
    }
    return depura.Study(
        name=f"cifar10-{table}-{threat}",
        data=depura.load_images(given(data, "DEPURA_CIFAR10", "CIFAR-10's test images"), images=images),
        defence=next(iter(judged)) if judged else next(row.evaluated for row in rows if row.method),
        rows=tuple(rows),
        seed=seed,
        select_draws=8,
        report_draws=draws,
        unit_images=8,
        pictures=1,
        baselines=tuple(name for name in ("trades", "noise", "jpeg") if name in chosen),
        notes={name: note for name, note in NOTES.items() if name in chosen},
    )
