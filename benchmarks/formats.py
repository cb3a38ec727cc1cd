"""Checkpoints as trainers' ranks leave them, beside the same ones as plain safetensors, in turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from benchmarks.inputs import Bench, billions
from benchmarks.local import figures, merge
from benchmarks.measure import Run, cool, heading, in_turn, job, ratios, row, spread, warm

FORMS = ("FSDP shards", "torch DCP", "sharded safetensors")
WORLD = 8
COUNT = 2
TARGET = 1.2


def formats(bench: Bench) -> None:
    """Own seconds at most 1.2 × those of the same run in plain safetensors."""
    tiny, plain = bench.tiny(), bench.small(COUNT)
    runs = {"safetensors": _of_plain(bench, plain)} | {form: _in_form(bench, plain, form) for form in FORMS}
    print(f"\n{billions(plain):.2f}B weights, bf16, K = {COUNT}, {WORLD} ranks; medians (least–most)\n")
    heading(
        "what",
        "form",
        "wall s",
        "own s",
        "processor s",
        "peak GB",
        f"own/safetensors' (target {TARGET:g})",
    )
    for what, before in (("merge, page cache warm", warm), ("scan, from the disk", cool)):
        programs: dict[str, Callable[[], Run]] = {
            form: partial(merge, bench, root, COUNT)
            if what.startswith("merge")
            else partial(job, "scan", tiny, root)
            for form, root in runs.items()
        }
        found = in_turn(programs, bench.times(5), partial(_all, before, runs.values()))
        for form, those in found.items():
            row(what, form, *figures(those), spread(ratios(those, found["safetensors"], lambda one: one.own)))


def _all(before: Callable[[Iterable[Path]], None], runs: Iterable[Path]) -> None:
    before(path for root in runs for path in root.rglob("*") if path.is_file())


def _of_plain(bench: Bench, plain: Path) -> Path:
    """The first checkpoints of the plain run."""
    root = bench.work / f"plain-{bench.layers}"
    for folder in _folders(plain):
        (root / folder.name).mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            link = root / folder.name / file.name
            if not link.exists():
                link.hardlink_to(file)
    return root


def _in_form(bench: Bench, plain: Path, form: str) -> Path:
    """The same checkpoints in pieces, written once and kept between runs."""
    root = bench.work / f"{form.replace(' ', '-')}-{bench.layers}"
    for folder in _folders(plain):
        made = root / folder.name
        if (made / "config.json").exists():  # written last
            continue
        job("pieces", form, WORLD, folder / "model.safetensors", made)
        shutil.copy(folder / "config.json", made)
    return root


def _folders(plain: Path) -> list[Path]:
    return [plain / f"step_{10 * number}" for number in range(1, COUNT + 1)]
