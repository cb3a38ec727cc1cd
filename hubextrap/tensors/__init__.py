"""Tensors where they lie: safetensors layouts, the sources they are read from and the sinks they go to."""

from __future__ import annotations

from hubextrap.patience import Patience
from hubextrap.tensors.combinable import Combinable, read_combinable
from hubextrap.tensors.configuration import ties_embeddings
from hubextrap.tensors.describe import describe
from hubextrap.tensors.hashing import sha256_of
from hubextrap.tensors.headers import DTYPES, build_header, parse_header
from hubextrap.tensors.interfaces import FileInfo, FinishedShard, Sink, Source
from hubextrap.tensors.journal import Journal
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.opening import open_source
from hubextrap.tensors.remote import RemoteSource
from hubextrap.tensors.sinks import LocalSink
from hubextrap.tensors.weights import read_layout, read_layouts

__all__ = [
    "DTYPES",
    "CheckpointLayout",
    "Combinable",
    "FileInfo",
    "FinishedShard",
    "Journal",
    "LocalSink",
    "LocalSource",
    "Patience",
    "RemoteSource",
    "ShardInfo",
    "Sink",
    "Source",
    "TensorInfo",
    "build_header",
    "describe",
    "open_source",
    "parse_header",
    "read_combinable",
    "read_layout",
    "read_layouts",
    "sha256_of",
    "ties_embeddings",
]
