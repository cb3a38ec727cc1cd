"""One `hubextrap merge`: `merge_job RECIPE OUT`. The last line has its seconds, imports left out."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module

from hubextrap.cli.main import main

NEEDED = ("api.merging", "cli.app", "cli.summaries", "engine.run", "recipe.parsing")
OTHERS = ("huggingface_hub.repocard_data", "llvmlite.binding", "yaml")

for module in (*OTHERS, *(f"hubextrap.{name}" for name in NEEDED)):
    import_module(module)  # the clock does not run yet
sys.argv = ["hubextrap", "merge", sys.argv[1], "--out", sys.argv[2]]
started = time.perf_counter()
try:
    main()
except SystemExit as end:
    if end.code:
        raise
print(json.dumps({"own": time.perf_counter() - started}))
