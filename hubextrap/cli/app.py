"""The verbs of the `hubextrap` command."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from hubextrap._version import __version__
from hubextrap.cli import hub, recipes
from hubextrap.cli.backtest import backtest
from hubextrap.cli.eval import evaluate
from hubextrap.cli.examples import Explained, explain
from hubextrap.cli.generate import generate
from hubextrap.cli.jobs import find_page, tell_job
from hubextrap.cli.merging import merge, plan, push, run
from hubextrap.cli.passed_on import LikeMergekits, PassedOn, lm_eval_command, mergekit_yaml
from hubextrap.cli.predict import predict
from hubextrap.cli.reground import reground
from hubextrap.cli.report import report
from hubextrap.cli.scan import scan
from hubextrap.cli.steps import steps
from hubextrap.cli.submit import submit
from hubextrap.cli.sweep import sweep
from hubextrap.cli.terminal import clean_error, guarded
from hubextrap.cli.verify import verify
from hubextrap.cli.walk import walk
from hubextrap.cli.watch import watch
from hubextrap.cli.working import finish, worker


class _Group(TyperGroup):
    """Commands whose help costs no import of pydantic, by which typer checks a flag that is None."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        for parameter in self.get_params(ctx):
            if parameter.default is None:  # --help and completion
                parameter.default = False
        return super().parse_args(ctx, args)

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        super().format_help(ctx, formatter)
        explain(ctx)


class _Verbs(_Group):
    """The verbs; what is said of a wrong command line repeats no token that stood in it, and does nothing."""

    def main(self, *given: Any, **options: Any) -> Any:
        words = given[0] if given else options.get("args")
        find_page(sys.argv[1:] if words is None else words, self._takes_summary)
        with guarded():
            return super().main(*given, **options)

    def _takes_summary(self, verb: str) -> bool:
        command = self.commands.get(verb)
        return command is not None and any("--summary" in parameter.opts for parameter in command.params)

    def make_context(self, *given: Any, **options: Any) -> Any:
        try:
            return super().make_context(*given, **options)
        except Exception as error:
            _told(error)
            raise

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except Exception as error:
            _told(error)
            raise


def _told(error: Exception) -> None:
    """See to an error of the command line's, which click itself shows in a moment, and then exits."""
    clean_error(error)
    if hasattr(error, "format_message"):  # click's, or the one that typer brings
        tell_job(error.format_message())


app = typer.Typer(
    cls=_Verbs,
    name="hubextrap",
    help="Predict later RL checkpoints from earlier ones on the Hugging Face Hub, and check the prediction.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hubextrap {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options of every command."""


for verb in (predict, steps, scan, backtest, report, plan, merge, push, run, verify):
    app.command(cls=LikeMergekits if verb in (plan, merge, run) else Explained)(verb)
for verb in (submit, worker, finish):
    app.command(cls=Explained)(verb)
app.command("eval", cls=Explained)(evaluate)
for verb in (sweep, walk, watch, reground, generate):
    app.command(cls=Explained)(verb)
app.command("lm-eval", cls=PassedOn)(lm_eval_command)
app.command("mergekit-yaml", cls=PassedOn)(mergekit_yaml)
app.add_typer(hub.app, name="hub", cls=_Group)
app.add_typer(recipes.app, name="recipes", cls=_Group)
