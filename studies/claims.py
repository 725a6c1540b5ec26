"""What the papers on DiffPure, MimicDiffusion and AGDM claim, under one judge and in small: one study per claim.

    depura run studies/claims.py -S claim=mimic-distance --out runs/mimic-distance
    depura run studies/claims.py -S claim=unseen -S threat=stadv --out runs/unseen-stadv
    depura run studies/claims.py -S claim=unseen -S on=cifar10 -S threat=l2 --out runs/cifar10-unseen-l2
    python -m experiments.claims                 # the page docs/claims.md, from the records of these runs

`-S claim=` chooses among CLAIMS; each entry is a few purifications, compared on the same images under the same attacks.
All of a claim differ in what the claim is about and in nothing else. `-S on=` chooses the bundled digits (default) or
CIFAR-10, whose files are those of `studies/cifar10.py`. `-S threat=` is for `unseen`: linf (which the adversarially
trained networks were trained for), l2, stadv (flows), low (low frequencies), noise, blur. The last two are changes of
the images without an attacker.

Attacks take 10 steps with 2 draws per gradient; 20 steps for the claims in TWENTY, on the digits. Depura's own further
attack is left out, which is why reports of these runs call their results unchecked: they compare purifications under
equal attacks, and every accuracy under attack is an upper bound.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import depura
from depura import AttackRun, Defence
from depura.attacks.attack import Attack
from depura.attacks.baselines import CleanImages
from depura.evaluation.demo import EPS
from depura.methods.diffpure import T_STAR, few_steps
from depura.methods.mimicdiffusion import Mimic, constant, euclidean, unprojected
from depura.models.by_name import module_of

WEIGHTS = Path(__file__).parents[1] / "weights"
THREATS = ("linf", "l2", "stadv", "low", "noise", "blur")
LOGITS = 5.0
"""Width of the smoothed sign by which a guide's label is relaxed, in units of its logits."""
NOISE = {"digits": 0.2, "cifar10": 0.08}
"""Standard deviation, in [0, 1] units."""
BLUR = {"digits": 0.7, "cifar10": 1.0}
"""Standard deviation, in pixels."""
L2 = {"digits": 1.0, "cifar10": 0.5}
FLOW = {"digits": 0.2, "cifar10": 0.05}
"""In grid units, 2 being the width of the image: 0.8 pixels."""
UNLIKE = 0.05
"""Dissimilarity (1 - SSIM) / 2."""
SCALE = {"digits": 30.0, "cifar10": 30.0}
"""AGDM's s, chosen on training images by `python -m experiments.agdm_scale`."""


Rows = tuple[AttackRun, ...]


