from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import hubextrap.engine.run
from hubextrap.engine import Budget, plan_merge, run_plan
from hubextrap.engine.cutting import Room, unit_minimum
from hubextrap.engine.defaults import MiB
from hubextrap.engine.kernels import BLOCK
from hubextrap.engine.threads import in_threads
from hubextrap.errors import CheckpointMismatch, NonFinite, OutputError, SourceError
from hubextrap.tensors import FinishedShard, LocalSink, LocalSource, Sink, read_layouts
from hubextrap.tensors.blocks import WRITE_SIZE

Tensors = dict[str, torch.Tensor]


def weights(seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(dtype)

    return {
        "embed.weight": draw(50, 64),
        "layers.0.norm.weight": draw(64),
        "layers.0.proj.bias": draw(1),
        "layers.0.proj.weight": draw(129, 65),
        "scale": draw(),
        "empty": draw(0, 4),
    }


def test_literal_output(save: Callable[..., Path], merge: Callable) -> None:
    first = save("first", {"w": torch.tensor([1.0, 2.0, 3.0]), "ids": torch.tensor([1, 2])})
    last = save("last", {"w": torch.tensor([2.0, 2.0, 1.0]), "ids": torch.tensor([1, 2])})
    merged = merge([first, last], [-1.0, 2.0])
    assert merged.tensors()["w"].tolist() == [3.0, 2.0, -1.0]
    assert merged.tensors()["ids"].tolist() == [1, 2]
    (shard,) = merged.outputs[0].shards
    data = merged.files()["model.safetensors"]
    assert shard == FinishedShard("model.safetensors", len(data), hashlib.sha256(data).hexdigest())
    assert not merged.outputs[0].identical_to_last


def test_persistence_is_the_last_checkpoint(save: Callable[..., Path], merge: Callable) -> None:
    folders = [save("first", weights(1)), save("last", weights(2))]
    merged = merge(folders, [0.0, 1.0])
    assert merged.files()["model.safetensors"] == (folders[1] / "model.safetensors").read_bytes()
    assert merged.outputs[0].identical_to_last
    assert merged.bytes_read == sum(tensor.nbytes for tensor in weights(2).values())


def test_a_line_of_equal_checkpoints_is_reported_as_identical(
    save: Callable[..., Path], merge: Callable
) -> None:
    folders = [save("first", weights(2)), save("last", weights(2))]
    assert merge(folders, [-0.5, 1.5]).outputs[0].identical_to_last
    assert not merge(folders, [-0.5, 1.5], out_dtype="float32").outputs[0].identical_to_last
    assert not merge(folders, [1.0, 0.0]).outputs[0].identical_to_last, "the last one was not read"


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("count", range(1, 9))
def test_tensors_of_any_size_are_made_wider_and_narrower(
    count: int, out_dtype: str, save: Callable[..., Path], merge: Callable
) -> None:
    made = []
    for stored in (torch.bfloat16, torch.float32):
        rows = [torch.arange(1.0, count + 1).to(stored) * k for k in (1, 2)]
        folders = [save(f"{stored}-{k}".removeprefix("torch."), {"w": row}) for k, row in enumerate(rows)]
        made.append(merge(folders, [-1.0, 2.0], out_dtype=out_dtype).tensors()["w"])
    assert made[0].tolist() == made[1].tolist() == [3.0 * k for k in range(1, count + 1)]


def test_several_targets_read_every_byte_once(save: Callable[..., Path], merge: Callable) -> None:
    folders = [save(f"step-{k}", weights(k)) for k in range(3)]
    rows = [[0.0, 0.0, 1.0], [0.2, -0.9, 1.7], [-0.5, 0.0, 1.5]]
    together = merge(folders, rows)
    assert together.bytes_read == 3 * sum(tensor.nbytes for tensor in weights(0).values())
    for target, row in enumerate(rows):
        assert together.files(target) == merge(folders, row).files()
    assert [output.identical_to_last for output in together.outputs] == [True, False, False]


def test_rules_give_tensors_their_own_coefficients(save: Callable[..., Path], merge: Callable) -> None:
    folders = [save(f"step-{k}", weights(k)) for k in range(2)]
    merged = merge(folders, lambda name: [0.0, 1.0] if "norm" in name else [-1.0, 2.0]).tensors()
    assert torch.equal(merged["layers.0.norm.weight"], weights(1)["layers.0.norm.weight"])
    assert not torch.equal(merged["embed.weight"], weights(1)["embed.weight"])


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def save_shards(folder: Path, shards: list[Tensors]) -> Path:
    folder.mkdir()
    weight_map = {}
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(shard, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_output_does_not_depend_on_how_it_is_made(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Threads, readers, memory, read size and the input's shards change no byte."""
    root = tmp_path_factory.mktemp("property")
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES), min_size=2, max_size=5))
    row = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=len(dtypes))
    row[data.draw(st.integers(0, len(dtypes) - 2))] = 0.0
    row[-1] += 1.0 - row.sum()
    checkpoints = [weights(k, dtype) for k, dtype in enumerate(dtypes)]
    folders = [save_shards(root / f"{k}", [tensors]) for k, tensors in enumerate(checkpoints)]
    names = data.draw(st.permutations(list(checkpoints[0])))
    halves = [{name: checkpoints[0][name] for name in part} for part in (names[:3], names[3:])]
    split = save_shards(root / "split", halves)
    expected = None
    for variant in range(3):
        sources = [LocalSource(folder) for folder in ([split, *folders[1:]] if variant else folders)]
        layouts, steps = read_layouts(sources), range(len(dtypes))
        options = {"workers": data.draw(st.integers(1, 4)), "read_size": data.draw(st.integers(1, 20_000))}
        options["remote"] = data.draw(st.booleans())
        plan = plan_merge(steps, layouts, lambda name: row[None], budget=Budget(**options))
        spare = plan.buffers.unit_bytes - unit_minimum(plan.shards[0].tensors, Room(targets=1))
        options["memory"] = (
            plan.peak_memory - plan.buffers.workers * spare + data.draw(st.integers(0, 99_999))
        )
        plan = plan_merge(steps, layouts, lambda name: row[None], budget=Budget(**options))
        (output,) = run_plan(plan, sources, [LocalSink(root / "out")])
        made = (root / "out" / output.shards[0].file).read_bytes()
        expected = expected or made
        assert made == expected
        for source in sources:
            source.close()


