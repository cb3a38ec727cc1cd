from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubextrap.engine.budget import BASELINE, Budget
from hubextrap.engine.cutting import Room, unit_minimum
from hubextrap.engine.defaults import MiB
from hubextrap.engine.plan import MergePlan, plan_merge
from hubextrap.engine.scan_plan import plan_scan
from hubextrap.errors import CheckpointMismatch, MethodError, OutputError, RecipeError
from hubextrap.tensors import DTYPES, CheckpointLayout, ShardInfo, TensorInfo

Spec = tuple[str, str, tuple[int, ...]]
"""Name, dtype, shape."""

LINE = np.array([[-0.5, 1.5]])


def layout(name: str, *shards: Sequence[Spec], start: int = 80) -> CheckpointLayout:
    """A layout without files."""
    infos = []
    for number, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number}.safetensors"
        offset, tensors = start, []
        for tensor, dtype, shape in shard:
            nbytes = int(np.prod(shape)) * DTYPES[dtype].itemsize
            tensors.append(TensorInfo(tensor, dtype, shape, file, offset, nbytes))
            offset += nbytes
        infos.append(ShardInfo(file, offset, tuple(tensors)))
    return CheckpointLayout(name, tuple(infos), "model.safetensors.index.json" if len(shards) > 1 else None)


def plan_two(first: CheckpointLayout, last: CheckpointLayout, **options: object) -> MergePlan:
    return plan_merge((100, 400), (first, last), lambda name: LINE, **options)  # type: ignore[arg-type]


A: Spec = ("a.weight", "BF16", (4, 8))
B: Spec = ("b.weight", "BF16", (8,))
EMBED: Spec = ("model.embed_tokens.weight", "BF16", (16, 8))
HEAD: Spec = ("lm_head.weight", "BF16", (16, 8))


def test_output_has_the_last_checkpoints_files_and_order() -> None:
    first = layout("me/run@one", [("b.weight", "F32", (8,)), A])
    plan = plan_two(first, layout("me/run@two", [A], [B]))
    assert [(shard.file, [t.name for t in shard.tensors]) for shard in plan.shards] == [
        ("model-0.safetensors", ["a.weight"]),
        ("model-1.safetensors", ["b.weight"]),
    ]
    assert plan.shards[0].size == len(plan.shards[0].header) + 64
    assert b'"__metadata__":{"format":"pt"}' in plan.shards[0].header
    assert plan.index_file == "model.safetensors.index.json"
    assert json.loads(plan.index) == {
        "metadata": {"total_size": 64 + 16},
        "weight_map": {"a.weight": "model-0.safetensors", "b.weight": "model-1.safetensors"},
    }
    assert plan.total_bytes_read == 64 * 2 + 32 + 16
    assert plan.total_bytes_written == sum(shard.size for shard in plan.shards)
    assert plan.notes == ("dtypes differ: step 100 BF16/F32, step 400 BF16",)
    assert plan.same_layout


def test_out_dtype_casts_floats_only() -> None:
    last = layout("x", [("a", "F32", (6,)), ("ids", "I64", (2,)), ("b", "BF16", (2,))])
    plan = plan_two(last, last, out_dtype="bfloat16")
    assert [t.dtype for t in plan.shards[0].tensors] == ["BF16", "I64", "BF16"]
    assert not plan.same_layout
    with pytest.raises(RecipeError, match="out_dtype: 'bf16' is not one of"):
        plan_two(last, last, out_dtype="bf16")


WIDE: Spec = ("mlp.gate.e_score_correction_bias", "F32", (4,))
WIDEST: Spec = ("mixer.A_log", "F64", (1,))


