"""Install hubextrap without extras into a fresh virtual environment, use it, say its size: `make test-base`.

The environment is .venv-base, the versions are those of constraints.txt. There `steps`, `plan`, `merge` (of a
method that is fitted to the weights too), `verify`, `push`, `scan` and `backtest` run against a loopback Hub,
which this environment, the one with everything in it, serves; and merges there and here give the same bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-base"
WORK = ROOT / ".demo" / "base"
DATA = ROOT / "demo" / "data" / "rlvr-C"
TOKEN = "hf_base_write_token"
REPO = "demo/rlvr-C"
RECIPE = """
trajectory: {{repo: {repo}, steps: {{max: 200}}}}
merge_method: {method}
parameters: {{target_step: 300}}
"""
NOT_THERE = ("torch", "transformers", "lm-eval", "pygit2", "matplotlib", "ray")
_PIPS = ("pip", "setuptools")


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    install()
    found = {one.name: size_of(one) for one in installed()}
    if wrong := sorted(set(NOT_THERE) & found.keys()):
        sys.exit(f"The base install brings {', '.join(wrong)}.")
    use()
    show({name: size for name, size in found.items() if name not in _PIPS})


def install() -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", ROOT], check=True)


def installed() -> list[Distribution]:
    (site,) = VENV.glob("lib/python3*/site-packages")
    return list(distributions(path=[str(site)]))


def size_of(one: Distribution) -> int:
    """Bytes on the disk, compiled modules included, as du counts them."""
    paths = {Path(str(one.locate_file(file))) for file in one.files or ()}
    return sum(512 * path.stat().st_blocks for path in paths if path.exists())


def use() -> None:
    from hubextrap.localhub import LocalHub

    with LocalHub(WORK / "hub", tokens={TOKEN: "demo"}) as hub:
        hub.create_repo(REPO)
        for folder in DATA.glob("step_*"):
            hub.commit(REPO, {file.name: file for file in folder.iterdir()}, revision=folder.name)
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        own |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(WORK / "hf"), "HF_TOKEN": TOKEN}
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        hubextrap(own, "steps", REPO)
        for method in ("two_point", "calibrated"):
            recipe = f"{method}.yaml"
            (WORK / recipe).write_text(RECIPE.format(repo=REPO, method=method))
            hubextrap(own, "plan", recipe)
            hubextrap(own, "merge", recipe, "--out", method)
            hubextrap(own, "verify", method)
            subprocess.run(
                [sys.executable, "-m", "hubextrap", "merge", recipe, "--out", f"{method}-here", "-q"],
                cwd=WORK,
                env=own | {"PYTHONPATH": str(ROOT)},
                check=True,
            )
            compare(WORK / method, WORK / f"{method}-here")
        hubextrap(own, "push", "calibrated", f"{REPO}@step_300")
        hubextrap(own, "scan", REPO, "--out", "scan.safetensors")
        hubextrap(own, "backtest", "scan.safetensors")


def hubextrap(environment: dict[str, str], *arguments: str) -> None:
    print(f"$ hubextrap {' '.join(arguments)}", flush=True)
    subprocess.run([VENV / "bin" / "hubextrap", *arguments], cwd=WORK, env=environment, check=True)


def compare(one: Path, other: Path) -> None:
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    if names[0] != names[1] or any(
        (one / name).read_bytes() != (other / name).read_bytes() for name in names[0]
    ):
        sys.exit(
            f"{one} and {other} differ: the base install makes other bytes than the one with everything."
        )


def show(sizes: dict[str, int]) -> None:
    print(f"\nThe base install takes {sum(sizes.values()) / 1e6:.0f} MB, pip itself apart:")
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"  {name:20} {size / 1e6:5.0f} MB")


if __name__ == "__main__":
    main()
