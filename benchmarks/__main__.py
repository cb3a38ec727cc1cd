"""`make bench`: build the inputs, run everything in turn, print ratios. About 20 minutes, 25 GB of disk."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.inputs import WORK, parameters, repeated, trajectory
from benchmarks.measure import Run, cool, in_turn, run, warm
from hubextrap.methods import coefficients

PYTHON = sys.executable
LAYERS = 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS, help="28 makes 1.78B parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CASES, action="append", help="run these cases only")
    arguments = parser.parse_args()
    print(f"machine: {machine()}")
    for name in arguments.only or CASES:
        CASES[name](arguments.layers, arguments.rounds)
    shutil.rmtree(WORK / "out", ignore_errors=True)


def machine() -> str:
    """What the figures were measured on, as far as they depend on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    python = platform.python_version()
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB memory, Python {python}"


def local(layers: int, rounds: int) -> None:
    """hubextrap, mergekit and the raw I/O on local folders, K = 2 and 4; hubextrap alone at K = 16."""
    root = trajectory("qwen", layers, 4)
    billions = parameters(root / "step_10") / 1e9
    print(f"\nlocal merge, {billions:.2f}B parameters, bf16 to bf16, page cache warm, medians of {rounds}\n")
    row("K", "program", "wall s", "own s", "peak GB", "mergekit/this", "own/raw I/O")
    for count in (2, 4):
        steps = [10 * number for number in range(1, count + 1)]
        files = [root / f"step_{step}" / "model.safetensors" for step in steps]
        found = in_turn(
            {
                "hubextrap": lambda c=count: merge_case(root, c),
                "mergekit": lambda c=count: mergekit_case(root, c),
                "raw I/O": lambda f=files: run([PYTHON, "-m", "benchmarks.raw_io", fresh("raw"), *f]),
            },
            rounds,
            before=lambda f=files: warm(f),
        )
        for name, result in found.items():
            ratio = found["mergekit"].seconds / result.seconds
            own = (result.inner or 0) / (found["raw I/O"].inner or 1)
            row(count, name, *figures(result), f"{ratio:.1f}", f"{own:.2f}" if result.inner else "")
    many = repeated(root, "qwen-many", 16)
    row(16, "hubextrap", *figures(merge_case(many, 16)), "", "")


