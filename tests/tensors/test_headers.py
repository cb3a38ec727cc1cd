from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.tensors import DTYPES, ShardInfo, TensorInfo, build_header, parse_header
from hubextrap.tensors.headers import header_end

U8 = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def file_of(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header: an object, or the JSON's text or bytes."""
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header if isinstance(header, bytes) else header.encode()
    return len(text).to_bytes(8, "little") + text + data


def refusal(data: bytes, size: int | None = None) -> str:
    with pytest.raises(CorruptFile) as caught:
        parse_header(data, len(data) if size is None else size, "model.safetensors", "me/model@step_100")
    message = str(caught.value)
    assert message.startswith("me/model@step_100/model.safetensors: ")
    assert caught.value.file == "me/model@step_100/model.safetensors"
    assert caught.value.tensor is None or f"tensor '{caught.value.tensor[:50]}" in message
    assert "download" in message
    return message.removeprefix("me/model@step_100/model.safetensors: ")


def test_reads_a_literal_file() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
        "a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]},
        "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [20, 20]},
    }
    data = file_of(header, bytes(20))
    start = len(data) - 20
    assert parse_header(data, len(data), "model.safetensors") == ShardInfo(
        "model.safetensors",
        len(data),
        (
            TensorInfo("a", "F64", (), "model.safetensors", start, 8),
            TensorInfo("b", "BF16", (2, 3), "model.safetensors", start + 8, 12),
            TensorInfo("empty", "F32", (0, 4), "model.safetensors", start + 20, 0),
        ),
        {"format": "pt"},
        hashlib.sha256(data[:start]).hexdigest(),
    )


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": U8}, b"1", "is cut short: its header describes"),
        ({"a": U8}, b"123", "1 bytes follow the last tensor that its header describes"),
        ("[]", b"", "its header is not a JSON object"),
        (" {}", b"", "its header is not a JSON object"),
        ("{", b"", "its header: not valid JSON"),
        (b'{"\xff": 1}', b"", "its header: not valid JSON (line 1: not UTF-8"),
        ('{"a":' + json.dumps(U8) + ',"a":' + json.dumps(U8) + "}", b"12", "'a' is there twice"),
        ('{"\\ud800":' + json.dumps(U8) + "}", b"12", "half a character"),
        ('{"a": NaN}', b"", "NaN is not JSON"),
        ("{" + '"a":[' * 100_000, b"", "its header: not valid JSON"),
        ({"__metadata__": {"a": 1}}, b"", "its __metadata__ does not map text to text"),
        ({"__metadata__": []}, b"", "its __metadata__ does not map text to text"),
        ({"a": [1]}, b"", "tensor 'a': its entry is not a JSON object"),
        ({"a": {**U8, "dtype": "F5"}}, b"12", "tensor 'a': dtype 'F5' is not one of F64, F32"),
        ({"a": {**U8, "dtype": ["U8"]}}, b"12", "tensor 'a': dtype ['U8'] is not one of"),
        ({"a": {**U8, "shape": [-2]}}, b"12", "tensor 'a': shape [-2] is not a list of sizes"),
        ({"a": {**U8, "shape": [2.0]}}, b"12", "tensor 'a': shape [2.0] is not a list of sizes"),
        ({"a": {**U8, "shape": [True, 2]}}, b"12", "tensor 'a': shape [True, 2] is not a list of sizes"),
        ({"a": {**U8, "shape": 2}}, b"12", "tensor 'a': shape 2 is not a list of sizes"),
        ({"a": {**U8, "shape": [2**62, 4, 0]}}, b"12", "is too large"),
        ({"a": {**U8, "shape": [3]}}, b"12", "tensor 'a': U8 [3] takes 3 bytes, its data_offsets give it 2"),
        ({"a": {**U8, "data_offsets": [2, 0]}}, b"12", "data_offsets [2, 0] are not a first and a last byte"),
        ({"a": {**U8, "data_offsets": [0]}}, b"12", "data_offsets [0] are not a first and a last byte"),
        ({"a": {"dtype": "U8"}}, b"12", "tensor 'a': shape None is not a list of sizes"),
        ({"a": {**U8, "data_offsets": [1, 3]}}, b"123", "leaves a hole before it"),
        ({"a": U8, "b": {**U8, "data_offsets": [1, 3]}}, b"123", "tensor 'b': is at byte"),
        ({"a": U8, "b": {**U8, "data_offsets": [1, 3]}}, b"123", "overlaps the tensor before it"),
        ({"a": {**U8, "shape": [int("9" * 25)]}}, b"", "is too large"),
    ],
)
def test_refuses_what_the_format_does_not_allow(header: Any, data: bytes, message: str) -> None:
    assert message in refusal(file_of(header, data))