@dataclass(frozen=True)
class Case:
    """What a claim is tested on.

    Attributes:
        on: "digits" or "cifar10".
        d: the denoiser.
        classifier: behind every purifier.
        guide: loads AGDM's network, trained on noised images.
        trades: loads an adversarially trained network of clean images.
        t_star: how far images are noised.
        attack: the adaptive attack.
        blind: the attack on the bare classifier.
        width: of the smoothed sign that zero gradients are replaced by.
    """

    on: str
    d: depura.Denoiser
    classifier: nn.Module
    guide: Callable[[], nn.Module]
    trades: Callable[[], nn.Module]
    t_star: float
    attack: Attack
    blind: Attack
    width: float

    @property
    def index(self) -> int:
        """The depth in DDPM's steps."""
        return round(1000 * self.t_star)

    def agdm(self, d: depura.Denoiser | None = None, **changed: Any) -> depura.DiffusionPurifier:
        """AGDM in ten steps."""
        settings: dict[str, Any] = {"scale": SCALE[self.on], "n_noise": self.index, "n_steps": 10} | changed
        if "guide" not in settings:
            settings["guide"] = self.guide()
        return depura.agdm(self.d if d is None else d, **settings)

    def ddpm(self, d: depura.Denoiser | None = None) -> depura.DiffusionPurifier:
        """The same without guidance: DiffPure with DDPM's steps."""
        return depura.diffpure_ddpm(self.d if d is None else d, n_noise=self.index, n_steps=10)

    def mimic(self, **changed: Any) -> depura.DiffusionPurifier:
        """MimicDiffusion in twenty steps from noise, with the released strength per pixel."""
        steps = depura.ddpm_steps(depura.DiscreteLinear(), n_noise=1000, n_steps=20)
        rho = 3000 * (64 / 1024 if self.on == "digits" else 1.0)
        purifier = depura.mimicdiffusion(self.d, steps=steps, start=depura.from_unit_noise, rho=rho)
        assert isinstance(purifier.guidance, Mimic)
        return purifier.with_(guidance=replace(purifier.guidance, **changed))

    def suites(self, purifiers: Mapping[str, depura.Purifier], *, relaxed: bool = False) -> Rows:
        """Transfer, BPDA and the exact gradient for each, and the relaxed one if asked for."""
        widths = dict.fromkeys(purifiers, self.width) if relaxed else None
        return depura.attack_suites(purifiers, self.classifier, self.attack, blind=self.blind, relaxed=widths)

    def adaptive(self, purifiers: Mapping[str, depura.Purifier], *, zero: Collection[str] = ()) -> Rows:
        """Transfer and the exact gradient for each, or the relaxed one for those whose exact gradient is zero."""
        rows: list[AttackRun] = []
        for name, purifier in purifiers.items():
            rows += depura.attack_suite(
                Defence(purifier, self.classifier),
                self.attack,
                blind=self.blind,
                method=name,
                relaxed=self.width if name in zero else None,
                without=("bpda", *(["undefended"] if rows else []), *(["adaptive"] if name in zero else [])),
            )
        return tuple(rows)

    def guided(self, rows: Rows, names: Collection[str], guide: nn.Module) -> Rows:
        """More of the methods that a guide steers: relaxed, as its label has no derivative; its own examples."""
        alone, more = Defence(None, guide), list[AttackRun]()
        for name, defence in {row.method: row.evaluated for row in rows if row.method in names}.items():
            smooth = defence.with_(gradient=depura.Relaxed(LOGITS))
            title = "purified; adaptive attack, relaxed gradient of the guide's label"
            more.append(AttackRun(f"{name}-relaxed", title, self.attack, smooth, defence, "relaxed", name))
            title = "purified; examples made against the guide alone"
            more.append(AttackRun(f"{name}-of-guide", title, self.blind, alone, defence, "transfer", name))
        return tuple(more)

    def mimics(self, variants: Mapping[str, Mapping[str, Any]]) -> Rows:
        """Variants of MimicDiffusion under their relaxed gradients."""
        return self.adaptive({name: self.mimic(**its) for name, its in variants.items()}, zero=variants)


def depth(case: Case) -> Rows:
    """DiffPure from several depths, five steps each."""
    depths = (0.02, 0.05, 0.09, 0.15, 0.25, 0.4) if case.on == "digits" else (0.01, 0.02, 0.03, 0.05, 0.075, 0.1)
    return case.suites({f"t{1000 * t:g}": few_steps(case.d, t_star=t, steps=5) for t in depths})


def solver(case: Case) -> Rows:
    """The reverse SDE, the probability flow ODE and Langevin dynamics, twenty steps each."""
    return case.suites(
        {
            "sde": depura.diffpure(case.d, t_star=case.t_star, n_steps=20),
            "ode": depura.diffpure_ode(case.d, t_star=case.t_star, n_steps=20),
            "ldsde": depura.diffpure_langevin(case.d, t_star=case.t_star, n_steps=20),
        }
    )


def adjoint(case: Case) -> Rows:
    """The reverse SDE in 10 to 100 steps, attacked by its exact gradient and by the stochastic adjoint's."""
    rows: list[AttackRun] = []
    for steps in (10, 20, 50, 100):
        name = f"steps{steps}"
        defence = Defence(depura.diffpure(case.d, t_star=case.t_star, n_steps=steps), case.classifier)
        kept = ("bpda", "transfer", *(("undefended",) if rows else ()))
        rows += depura.attack_suite(defence, case.attack, blind=case.blind, method=name, without=kept)
        approximate = defence.with_(gradient=depura.Adjoint())
        title = "purified; adaptive attack, gradient of the stochastic adjoint"
        rows.append(AttackRun(f"{name}-adjoint", title, case.attack, approximate, defence, "surrogate", name))
    return tuple(rows)