def test_tied_copies_are_checked_and_written_once(save: Callable[..., Path], merge: Callable) -> None:
    embedding = [torch.randn(300, 16).bfloat16() for _ in range(2)]
    name, head = "model.embed_tokens.weight", "lm_head.weight"
    alone = save("alone", {name: embedding[0]})
    both = save("both", {name: embedding[1], head: embedding[1].clone()})
    merged = merge([alone, both], [-0.5, 1.5], tied=True)
    assert list(merged.tensors()) == [name]
    assert torch.equal(
        merged.tensors()[name], merge([alone, save("b", {name: embedding[1]})], [-0.5, 1.5]).tensors()[name]
    )
    changed = embedding[1].clone()
    changed[299, 15] += 1
    apart = save("apart", {name: embedding[1], head: changed})
    with pytest.raises(CheckpointMismatch) as caught:
        merge([apart, both], [-0.5, 1.5], tied=True)
    assert (caught.value.tensor, caught.value.step) == (head, 0)
    for words in (f"step 0 ({apart})", f"differs from {name}", "set tie_word_embeddings to false"):
        assert words in str(caught.value)


def test_integers_that_differ(save: Callable[..., Path], merge: Callable) -> None:
    first = save("first", {"w": torch.ones(4), "ids": torch.arange(5)})
    last = save("last", {"w": torch.ones(4), "ids": torch.arange(1, 6)})
    with pytest.raises(CheckpointMismatch, match=r"I64, .*copied.* differ") as caught:
        merge([first, last], [-0.5, 1.5])
    assert (caught.value.tensor, caught.value.step) == ("ids", 0)
    merged = merge([first, last], lambda name: [0.0, 1.0] if name == "ids" else [-0.5, 1.5])
    assert merged.tensors()["ids"].tolist() == [1, 2, 3, 4, 5]


