"""The peer of reading ranges: snapshot_download of revisions into an empty cache, seconds on stdout.

`download_job CACHE REPO REVISION…`
"""

from __future__ import annotations

import shutil
import sys
import time

from huggingface_hub import snapshot_download


def main() -> None:
    cache, repo, *revisions = sys.argv[1:]
    started = time.perf_counter()
    for revision in revisions:
        snapshot_download(repo, revision=revision, cache_dir=cache)
    print(time.perf_counter() - started)
    shutil.rmtree(cache)


if __name__ == "__main__":
    main()
