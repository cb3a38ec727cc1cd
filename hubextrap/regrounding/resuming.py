"""What a checkpoint holds of a re-grounded run: a folder ``reground`` of safetensors and JSON files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hubextrap.durable.atomic import read_sealed, sync_folder, write_sealed, writing
from hubextrap.errors import CheckpointMismatch, CorruptFile
from hubextrap.foreign_data import first_problem
from hubextrap.regrounding.history import HISTORY_NAME, REMEDY, Decision, read_history, rewrite_history
from hubextrap.regrounding.jumps import Clocks, Natural, Window, snapshot_steps
from hubextrap.regrounding.parameters import barrier, rank, world_size
from hubextrap.regrounding.rates import Rates
from hubextrap.regrounding.ring import SnapshotRing
from hubextrap.regrounding.training import PREFIX

FOLDER = "reground"
STATE = "state.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """Where a run stands between two steps."""

    clocks: Clocks
    start: Natural
    """Represented step at which the current window began."""
    n: Natural
    """How far the next jump goes."""
    windows: tuple[Window, ...]
    """The windows before the current one that are kept."""
    rates: Rates | None = None
    """Of the updates of the current window so far; None where they are not known, as those before a
    version that kept them."""
    passed: Rates | None = None
    """Of all updates so far, the steps that jumps stood for at the rate of the moment among them."""

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """What the ring has to hold."""
        return tuple(dict.fromkeys((*(snapshot_steps(self.windows) if self.windows else ()), self.start)))

    def trained(self, rate: float | None) -> Saved:
        """After one more update, at this rate; None where it is not known."""
        rates, passed = (
            None if one is None or rate is None else one.plus(rate) for one in (self.rates, self.passed)
        )
        return replace(self, clocks=self.clocks.trained(1), rates=rates, passed=passed)


_READER = TypeAdapter(Saved)


def save_checkpoint(
    checkpoint: Path,
    at: Saved,
    decisions: Sequence[Decision],
    settings: dict[str, object],
    ring: SnapshotRing,
    sharded: bool,
    should_save: bool,
) -> None:
    """Write the folder ``reground`` into a checkpoint; it appears whole, by a rename.

    Args:
        sharded: every rank writes its own snapshots; else those with ``should_save`` write the same ones.

    Raises:
        OutputError: the disk did not take it.
    """
    folder, unfinished = checkpoint / FOLDER, checkpoint / f"{FOLDER}.unfinished"
    if should_save:
        shutil.rmtree(unfinished, ignore_errors=True)
    barrier()
    if sharded or should_save:
        ring.save(unfinished / _rank_folder(sharded))
    barrier()
    if should_save:
        ranks = world_size() if sharded else 1
        values = {"format": FORMAT, "ranks": ranks, "settings": settings, **asdict(at)}
        rewrite_history(unfinished / HISTORY_NAME, decisions)
        write_sealed(unfinished / STATE, values, indent=1, remedy=REMEDY)
        with writing(folder, REMEDY):
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
            sync_folder(checkpoint)


def resumed_folder(args: Any, state: Any, resumed_from: Path | None) -> Path | None:
    """Where to resume from; None begins anew: at step 0, or from a run that was never re-grounded.

    Raises:
        CorruptFile: the run was re-grounded, and its checkpoint does not hold how far.
    """
    if state.global_step == 0:
        return None
    checkpoint = resumed_from or Path(args.output_dir) / f"checkpoint-{state.global_step}"
    if (checkpoint / FOLDER / STATE).is_file():
        return checkpoint / FOLDER
    if any(key.startswith(PREFIX) for entry in state.log_history for key in entry):
        raise CorruptFile(
            f"{checkpoint / FOLDER}: the snapshots of the re-grounded run are missing: the checkpoint was "
            "cut short, or copied without them; resume from an earlier one",
            file=checkpoint / FOLDER,
        )
    return None


def load_checkpoint(
    folder: Path, settings: dict[str, object], ring: SnapshotRing, sharded: bool
) -> tuple[Saved, list[Decision]]:
    """Fill the ring, and say where the run stood and what it had decided.

    Raises:
        CorruptFile: a file is missing or damaged.
        CheckpointMismatch: saved with other settings, tensors or ranks.
    """
    path = folder / STATE
    try:
        values = read_sealed(path)
        saved, ranks, form = dict(values.pop("settings")), values.pop("ranks"), values.pop("format")
        at = _READER.validate_python(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        problem = first_problem(error)
        raise CorruptFile(
            f"{path}: not the state of a re-grounded run ({problem}); resume from an earlier checkpoint",
            file=path,
        ) from error
    if form != FORMAT:
        raise CheckpointMismatch(f"{path}: format {form}, but this version reads {FORMAT}", file=path)
    # before there was a choice windows went by steps, as auto lets those whose rates it does not know
    saved.setdefault("clock", "auto" if settings.get("clock") == "auto" else "steps")
    for key, value in settings.items():
        if saved.get(key) != value:
            raise CheckpointMismatch(
                f"{path}: saved with {key} = {saved.get(key)!r}, but the callback has {value!r}; a "
                f"resumed run keeps its settings: give {key}={saved.get(key)!r}",
                file=path,
            )
    holders = world_size() if sharded else 1
    if ranks != holders:
        raise CheckpointMismatch(
            f"{path}: saved by {ranks} ranks, but now there are {holders}; resume with {ranks} ranks",
            file=path,
        )
    ring.load(folder / _rank_folder(sharded), at.snapshot_steps)
    return at, read_history(folder / HISTORY_NAME)


def _rank_folder(sharded: bool) -> str:
    return f"rank-{rank() if sharded else 0}"
