"""A record of the layout before: two methods and a bare classifier, three digits."""

import depura


def study(*, images: int = 3) -> depura.Study:
    ball = depura.Ball("linf", 0.2)
    attack = depura.PGD(ball, n_steps=4, eot=2)
    d = depura.digits_denoiser()
    methods = {
        "few": depura.diffpure(d, t_star=0.09, n_steps=2, t_end=0.0, solver=depura.Ancestral()),
        "noise": depura.noise_only(std=0.3),
    }
    rows = depura.attack_suites(methods, depura.digits_classifier(), attack)
    trades = depura.Defence(None, depura.digits_guide())
    return depura.Study(
        name="old-compared",
        data=depura.load_digits("test").first(images),
        defence=rows[1].evaluated,
        rows=(*rows, *depura.bare_suite(trades, attack, method="trades")),
        baselines=("trades", "noise"),
        select_draws=3,
        report_draws=5,
        unit_images=3,
        pictures=0,
        notes={"few": "a note"},
    )
