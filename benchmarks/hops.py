"""How many functions and files of depura one question goes through: `python -m benchmarks.hops [--names]`.

Counted by sys.setprofile, once everything is imported: distinct functions (lambdas, comprehensions and bodies of
classes left out) and distinct files of the package that are executed by

    purify      `depura purify d.png`
    purifier    purifier(images, noise) of the demo's defence
    gradient    one step of PGD through its exact gradient
    unit        `run_unit`, 2 images of the demo's study under its adaptive attack
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import FrameType

import torch
from PIL import Image

import depura
from depura.cli import app
from depura.evaluation.demo import digits_purifier, study
from depura.evaluation.study import UnitKey
from depura.evaluation.units import run_unit

PACKAGE = Path(depura.__file__).parent


class Hops:
    """Functions that were executed, as (file, name)."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()

    @property
    def files(self) -> set[str]:
        """Their files."""
        return {file for file, _ in self.functions}

    def see(self, frame: FrameType, event: str, argument: object) -> None:
        """The profile function."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and "<" not in code.co_name:
            file = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            self.functions.add((file, code.co_qualname if sys.version_info >= (3, 11) else code.co_name))


def counted(work: Callable[[], object]) -> Hops:
    """What some work goes through, in all threads; it is done once before, so that imports do not count."""
    work()
    hops = Hops()
    threading.setprofile(hops.see)
    sys.setprofile(hops.see)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return hops


def journeys(folder: Path) -> dict[str, Callable[[], object]]:
    """The questions, as functions; files are written in a folder."""
    digits = depura.load_digits("test")
    images, labels, noise = digits.images[:2], digits.labels[:2], depura.Noise(0, (0, 1))
    purifier = digits_purifier()
    defence = depura.Defence(purifier, depura.digits_classifier())
    attack = depura.PGD(ball=depura.Ball("linf", 0.2), n_steps=1)
    pixels = (images[0, 0] * 255).byte().numpy()
    Image.fromarray(pixels).save(folder / "d.png")
    small = study(images=2, attack_steps=1, eot=1, report_draws=2, curve=())

    def purify() -> None:
        with redirect_stdout(StringIO()):
            app(["purify", str(folder / "d.png"), "--out", str(folder / "out")], standalone_mode=False)

    return {
        "purify": purify,
        "purifier": lambda: purifier(images, noise),
        "gradient": lambda: attack(defence, images, labels, init=noise, eot=noise),
        "unit": lambda: run_unit(small, UnitKey("adaptive", 0.2, 0, 2)),
    }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="also print the functions")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for question, work in journeys(Path(folder)).items():
            hops = counted(work)
            print(f"{question:10} {len(hops.functions):4} functions {len(hops.files):3} files")
            if names:
                for file in sorted(hops.files):
                    own = ", ".join(sorted(name for where, name in hops.functions if where == file))
                    print(f"    {file}: {own}")


if __name__ == "__main__":
    main()
