"""torch's own files, read without torch: FSDP shards and distributed checkpoints. No pickle is executed."""

from hubextrap.tensors.torch_files.dcp import read_dcp
from hubextrap.tensors.torch_files.fsdp import read_fsdp

__all__ = ["read_dcp", "read_fsdp"]
