"""Starting depura in a process of its own, with what takes seconds there and says nothing here left out."""

import sys

WITHOUT = (
    "import sys\n"
    "sys.modules['matplotlib'] = None\n"
    "from depura.planning import timing\n"
    "timing.PROBE_SECONDS = 0.001\n"
    "from depura.cli import main\n"
    "main()\n"
)
DEPURA = [sys.executable, "-c", WITHOUT]
"""The beginning of a command: no charts are drawn, and no price is measured."""