@pytest.mark.parametrize(
    ("tensors", "out_dtype", "stored"),
    [
        ([A, WIDE], "bfloat16", ["BF16", "F32"]),
        ([A, WIDE], "float16", ["F16", "F32"]),
        ([A, WIDE], "float32", ["F32", "F32"]),
        ([A, WIDE], "float64", ["F64", "F64"]),
        ([A, WIDE], None, ["BF16", "F32"]),
        ([A, WIDE, WIDEST], "bfloat16", ["BF16", "F32", "F64"]),
        ([("a.weight", "F16", (4, 8)), WIDE], "bfloat16", ["BF16", "F32"]),
        ([("a.weight", "F32", (4, 8)), WIDE], "bfloat16", ["BF16", "BF16"]),
        ([("a.weight", "F32", (4, 8)), WIDEST], "bfloat16", ["BF16", "F64"]),
        ([("a.weight", "F32", (4, 8)), B], "bfloat16", ["BF16", "BF16"]),
    ],
)
def test_out_dtype_leaves_what_is_wider_than_the_model(
    tensors: list[Spec], out_dtype: str | None, stored: list[str]
) -> None:
    last = layout("x", tensors)
    plan = plan_two(last, last, out_dtype=out_dtype)
    assert [t.dtype for t in plan.shards[0].tensors] == stored
    left = [name for (name, dtype, _) in tensors if dtype in stored and dtype in ("F32", "F64")]
    told = [caveat for caveat in plan.caveats if caveat.startswith("out_dtype does not narrow")]
    assert len(told) == bool(out_dtype not in (None, "float32", "float64") and left)
    assert all(name in caveat for caveat in told for name in left)
    narrower = any(DTYPES[s].itemsize < DTYPES[t[1]].itemsize for s, t in zip(stored, tensors, strict=True))
    assert any("narrows" in note for note in plan.notes) is narrower


def test_the_models_own_dtype_is_that_of_the_last_checkpoint() -> None:
    """A base in bfloat16 and a trainer's dump in float32, which is to be narrowed whole."""
    first = layout("x", [A, WIDE])
    plan = plan_two(first, layout("y", [("a.weight", "F32", (4, 8)), WIDE]), out_dtype="bfloat16")
    assert [t.dtype for t in plan.shards[0].tensors] == ["BF16", "BF16"]


def test_one_large_tensor_does_not_make_the_model_wide() -> None:
    names = [(f"layers.{number}.weight", "BF16", (4, 4)) for number in range(3)]
    last = layout("x", [("big.weight", "F32", (64, 64)), *names])
    plan = plan_two(last, last, out_dtype="bfloat16")
    assert [t.dtype for t in plan.shards[0].tensors] == ["F32", "BF16", "BF16", "BF16"]


def test_what_is_copied_is_told_with_its_bytes() -> None:
    last = layout("x", [A, B, ("ids", "I64", (2,)), ("mask", "BOOL", (4,))])
    rows = {"b.weight": np.array([[0.0, 1.0]])}
    plan = plan_merge((1, 2), (last, last), lambda name: rows.get(name, LINE))
    (caveat,) = plan.caveats
    assert caveat.startswith(
        "copied from the last checkpoint, not predicted: 3 of 4 tensors, 36 bytes (36.0%)"
    )
    assert caveat.endswith(": b.weight, ids, mask")
    assert plan_two(layout("x", [A, B]), layout("x", [A, B])).caveats == ()
    first = {"b.weight": np.array([[1.0, 0.0]])}  # a copy too, but not of the last checkpoint
    plan = plan_merge((1, 2), (last, last), lambda name: first.get(name, LINE))
    assert "2 of 4 tensors, 20 bytes" in plan.caveats[0]
    several = np.array([[0.0, 1.0], [-1.0, 2.0]])  # copied into one output of two
    assert "2 of 4" in plan_merge((1, 2), (last, last), lambda name: several).caveats[0]
    everything = plan_merge((1, 2), (last, last), lambda name: rows["b.weight"])
    assert everything.caveats == ()


