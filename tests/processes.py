"""Starting depura in processes of their own, with what takes seconds there and says nothing here left out.

Importing torch and depura takes longer than most of what is run here. One process has imported both and done nothing
else; every process that is asked for is forked from it: a process and a session of its own, as after a start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

STUDY = """
from dataclasses import replace
import depura
from depura.evaluation.demo import digits_purifier

def study():
    data, known = depura.load_digits("test").first(5), 2 * depura.load_digits("train").first(10).images - 1
    purifier = digits_purifier(n_steps=1).with_(denoiser=depura.empirical_denoiser(known))
    defence = depura.Defence(purifier, depura.digits_classifier())
    rows = depura.attack_suite(defence, depura.PGD(depura.Ball("linf", 0.2), n_steps=1, eot=1))
    return depura.Study("brief", data, defence, rows, select_draws=4, report_draws=4, unit_images=1)
"""
"""A file with a study of 36 small units, on a denoiser in closed form."""

SERVER = """
import json, os, signal, sys, time
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.modules["matplotlib"] = None
from multiprocessing import get_context
import torch
import torch._dynamo
torch.set_num_threads(1)
from depura.cli import main
from depura.cli import extend, studies, train
from depura.evaluation import executors
from depura.planning import timing
timing.PROBE_SECONDS = 0.001

def begin(words, folder, said, forked):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a shell in the foreground has it
    sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for at, file in enumerate((os.open(os.devnull, os.O_RDONLY), sink, sink)):
        os.dup2(file, at)
    os.chdir(folder)
    if forked:
        executors.get_context = lambda method: get_context("fork")
    sys.argv = ["depura", *words]
    main()

for line in sys.stdin:
    asked = json.loads(line)
    if "pid" in asked:
        pid, status = os.waitpid(asked["pid"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
        answer = os.fork()
        if not answer:
            begin(**asked)
    print(json.dumps(answer), flush=True)
"""
"""No charts are drawn, and no price is measured."""


@cache
def server() -> subprocess.Popen[str]:
    """The process that others are forked from; it ends with this one, whose end closes what it reads."""
    return subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(**asked: object) -> int | None:
    """What that process says."""
    its = server()
    assert its.stdin is not None
    assert its.stdout is not None
    its.stdin.write(json.dumps(asked) + "\n")
    its.stdin.flush()
    said: int | None = json.loads(its.stdout.readline())
    return said


class Depura:
    """A command in a process, a session and a process group of its own.

    Args:
        words: after `depura`.
        folder: where it runs.
        said: a file for what it says; none given, it is lost.
        forked: whether its workers are forked from it, which spares their imports; else they start as a user's do.
    """

    def __init__(
        self, words: Sequence[object], folder: Path, *, said: Path | None = None, forked: bool = False
    ) -> None:
        plain = [str(word) for word in words]
        pid = answer(words=plain, folder=str(folder), said=str(said or os.devnull), forked=forked)
        assert pid is not None
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code (of a signal, its negative number), or none while it runs."""
        if self._code is None:
            self._code = answer(pid=self.pid)
        return self._code

    def wait(self, seconds: float = 600) -> int:
        """Its exit code when it has ended."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.01)
        assert self._code is not None
        return self._code

    def kill(self, *, group: bool = False) -> None:
        """End it with no chance to clean up, and with it, if asked for, the processes that it started."""
        if self.poll() is None:
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        self.wait()
