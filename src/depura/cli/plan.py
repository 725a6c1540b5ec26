"""`depura plan`: the price of a study before it is run, here or on machines that are elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from depura import _check
from depura.audit.probes import error_line
from depura.cli.console import compact, door, duration, out, seconds
from depura.cli.machine import Device, Workers, workers_of
from depura.cli.studies import Profile, Settings, pairs
from depura.evaluation.study import Study
from depura.evaluation.study_file import StudySource
from depura.planning import price
from depura.planning.machines import Rate, rate_named
from depura.records.schema import Plan, PlannedRow
from depura.reports.table import Table, terminal

ELSEWHERE = "a100"
"""Priced for where a device is asked for that is not there."""


class Terms(NamedTuple):
    """What machines elsewhere cost.

    Attributes:
        rate: of one of them.
        cards: how many share the work.
        hourly: money for an hour of one; None where it is not known.
        money: that there is; None where it is not known.
    """

    rate: Rate
    cards: int
    hourly: float | None
    money: float | None


@door
def plan(
    study: Annotated[Path, typer.Argument(help="Python file with a function study() -> Study.")],
    settings: Settings = None,
    workers: Workers = None,
    device: Device = "cpu",
    profile: Profile = "",
    budget: Annotated[str | None, typer.Option(help="Say whether it is within this time, e.g. 12h.")] = None,
    as_text: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    machine: Annotated[
        str, typer.Option("--as", help="Price for this machine: a100, h200, rtx4090 or '12 TFLOP/s'.", metavar="NAME")
    ] = "",
    cards: Annotated[int, typer.Option(help="How many of them share the work.")] = 1,
    hourly: Annotated[float | None, typer.Option("--price", help="Money for an hour of one.")] = None,
    money: Annotated[float | None, typer.Option(help="Money that there is: say how many images it buys.")] = None,
) -> None:
    """Print what a study costs before it is run: denoiser evaluations, memory, and time from a short probe.

    With --as the time is that of another machine, from counted operations; nothing is measured here. Exit code 1: it is
    beyond the budget.
    """
    allowed = None if budget is None else seconds("--budget", budget)
    terms = _terms(machine, device, cards, hourly, money)
    n_workers = workers_of(workers, device) if terms is None else cards
    loaded = StudySource(study, pairs(settings), profile).load()
    rate = None if terms is None else terms.rate.per_second
    try:
        prices = price.plan(loaded, device=device if terms is None else "cpu", from_file=True, rate=rate)
    except (RuntimeError, NotImplementedError, TypeError) as error:  # of code that looks at values
        if terms is None:
            raise
        advice = "Plan it where it is to be run, without --as."
        _check.fail(
            "--as", "networks whose operations can be counted without values", error_line(error).rstrip("."), advice
        )
    beyond = allowed is not None and sum(p.seconds for p in prices) / n_workers > allowed
    if as_text:
        typer.echo(json.dumps(_as_plan(loaded, prices, n_workers).as_json(), indent=1))
    else:
        _print_plan(loaded, prices, n_workers, terms)
        _print_published(loaded)
        if allowed is not None:
            out.print(f"{'beyond' if beyond else 'within'} the budget of {duration(allowed)}")
    if beyond:
        raise typer.Exit(1)


def _terms(machine: str, device: str, cards: int, hourly: float | None, money: float | None) -> Terms | None:
    """Where it is priced for; None for this machine, which is measured."""
    if not machine:
        try:
            _check.device("--device", device)
        except _check.InputError:
            if not device.startswith("cuda"):
                raise
            machine = ELSEWHERE
            text = (
                f"There is no {device} on this machine; priced for {ELSEWHERE} by operations. Choose another by --as."
            )
            out.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not machine:
        given = [name for name, its in (("--price", hourly), ("--money", money)) if its is not None]
        if given or cards != 1:
            _check.fail(given[0] if given else "--cards", "a machine to price for", "none", "Give --as.")
        return None
    _check.integer("plan", "--cards", cards, low=1)
    for name, value in (("--price", hourly), ("--money", money)):
        if value is not None:
            _check.number("plan", name, value, low=0.0, low_open=True)
    if money is not None and hourly is None:
        _check.fail("--money", "the price of an hour, too", "none", "Give --price.")
    return Terms(rate_named(machine), cards, hourly, money)


def _as_plan(study: Study, prices: Sequence[price.Price], workers: int) -> Plan:
    rows = (PlannedRow(**{key: value for key, value in p._asdict().items() if key != "rate"}) for p in prices)
    return Plan(study=study.name, workers=workers, rows=tuple(rows), rate=prices[0].rate)


def _print_plan(study: Study, prices: tuple[price.Price, ...], workers: int, terms: Terms | None) -> None:
    forward, backward = sum(p.forward for p in prices), sum(p.backward for p in prices)
    total = sum(p.seconds for p in prices)
    rows = [
        (
            p.row,
            f"{p.eps:.3g}",
            f"{p.images}",
            compact(p.forward),
            compact(p.backward),
            f"{p.memory / 2**20:,.0f} MiB" if p.memory else "",
            duration(p.seconds),
        )
        for p in prices
    ]
    memory = f"{max(p.memory for p in prices) / 2**20:,.0f} MiB"
    rows.append(("all", "", "", compact(forward), compact(backward), memory, duration(total)))
    table = Table(
        ("row", "eps", "images", "forward", "backward", "graph", "one worker" if terms is None else "one card"),
        tuple(rows),
        align="lrrrrrr",
        styles={len(prices): "strongest"},
        breaks=(len(prices) - 1,),
    )
    n = len(study.data.images)
    rate = prices[0].rate
    how = "without weights" if rate is not None else "from a short probe on this machine"
    out.print(f"{study.name}: denoiser evaluations and, {how if terms is None else 'from operations'}, memory and time")
    out.print(terminal(table, wrap=False))
    out.print(
        f"{forward:,} denoiser evaluations, {backward:,} of them with a backward pass; {forward / n:,.0f} per image; "
        f"{study.report_draws} report draws for each attack"
    )
    if terms is not None:
        _print_terms(terms, total, n)
        return
    out.print(f"about {duration(total / workers)} on {workers} worker{'s' if workers > 1 else ''}")
    if rate is not None:
        out.print(
            f"time is estimated from operations: {total * rate:.2e} of them in matrix products and convolutions, at "
            f"{rate:.2e} a second (one convolution, on this machine); a network is somewhat slower"
        )


def _print_terms(terms: Terms, total: float, images: int) -> None:
    """Hours, money, and images for the money there is."""
    rate, hours = terms.rate, total / 3600
    said = f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"
    cost = "" if terms.hourly is None else f", {hours * terms.hourly:,.2f} at {terms.hourly:g} an hour"
    shared = f"; {duration(total / terms.cards)} on {terms.cards} of them" if terms.cards > 1 else ""
    lines = [
        f"about {said} hours of one {rate.machine}{cost}{shared}",
        f"at {rate.per_second / 1e12:.3g} TFLOP/s in {total * rate.per_second:.2e} operations of matrix products and "
        f"convolutions ({rate.source}); overhead, starts and what is repeated come on top",
    ]
    if terms.money is not None and terms.hourly is not None:
        affordable = int(images * terms.money / (hours * terms.hourly)) if hours else 0
        lines.append(
            f"{terms.money:g} buys about {affordable:,} images of this study, at {hours / images:.3g} hours each"
        )
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_published(study: Study) -> None:
    """What others found, and the files that the study takes."""
    for its in study.published:
        note = f" ({its.note})" if its.note else ""
        text = f"published, by another protocol: {its.figures} under {its.attack}; {its.source}{note}"
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    for file in study.files:
        note = f"; {file.note}" if file.note else ""
        text = f"needs -S {file.parameter}=PATH: {file.name}, {file.address}, licence: {file.licence}{note}"
        out.print(text, markup=False, highlight=False, soft_wrap=True)
