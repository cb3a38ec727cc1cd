"""The main job on real input, on this machine alone: `make demo`.

Starts a loopback Hub, pushes the bundled checkpoints of a GRPO run as branches step_0 … step_400, and lets
`hubextrap predict` predict step 400 from the checkpoints up to step 200, push the prediction and evaluate it
beside step 0, step 200 and the real step 400. Fails if any stage fails, or if the prediction does not score
above the last observed checkpoint.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".demo" / "run"
DATA = ROOT / "demo" / "data" / "rlvr-C"
TOKEN = "hf_demo_write_token"
REPO = "demo/rlvr-C"


def main() -> None:
    started = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    from hubextrap.localhub import LocalHub

    with LocalHub(WORK / "hub", tokens={TOKEN: "demo"}) as hub:
        # The demo must not read or write this user's caches or token, and needs no network.
        os.environ.update(
            HF_ENDPOINT=hub.url,
            HF_HOME=str(WORK / "hf"),
            HF_TOKEN=TOKEN,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
        )
        print(f"A loopback Hub runs at {hub.url}.")
        push_checkpoints()
        hubextrap("steps", REPO)
        results = WORK / "results.json"
        where = f"{REPO}-predicted@step_400"
        hubextrap("predict", REPO, "--to", "400", "--max-step", "200", "--push", where,
                  "--eval", "radd", "--include-path", "demo/tasks", "--batch-size", "128",
                  "--output", str(results), "--write-recipe", str(WORK / "recipe.yaml"))  # fmt: skip
        check(results)
    print(
        f"The demo took {time.monotonic() - started:.0f} s; what it made lies in {WORK.relative_to(ROOT)}/."
    )


def push_checkpoints() -> None:
    """What a trainer that pushes each checkpoint to a branch of its own leaves behind."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(REPO)
    folders = sorted(DATA.glob("step_*"), key=lambda folder: int(folder.name.removeprefix("step_")))
    for folder in folders:
        api.create_branch(REPO, branch=folder.name)
        files = [CommitOperationAdd(file.name, file) for file in sorted(folder.iterdir())]
        api.create_commit(
            REPO, files, commit_message=f"Training in progress, {folder.name}", revision=folder.name
        )
    print(f"Pushed {len(folders)} checkpoints to {REPO}: {', '.join(folder.name for folder in folders)}.")


def check(results: Path) -> None:
    """Stop with an error unless the prediction scores above the last observed checkpoint."""
    from hubextrap.evaluation import EvaluationTable

    scores = {row.label: row.scores[0].value for row in EvaluationTable.load(results).rows}
    predicted, last, real = (scores[label] for label in ("prediction", "last", "target"))
    print(
        f"\nThe predicted step 400 scores {predicted:.3f}; step 200 scores {last:.3f}, "
        f"the real step 400 {real:.3f}."
    )
    if predicted <= last:
        sys.exit("The demo failed: the prediction does not score above the last observed checkpoint.")


def hubextrap(*arguments: str) -> None:
    """Run one command as a user would type it."""
    print(f"\n$ hubextrap {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "hubextrap", *arguments]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"The demo failed: `hubextrap {arguments[0]}` exited with {code}.")


if __name__ == "__main__":
    main()
