"""The list of commands needs none of them, and says of each what the command itself says."""

from __future__ import annotations

import subprocess
import sys

import pytest

import depura
from depura.cli import COMMANDS, command_named

HEAVY = {"torch", "numpy", "scipy", "PIL", "pydantic", "matplotlib", "pyarrow"}


def imported(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has imported in the end, by its own account of imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "depura" in names
    return names & HEAVY


def test_help_imports_no_heavy_package() -> None:
    assert imported("import sys; sys.argv = ['depura', '--help']; from depura.cli import main; main()") == set()


def test_importing_depura_imports_no_heavy_package() -> None:
    assert imported("import depura; dir(depura)") == set()
    assert "torch" in imported("import depura; depura.Noise")


def test_rooms_and_what_the_pages_name_in_them_are_there() -> None:
    names = "depura.methods.diffpure.CIFAR10_LINF, depura.purifiers.fast.deviation, depura.evaluation.demo.EPS"
    assert subprocess.run([sys.executable, "-c", f"import depura; {names}"], check=False).returncode == 0


def test_every_exported_name_is_there() -> None:
    assert len(depura.__all__) > 100
    for name in depura.__all__:
        assert getattr(depura, name) is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    first = (command_named(name).help or "").split("\n\n")[0].replace("\n", " ")
    assert COMMANDS[name].summary == first
