"""What a check of an evaluation says: passed, to be read with care, failed, or not run."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Status(Enum):
    """The outcome of a check. A failed one takes the headline's place."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    NOT_RUN = "not run"


class Verdict(NamedTuple):
    """The outcome of one check, in words.

    Attributes:
        id: V1 to V17, or what `depura verify` looks at.
        name: in two or three words.
        status: the outcome.
        sentence: what was expected and what was measured; of a check that was not run, why.
        advice: what to do about it; empty where nothing is to be done.
    """

    id: str
    name: str
    status: Status
    sentence: str
    advice: str = ""
