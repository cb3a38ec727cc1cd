"""Units of work: JSON carries them, and what a worker makes of one depends on it and the sources alone."""

from __future__ import annotations

import json
import mmap
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from xxhash import xxh3_128

from hubextrap.engine import Budget, plan_merge, run_plan
from hubextrap.engine.budget import NO_LIMIT
from hubextrap.engine.defaults import MiB
from hubextrap.engine.inputs import Digests, InputHashes, file_uses
from hubextrap.engine.plan import MergePlan
from hubextrap.engine.scan import ScanWorker
from hubextrap.engine.scan_plan import ScanPlan, plan_scan
from hubextrap.engine.stream import Inputs, UnitBuffer, stream
from hubextrap.engine.units import MergeUnit, Unit
from hubextrap.engine.worker import MergeWorker
from hubextrap.errors import NonFinite, OutputError, StepError
from hubextrap.progress import SilentProgress
from hubextrap.tensors import LocalSink, LocalSource, read_layouts

STEPS = (0, 10, 40)
ROWS = np.array([[0.2, -0.9, 1.7], [0.0, -0.5, 1.5], [0.0, 0.0, 1.0]])
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def sources(save: Callable[..., Path]) -> list[LocalSource]:
    """Two shards, tied copies in one checkpoint, integers, a norm in float32, dtypes that differ."""
    found = []
    for k, dtype in enumerate((torch.float32, torch.bfloat16, torch.bfloat16)):
        generator = torch.Generator().manual_seed(k)
        embedding = torch.randn(301, 33, generator=generator).to(dtype)
        first = {EMBED: embedding, "ids": torch.arange(9)}
        first |= {HEAD: embedding.clone()} if k == 1 else {}
        second = {
            "layer.weight": torch.randn(70, 2000, generator=generator).to(dtype),
            "norm.weight": torch.randn(7, generator=generator),
            "empty": torch.zeros(0, 3),
        }
        found.append(LocalSource(save(f"step_{STEPS[k]}", first, second)))
    return found


def merge_plan(sources: list[LocalSource]) -> MergePlan:
    rows = {"norm.weight": ROWS[:1].repeat(3, axis=0)}
    budget = Budget(read_size=1)
    return plan_merge(
        STEPS, read_layouts(sources), lambda name: rows.get(name, ROWS), tied=True, budget=budget
    )


def scan_plan(sources: list[LocalSource]) -> ScanPlan:
    return plan_scan(STEPS, read_layouts(sources), tied=True, budget=Budget(read_size=1))


def test_a_scan_planned_for_one_memory_is_planned_for_another(sources: list[LocalSource]) -> None:
    layouts = read_layouts(sources)
    wide = plan_scan(STEPS, layouts, tied=True, budget=Budget(NO_LIMIT, workers=3))
    narrow = Budget(900 * MiB, workers=3, remote=True, reserve=7)
    assert wide.within(narrow) == plan_scan(STEPS, layouts, tied=True, budget=narrow) != wide
    with pytest.raises(OutputError, match="give at least"):
        wide.within(Budget(MiB, workers=3))


def carried(unit: Unit) -> Unit:
    return type(unit).from_json(json.loads(json.dumps(unit.to_json(), allow_nan=False)))


def merge_units(plan: MergePlan) -> list[MergeUnit]:
    return [unit for shard in plan.shards for unit in plan.units(shard)]


def test_json_carries_every_unit(sources: list[LocalSource]) -> None:
    plan, scan = merge_plan(sources), scan_plan(sources)
    units: list[Unit] = [*merge_units(plan), *scan.units(scan.tensors)]
    assert len(units) > 15
    assert any(piece.twins for unit in units for piece in unit.pieces)
    for unit in units:
        assert carried(unit) == unit
        assert hash(carried(unit)) == hash(unit), "tuples, not lists"


def test_a_unit_alone_makes_its_bytes_in_any_order_and_more_than_once(
    sources: list[LocalSource], tmp_path: Path
) -> None:
    plan = merge_plan(sources)
    run_plan(plan, sources, [LocalSink(tmp_path / f"{target}") for target in range(plan.targets)])
    files = [
        {shard.file: bytearray(shard.header.ljust(shard.size, b"?")) for shard in plan.shards}
        for _ in range(plan.targets)
    ]
    units = 2 * [json.dumps(unit.to_json()) for unit in merge_units(plan)]
    random.Random(0).shuffle(units)
    for half in (units[::2], units[1::2]):
        buffer = UnitBuffer(Inputs(STEPS, tuple(sources)), plan.buffers.unit_bytes)
        worker = MergeWorker(buffer, plan.targets, plan.accumulator_itemsize)
        for text in half:
            unit = MergeUnit.from_json(json.loads(text))
            buffer.fill(unit)
            result = worker(unit)
            assert result.identical[2] is all(piece.tensor != "norm.weight" for piece in unit.pieces)
            for made, output in zip(files, result.outputs, strict=True):
                made[unit.file][unit.offset : unit.offset + unit.size] = output
    for target, made in enumerate(files):
        for file, data in made.items():
            assert bytes(data) == (tmp_path / f"{target}" / file).read_bytes(), (target, file)


