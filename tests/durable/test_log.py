"""A disk that does not take a whole line leaves nothing of it, in any of the files that grow line by line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITERS = {
    "shards": """
from hubextrap.tensors import FinishedShard, Journal
log = Journal(path, {"the recipe": "a"})
def write(number): log.record(FinishedShard(f"model-{number}.safetensors", 1, "0" * 64))
def read(): return list(Journal(path, {"the recipe": "a"}).finished)
""",
    "tensors": """
from hubextrap.scans.tensor_scan import ScanJournal, TensorScan
log = ScanJournal(path, {"the recipe": "a"})
def write(number): log.record(TensorScan.empty(f"model.{number}", 0, 2, 2))
def read():
    log.close()
    return list(ScanJournal(path, {"the recipe": "a"}).finished)
""",
    "jumps": """
from hubextrap.regrounding.history import Decision, append_decision, read_history
def write(number):
    append_decision(path, Decision(number, 9, "two_point", 1, 1, "skipped", "why not", (0, 1), None))
def read(): return [decision.rl_steps for decision in read_history(path)]
""",
}
FULL = """
import resource, sys
from pathlib import Path
from hubextrap.errors import OutputError
path = Path(sys.argv[1])
{writer}
write(0)
before = path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, resource.RLIM_INFINITY))  # room for some of it
try:
    write(1)
except OutputError as error:
    assert "cannot be written: File too large; make room" in str(error), error
    assert error.file == str(path), error.file
else:
    raise AssertionError("there was no room")
assert path.read_bytes() == before
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write(2)
assert path.read_bytes().startswith(before)
assert len(read()) == 2, read()
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, writer: str) -> None:
    program = FULL.format(writer=WRITERS[writer])
    ended = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "log"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
