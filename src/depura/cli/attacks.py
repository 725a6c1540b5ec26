"""The command attacks, which lists them, and how one is built from options."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, cast

import typer

from depura import _check
from depura.attacks.attack import Attack
from depura.attacks.ball import Threat
from depura.attacks.catalogue import CATALOGUE, at_default
from depura.cli.doors import door, out

EOT = 10
"""Draws per step where the answer is random and none are asked for, unless the attack has more by default."""


@door
def attacks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the attacks: what each needs of a model, its norms, its price per image, and where it is from."""
    lines = [
        {
            "name": entry.name,
            "title": entry.title,
            "needs": entry.needs,
            "norms": ", ".join(entry.norms),
            "cost": entry.formula,
            "default": str(at_default(entry).cost),
            "source": entry.source,
        }
        for entry in CATALOGUE
    ]
    if as_json:
        typer.echo(json.dumps(lines, indent=1))
        return
    for line in lines:
        out.print(f"[bold]{line['name']}[/bold]  {line['title']}", highlight=False)
        for key in ("source", "needs", "norms"):
            out.print(f"  {key:<8} {line[key]}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"  {'cost':<8} {line['cost']}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"  {'default':<8} {line['default']}", highlight=False, markup=False, soft_wrap=True)
    out.print("\nCost: evaluations of the model per image, at most; eot: draws of a randomised model per question.")


def built(name: str, ball: Threat, *, random: bool, steps: int | None, eot: int | None) -> Attack:
    """An attack of the catalogue with the settings that were given; one that it does not have is refused.

    Args:
        name: as listed.
        ball: threat model.
        random: whether the model's answer is random.
        steps: of the attack; default its own.
        eot: draws per step; default 1, or where the answer is random at least `EOT`.

    Returns:
        The attack.

    Raises:
        InputError: an unknown name, a norm that is not the attack's, or a setting that it does not have.
    """
    entries = {entry.name: entry for entry in CATALOGUE}
    if name not in entries:
        _check.fail("--attack", f"one of {', '.join(entries)}", repr(name), "See `depura attacks`.")
    entry = entries[name]
    if ball.norm not in entry.norms:
        _check.fail("attack", f"--norm {' or '.join(entry.norms)} for {name}", ball.norm)
    made = entry.build(ball)
    settings = _settings(made)
    for option, field, value in (("--steps", "n_steps", steps), ("--eot", "eot", eot)):
        if value is not None and field not in settings:
            having = ", ".join(e.name for e in CATALOGUE if field in _settings(at_default(e)))
            _check.fail("attack", f"{option} for an attack that has it ({having})", name, "Leave it out.")
    own = max(settings.get("eot", 1), EOT) if random else 1
    wanted = {"n_steps": steps, "eot": own if eot is None else eot}
    changes = {field: value for field, value in wanted.items() if value is not None and field in settings}
    return cast("Attack", dataclasses.replace(cast("Any", made), **changes))


def _settings(made: Attack) -> dict[str, Any]:
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(cast("Any", made))}
