"""All methods under one protocol on the bundled digits, beside what one would use otherwise.

    depura run studies/digits_methods.py --out runs/methods --workers 2

Every method has the same denoiser and classifier, one purification per prediction, and is attacked alike. All that
noise the input noise it as far as the demo does (t* = 0.09); reverse processes have the numbers of steps given here.
Strengths that their papers give per pixel of 32x32 colour images are kept per pixel; AGDM's, which is not known, was
chosen on training digits (docs/deviations.md#agdm). Baselines: the adversarially trained classifier alone, and Gaussian
noise or a blur before the plain one. 64 images, 32 report draws: sized to end well within an hour on two cores.

The methods are those of `depura.methods.table.METHODS`, with the numbers given here; a method without any is built as
on the command line, at the common t*.
"""

import inspect

import depura
from depura import DiscreteLinear
from depura.evaluation.demo import EPS
from depura.methods.diffpure import T_STAR
from depura.methods.entry import Method
from depura.methods.gdmp import released_start
from depura.methods.table import METHODS

INDEX = round(1000 * T_STAR)
PIXELS = 64 / 1024, 64 / 3072
"""Pixels of a digit over those of a CIFAR-10 image, without and with its channels."""
STD = 0.5 * DiscreteLinear().sigma(INDEX - 1)
"""The common noise in [0, 1] units."""
AGDM_SCALE = 100.0
NOTES = {
    "agdm": "AGDM is reconstructed from a summary and reviews; here of a layer and of x0, without label term",
    "scoreopt": "reconstructed from others' accounts",
    "mimic": "the input enters through signs only: its exact gradient is zero, read the relaxed and the BPDA row",
    "mimic-released": "the same; guidance as the released code computes it",
    "adbm": "the sampler alone: its network would have to be fine-tuned",
    "trades": "adversarially trained at this radius on the training digits; no purification",
}


def purifiers() -> dict[str, depura.Purifier]:
    """The methods, by their names here."""
    d = depura.digits_denoiser()
    guide = depura.digits_guide()
    agdm = depura.agdm(
        d,
        guide=guide,
        features=guide.features,
        label=False,
        sees=depura.on_estimate,
        scale=AGDM_SCALE,
        n_noise=INDEX,
        n_steps=10,
    )
    noisy = depura.ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=40)
    mimic = {"steps": noisy, "start": depura.from_unit_noise, "rho": 3000 * PIXELS[0]}
    batch = round(100 / PIXELS[1])
    here: dict[str, dict[str, depura.Purifier]] = {
        "diffpure": {
            "diffpure": depura.diffpure(d, t_star=T_STAR, n_steps=30),
            "diffpure-ode": depura.diffpure_ode(d, t_star=T_STAR, n_steps=10),
            "diffpure-ddpm": depura.diffpure_ddpm(d, n_noise=INDEX, n_steps=10),
            "diffpure-langevin": depura.diffpure_langevin(d, t_star=T_STAR, n_steps=9),
        },
        "mimicdiffusion": {
            "mimic": depura.mimicdiffusion(d, **mimic),
            "mimic-released": depura.mimicdiffusion(d, released=True, **mimic),
        },
        "agdm": {"agdm": agdm},
        "gdmp": {"gdmp": depura.gdmp(d, n_noise=INDEX, n_steps=5, batch_ref=batch, start=released_start(INDEX))},
        "gradual": {
            "gradual": depura.gradual(d, depths=(30,) * 4 + (50,) * 2 + (INDEX,) * 2, n_steps=(2,) * 4 + (5,) * 4)
        },
        "baseline": {"noise": depura.noise_only(std=STD), "blur": depura.blur_only(std=0.5)},
    }
    return {
        name: purifier
        for method in METHODS.values()
        for name, purifier in (here.get(method.name) or as_on_the_command_line(method, d)).items()
    }


def as_on_the_command_line(method: Method, d: depura.Denoiser) -> dict[str, depura.Purifier]:
    """A method by its name, at the common t* if it has one; none if it takes more than a denoiser."""
    if method.build is None:
        return {}
    common = {"t_star": T_STAR} if "t_star" in inspect.signature(method.build).parameters else {}
    return {method.name: method.build(d, **common)}


def study(
    *, images: int = 64, eps: float = EPS, attack_steps: int = 20, eot: int = 4, draws: int = 32, seed: int = 0
) -> depura.Study:
    """The comparison.

    Args:
        images: how many test digits (up to 500).
        eps: linf radius in [0, 1] units.
        attack_steps: gradient steps of the attacks.
        eot: draws per gradient.
        draws: fresh draws that each example is judged on.
        seed: of all noise.

    Returns:
        The study.
    """
    ball = depura.Ball("linf", eps)
    attack = depura.PGD(ball, n_steps=attack_steps, eot=eot)
    blind = depura.PGD(ball, n_steps=attack_steps)
    methods = purifiers()
    rows = depura.attack_suites(
        methods,
        depura.digits_classifier(),
        attack,
        blind=blind,
        relaxed={name: 4 * eps for name in methods if name.startswith("mimic")},
    )
    trades = depura.Defence(None, depura.digits_guide())
    return depura.Study(
        name="digits-methods",
        data=depura.load_digits("test").first(images),
        defence=rows[1].evaluated,
        rows=(*rows, *depura.bare_suite(trades, blind, method="trades")),
        seed=seed,
        select_draws=8,
        report_draws=draws,
        unit_images=16,
        pictures=1,
        baselines=("trades", "noise", "blur"),
        notes=NOTES,
    )
