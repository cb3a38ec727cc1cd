"""What a pass over the weights may take where nothing else is said. Imports nothing, as `--help` says it."""

from __future__ import annotations

MiB = 2**20
DEFAULT_MEMORY = 512 * MiB
DEFAULT_WORKERS = 2
