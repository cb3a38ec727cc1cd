"""Other programs' own commands: mergekit's with our merge methods, lm-eval's with the model ``hubextrap``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from hubextrap.cli.examples import Explained, explain
from hubextrap.cli.terminal import redacting_stdout
from hubextrap.containment import read_named
from hubextrap.errors import HubExtrapError, OutputError, RecipeError
from hubextrap.extras import require
from hubextrap.foreign_data import parse_yaml
from hubextrap.foreign_text import own_lines


class PassedOn(TyperCommand):
    """A command whose arguments belong to another program: none is read here, not even ``--help``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except (SystemExit, typer.Exit):  # that program's own end, as after its help
            if {"-h", "--help"} & set(ctx.args):
                explain(ctx)
            raise


MERGEKIT_OPTIONS = frozenset(
    [
        "allow-crimes",
        "async-write",
        "clone-tensors",
        "copy-tokenizer",
        "cuda",
        "gpu-rich",
        "lazy-unpickle",
        "lora-merge-cache",
        "lora-merge-dtype",
        "low-cpu-memory",
        "multi-gpu",
        "num-threads",
        "out-shard-size",
        "random-seed",
        "read-to-gpu",
        "safe-serialization",
        "transformers-cache",
        "trust-remote-code",
        "unsafe-truncate-embeddings",
        "write-model-card",
        "write-threads",
    ]
)
"""Of mergekit-yaml, and of none of our commands."""


class LikeMergekits(Explained):
    """A command that is tried with mergekit's command lines; options that only mergekit has are told so."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        for given in args:
            option = given.partition("=")[0]
            if option[:2] == "--" and option[2:].removeprefix("no-") in MERGEKIT_OPTIONS:
                raise typer.BadParameter(
                    f"{option} is mergekit's option; leave it out, or give it to "
                    "`hubextrap mergekit-yaml CONFIG OUT`"
                )
        return super().parse_args(ctx, args)


def mergekit_yaml(ctx: typer.Context) -> None:
    """Run mergekit's own mergekit-yaml, with hubextrap's merge methods added: CONFIG OUT [OPTIONS]."""
    from hubextrap import mergekit_plugin  # registers the methods, or says that mergekit is missing
    from hubextrap.recipe.mergekit_programs import not_for_mergekit_yaml

    name = "hubextrap mergekit-yaml"
    with _errors_of("mergekit"):
        from mergekit.scripts.run_yaml import main

    given = main.make_context(name, list(ctx.args), resilient_parsing=True).params
    out = Path(given.get("out_path") or ".")
    if os.path.lexists(out) and not out.is_dir():
        raise OutputError(f"{out}: is there already and is no folder; choose another one", file=out)
    config = _read_yaml(given.get("config_file"))
    other = not_for_mergekit_yaml(config) if isinstance(config, dict) else None
    problems = [other] if other else mergekit_plugin.config_problems(config)
    if problems:
        file = given["config_file"]
        raise RecipeError(own_lines(*(f"{file}: {problem}" for problem in problems)), file=file)
    _refuse_folders_in_pieces(config)
    with _errors_of("mergekit"):
        main.main(args=list(ctx.args), prog_name=name)


def _refuse_folders_in_pieces(config: object) -> None:
    """Refuse a config with a folder on this disk whose weights mergekit would not find.

    Raises:
        UnsupportedCheckpoint: its weights lie in pieces; says how it is written as safetensors.
    """
    from hubextrap.step_names import step_in_reference
    from hubextrap.tensors.unloadable import refuse_pieces
    from hubextrap.trajectory import Checkpoint

    given = config if isinstance(config, dict) else {}
    models = given.get("models")
    listed = [one.get("model") for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    named = [given.get("base_model"), *listed]
    for name in named:
        if isinstance(name, str) and Path(name).is_dir():
            said = step_in_reference(name)
            refuse_pieces(Checkpoint(said.step if said else 0, None, "", None, name))


def lm_eval_command(ctx: typer.Context) -> None:
    """Run lm-eval's own command line, with a model added: --model hubextrap evaluates a prediction."""
    require("eval", "hubextrap lm-eval", load=False)  # its help needs no torch
    own_arguments = sys.argv
    try:
        with _errors_of("lm-eval"):
            import datasets  # noqa: F401

            from hubextrap.hub_access import keep_to_the_endpoint

            keep_to_the_endpoint()
            import lm_eval.models  # noqa: F401 - before registering, which would hide lm-eval's own models
            from lm_eval.__main__ import cli_evaluate
            from lm_eval.api.registry import model_registry

            if "hubextrap" not in model_registry:  # later versions find it by its entry point
                model_registry.register("hubextrap", target="hubextrap.lm_eval_plugin:HubextrapLM")
            sys.argv = ["lm-eval", *ctx.args]
            cli_evaluate()
    finally:
        sys.argv = own_arguments


@contextmanager
def _errors_of(program: str) -> Iterator[None]:
    """What another program does not catch itself, as one line; its own exits and ours come through."""
    try:
        with redacting_stdout():
            yield
    except (HubExtrapError, typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # without: of a loader or a library
            raise
        from hubextrap.hub_access import reason  # imports ssl, which no command's help needs

        raise HubExtrapError(f"{program} failed: {reason(error)}") from error


def _read_yaml(path: str | None) -> object:
    """The config as mergekit reads it; None where mergekit will complain by itself that there is none."""
    if path is None or not Path(path).exists() or Path(path).is_dir():
        return None
    try:
        data = read_named(path, pipes=False)  # mergekit reads it once more
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}", file=path) from error
    return parse_yaml(data, str(path), error=RecipeError, remedy="correct it", nan=True)
