"""What all commands share: errors become one sentence and exit code 2, progress bars have an ETA, threads are set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import ParamSpec

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from depura._check import InputError
from depura.evaluation.runner import RefusedError
from depura.records.directory import RecordError

P = ParamSpec("P")

out = Console()
err = Console(stderr=True)


def door(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of public doors into one sentence on standard error and exit code 2; 1 where a run is refused.

    Any other exception is a defect of depura or of the user's own code and keeps its traceback. A command computes
    with one thread, as small networks on busy cores run many times slower with more.

    Args:
        command: the command's function.

    Returns:
        The guarded function, with the same signature.
    """

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        torch.set_num_threads(1)
        try:
            command(*args, **kwargs)
        except (InputError, RecordError) as error:
            err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1 if isinstance(error, RefusedError) else 2) from None
        except KeyboardInterrupt:
            err.print("Stopped. What is done is kept; give the same command again to go on.")
            raise typer.Exit(130) from None

    return guarded


def progress() -> Progress:
    """A progress bar with counts, elapsed time and ETA; silent where the output is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=out,
        disable=not out.is_terminal,
    )


def fraction(text: str) -> float:
    """A number that may be written as a fraction, such as 8/255.

    Args:
        text: what was given.

    Returns:
        The number.

    Raises:
        typer.BadParameter: no number.
    """
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise typer.BadParameter(f"expected a number such as 0.2 or 8/255, got {text!r}.") from None


def duration(seconds: float) -> str:
    """A time in words, of two or three digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def compact(count: int) -> str:
    """A count, exactly up to a million, else in millions."""
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:,.1f} M"


def seconds(option: str, text: str) -> float:
    """A time from words such as 90s, 30min or 12h.

    Args:
        option: which asked for it.
        text: what was given.

    Returns:
        Seconds.

    Raises:
        InputError: no time.
    """
    for unit, factor in (("min", 60.0), ("h", 3600.0), ("s", 1.0)):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdecimal():
            return float(number) * factor
    raise InputError(f"{option}: expected a time such as 90s, 30min or 12h, got {text!r}.")
