"""`eval --publish`: an evaluation's scores into the repo of the model that was measured."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.errors import EvaluationError
from hubextrap.evaluation.curve import draw_table, drawing_problem
from hubextrap.evaluation.publishing import CURVE_FILE, refuse_limit, results_of
from hubextrap.foreign_text import terminal_line
from hubextrap.hub import PushTarget
from hubextrap.hub.publish import check_publishable, publish_results
from hubextrap.trajectory import resolve_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.evaluation import EvaluationTable
    from hubextrap.hub import PushResult
    from hubextrap.progress import Progress
    from hubextrap.trajectory import Checkpoint, Pins


@dataclass(frozen=True, slots=True)
class Publication:
    """Where scores are to go, and which row they are in."""

    label: str
    commit: str
    target: PushTarget


def check_publication(
    references: Sequence[str],
    rows: Sequence[tuple[str, Checkpoint]],
    *,
    limit: int | None,
    create_pr: bool = False,
    pins: Pins | None = None,
) -> Publication:
    """Find out before hours of work whether a model's scores can be published.

    Args:
        references: the models that were named; it has to be one.
        rows: labelled checkpoints, as they will be measured; that model is among them.
        pins: with which they were found.

    Raises:
        EvaluationError: several models, a local folder, a subfolder, or a limit.
        PushError: the Hub will not take them.
    """
    refuse_limit(limit)
    if len(references) != 1:
        raise EvaluationError(
            "--publish: the scores of one model go into its repo; evaluate the models one by one"
        )
    checkpoint = resolve_checkpoint(references[0], pins=pins)
    if checkpoint.repo is None or checkpoint.commit is None:
        raise EvaluationError(
            f"--publish: {checkpoint.path} is a local folder; push it first, then evaluate what is on the "
            "Hub",
            file=checkpoint.path,
        )
    if checkpoint.path:
        raise EvaluationError(
            f"--publish: {checkpoint.name} is a folder of a repo, and a repo's card is about its root; "
            "push the model to a repo or branch of its own",
            repo=checkpoint.repo,
        )
    target = PushTarget.parse(f"{checkpoint.repo}@{checkpoint.revision}", create_pr=create_pr)
    check_publishable(target, checkpoint.commit)
    place = (checkpoint.repo, checkpoint.commit, "")
    label = next(label for label, row in rows if (row.repo, row.commit, row.path) == place)
    return Publication(label, checkpoint.commit, target)


def publish(table: EvaluationTable, publication: Publication, progress: Progress | None = None) -> PushResult:
    """Publish the scores of an evaluation as one commit, or as a pull request.

    Raises:
        EvaluationError, PushError: as `check_publication`; the model changed meanwhile.
    """
    row = next(row for row in table.rows if row.label == publication.label)
    results = results_of(table, row, publication.target)
    if sum(each.step is not None for each in table.rows) > 1 and drawing_problem() is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, CURVE_FILE)
            draw_table(table, path)
            results = replace(
                results,
                files={**results.files, CURVE_FILE: path.read_bytes()},
                markdown=f"{results.markdown}\n\n![score against step]({CURVE_FILE})",
            )
    names = ", ".join(table.settings.tasks)
    return publish_results(
        publication.target,
        publication.commit,
        results,
        message=terminal_line(f"Scores on {names}")
        if len(names) < 60
        else f"Scores on {len(table.settings.tasks)} tasks",
        progress=progress,
    )
