"""`hubextrap submit`: a merge that Slurm or HF Jobs does while nobody waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hubextrap.cli.options import (
    CreatePr,
    Force,
    Looking,
    Out,
    OutPlace,
    Private,
    PushTo,
    RecipeFile,
    Said,
    ScanFile,
    grouped,
    one_place,
    push_targets,
    refuse_idle,
)
from hubextrap.cli.terminal import tell, tell_json
from hubextrap.foreign_text import terminal_output
from hubextrap.redaction import redact

if TYPE_CHECKING:
    from hubextrap.api.submitting import Queue

OF_SLURM, OF_JOBS = ("tasks", "sbatch"), ("flavor", "timeout", "bucket")


@grouped
def submit(
    ctx: typer.Context,
    recipe: RecipeFile,
    place: OutPlace = None,
    *,
    out: Out = None,
    push: PushTo = None,
    private: Private = False,
    create_pr: CreatePr = False,
    slurm: bool = typer.Option(False, "--slurm", help="Hand it to Slurm, as an array of jobs."),
    tasks: int | None = typer.Option(
        None, min=1, metavar="N", help="Tasks of Slurm's array. Default: one per shard."
    ),
    sbatch: list[str] | None = typer.Option(
        None, metavar="OPTION", help="Option for sbatch, for example --partition=cpu. Repeat it for more."
    ),
    jobs: int | None = typer.Option(
        None, min=1, metavar="N", help="Hand it to N HF Jobs. The checkpoints are on the Hub."
    ),
    flavor: str | None = typer.Option(
        None, metavar="NAME", help="Hardware of each HF Job, see `hf jobs hardware`. Default: cpu-upgrade."
    ),
    timeout: str | None = typer.Option(
        None, metavar="TIME", help="Longest time of each HF Job, for example 90m. Default: the Hub's."
    ),
    bucket: str | None = typer.Option(
        None,
        metavar="OWNER/NAME",
        help="Bucket for the HF Jobs' plan and records. Default: YOU/hubextrap-work.",
    ),
    scan: ScanFile = None,
    force: Force = False,
    reading: Looking,
    dry_run: bool = typer.Option(False, "--dry-run", help="Check all, print the jobs, and submit nothing."),
    said: Said,
) -> None:
    """Hand a merge to Slurm or to HF Jobs. The last job makes the output appear, as one commit."""
    from dataclasses import replace
    from shlex import quote

    from hubextrap import api
    from hubextrap.recipe import load_recipe

    out = one_place(out, place)
    if push is None:
        why = "goes with --push REPO; of the recipe's push section, private and create_pr say it"
        refuse_idle(ctx, ("private", "create_pr"), why)
    if slurm == (jobs is not None):
        raise typer.BadParameter("say who is to do it: --slurm, or --jobs N")
    refuse_idle(ctx, OF_JOBS if slurm else OF_SLURM, "goes with " + ("--jobs N" if slurm else "--slurm"))
    if jobs is not None and out is not None:
        raise typer.BadParameter(f"--out {out}: HF Jobs do not see this machine's folders; give --push REPO")
    settings = replace(reading.merge_options(), force=force)
    queue = _slurm(tasks, sbatch) if jobs is None else _jobs(jobs, flavor, timeout, bucket)
    result = api.submit(
        load_recipe(recipe),
        queue,
        out=out,
        push=push_targets(push, private, create_pr),
        settings=settings,
        scan=scan,
        dry_run=dry_run,
        progress=said.progress,
    )
    queued = result.queued
    if said.as_json:
        tell_json(
            {"place": result.place, "units": result.units, "script": result.script}
            if queued is None
            else {
                "place": result.place,
                "units": result.units,
                "jobs": list(queued.ids),
                "watch": queued.how_to_watch,
                "cancel": queued.how_to_cancel,
            }
        )
    elif queued is None:
        typer.echo(terminal_output(redact(result.script or "")), nl=False)  # no line of a script is cut
    else:
        tell(f"submitted {result.units} shards: {', '.join(queued.ids)}")
        tell(f"  watch    {queued.how_to_watch}")
        tell(f"  wait     hubextrap finish {quote(result.place)} --wait")
        tell(f"  cancel   {queued.how_to_cancel}")


def _slurm(tasks: int | None, options: list[str] | None) -> Queue:
    from hubextrap.executors.slurm import SlurmExecutor

    return SlurmExecutor(options or (), tasks=tasks)


def _jobs(jobs: int, flavor: str | None, timeout: str | None, bucket: str | None) -> Queue:
    from hubextrap.executors.jobs import JobsExecutor

    return JobsExecutor(jobs=jobs, flavor=flavor, timeout=timeout, bucket=bucket)
