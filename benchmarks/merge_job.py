"""One merge; its own seconds, imports left out, are the last line printed: `merge_job RECIPE OUT [K=V…]`.

``hashes=0`` leaves out the hashing of the inputs, to tell what it costs; all else are settings. The line
before the last says what the merge took of the processors.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import hubextrap
import hubextrap.engine.run  # torch is imported here, not while the clock runs
from hubextrap import api
from hubextrap.engine.inputs import Digests, InputHashes
from hubextrap.engine.units import Unit


def main() -> None:
    recipe, out, *settings = sys.argv[1:]
    loaded = hubextrap.load_recipe(Path(recipe))
    chosen = {name: int(value) for name, _, value in (setting.partition("=") for setting in settings)}
    if not chosen.pop("hashes", 1):
        hubextrap.engine.run.InputHashes = NoHashes  # type: ignore[misc]
    started, busy = time.perf_counter(), time.process_time()
    api.merge(loaded, out=out, settings=api.MergeOptions(**chosen))
    print("processors", time.process_time() - busy)
    print(time.perf_counter() - started)


class NoHashes(InputHashes):
    """Takes the inputs and looks at none."""

    def take(self, unit: Unit, memory: memoryview) -> Digests:
        return {}

    def finish(self) -> None:
        return


if __name__ == "__main__":
    main()
