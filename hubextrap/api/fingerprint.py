"""What decides the bytes of a merge, and has to stay the same while a command runs or until it is resumed."""

from __future__ import annotations

from contextlib import closing
from importlib.metadata import version
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.api.adapting import section_of
from hubextrap.digests import sha256_hex, sha256_of_json
from hubextrap.errors import SourceError
from hubextrap.hub.side_files import is_side_file
from hubextrap.tensors import open_source
from hubextrap.tensors.fingerprints import commit_fingerprint, files_fingerprint
from hubextrap.trajectory import UNKNOWN_STEP
from hubextrap.trajectory.checkpoint import is_untouched_base

if TYPE_CHECKING:
    from hubextrap.adapters.base import Bases
    from hubextrap.api.preparing import Prepared
    from hubextrap.engine import MergePlan
    from hubextrap.opening import Run
    from hubextrap.trajectory.checkpoint import Checkpoint


def merge_fingerprint(prepared: Prepared) -> dict[str, str]:
    """The parts of the fingerprint by what messages call them.

    A checkpoint on the Hub counts by its commit; a local one by path, and size and header of each weight
    file: the journal says what was read of the tensors.
    """
    plan, adapters = prepared.plan, prepared.run.adapters
    merged = section_of(prepared.recipe).as_ == "merged"
    return (
        {"the recipe": prepared.recipe.fingerprint()}
        | inputs_fingerprint(prepared.run, plan)
        | ({"the base model": adapters.base.fingerprint} if adapters is not None and merged else {})
        | {
            "the coefficients": sha256_of_json(
                [(rule.match, rule.method, rows.tolist()) for rule, rows in prepared.fitted.rules]
            ),
            "the output's files": sha256_of_json(
                [(shard.file, shard.size, sha256_hex(shard.header)) for shard in plan.shards]
            ),
            "--allow-non-finite": str(prepared.settings.allow_non_finite),
        }
    )


def inputs_fingerprint(run: Run, plan: MergePlan) -> dict[str, str]:
    """What the bytes of any prediction follow from: the checkpoints, and the programs that add them up."""
    if run.adapters is not None:  # no journal says what was read of them, so files written to count
        pairs = zip(run.steps, run.fingerprints, strict=True)
        return {f"the checkpoint of step {step}": found for step, found in pairs} | _versions()
    return {
        **{
            f"the checkpoint of step {checkpoint.step}": commit_fingerprint(checkpoint)
            or sha256_of_json(
                [checkpoint.path, [(one.file, one.size, one.header_sha256) for one in layout.shards]]
            )
            for checkpoint, layout in zip(run.trajectory.checkpoints, plan.layouts, strict=True)
        },
        **_versions(),
    }


def _versions() -> dict[str, str]:
    return {"the version of hubextrap": __version__, "the version of numba": version("numba")}


def pin_of(checkpoint: Checkpoint) -> str:
    """What stands for all of a checkpoint that its weights' sums and its scores depend on."""
    if is_untouched_base(checkpoint):
        return checkpoint.name
    if (commit := commit_fingerprint(checkpoint)) is not None:
        return commit
    with closing(open_source(checkpoint)) as source:
        weights = files_fingerprint(checkpoint, source)
        beside = {file: source.read_file(file) for file in sorted(source.files()) if is_side_file(file)}
    digests = {file: sha256_hex(data) for file, data in beside.items()}
    return sha256_of_json([weights, digests])


def with_bases(measured_with: str, bases: Bases) -> str:
    """What stands for all that figures depend on beside the weights, the bases of adapters among it."""
    pins = [pin_of(one) for one in bases.found]
    return sha256_of_json([measured_with, *pins]) if pins else measured_with


def check_unchanged(checkpoint: Checkpoint, pin: str) -> None:
    """Refuse what is not as it was when ``pin`` was taken.

    Raises:
        SourceError: somebody has written to it.
    """
    if pin_of(checkpoint) != pin:
        raise changed(checkpoint)


def changed(checkpoint: Checkpoint) -> SourceError:
    """The error for a checkpoint that is not what it was."""
    return SourceError(
        f"{checkpoint.name}: changed while the command ran; wait until nothing writes to it, then run the "
        "same command again",
        file=checkpoint.path,
        step=None if checkpoint.step == UNKNOWN_STEP else checkpoint.step,
        repo=checkpoint.repo,
    )