def test_a_scan_finds_the_same_in_any_order(sources: list[LocalSource]) -> None:
    plan = scan_plan(sources)
    units = list(plan.units(plan.tensors))

    def found(order: list[int]) -> list[list[object]]:
        buffer = UnitBuffer(Inputs(STEPS, tuple(sources)), plan.buffers.unit_bytes)
        worker, parts = ScanWorker(buffer, 0.5), {}
        for number in order:
            unit = carried(units[number])
            buffer.fill(unit)
            parts[number] = [
                [part.grams.tolist(), part.counts.tolist(), part.sample_counts.tolist(), str(part.examples)]
                for part in worker(unit)
            ]
        return [parts[number] for number in range(len(units))]

    numbers = list(range(len(units)))
    assert len(units) > 1
    assert found(numbers) == found([*reversed(numbers), *numbers])


class Bytes:
    """A consumer of its own: the bytes of each tensor, as they are handed over."""

    title = "look"
    bytes_read = bytes_taken = 0

    def __init__(self, plan: ScanPlan, refuse: str = "") -> None:
        self.plan, self.refuse = plan, refuse
        self.bytes: dict[str, list[bytes]] = {}
        self.digests: Digests = {}
        self.taken: list[Unit] = []

    def units(self) -> list[Unit]:
        return list(self.plan.units(self.plan.tensors))

    def worker(self, buffer: UnitBuffer) -> Callable[[Unit], list[list[bytes]]]:
        return lambda unit: [[part.tobytes() for part in buffer.stored(unit, piece)] for piece in unit.pieces]

    def take(self, unit: Unit, result: list[list[bytes]], digests: Digests) -> None:
        self.taken.append(unit)
        for piece, parts in zip(unit.pieces, result, strict=True):
            if piece.tensor == self.refuse:
                raise NonFinite("refused", tensor=piece.tensor)
            held = self.bytes.setdefault(piece.tensor, [b""] * len(parts))
            self.bytes[piece.tensor] = [one + part for one, part in zip(held, parts, strict=True)]
        self.digests |= digests


@pytest.mark.parametrize("workers", [1, 3])
def test_a_pass_hands_every_byte_over_in_order(sources: list[LocalSource], workers: int) -> None:
    layouts = read_layouts(sources)
    plan = plan_scan(STEPS, layouts, tied=True, budget=Budget(workers=workers, read_size=1))
    hashes = InputHashes(sources, layouts, file_uses(plan.tensors))
    consumer = Bytes(plan)
    stream(Inputs(STEPS, tuple(sources)), consumer, hashes, plan.buffers, SilentProgress())
    assert consumer.taken == consumer.units()
    for k, (source, layout) in enumerate(zip(sources, layouts, strict=True)):
        for tensor in plan.tensors:
            info = tensor.inputs[k]
            expected = bytearray(info.nbytes)
            source.read(info.file, info.offset, memoryview(expected))
            if tensor.elements:
                assert consumer.bytes[tensor.name][k] == expected, (layout.name, tensor.name)
                assert consumer.digests[tensor.name][k] == xxh3_128(expected).digest()
    with pytest.raises(NonFinite) as caught:
        stream(
            Inputs(STEPS, tuple(sources)),
            Bytes(plan, refuse="layer.weight"),
            InputHashes(sources, layouts, file_uses(plan.tensors)),
            plan.buffers,
            SilentProgress(),
        )
    assert caught.value.tensor == "layer.weight"


@pytest.mark.parametrize("size", [0, 1, 4097])
def test_a_buffer_begins_where_a_page_does(sources: list[LocalSource], size: int) -> None:
    buffer = UnitBuffer(Inputs(STEPS, tuple(sources)), size)
    assert buffer.array.ctypes.data % mmap.PAGESIZE == 0
    assert len(buffer.array) == len(buffer.memory) >= size
    other = np.zeros(size, np.uint8)
    buffer.use(other)
    buffer.memory[:] = b"x" * size
    assert other.tobytes() == buffer.bytes_of(0, size, "U8").tobytes() == b"x" * size


def test_one_checkpoint_is_no_scan(sources: list[LocalSource]) -> None:
    with pytest.raises(StepError, match="only step 10 is there") as caught:
        plan_scan((10,), read_layouts(sources[1:2]))
    assert caught.value.step == 10