def noise(case: Case) -> Rows:
    """A purification whose noise is drawn afresh, and the same under one noise for good."""
    drawn = few_steps(case.d, t_star=case.t_star, steps=5)
    return case.suites({"random": drawn, "fixed": depura.FixedNoise(drawn)})


def classifiers(case: Case) -> Rows:
    """One purification before classifiers of three kinds."""
    if case.on != "cifar10":
        raise depura.InputError("studies/claims.py: expected -S on=cifar10 with claim=classifiers, got digits.")
    purifier = few_steps(case.d, t_star=case.t_star, steps=5)
    kinds: dict[str, nn.Module] = {
        "resnet20": case.classifier,
        "resnet32": depura.load_classifier(_file("DEPURA_RESNET32", "a ResNet-32")),
        "vit": depura.load_classifier(WEIGHTS / "cifar10-vit.safetensors"),
    }
    rows: list[AttackRun] = []
    for name, network in kinds.items():
        bare = Defence(None, network)
        rows += depura.bare_suite(bare, case.blind, method=f"{name}-bare")
        rows += depura.attack_suite(
            Defence(purifier, network), case.attack, blind=case.blind, method=name, without=("bpda", "undefended")
        )
    return tuple(rows)


def distance(case: Case) -> Rows:
    """MimicDiffusion guided by the Manhattan distance, and by the Euclidean one with a gradient of the same length."""
    return case.mimics({"manhattan": {}, "euclidean": {"distance": euclidean}})


def terms(case: Case) -> Rows:
    """MimicDiffusion with both terms of its guidance, and with either alone."""
    return case.mimics({"both": {}, "long": {"projection": None}, "short": {"long_range": False}})


def upsampling(case: Case) -> Rows:
    """MimicDiffusion with several U in its short-range term."""
    modes = {mode: {"projection": depura.Upsampled(mode)} for mode in ("nearest", "bilinear", "bicubic")}
    return case.mimics({"none": {"projection": unprojected}, **modes, "blur": {"projection": depura.Blurred(1.0)}})


def window(case: Case) -> Rows:
    """MimicDiffusion guided at all steps, and inside its window of noise levels: this under other attacks, too."""
    everywhere = case.mimics({"all": {"window": (0.0, float("inf"))}})
    return (*case.suites({"window": case.mimic()}, relaxed=True), *(row for row in everywhere if row.method))


def jacobian(case: Case) -> Rows:
    """MimicDiffusion's guidance differentiated through the network, and with its Jacobian held constant."""
    return case.mimics({"network": {}, "constant": {"jacobian": constant}})


def denoisers(case: Case) -> Rows:
    """AGDM with one guide over three denoisers, each beside DiffPure with the same steps."""
    if case.on != "digits":
        raise depura.InputError("studies/claims.py: expected -S on=digits with claim=agdm-denoisers, got cifar10.")
    kinds: dict[str, depura.Denoiser] = {
        "edm": case.d,
        "diffusers": depura.load_denoiser(WEIGHTS / "digits-ddpm"),
        "empirical": depura.empirical_denoiser(2 * depura.load_digits("train").images - 1),
    }
    plain = {f"{name}-diffpure": case.ddpm(d) for name, d in kinds.items()}
    guided = {f"{name}-agdm": case.agdm(d) for name, d in kinds.items()}
    rows = case.adaptive({**plain, **guided})
    return (*rows, *case.guided(rows, guided, case.guide()))


def variants(case: Case) -> Rows:
    """AGDM as the sources have it, and with one thing changed at a time."""
    trades: Any = case.trades()
    layer = trades.features if case.on == "digits" else depura.Features(trades, "network.layer3")
    of_guide = {
        "agdm": case.agdm(),
        "agdm-no-label": case.agdm(label=False),
        "agdm-estimate": case.agdm(sees=depura.on_estimate),
    }
    of_trades = {
        "agdm-trades": case.agdm(guide=trades, sees=depura.on_estimate),
        "agdm-features": case.agdm(
            guide=trades,
            features=layer,
            label=False,
            sees=depura.on_estimate,
            scale=100.0 if case.on == "digits" else 1000.0,
        ),
    }
    rows = case.adaptive({"diffpure-ddpm": case.ddpm(), **of_guide, **of_trades})
    return (*rows, *case.guided(rows, of_guide, case.guide()), *case.guided(rows, of_trades, trades))


