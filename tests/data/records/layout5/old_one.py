"""A record of the layout before: one defence, three digits."""

import depura


def study(*, images: int = 3) -> depura.Study:
    purifier = depura.diffpure(depura.digits_denoiser(), t_star=0.09, n_steps=2, t_end=0.0, solver=depura.Ancestral())
    defence = depura.Defence(purifier, depura.digits_classifier())
    attack = depura.PGD(depura.Ball("linf", 0.2), n_steps=4, eot=2)
    return depura.Study(
        name="old-one",
        data=depura.load_digits("test").first(images),
        defence=defence,
        rows=depura.attack_suite(defence, attack),
        select_draws=3,
        report_draws=6,
        unit_images=3,
        pictures=0,
        curve_eps=(0.4,),
        curve_images=3,
        curve_rows=("adaptive",),
        memory=2**28,
    )
