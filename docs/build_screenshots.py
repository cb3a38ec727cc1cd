"""Make the pictures of the report page in docs/images, from the bundled run: half a minute.

    python docs/build_screenshots.py

The run is taken up to step 200, its step 400 is predicted and scored beside what was observed, and the page
of both is pictured in headless Chromium, which has to be on PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
RUN = "demo/data/rlvr-C"
SIZES = {1400: 1460, 420: 1700}
"""Width and height of each picture, in pixels."""
LARGEST = 300_000


def main() -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("There is no Chromium on PATH; install it, then run this again.")
    with tempfile.TemporaryDirectory() as folder:
        page = make_page(Path(folder))
        IMAGES.mkdir(exist_ok=True)
        for width, height in SIZES.items():
            picture = IMAGES / f"report-{width}.png"
            subprocess.run(
                [
                    chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                    f"--user-data-dir={folder}/profile", f"--window-size={width},{height}",
                    f"--screenshot={picture}", page.as_uri(),
                ],
                check=True,
                capture_output=True,
            )  # fmt: skip
            if picture.stat().st_size > LARGEST:
                sys.exit(f"{picture}: is larger than {LARGEST:,} bytes.")
            print(f"wrote {picture.relative_to(ROOT)}")


def make_page(folder: Path) -> Path:
    """The page of the run up to step 200, with the scores of a prediction of step 400."""
    predicted, results = folder / "predicted", folder / "results.json"
    hubextrap("predict", RUN, "--to", "400", "--max-step", "200", "--out", predicted)
    known = {"last": 200, "base": 0, "target": 400}
    against = [f"{label}={RUN}/step_{step}" for label, step in known.items()]
    against += [f"{RUN}/step_{step}" for step in (40, 80, 100, 120, 160)]
    tasks = ("--tasks", "radd", "--include-path", "demo/tasks", "--batch-size", "128")
    hubextrap("eval", predicted, "--against", ",".join(against), *tasks, "--output", results)
    page = folder / "report.html"
    hubextrap("report", RUN, "--max-step", "200", "--evaluation", results, "--out", page)
    return page


def hubextrap(*arguments: str | Path) -> None:
    """One command, as a user would type it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hubextrap", *map(str, arguments), "--quiet"]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
