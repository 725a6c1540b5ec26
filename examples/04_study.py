"""A study is a Python file with a function that returns a Study. Run it with

depura plan examples/04_study.py
depura run examples/04_study.py --out runs/example -S eps=0.15
"""

import depura


def study(*, eps: float = 0.2, images: int = 32, votes: int = 5) -> depura.Study:
    """DiffPure on digits, deployed as a vote."""
    purifier = depura.diffpure(depura.digits_denoiser(), t_star=0.09, n_steps=3, t_end=0.0, solver=depura.Ancestral())
    defence = depura.Defence(purifier, depura.digits_classifier(), rule=depura.Vote(votes))
    attack = depura.PGD(depura.Ball("linf", eps), n_steps=10, eot=2)
    return depura.Study(
        name="digits-vote",
        data=depura.load_digits("test").first(images),
        defence=defence,
        rows=depura.attack_suite(defence, attack),
        report_draws=16,
    )