def growth(layers: int, rounds: int) -> None:
    """hubextrap alone: time and memory against the number of parameters, K = 2."""
    print(f"\ngrowth with parameters, K = 2, medians of {rounds}\n")
    row("parameters", "wall s", "own s", "peak GB", "own s per B")
    for part in (7, 14, 28):
        size = max(1, layers * part // 28)
        root = trajectory("qwen" if size == layers else f"qwen-{size}", size, 2)
        files = sorted(root.glob("*/model.safetensors"))[:2]
        result = in_turn({"merge": lambda r=root: merge_case(r, 2)}, rounds, before=lambda f=files: warm(f))[
            "merge"
        ]
        billions = parameters(root / "step_10") / 1e9
        row(f"{billions:.2f}B", *figures(result), f"{(result.inner or 0) / billions:.2f}")


def remote(layers: int, rounds: int) -> None:
    """A merge from ranges of a loopback Hub, against snapshot_download of the same bytes from it."""
    root = trajectory("qwen-small", max(1, layers // 7), 4, vocabulary=65536)
    billions = parameters(root / "step_10") / 1e9
    print(f"\nloopback Hub, {billions:.2f}B parameters, medians of {rounds}\n")
    row("K", "program", "wall s", "own s", "peak GB", "own/download")
    with hub_with(root) as environment:
        for count in (2, 4):
            revisions = [f"step_{10 * number}" for number in range(1, count + 1)]
            download = [PYTHON, "-m", "benchmarks.download_job", fresh("cache"), "me/run", *revisions]
            found = in_turn(
                {
                    "hubextrap": lambda c=count: merge_case("me/run", c, environment),
                    "snapshot_download": lambda d=download: run(d, environment),
                },
                rounds,
            )
            base = found["snapshot_download"].inner or 1
            for name, result in found.items():
                row(count, name, *figures(result), f"{(result.inner or 0) / base:.2f}")


def hashing(layers: int, rounds: int) -> None:
    """What hashing the inputs costs: the same merge with and without it, in turn."""
    root = trajectory("qwen", layers, 4)
    billions = parameters(root / "step_10") / 1e9
    print(f"\nhashing of the inputs, {billions:.2f}B parameters, medians of {rounds}\n")
    row("from", "K", "hashing", "wall s", "own s", "peak GB", "processor s", "own/without")
    for place, before in (("the page cache", warm), ("the disk", cool)):
        for count in (2, 4):
            files = [root / f"step_{10 * number}" / "model.safetensors" for number in range(1, count + 1)]
            _hashing_rows(place, count, root, rounds, lambda b=before, f=files: b(f))
    small = trajectory("qwen-small", max(1, layers // 7), 4, vocabulary=65536)
    with hub_with(small) as environment:
        for settings in ([], ["cache=1"]):
            for count in (2, 4):
                place = "the Hub cache" if settings else "ranges of a Hub"
                _hashing_rows(place, count, "me/run", rounds, lambda: None, environment, settings)


def _hashing_rows(
    place: str,
    count: int,
    root: Path | str,
    rounds: int,
    before: Callable[[], None],
    environment: dict[str, str] | None = None,
    settings: Sequence[str] = (),
) -> None:
    found = in_turn(
        {
            "with": lambda: merge_case(root, count, environment, settings),
            "without": lambda: merge_case(root, count, environment, [*settings, "hashes=0"]),
        },
        rounds,
        before=before,
    )
    base = found["without"].inner or 1
    for name, result in found.items():
        busy = f"{result.processors:.2f}" if result.processors else ""
        row(place, count, name, *figures(result), busy, f"{(result.inner or 0) / base:.3f}")


@contextmanager
def hub_with(root: Path) -> Iterator[dict[str, str]]:
    """A loopback Hub with the run as ``me/run``; the variables with which it is read."""
    from hubextrap.localhub import LocalHub

    shutil.rmtree(WORK / "hub", ignore_errors=True)
    with LocalHub(WORK / "hub", tokens={"hf_bench": "me"}) as hub:
        hub.create_repo("me/run")
        for folder in sorted(root.iterdir()):
            hub.commit("me/run", {file.name: file for file in folder.iterdir()}, revision=folder.name)
        yield {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(WORK / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    shutil.rmtree(WORK / "hub")
    shutil.rmtree(WORK / "hf", ignore_errors=True)


def merge_case(
    root: Path | str,
    count: int,
    environment: dict[str, str] | None = None,
    settings: Sequence[str] = (),
) -> Run:
    """least_squares (two_point at K = 2) over the first ``count`` checkpoints."""
    recipe = WORK / "recipe.yaml"
    content = {
        "trajectory": {"repo": str(root), "steps": {"max": 10 * count}},
        "merge_method": "two_point" if count == 2 else "least_squares",
        "parameters": {"target_step": 15 * count},
        "out_dtype": "bfloat16",
    }
    recipe.write_text(yaml.safe_dump(content))
    result = run([PYTHON, "-m", "benchmarks.merge_job", recipe, fresh("out"), *settings], environment)
    shutil.rmtree(WORK / "out")
    return result


def mergekit_case(root: Path, count: int) -> Run:
    """The same arithmetic by mergekit: task_arithmetic at K = 2, linear beyond."""
    steps = [10 * number for number in range(1, count + 1)]
    weights = coefficients("two_point" if count == 2 else "least_squares", steps, 15 * count).tolist()
    models = [
        {"model": str(root / f"step_{step}"), "parameters": {"weight": weight}}
        for step, weight in zip(steps, weights, strict=True)
    ]
    content: dict[str, object] = {"dtype": "float32", "out_dtype": "bfloat16"}
    if count == 2:
        content |= {"merge_method": "task_arithmetic", "base_model": models[0]["model"], "models": models[1:]}
    else:
        content |= {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    config = WORK / "mergekit.yaml"
    config.write_text(yaml.safe_dump(content))
    program = Path(PYTHON).parent / "mergekit-yaml"
    result = run([program, config, fresh("out")], {"HF_HUB_OFFLINE": "1"})
    shutil.rmtree(WORK / "out")
    return result


def scan(layers: int, rounds: int) -> None:
    """One scan of eight checkpoints, against reading the same bytes and doing nothing with them."""
    root = trajectory("qwen-eight", max(1, layers // 7), 8)
    billions = parameters(root / "step_10") / 1e9
    files = sorted(root.glob("*/model.safetensors"))
    print(f"\nscan, K = 8, {billions:.2f}B parameters, bf16, medians of {rounds}\n")
    row("files in", "program", "wall s", "own s", "peak GB", "own/raw read")
    for place, before in (("the disk", cool), ("the page cache", warm)):
        found = in_turn(
            {
                "scan": lambda: run([PYTHON, "-m", "benchmarks.scan_job", str(root)]),
                "raw read": lambda: run([PYTHON, "-m", "benchmarks.raw_io", "-", *map(str, files)]),
            },
            rounds,
            before=lambda prepare=before: prepare(files),
        )
        raw = found["raw read"].inner or 1
        for name, result in found.items():
            row(place, name, *figures(result), f"{(result.inner or 0) / raw:.2f}")


def fresh(name: str) -> Path:
    """A path in the work folder with nothing at it."""
    path = WORK / name
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def figures(result: Run) -> tuple[str, str, str]:
    own = "" if result.inner is None else f"{result.inner:.2f}"
    return f"{result.seconds:.2f}", own, f"{result.peak / 1e9:.2f}"


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
    if cells[-1] and not any(character.isdigit() for character in str(cells[-1])):
        print("|" + "---|" * len(cells), flush=True)


CASES: dict[str, Callable[[int, int], None]] = {
    "local": local,
    "growth": growth,
    "remote": remote,
    "scan": scan,
    "hashing": hashing,
}

if __name__ == "__main__":
    main()
