"""DiffPure on the bundled digits: the study of `depura demo`, for `depura run studies/digits.py --out runs/digits`."""

from depura.evaluation.demo import study

__all__ = ["study"]