def test_non_finite_input_names_tensor_count_and_checkpoint(
    save: Callable[..., Path], merge: Callable
) -> None:
    bad = torch.ones(700_000)
    bad[[3, BLOCK, 699_999]] = float("nan")
    bad[5] = float("inf")
    folders = [
        save("first", {"w": bad, "x": torch.ones(2)}),
        save("last", {"w": torch.ones(700_000), "x": torch.ones(2)}),
    ]
    with pytest.raises(NonFinite) as caught:
        merge(folders, [-0.5, 1.5], read_size=MiB // 4)
    assert (caught.value.tensor, caught.value.step) == ("w", 0)
    for words in ("4 of 700,000 ", f"step 0 ({folders[0]}) has 4 itself", "--allow-non-finite"):
        assert words in str(caught.value)
    merged = merge(folders, [-0.5, 1.5], allow_non_finite=True).tensors()["w"]
    assert int(merged.isfinite().sum()) == 700_000 - 4
    assert merge(folders, [0.0, 1.0]).tensors()["w"].isfinite().all(), (
        "a checkpoint with coefficient 0 is not read"
    )


def test_overflow_of_the_output_dtype(save: Callable[..., Path], merge: Callable) -> None:
    folders = [save("first", {"w": torch.zeros(9)}), save("last", {"w": torch.full((9,), 50_000.0)})]
    with pytest.raises(NonFinite, match=r"9 of 9 .* output 2 of 2; F16 cannot") as caught:
        merge(folders, [[0.0, 1.0], [-1.0, 2.0]], out_dtype="float16")
    assert (caught.value.tensor, caught.value.step) == ("w", None)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float32, torch.bfloat16])
def test_overflow_of_float8_without_infinity(
    save: Callable[..., Path], merge: Callable, stored: torch.dtype
) -> None:
    last = torch.tensor([0.0, 232.0, 240.0, -448.0]).to(stored)
    folders = [save("first", {"w": torch.zeros(4).to(stored)}), save("last", {"w": last})]
    with pytest.raises(NonFinite, match=r"2 of 4 .*; F8_E4M3 cannot hold") as caught:
        merge(folders, [-1.0, 2.0], out_dtype="float8_e4m3fn")
    assert (caught.value.tensor, caught.value.step) == ("w", None)
    allowed = merge(folders, [-1.0, 2.0], out_dtype="float8_e4m3fn", allow_non_finite=True).tensors()["w"]
    assert allowed.float().tolist()[:2] == [0.0, 448.0]
    assert allowed.float()[2:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz])
def test_copies_of_what_is_never_combined_are_counted_too(
    save: Callable[..., Path], merge: Callable, dtype: torch.dtype
) -> None:
    good, bad = torch.ones(5).to(dtype), torch.tensor([1.0, math.nan, 1.0, math.nan, 1.0]).to(dtype)
    folders = [save("first", {"w": good}), save("last", {"w": bad})]
    with pytest.raises(NonFinite, match=r"2 of 5 .* has 2 itself") as caught:
        merge(folders, [0.0, 1.0])
    assert (caught.value.tensor, caught.value.step) == ("w", 100)
    merged = merge(folders, [0.0, 1.0], allow_non_finite=True).tensors()["w"]
    assert merged.view(torch.uint8).tolist() == bad.view(torch.uint8).tolist()


class FailingSource(LocalSource):
    """Bytes of one file cannot be read past a point."""

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        if offset > 400_000:
            raise SourceError(f"{self.name}/{file}: cannot be read: Input/output error; check the disk")
        super().read(file, offset, buffer)