def test_every_mismatch_is_in_one_error() -> None:
    first = layout(
        "me/run@step_100",
        [("a.weight", "BF16", (4, 9)), ("b.weight", "I64", (8,)), ("old.weight", "BF16", (2,))],
    )
    last = layout("me/run@step_400", [A, B, ("new.weight", "BF16", (3,)), HEAD])
    with pytest.raises(CheckpointMismatch) as caught:
        plan_two(first, last)
    hint = (
        " (a model whose embeddings are tied stores none; here config.json of the last checkpoint does not "
        "say tie_word_embeddings: true, or it stores a head that differs)"
    )
    mended = '{ignore: ["old.weight"], copy: ["a.weight", "b.weight", "new.weight", "lm_head.weight"]}'
    assert str(caught.value).splitlines() == [
        "the checkpoints do not fit together, 5 problems:",
        "  a.weight has shape [4, 9] in step 100 (me/run@step_100), [4, 8] in step 400",
        "  b.weight is I64 in step 100 (me/run@step_100), BF16 in step 400",
        "  new.weight is in step 400 but not in step 100 (me/run@step_100)",
        "  lm_head.weight is in step 400 but not in step 100 (me/run@step_100)" + hint,
        "  old.weight is in step 100 (me/run@step_100) but not in step 400",
        "if it is one model, write this under trajectory in the recipe (or a part of it):",
        f"  tensors: {mended}",
        "ignore leaves out what the last checkpoint has not, so the prediction has not either",
        "copy takes what others lack from the last checkpoint as it is, and does not predict it",
        "leave out the checkpoints that differ (trajectory.steps), or choose checkpoints of one run",
    ]


@pytest.mark.parametrize(
    ("first", "tensor"),
    [
        ([("a.weight", "BF16", (4, 9)), B], "a.weight"),
        ([A, ("b.weight", "I64", (8,))], "b.weight"),
        ([A], "b.weight"),
        ([A, B, HEAD], "lm_head.weight"),
        ([("a.weight", "BF16", (4, 9)), B, HEAD], None),
    ],
)
def test_a_mismatch_of_one_tensor_names_it(first: list[Spec], tensor: str | None) -> None:
    with pytest.raises(CheckpointMismatch) as caught:
        plan_two(layout("x", first), layout("y", [A, B]))
    assert (caught.value.tensor, caught.value.step) == (tensor, 100)


def test_many_mismatches_are_counted_not_all_listed() -> None:
    last = layout("x", [(f"part_{i}.weight", "BF16", (2,)) for i in range(1000)])
    with pytest.raises(CheckpointMismatch, match="1001 problems:") as caught:
        plan_two(layout("y", [A]), last)
    assert len(str(caught.value).splitlines()) == 1 + 20 + 6
    assert "… and 981 more" in str(caught.value)


@pytest.mark.parametrize("first", [[EMBED], [EMBED, HEAD], [HEAD]])
@pytest.mark.parametrize("last", [[EMBED], [EMBED, HEAD]])
def test_tied_embeddings_are_one_tensor(first: list[Spec], last: list[Spec]) -> None:
    plan = plan_two(layout("x", [A, *first]), layout("y", [A, *last]), tied=True)
    (shard,) = plan.shards
    assert [t.name for t in shard.tensors] == ["a.weight", "model.embed_tokens.weight"]
    embedding = shard.tensors[1]
    assert [info.name for info in embedding.inputs] == [first[0][0], EMBED[0]]
    assert [i for i, _ in embedding.twins] == [i for i, specs in enumerate((first, last)) if len(specs) == 2]
    assert any("lm_head.weight is written once" in note for note in plan.notes) is (len(last) == 2)


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("model.embed_tokens.weight", "lm_head.weight"),
        ("transformer.wte.weight", "lm_head.weight"),
        ("gpt_neox.embed_in.weight", "embed_out.weight"),
        ("transformer.word_embeddings.weight", "lm_head.weight"),
    ],
)
def test_tied_pairs_of_other_models(embedding: str, head: str) -> None:
    """Llama, Qwen, Gemma; GPT-2; GPT-NeoX; BLOOM, Falcon."""
    both = layout("x", [(embedding, "BF16", (16, 8)), (head, "BF16", (16, 8))])
    (shard,) = plan_two(both, both, tied=True).shards
    assert [t.name for t in shard.tensors] == [embedding]


def test_a_shard_that_held_only_the_tied_copy_is_left_out() -> None:
    last = layout("y", [EMBED], [HEAD])
    plan = plan_two(last, last, tied=True)
    assert [shard.file for shard in plan.shards] == ["model-0.safetensors"]
    assert json.loads(plan.index)["weight_map"] == {EMBED[0]: "model-0.safetensors"}
    assert not plan.same_layout


