"""One merge; its own seconds, imports left out, are the last line printed: `merge_job RECIPE OUT [K=V…]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import hubextrap
import hubextrap.engine.run  # torch is imported here, not while the clock runs
from hubextrap import api


def main() -> None:
    recipe, out, *settings = sys.argv[1:]
    loaded = hubextrap.load_recipe(Path(recipe))
    chosen = {name: int(value) for name, _, value in (setting.partition("=") for setting in settings)}
    started = time.perf_counter()
    api.merge(loaded, out=out, settings=api.Settings(**chosen))
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
