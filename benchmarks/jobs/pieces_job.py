"""Write a safetensors file once more in the form in which a trainer's ranks leave it, by torch itself.

FORM WORLD FILE FOLDER: the form, the number of ranks, the file, and the folder that it goes into.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from torch_runs import write_dcp, write_fsdp, write_sharded

WRITERS = {"FSDP shards": write_fsdp, "torch DCP": write_dcp, "sharded safetensors": write_sharded}

if __name__ == "__main__":
    form, world, file, folder = sys.argv[1:]
    WRITERS[form](Path(folder), Path(file), int(world))