def test_refuses_lengths_beyond_the_file() -> None:
    assert "has 5 bytes, too few for a safetensors file" in refusal(b"12345")
    assert "announces a header of 18,446,744,073,709,551,615 bytes" in refusal(b"\xff" * 8 + b"{}")
    assert "its header takes 108 bytes, the file has 10" in refusal((100).to_bytes(8, "little") + b"{}")
    assert "only 10 of the header's 108 bytes are there" in refusal((100).to_bytes(8, "little") + b"{}", 200)


def test_messages_stay_short_whatever_the_file_holds() -> None:
    assert len(refusal(file_of({"x" * 1_000_000: 1}))) < 500
    assert len(refusal(file_of({"a": {**U8, "shape": [1] * 1_000_000}}))) < 500


def test_a_long_shape_costs_no_time() -> None:
    # Multiplying 5 million factors without a bound would take minutes.
    refusal(file_of({"a": {**U8, "shape": [2**62] * 1_000_000}}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_those_of_the_library_and_of_torch(dtype: str) -> None:
    if not hasattr(torch, DTYPES[dtype].torch_name):
        pytest.skip(f"torch {torch.__version__} has no {dtype}")
    tensor = torch.zeros(3, dtype=torch.uint8).repeat_interleave(DTYPES[dtype].itemsize)
    tensor = tensor.view(getattr(torch, DTYPES[dtype].torch_name))
    assert tensor.element_size() == DTYPES[dtype].itemsize
    data = save({"x": tensor})
    (info,) = parse_header(data, len(data), "f").tensors
    assert (info.dtype, info.shape, info.nbytes) == (dtype, (3,), 3 * tensor.element_size())


NAMES = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda name: name != "__metadata__")
TENSORS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4)), max_size=8
)


@settings(deadline=None)
@given(TENSORS, st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), NAMES, max_size=3))
def test_what_is_built_is_what_is_read_here_and_by_the_library(
    tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    entries = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    header = build_header(entries, metadata)
    assert len(header) % 8 == 0
    assert header_end(header, len(header), "f") == len(header)
    nbytes = 0
    for _, dtype, shape in entries:
        count = DTYPES[dtype].itemsize
        for extent in shape:
            count *= extent
        nbytes += count
    data = header + bytes(index % 251 for index in range(nbytes))
    info = parse_header(data, len(data), "f")
    assert info.metadata == metadata
    assert {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in info.tensors} == {
        name: (dtype, list(shape)) for name, dtype, shape in entries
    }
    library = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert set(library) == set(tensors)
    for tensor in info.tensors:
        theirs = library[tensor.name]
        assert (theirs["dtype"], tuple(theirs["shape"])) == (tensor.dtype, tensor.shape)
        assert bytes(theirs["data"]) == data[tensor.offset : tensor.offset + tensor.nbytes]


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_types_of_quantised_weights_are_called_so(dtype: str) -> None:
    """The library writes and reads them, so the file is sound."""
    header = json.dumps({"w": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    with pytest.raises(UnsupportedCheckpoint, match=f"tensor 'w' is {dtype}, in which quantised") as caught:
        parse_header(data, len(data), "model.safetensors", "me/run@step_1")
    assert "dequantise" in str(caught.value)
    assert "download" not in str(caught.value)


def test_header_bytes_do_not_depend_on_the_order_of_metadata() -> None:
    entries = [("x", "F32", (2,))]
    assert build_header(entries, {"b": "2", "a": "1"}) == build_header(entries, {"a": "1", "b": "2"})
    assert build_header(entries) == build_header(entries, {})
