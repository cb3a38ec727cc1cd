"""One `hubextrap merge` as from the shell; says after how many processor seconds of the process, start-up
included, the first bytes of a tensor go to the sink: `first_byte_job RECIPE OUT`.
"""

from __future__ import annotations

import json
import sys
import time

from hubextrap.tensors.sinks import LocalShardWriter

first: list[float] = []
write = LocalShardWriter.write


def told(self: LocalShardWriter, offset: int, data: memoryview) -> None:
    if offset and not first:  # at 0 is the header
        first.append(time.process_time())
    write(self, offset, data)


LocalShardWriter.write = told  # type: ignore[method-assign]
sys.argv = ["hubextrap", "merge", sys.argv[1], "--out", sys.argv[2]]
try:
    from hubextrap.cli.main import main

    main()
except SystemExit as end:
    if end.code:
        raise
print(json.dumps({"first_byte": first[0]}))
