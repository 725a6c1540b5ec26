"""One thread for all tests: the networks are tiny, and several threads make them many times slower."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

torch.set_num_threads(1)

NEEDS = {
    "unit/test_schedules.py": ("diffusers",),
    "reference/test_diffusers_models.py": ("diffusers",),
    "reference/test_networks_adm.py": ("diffusers",),
    "reference/test_networks_ddpm.py": ("diffusers",),
    "reference/test_networks_score_sde.py": ("diffusers",),
    "reference/test_solvers.py": ("diffusers", "torchsde"),
    "end_to_end/test_benchmarks.py": ("diffusers", "torchsde"),
}
"""Files that compare against other libraries, left out on a machine without those (`make test` installs them)."""

collect_ignore = [file for file, libraries in NEEDS.items() if any(find_spec(name) is None for name in libraries)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Comparisons with recorded runs of published codes change seldom: they are slow tests."""
    for item in items:
        if item.path.parent.name == "reference":
            item.add_marker(pytest.mark.slow)


def pytest_report_header() -> list[str]:
    """Say what is left out."""
    return [f"LEFT OUT: tests/{file} needs {' and '.join(NEEDS[file])}" for file in collect_ignore]


@pytest.fixture(scope="module")
def without_figures() -> Iterator[None]:
    """Pages of this process have no charts, as without matplotlib: drawing takes as long as a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        yield


@pytest.fixture(scope="module")
def without_clock() -> Iterator[None]:
    """Calls that a price is measured by take no time: nothing here looks at seconds."""
    from depura.planning import timing  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "PROBE_SECONDS", 0.001)
        yield
