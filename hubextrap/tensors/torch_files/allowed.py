"""What pickles in torch's checkpoints hold: names of classes and functions, over the versions of torch.

They are compared as text: nothing of them is ever imported.
"""

from __future__ import annotations

from hubextrap.tensors.headers import DTYPES

STORAGES: dict[str, str] = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "ComplexFloatStorage": "C64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""The safetensors dtype of each typed storage."""

TORCH_DTYPES: dict[str, str] = {dtype.torch_name: name for name, dtype in DTYPES.items()}
"""The safetensors dtype by torch's name."""

OTHER_STORAGES: dict[str, str] = {
    "ComplexDoubleStorage": "complex128",
    "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
"""torch's dtype of those that safetensors has none for."""
_OTHER_DTYPES = (
    *("complex128", "complex32", "float8_e8m0fnu", "float4_e2m1fn_x2", "quint8", "qint8", "qint32"),
    *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2", "quint4x2", "quint2x4"),
)
_MEMORY_FORMATS = ("TORCH_CONTIGUOUS_FORMAT", "TORCH_CHANNELS_LAST", "TORCH_PRESERVE_FORMAT")
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")

_IN: dict[str, tuple[str, ...]] = {
    "collections": ("OrderedDict",),
    "builtins": (
        "getattr",
    ),  # how what lies in a class is named in pickles of protocol 2: the names below with dots
    "__builtin__": ("getattr",),
    "_codecs": ("encode",),  # how bytes are written in pickles of protocol 2
    "_io": ("BytesIO",),
    "io": ("BytesIO",),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "torch": ("Size", "device", "UntypedStorage", *STORAGES, *OTHER_STORAGES, *TORCH_DTYPES, *_OTHER_DTYPES),
    "torch.storage": ("UntypedStorage", "TypedStorage"),
    "torch.serialization": ("_get_layout",),
    "torch.nn.parameter": ("Parameter", "Buffer"),
    "torch._tensor": ("_rebuild_from_type_v2",),
    "torch._utils": (
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
        "_rebuild_wrapper_subclass",
    ),
    "torch.distributed.device_mesh": ("DeviceMesh", "_MeshEnv"),
    "torch.distributed._mesh_layout": ("_MeshLayout", "_FlatLayout"),
    "torch.distributed._shard.metadata": ("ShardMetadata",),
    "torch.distributed._shard.sharded_tensor.api": ("ShardedTensor", "ShardedTensor.ProcessGroupState"),
    "torch.distributed._shard.sharded_tensor.metadata": (
        "ShardedTensorMetadata",
        "TensorProperties",
        "MEM_FORMAT_ENCODING",
        *(f"MEM_FORMAT_ENCODING.{one}" for one in _MEMORY_FORMATS),
    ),
    "torch.distributed._shard.sharded_tensor.shard": ("Shard",),
    "torch.distributed._shard.sharding_spec.chunk_sharding_spec": ("ChunkShardingSpec",),
    "torch.distributed._shard.sharding_spec.api": ("EnumerableShardingSpec",),
    "torch.distributed.remote_device": ("_remote_device",),
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
        *(f"_MEM_FORMAT_ENCODING.{one}" for one in _MEMORY_FORMATS),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint._hf_utils": ("_HFStorageInfo",),
}
_DTENSOR = (
    *("DTensor", "DTensorSpec", "TensorMeta", "ShardOrderEntry"),
    *("Shard", "Replicate", "Partial", "_Partial", "_StridedShard", "_MaskPartial", "DeviceMesh"),
)
_DTENSOR_MODULES = ("", ".api", "._api", ".placement_types", "._dtensor_spec", ".device_mesh")

ALLOWED = frozenset(
    [(module, name) for module, names in _IN.items() for name in names]
    + [
        (f"torch.distributed.{package}{module}", name)
        for package in ("tensor", "_tensor")
        for module in _DTENSOR_MODULES
        for name in _DTENSOR
    ]
)
"""Module and name of all that a pickle may hold."""

REFUSED_OPCODES: dict[int, str] = {
    ord("0"): "POP",
    ord("1"): "POP_MARK",
    ord("2"): "DUP",
    ord("I"): "INT",
    ord("L"): "LONG",
    0x8B: "LONG4",
    ord("F"): "FLOAT",
    ord("S"): "STRING",
    ord("T"): "BINSTRING",
    ord("U"): "SHORT_BINSTRING",
    ord("V"): "UNICODE",
    ord("l"): "LIST",
    ord("d"): "DICT",
    ord("p"): "PUT",
    ord("g"): "GET",
    ord("i"): "INST",
    ord("o"): "OBJ",
    ord("P"): "PERSID",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x8D: "BINUNICODE8",
    0x8E: "BINBYTES8",
    0x8F: "EMPTY_SET",
    0x90: "ADDITEMS",
    0x91: "FROZENSET",
    0x92: "NEWOBJ_EX",
    0x96: "BYTEARRAY8",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}
"""The opcodes of pickle that no checkpoint of torch holds."""
