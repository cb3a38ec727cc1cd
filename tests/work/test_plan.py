"""A plan that travels says the same wherever it is read, and is refused by name where it is not as it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hubextrap.claims import digest_of, sealed
from hubextrap.engine.comparison import FLOATS
from hubextrap.engine.inputs import read_as, shared_files
from hubextrap.engine.plan import MergePlan, plan_merge
from hubextrap.errors import CheckpointMismatch, CorruptFile, HubExtrapError, OutputError, ReferenceNotFound
from hubextrap.executors.testing_run import SHARDS, TARGETS, TinyRun, shard_file
from hubextrap.hub import PushTarget
from hubextrap.tensors import DTYPES, CheckpointLayout, ShardInfo, TensorInfo
from hubextrap.trajectory import Checkpoint
from hubextrap.work.kinds import PLAN_FILE
from hubextrap.work.layouts import layouts_as_json, layouts_from_json, merge_as_json, merge_from_json
from hubextrap.work.places import FolderPlace
from hubextrap.work.plan import Output, WorkPlan

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NAMES = ("w", "a.weight", "ключ", '"\\', "\x00\x1b[2J\n", "x" * 300, "__proto__", "🤗.é", "1", "digest", " ")
EXTREME = (-0.5, 1.5, 1.0, 0.0, -0.0, 1e308, -5e-324, 0.1, 1 / 3, -1e-200, 2.0**53 + 1)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> WorkPlan:
    return TinyRun.write(tmp_path_factory.mktemp("plan") / "run").work_plan()


@st.composite
def layout(draw: st.DrawFn, tensors: dict[str, tuple[str, tuple[int, ...]]], tied: bool) -> CheckpointLayout:
    """The tensors in any order, in up to three files whose data start anywhere, and tied copies or none."""
    held = dict(tensors)
    if tied:
        if both := draw(st.integers(0, 2)):
            held[HEAD] = held[EMBEDDING]
        if both == 2:
            del held[EMBEDDING]
    order, count = draw(st.permutations(list(held))), draw(st.integers(1, 3))
    files = draw(
        st.lists(st.sampled_from(["a", "m.safetensors", "ф", "-"]), min_size=3, max_size=3, unique=True)
    )
    where = {name: draw(st.integers(0, count - 1)) for name in order}
    shards = []
    for number in range(count):
        inside = [name for name in order if where[name] == number]
        offset = start = draw(st.integers(16, 90))
        infos = []
        for name in inside:
            dtype, shape = held[name]
            nbytes = int(np.prod(shape)) * DTYPES[dtype].itemsize
            infos.append(TensorInfo(name, dtype, shape, files[number], offset, nbytes))
            offset += nbytes
        if infos or number == 0:
            metadata = draw(st.dictionaries(texts, texts, max_size=2))
            shards.append(ShardInfo(files[number], max(offset, start), tuple(infos), metadata, draw(texts)))
    return CheckpointLayout(draw(texts), tuple(shards), draw(st.none() | texts))


@st.composite
def merges(draw: st.DrawFn) -> MergePlan:
    tied = draw(st.booleans())
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
    dtypes = st.sampled_from(["F32", "BF16", "F64", "F8_E4M3", "I64", "U8", "BOOL"])
    tensors = {name: (draw(dtypes), draw(shapes)) for name in names}
    if tied:
        tensors[EMBEDDING] = "BF16", draw(shapes)
    count, targets = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    distinct = draw(st.lists(layout(tensors, tied), min_size=1, max_size=count))
    layouts = [distinct[draw(st.integers(0, len(distinct) - 1))] for _ in range(count)]
    if any(dtype not in FLOATS for dtype, _ in tensors.values()):
        layouts[-1] = layouts[0] if tied else layouts[-1]
    rows = {
        name: np.array(
            [[draw(st.sampled_from(EXTREME)) for _ in range(count - 1)] + [1.25] for _ in range(targets)]
        )
        for name in (*tensors, HEAD)
    }
    steps = draw(st.lists(st.integers(0, 2**63), min_size=count, max_size=count, unique=True))
    out = draw(st.sampled_from([None, "bfloat16", "float64"]))
    try:
        return plan_merge(sorted(steps), layouts, rows.__getitem__, out_dtype=out, tied=tied)
    except CheckpointMismatch:  # tied copies of which one checkpoint has another one alone, and the like
        assume(False)
        raise


def travelled(plan: MergePlan) -> MergePlan:
    stated = json.loads(json.dumps([layouts_as_json(plan.layouts), merge_as_json(plan)], allow_nan=False))
    return merge_from_json(stated[1], layouts_from_json(stated[0]))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(merges())
def test_a_merge_is_the_same_after_its_way_through_json(plan: MergePlan) -> None:
    found = travelled(plan)
    # what workers do not need stays behind
    assert found == replace(plan, index_file=None, index=b"", notes=(), caveats=())
    assert [list(found.units(shard)) for shard in found.shards] == [
        list(plan.units(shard)) for shard in plan.shards
    ]
    parts = [[shard.tensors for shard in one.shards] for one in (found, plan)]
    assert shared_files(parts[0], found.layouts) == shared_files(parts[1], plan.layouts)
    assert read_as(found) == read_as(plan)
    assert repr(found.shards) == repr(plan.shards)  # -0.0 is not 0.0
    for layout, before in zip(found.layouts, plan.layouts, strict=True):
        assert layout.tensors == before.tensors
    assert json.dumps(merge_as_json(found)) == json.dumps(merge_as_json(plan))


def test_a_merge_through_json(plan: WorkPlan) -> None:
    """One example for the default suite."""
    assert travelled(plan.merge) == plan.merge
    assert len({id(layout.tensors) for layout in plan.merge.layouts}) <= 3


def test_a_plan_comes_back_as_it_was(plan: WorkPlan, tmp_path: Path) -> None:
    other = replace(
        plan,
        checkpoints=(Checkpoint(0, "me/x", "main", "a" * 40, "step_0"), *plan.checkpoints[1:]),
        stamps=({}, *plan.stamps[1:]),
        outputs=(Output(push=PushTarget("me/y", "step_8", private=True, message="ü")), Output("/out/ö")),
        compared=(((0, shard_file(1)), (0, 2)),),
        fingerprint={"recipe": "0"},
        cache=True,
        device="cuda:0",
        allow_non_finite=True,
        finish={"out": None, "steps": [1], "caveats": ["é\x1b"]},
    )
    for one in (plan, other):
        place = FolderPlace(tmp_path / "place")
        saved = one.save(place)
        assert WorkPlan.load(place) == saved == replace(one, digest=saved.digest)
        assert saved.to_bytes() == one.to_bytes() == place.read(PLAN_FILE)
    assert other.units == SHARDS + 1
    assert other.labels[SHARDS] == f"{shard_file(1)} of step 100"
    assert other.needs(SHARDS) == (0, 2)
    assert other.needs(3) == ()
    assert other.bytes_of(SHARDS) == plan.merge.layouts[0].shards[1].size
    assert saved.digest != plan.digest


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(ReferenceNotFound, match=r"holds no plan\.json"):
        WorkPlan.load(FolderPlace(tmp_path))


def refused(data: bytes, kind: type[HubExtrapError] = CorruptFile) -> str:
    with pytest.raises(kind) as caught:
        WorkPlan.from_bytes(data, "place/plan.json")
    assert type(caught.value) is kind
    assert str(caught.value).startswith("place/plan.json: ")
    return str(caught.value)


def test_a_plan_with_another_byte_is_refused(plan: WorkPlan) -> None:
    data = plan.to_bytes()
    rng = np.random.default_rng(3)
    for place in sorted({*range(40), *rng.integers(0, len(data) - 1, 40).tolist(), len(data) - 2}):
        changed = bytes([data[place] ^ int(rng.choice([1, 4, 32]))])
        with contextlib.suppress(CorruptFile):  # but for a space more or less
            assert WorkPlan.from_bytes(data[:place] + changed + data[place + 1 :], "x") == plan
    for end in (0, 1, len(data) // 2, len(data) - 2):
        refused(data[:end])
    refused(b"[]")
    refused(b"{}")
    assert "make it again with the command that made it" in refused(b"null")


def resealed(plan: WorkPlan, **changes: Any) -> bytes:
    stated = json.loads(plan.to_bytes())
    del stated["digest"]
    return json.dumps(sealed(stated | changes)).encode()


def test_a_plan_of_another_format_is_refused(plan: WorkPlan) -> None:
    assert "its format is 2 of 'merge'" in refused(resealed(plan, format=2))
    assert "its format is 1 of 'bake'" in refused(resealed(plan, kind="bake"))


@pytest.mark.parametrize("name", ["hubextrap", "numba"])
def test_a_plan_of_another_version_is_refused(name: str, plan: WorkPlan) -> None:
    """Its workers would make other bytes."""
    other = resealed(plan, versions=dict(plan.versions) | {name: "0.0.1"})
    said = refused(other, OutputError)
    assert f"was made with {name} 0.0.1, and here is {name} {plan.versions[name]}" in said
    assert f"install {name}==0.0.1 here" in said


ODD: tuple[Any, ...] = (None, -1, 10**30, 1.5, "x", [], {}, [[0, "x", []]])


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places_in(item, (*path, key))


@pytest.mark.slow
def test_whatever_a_plan_says_it_is_read_or_refused(plan: WorkPlan) -> None:
    """By an error that names it, and never by a traceback: each kind of place in it holds each odd value."""
    plan = replace(plan, compared=(((0, shard_file(1)), (0,)),))
    stated = json.loads(plan.to_bytes())
    del stated["digest"]
    kinds = {
        tuple(min(key, 1) if isinstance(key, int) else key for key in at): at for at in places_in(stated)
    }
    assert len(kinds) > 50
    for *path, last in kinds.values():
        inside = stated
        for key in path:
            inside = inside[key]
        before = inside[last]
        for odd in ODD:
            inside[last] = odd
            with contextlib.suppress(HubExtrapError):
                found = WorkPlan.from_bytes(json.dumps(sealed(stated)).encode(), "x")
                assert found.units == len(found.labels)
                assert [found.bytes_of(unit) for unit in range(found.units)]
        inside[last] = before
    assert WorkPlan.from_bytes(json.dumps(sealed(stated)).encode(), "x") == replace(
        plan, digest=digest_of(stated)
    )


def test_numbers_of_units(plan: WorkPlan) -> None:
    assert plan.units == SHARDS == len(plan.shard_units)
    assert len(plan.outputs) == TARGETS
    plan.check_units(range(SHARDS))
    for unit in (-1, SHARDS):
        with pytest.raises(OutputError, match=f"unit {unit}: the plan has {SHARDS}, from 0 to {SHARDS - 1}"):
            plan.check_units([0, unit])