def test_untied_embeddings_are_two_tensors() -> None:
    both = layout("x", [EMBED, HEAD])
    assert [t.name for t in plan_two(both, both).shards[0].tensors] == [EMBED[0], HEAD[0]]


def test_tied_copies_of_different_dtype() -> None:
    first = layout("x", [EMBED, ("lm_head.weight", "F32", (16, 8))])
    with pytest.raises(CheckpointMismatch, match=r"lm_head.weight is F32 and .* BF16"):
        plan_two(first, layout("y", [EMBED]), tied=True)


def test_what_cannot_be_combined() -> None:
    """Weights are not to be kept from moving for their dtype; a table of rotations may be."""
    odd = layout("x", [("w", "F8_E4M3FNUZ", (4,))])
    for plan in (plan_two, lambda one, other: plan_scan((1, 2), (one, other))):
        with pytest.raises(CheckpointMismatch, match=r"F8_E4M3FNUZ, .*; store it in every") as caught:
            plan(odd, odd)
        assert "persistence" not in str(caught.value)
    odd = layout("x", [("w", "C64", (4,))])
    with pytest.raises(CheckpointMismatch, match=r"w is C64, .*; give it a rule"):
        plan_two(odd, odd)
    with pytest.raises(CheckpointMismatch, match=r"w is C64, .* needs no scan"):
        plan_scan((1, 2), (odd, odd))
    persistence = plan_merge((1, 2), (odd, odd), lambda name: np.array([[0.0, 1.0]]))
    assert len(persistence.shards[0].tensors[0].inputs) == 1


def test_bad_coefficients() -> None:
    one = layout("x", [A])
    with pytest.raises(MethodError, match=r"coefficients .* are not finite") as caught:
        plan_merge((1, 2), (one, one), lambda name: np.array([[np.nan, 1.0]]))
    assert caught.value.tensor == "a.weight"
    with pytest.raises(MethodError, match="all 0") as caught:
        plan_merge((1, 2), (one, one), lambda name: np.zeros((1, 2)))
    assert caught.value.tensor == "a.weight"


def test_unused_checkpoints_are_compared_but_not_read() -> None:
    one = layout("x", [A])
    plan = plan_merge((1, 2, 3), (one, one, one), lambda name: np.array([[-1.0, 0, 2.0], [0, 0, 1.0]]))
    assert plan.shards[0].tensors[0].checkpoints == (0, 2)
    assert plan.total_bytes_read == 2 * 64
    with pytest.raises(CheckpointMismatch, match=r"a.weight is in step 3 but not in step 2"):
        plan_merge((1, 2, 3), (one, layout("z", [B]), one), lambda name: np.array([[-1.0, 0, 2.0]]))


def test_what_is_not_combined_is_compared_with_the_last_checkpoint_whatever_its_coefficients() -> None:
    one = layout("x", [A, ("ids", "I64", (2,))])
    plan = plan_merge((1, 2, 3), (one, one, one), lambda name: np.array([[1.0, 0.0, 0.0]]))
    floats, integers = plan.shards[0].tensors
    assert floats.checkpoints == (0,)
    assert integers.checkpoints == (0, 2)
    assert integers.combinations == ()


def test_too_little_memory_says_how_much() -> None:
    big = layout("x", [("w", "BF16", (1000, 1000))])
    with pytest.raises(OutputError) as caught:
        plan_merge([*range(16)], [big] * 16, lambda name: np.full((1, 16), 1 / 16), budget=Budget(200 * MiB))
    message = (
        "memory: 200 MiB are not enough for 16 checkpoints, 1 target and 2 workers; give at least 245 MiB"
    )
    assert str(caught.value) == message
    plan_merge([*range(16)], [big] * 16, lambda name: np.full((1, 16), 1 / 16), budget=Budget(245 * MiB))