class LimitedSink:
    """A local sink that runs out of room after some bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._sink, self._limit = LocalSink(folder), limit

    def open(self, file: str, size: int):  # type: ignore[no-untyped-def]
        writer = self._sink.open(file, size)
        write, limit = writer.write, self._limit

        def limited(offset: int, data: memoryview) -> None:
            if offset + len(data) > limit:
                raise OutputError(f"{file}: no room")
            write(offset, data)

        writer.write = limited  # type: ignore[method-assign]
        return writer


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_errors_leave_nothing_behind(save: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    folders = [save(f"{k}", {"a": torch.ones(100), "w": torch.randn(200_000)}) for k in range(2)]

    def attempt(sources: list[LocalSource], sink: Sink) -> None:
        plan = plan_merge(
            (10, 20),
            read_layouts(sources),
            lambda name: np.array([[-1.0, 2.0]]),
            budget=Budget(workers=workers, read_size=30_000),
        )
        run_plan(plan, sources, [sink])

    before = set(threading.enumerate())  # pools that other tests have started, and the process keeps
    good, failing = LocalSource(folders[0]), FailingSource(folders[1])
    with pytest.raises(SourceError, match=r"check the disk \(step 20, from tensor w on\)") as caught:
        attempt([good, failing], LocalSink(tmp_path / "out"))
    assert (caught.value.step, caught.value.file) == (20, "model.safetensors")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(OutputError, match=r"model.safetensors: no room"):
        attempt([good, LocalSource(folders[1])], LimitedSink(tmp_path / "out", 500_000))
    assert list((tmp_path / "out").iterdir()) == []
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not [name for name in left if name.startswith("hubextrap")]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_finishing_that_does_not_begin(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The shard's own threads end too: they would be waited for when the process ends."""

    class Refusing(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise error

    monkeypatch.setattr(hubextrap.engine.run, "ThreadPoolExecutor", Refusing)
    source = LocalSource(save("one", {"w": torch.ones(WRITE_SIZE)}))
    plan = plan_merge((1, 2), read_layouts([source, source]), lambda name: np.array([[0.0, 1.0]]))
    with pytest.raises(type(error)):
        run_plan(plan, [source, source], [LocalSink(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []
    left = [thread.name for thread in threading.enumerate()]
    assert not {"hubextrap-sha256", "hubextrap-write"} & set(left)


def test_finishing_that_fails(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [{f"w{k}": torch.ones(10)} for k in range(4)]
    folder = save("one", *shards)
    source = LocalSource(folder)
    plan = plan_merge((1, 2), read_layouts([source, source]), lambda name: np.array([[0.0, 1.0]]))
    sink = LocalSink(tmp_path / "out")
    opened = []
    original = sink.open

    def open_failing(file: str, size: int):  # type: ignore[no-untyped-def]
        writer = original(file, size)
        opened.append(file)
        if len(opened) == 2:

            def fail() -> FinishedShard:
                raise OutputError(f"{file}: cannot be written: Input/output error")

            monkeypatch.setattr(writer, "finish", fail)
        return writer

    monkeypatch.setattr(sink, "open", open_failing)
    with pytest.raises(OutputError, match="00002-of-00004"):
        run_plan(plan, [source, source], [sink])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model-00001-of-00004.safetensors"]


@pytest.mark.slow
def test_the_first_merge_says_that_it_compiles_before_it_writes(demo_data: Path, tmp_path: Path) -> None:
    recipe = {
        "trajectory": {"repo": str(demo_data / "rlvr-C")},
        "merge_method": "two_point",
        "parameters": {"target_step": 500},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    program = (
        "import pathlib, sys\n"
        "import hubextrap.api as api\n"
        "from hubextrap.progress import SilentProgress\n"
        "from hubextrap.recipe import load_recipe\n"
        "class Told(SilentProgress):\n"
        "    def say(self, line):\n"
        "        if 'compiling' in line:\n"
        "            print(line, *[path.name for path in pathlib.Path().rglob('*.safetensors*')])\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "api.merge(load_recipe(pathlib.Path('recipe.yaml')), out=out, progress=Told())\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for out, said in (
        ("first", ["compiling the loops, once for this machine and version: some seconds …"]),
        ("second", []),
    ):
        result = subprocess.run(
            [sys.executable, "-c", program, out],
            cwd=tmp_path,
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
        )
        assert result.stdout.splitlines() == said


def test_threads_keep_order_and_stop_at_the_first_error() -> None:
    for workers in (1, 3):
        assert list(in_threads(workers, lambda n: n * n, range(50))) == [n * n for n in range(50)]
        started = []

        def work(n: int, started: list[int] = started) -> int:
            started.append(n)
            if n == 7:
                raise ValueError("seven")
            return n

        with pytest.raises(ValueError, match="seven"):
            list(in_threads(workers, work, range(10_000)))
        assert max(started) < 30, "units are drawn as needed"


@pytest.mark.slow
def test_peak_memory_of_the_process(tmp_path: Path) -> None:
    """K = 16 on 0.3 GB checkpoints: the estimate holds for the whole process."""
    program = f"""
import numpy as np
from pathlib import Path
from typing import Any
import hubextrap.engine.run
from hubextrap.engine import Budget, plan_merge, run_plan
from hubextrap.tensors import LocalSink, LocalSource, read_layouts
from hubextrap.tensors.devices import cuda_libraries
folder = Path({str(tmp_path)!r})
sources = [LocalSource(folder)] * 16
for read_size in (2 * 2**20, 64 * 2**20):
    rows = np.full((1, 16), 1 / 16)
    plan = plan_merge(range(16), read_layouts(sources), lambda name: rows, budget=Budget(read_size=read_size))
    run_plan(plan, sources, [LocalSink(folder / "out")])
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent before exec
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    assert plan.peak_memory <= 512 * 2**20
    assert peak < plan.peak_memory + cuda_libraries("cpu"), (peak, plan.peak_memory)
"""
    save_file({"w": torch.zeros(150_000_000, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    subprocess.run([sys.executable, "-c", program], check=True)
