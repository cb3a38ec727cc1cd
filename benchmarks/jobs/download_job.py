"""The peer of reading ranges: snapshot_download of revisions into an empty cache.

`download_job CACHE REPO REVISION…`; the last line has its seconds.
"""

from __future__ import annotations

import json
import shutil
import sys
import time

from huggingface_hub import snapshot_download

cache, repo, *revisions = sys.argv[1:]
started = time.perf_counter()
for revision in revisions:
    snapshot_download(repo, revision=revision, cache_dir=cache)
own = time.perf_counter() - started
shutil.rmtree(cache)
print(json.dumps({"own": own}))
