"""The command line: `depura demo | run | plan | report | verify | compare | claim | replay | ...`."""

from __future__ import annotations

import typer

from depura.cli import (
    attack,
    audit,
    checkpoint,
    claim,
    compare,
    export,
    extend,
    methods,
    publish,
    purify,
    replay,
    rescore,
    schema,
    studies,
    train,
    verify,
)
from depura.cli import attack as attacks

app = typer.Typer(
    name="depura",
    help="Diffusion-based adversarial purification, and an honest account of how much it helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(studies.demo)
app.command("run")(studies.run)
app.command("plan")(studies.plan)
app.command("report")(studies.report)
app.command("claim")(claim.claim)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("replay")(replay.replay)
app.command("verify")(verify.verify)
app.command("publish")(publish.publish_run)
app.command("extend")(extend.extend)
app.command("rescore")(rescore.rescore)
app.command("schema")(schema.schema)
app.command("audit-gradient")(audit.audit)
app.command("methods")(methods.methods)
app.command("purify")(purify.purify)
app.command("attacks")(attacks.attacks)
app.command("attack")(attack.attack)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(train.app, name="train")


def main() -> None:
    """Entry point."""
    app()
