"""The command line: `depura demo | run | plan | report | verify | compare | claim | replay | ...`.

A command's file is imported when the command is given: `depura --help` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Command(NamedTuple):
    """A command.

    Attributes:
        where: file and name of its function, or of its group of commands.
        summary: the first paragraph of its help.
    """

    where: str
    summary: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "studies:demo", "Purify, attack, judge and report on the bundled digits. No network needed; a minute or two."
    ),
    "run": Command(
        "studies:run",
        "Run a study, or what is missing of it, and write its report. Kill it at any time; the same command goes on.",
    ),
    "judge": Command(
        "judge:judge",
        "Judge a purifier or a whole defence of your own, as it is, and write a report. No study file is needed.",
    ),
    "plan": Command(
        "plan:plan",
        "Print what a study costs before it is run: denoiser evaluations, memory, and time from a short probe.",
    ),
    "status": Command(
        "status:status",
        "Say how far a run is: units done and missing for each row, evaluations, time left, units under way, errors.",
    ),
    "report": Command(
        "studies:report",
        "Write report.html and report.md of a run directory, and print its table. Exit code 1: a check failed.",
    ),
    "claim": Command(
        "claim:claim",
        "Print what a paper may claim of a finished run: a paragraph, a LaTeX row, BibTeX, and what was not tested.",
    ),
    "compare": Command(
        "compare:compare",
        "Compare two finished runs image by image, and say whether there is a difference to speak of.",
    ),
    "export": Command("export:export", "Write a finished run as one table, a line for each image, attack and radius."),
    "replay": Command(
        "replay:replay",
        "Make a recorded decision again, picture its steps, and check that it comes out as recorded (or exit 1).",
    ),
    "verify": Command(
        "verify:verify",
        "Check that a record holds: files, reports, study, examples; some images scored and a unit made again.",
    ),
    "publish": Command(
        "publish:publish_run",
        "Copy a run without its images: of each adversarial example, how its bits differ from the image's.",
    ),
    "pack": Command(
        "pack:pack",
        "Put the units of each attack into one file, smaller than they are together; all commands read it as before.",
    ),
    "extend": Command(
        "extend:extend",
        "Extend a run: more images (-S images=128), a further attack (--attack, or a row more in the study file).",
    ),
    "rescore": Command(
        "rescore:rescore",
        "Score the recorded examples and the clean images under another deployed rule or on other draws. No attack.",
    ),
    "schema": Command(
        "schema:schema",
        "Print the layout of records as JSON Schema: of study.json, of a unit's facts, of an audit and of a plan.",
    ),
    "audit-gradient": Command(
        "audit:audit",
        "Check that the gradient of a study's defence is its derivative; exit code 1 and the guilty part if it is not.",
    ),
    "methods": Command(
        "methods:methods",
        "List purification methods and their published settings: start, steps, guidance, evaluations, deviations.",
    ),
    "purify": Command("purify:purify", "Clean images with a diffusion model, and say how much each changed."),
    "attacks": Command(
        "attack:attacks",
        "List the attacks: what each needs of a model, its norms, its price per image, and where it is from.",
    ),
    "attack": Command(
        "attack:attack",
        "Make adversarial examples of images, for a quick look; `depura run` is what judges a defence.",
    ),
    "checkpoint": Command(
        "checkpoint:app",
        "Say what a checkpoint file is, convert it, list the published ones. Nothing in a file is run.",
    ),
    "train": Command("train:app", "Train a denoiser, classifier or guide on the digits or on data of your own."),
}


class LazyGroup(TyperGroup):
    """The commands, each imported when it is given; the list of them needs none."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What the list shows of a command."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name].summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command itself; what is no command's name is refused."""
        if args[0] not in COMMANDS:
            return super().resolve_command(ctx, args)
        return args[0], command_named(args[0]), args[1:]


def command_named(name: str) -> Any:
    """A command or group of commands, imported.

    Args:
        name: one of `COMMANDS`.

    Returns:
        The command.
    """
    module, _, attribute = COMMANDS[name].where.partition(":")
    function: Any = getattr(import_module(f"depura.cli.{module}"), attribute)
    command: Any
    if isinstance(function, typer.Typer):
        command = typer.main.get_group(function)
    else:
        alone = typer.Typer(add_completion=False)
        alone.command(name)(function)
        command = typer.main.get_command(alone)
    command.name = name
    return command


app = typer.Typer(
    name="depura",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def depura() -> None:
    """Diffusion-based adversarial purification, and an honest account of how much it helps."""


def main() -> None:
    """Entry point."""
    app()