def unseen(case: Case) -> Rows:
    """All methods under one threat, and the adversarially trained networks alone."""
    if case.on == "digits":
        methods: dict[str, depura.Purifier] = _beside("digits_methods").purifiers()
        methods |= {"mimic": case.mimic(), "mimic-released": case.mimic(jacobian=constant, projection=NEAREST)}
    else:
        methods = {"diffpure-ddpm": case.ddpm(), **_beside("cifar10").methods(case.d, case.trades())}
    methods = {("agdm-features" if name == "agdm" else name): its for name, its in methods.items()}
    methods = {"diffpure-ddpm": methods["diffpure-ddpm"], "agdm": case.agdm(), **methods}
    trained = {"trades": case.trades(), "guide": case.guide()}
    if isinstance(case.attack, CleanImages):
        networks = {name: Defence(its, case.classifier) for name, its in methods.items()}
        networks |= {name: Defence(None, its) for name, its in trained.items()}
        networks["nothing"] = Defence(None, case.classifier)
        title = "changed images, no attack"
        return tuple(
            AttackRun(f"{name}-unchanged", title, case.attack, its, its, "unchanged", name)
            for name, its in networks.items()
        )
    rows = case.adaptive(methods, zero=("mimic", "mimic-released", "jpeg"))
    rows += case.guided(rows, ["agdm"], trained["guide"])
    for name, network in trained.items():
        rows += depura.bare_suite(Defence(None, network), case.blind, method=name)
    return rows


NEAREST = depura.Upsampled("nearest")
"""U of the released code."""

CLAIMS: dict[str, Callable[[Case], Rows]] = {
    "diffpure-depth": depth,
    "diffpure-solver": solver,
    "diffpure-adjoint": adjoint,
    "diffpure-noise": noise,
    "diffpure-classifiers": classifiers,
    "mimic-distance": distance,
    "mimic-terms": terms,
    "mimic-upsampling": upsampling,
    "mimic-window": window,
    "mimic-jacobian": jacobian,
    "agdm-denoisers": denoisers,
    "agdm-variants": variants,
    "unseen": unseen,
}
"""What each claim compares, by name."""

TWENTY = ("diffpure-depth", "diffpure-solver", "diffpure-noise")
"""Claims whose attacks take 20 steps on the digits."""


def study(
    *,
    claim: str = "diffpure-depth",
    on: str = "digits",
    threat: str = "linf",
    only: str = "",
    images: int = 0,
    attack_steps: int = 0,
    eot: int = 2,
    draws: int = 0,
    seed: int = 0,
) -> depura.Study:
    """The study of a claim.

    Args:
        claim: a name in CLAIMS.
        on: `digits` or `cifar10`.
        threat: a name in THREATS; `linf` for all claims but `unseen`.
        only: names of methods, separated by blanks; default all.
        images: how many test images; default 64 digits, 24 of CIFAR-10.
        attack_steps: gradient steps; default 10, or 20 for the claims in TWENTY on the digits.
        eot: draws per gradient.
        draws: fresh draws that each example is judged on; default 16 on the digits, 8 on CIFAR-10.
        seed: of all noise.

    Returns:
        The study.
    """
    for name, value, known in (("claim", claim, CLAIMS), ("on", on, SCALE), ("threat", threat, THREATS)):
        if value not in known:
            raise depura.InputError(f"studies/claims.py: expected {name} among {', '.join(known)}, got {value!r}.")
    if threat != "linf" and claim != "unseen":
        raise depura.InputError(f"studies/claims.py: expected threat=linf with claim={claim}, got {threat!r}.")
    small = on == "cifar10"
    n_steps = attack_steps or (20 if claim in TWENTY and not small else 10)
    data = _images(on, threat, images or (24 if small else 64))
    rows = CLAIMS[claim](case_of(on, threat=threat, n_steps=n_steps, eot=eot))
    known = list(dict.fromkeys(row.method for row in rows if row.method))
    chosen = only.split() or known
    if unknown := sorted(set(chosen) - set(known)):
        raise depura.InputError(f"studies/claims.py: expected methods among {', '.join(known)}, got {unknown}.")
    rows = tuple(row for row in rows if not row.method or row.method in chosen)
    judged = [row.evaluated for row in rows if row.method and row.evaluated.core is not None]
    baselines = ("trades", "guide", "nothing", "noise", "blur", "jpeg") if claim == "unseen" else ()
    return depura.Study(
        name="-".join((claim, *((threat,) if claim == "unseen" else ()), *((on,) if small else ()))),
        data=data,
        defence=judged[0],
        rows=rows,
        seed=seed,
        select_draws=4,
        report_draws=draws or (8 if small else 16),
        unit_images=8 if small else 16,
        pictures=0,
        baselines=tuple(name for name in baselines if name in chosen),
        reference=False,
    )