@pytest.mark.slow
def test_too_little_memory_for_many_tensors_names_their_number() -> None:
    many = layout("x", [(f"w{i}", "BF16", (8,)) for i in range(30_000)])
    with pytest.raises(
        OutputError, match="for 2 checkpoints of 30,000 tensors, 1 target and 2 workers; give"
    ):
        plan_merge([0, 1], [many] * 2, lambda name: np.full((1, 2), 0.5), budget=Budget(200 * MiB))


@pytest.mark.parametrize("count", [2, 4, 16, 64])
def test_memory_does_not_grow_with_checkpoints_or_model(count: int) -> None:
    sizes = []
    for rows in (1_000, 1_000_000):
        big = layout("x", [("w", "BF16", (rows, 4096))])
        plan = plan_merge([*range(count)], [big] * count, lambda name: np.full((1, count), 1 / count))
        assert plan.peak_memory <= 512 * MiB
        assert plan.buffers.workers * plan.buffers.unit_bytes + BASELINE < plan.peak_memory
        sizes.append(plan.peak_memory)
    assert sizes[0] == sizes[1]


@st.composite
def model(draw: st.DrawFn) -> list[Spec]:
    shapes = st.lists(st.integers(0, 90), min_size=0, max_size=2).map(tuple)
    dtypes = st.sampled_from(["F32", "BF16", "F16", "F8_E5M2", "I64", "U8"])
    return [(f"t{i}", draw(dtypes), draw(shapes)) for i in range(draw(st.integers(1, 12)))]


@settings(max_examples=150, deadline=None)
@given(st.data(), model(), st.integers(1, 3), st.integers(0, 100_000))
def test_units_cover_every_byte_once_and_fit_the_buffer(
    data: st.DataObject, specs: list[Spec], targets: int, extra: int
) -> None:
    """Also when the checkpoints keep the tensors in different orders, in files whose data start anywhere."""
    first = layout("x", data.draw(st.permutations(specs)), start=data.draw(st.integers(16, 90)))
    last = layout("y", specs)
    rows = np.array([[1.0 - t, float(t)] for t in range(2, 2 + targets)])
    plan = plan_merge((0, 1), (first, last), lambda name: rows)
    (shard,) = plan.shards
    size = unit_minimum(shard.tensors, Room(targets)) + extra
    plan = replace(plan, buffers=replace(plan.buffers, unit_bytes=size))
    tensors = {tensor.name: tensor for tensor in shard.tensors}
    read = 0
    offset = len(shard.header)
    elements = dict.fromkeys((spec[0] for spec in specs), 0)
    units = list(plan.units(shard))
    assert [unit.begins_file for unit in units] == [True] + [False] * (len(units) - 1)
    assert [unit.ends_file for unit in units] == [False] * (len(units) - 1) + [True]
    for unit in units:
        assert unit.offset == offset
        offset += unit.size
        taken = [(r.position, r.position + r.size) for r in unit.reads]
        taken += [(place, place + unit.size) for place in unit.outputs]
        taken.sort()
        assert all(one[1] <= other[0] for one, other in pairwise(taken))
        assert all(start >= 0 and stop <= size for start, stop in taken)
        read += sum(r.size for r in unit.reads)
        written = 0
        for piece in unit.pieces:
            tensor = tensors[piece.tensor]
            assert piece.start == elements[piece.tensor]
            elements[piece.tensor] += piece.count
            for place, info in zip(piece.places, tensor.inputs, strict=True):
                itemsize = DTYPES[info.dtype].itemsize
                assert place % itemsize == 0
                where = info.offset + piece.start * itemsize
                assert unit.origin(place) == (info.file, where)
                assert any(
                    r.file == info.file
                    and r.offset <= where
                    and where + piece.count * itemsize <= r.offset + r.size
                    and place - r.position == where - r.offset
                    for r in unit.reads
                )
            assert all((place + written) % tensor.itemsize == 0 for place in unit.outputs)
            written += piece.count * tensor.itemsize
        assert written == unit.size
    assert offset == shard.size
    assert read == plan.total_bytes_read
    assert elements == {name: int(np.prod(shape)) for name, _, shape in specs}
