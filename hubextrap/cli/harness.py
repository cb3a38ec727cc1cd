"""`hubextrap lm-eval`: lm-eval's own command, with the model ``hubextrap`` in it."""

from __future__ import annotations

import sys

import typer

from hubextrap.cli.mergekit import errors_of
from hubextrap.hub_access import keep_to_the_endpoint


def lm_eval_command(ctx: typer.Context) -> None:
    """Run lm-eval's own command line; its --model hubextrap predicts what it evaluates."""
    from hubextrap.evaluation.tasks import require_lm_eval

    require_lm_eval()
    import datasets  # noqa: F401

    keep_to_the_endpoint()
    import lm_eval.models  # noqa: F401 - registering before it is imported would hide lm-eval's own models
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if "hubextrap" not in model_registry:  # later versions find it by its entry point
        model_registry.register("hubextrap", target="hubextrap.lm_eval_plugin:HubextrapLM")
    own_arguments = sys.argv
    sys.argv = ["lm-eval", *ctx.args]
    try:
        with errors_of("lm-eval"):
            cli_evaluate()
    finally:
        sys.argv = own_arguments