def case_of(on: str, *, threat: str = "linf", n_steps: int, eot: int) -> Case:
    """What claims are tested on.

    Args:
        on: `digits` or `cifar10`.
        threat: a name in THREATS.
        n_steps: gradient steps of the attacks.
        eot: draws per gradient, of the adaptive one.

    Returns:
        Networks and attacks.
    """
    attacks = {"attack": _attack(on, threat, n_steps, eot), "blind": _attack(on, threat, n_steps, 1)}
    if on == "digits":
        return Case(
            on=on,
            d=depura.digits_denoiser(),
            classifier=depura.digits_classifier(),
            guide=depura.digits_agdm_guide,
            trades=depura.digits_guide,
            t_star=T_STAR,
            width=4 * EPS,
            **attacks,
        )
    return Case(
        on=on,
        d=depura.load_denoiser(WEIGHTS / "cifar10-small.safetensors"),
        classifier=depura.load_classifier(_file("DEPURA_RESNET20", "a ResNet-20")),
        guide=lambda: depura.load_classifier(WEIGHTS / "cifar10-agdm-guide.safetensors"),
        trades=lambda: depura.load_classifier(WEIGHTS / "cifar10-guide.safetensors"),
        t_star=0.05,
        width=4 * 8 / 255,
        **attacks,
    )


def _images(on: str, threat: str, images: int) -> depura.ImageSet:
    """The first test images, changed where the threat is a change without an attacker."""
    if on == "digits":
        data = depura.load_digits("test").first(images)
    else:
        data = depura.load_images(_file("DEPURA_CIFAR10", "CIFAR-10's test images"), images=images)
    return _corrupted(data, threat, NOISE[on], BLUR[on]) if threat in ("noise", "blur") else data


def _attack(on: str, threat: str, n_steps: int, eot: int) -> Attack:
    """The attack of a threat; none where images are changed beforehand."""
    linf = depura.Ball("linf", EPS if on == "digits" else 8 / 255)
    if threat == "linf":
        return depura.PGD(linf, n_steps=n_steps, eot=eot)
    if threat == "l2":
        return depura.PGD(depura.Ball("l2", L2[on]), n_steps=n_steps, eot=eot)
    if threat == "stadv":
        return depura.StAdv(depura.Flow(FLOW[on]), n_steps=n_steps, rate=FLOW[on] / 5, eot=eot)
    if threat == "low":
        return depura.LowFrequency(
            depura.Perceptual(UNLIKE), n_steps=n_steps, rate=0.8 / n_steps, kernel_rate=5.0 / n_steps, eot=eot
        )
    return CleanImages(linf)


def _corrupted(data: depura.ImageSet, how: str, std: float, pixels: float) -> depura.ImageSet:
    """The images with noise, or blurred."""
    if how == "noise":
        changed = data.images + std * depura.Noise(0, data.ids, stream=depura.Stream.TRAIN)(
            data.images, kind=depura.Kind.FORWARD
        )
    else:
        changed = depura.Blurred(pixels)(data.images)
    what = f"{how} {std if how == 'noise' else pixels:g}"
    return data._replace(name=f"{data.name}, {what}", images=changed.clamp(0, 1), origin=None)


def _file(name: str, what: str) -> Path:
    found = os.environ.get(name)
    if found is None:
        raise depura.InputError(f"studies/claims.py: expected {what}, got none. Set {name} to its file.")
    return Path(found)


def _beside(name: str) -> Any:
    """Another study of this folder, as a module."""
    return module_of("studies/claims.py", Path(__file__).with_name(f"{name}.py"))
