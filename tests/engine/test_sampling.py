"""Sampled weights and the scan that follows: held to plain float64, and to one result however it is read."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Lines
from safetensors.torch import load_file
from scan_runs import STEPS, make_run, scan_folder, weights, write_checkpoint

from hubextrap.engine import sampling
from hubextrap.engine.defaults import MiB
from hubextrap.engine.threads import for_each
from hubextrap.errors import CheckpointMismatch, NonFinite, OutputError, SourceError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.opening import ReadingOptions, Run
from hubextrap.sample_sizes import DEFAULT_SAMPLE
from hubextrap.sampling import sample_size
from hubextrap.scans import Scan
from hubextrap.scans.places import STRETCH, places_of
from hubextrap.statistics.linearity import count_linearity
from hubextrap.statistics.table import GROUPS
from hubextrap.tensors import Patience, remote, transfer
from hubextrap.trajectory import Trajectory, find_trajectory

LARGE, SIZE = "model.layers.0.mlp.up_proj.weight", 512
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (100, 20),
    "model.layers.0.bias": (3,),
    LARGE: (400, 500),
    "model.norm.weight": (1,),
}
BF16 = (torch.bfloat16,)


def sampled(
    what: Trajectory | Path | str, known: Scan | None = None, size: int = SIZE, **reading: Any
) -> Scan:
    trajectory = what if isinstance(what, Trajectory) else find_trajectory(str(what))
    with Run(trajectory, ReadingOptions(**reading)) as run:
        return run.scan_sample(size, known)


def content(scan: Scan, path: Path) -> bytes:
    """The file, which is read back."""
    scan.save(path)
    Scan.load(path)
    return path.read_bytes()


def figures(scan: Scan) -> list[bytes]:
    """All that does not say where the checkpoints lie."""
    assert scan.weights is not None
    assert scan.gram_table.sample is not None
    tables = (scan.gram_table.gram, scan.gram_table.sample.blocks, scan.counts, scan.example_values)
    return [one.tobytes() for one in (*tables, *scan.weights.stored)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("sampled") / "run", BF16, shapes=SHAPES)


@pytest.fixture
def on_hub(cdn_hub: LocalHub, folder: Path, repo_id: str) -> str:
    """The same run as branches of a repo."""
    cdn_hub.create_repo(repo_id)
    for step in STEPS:
        files = {path.name: path for path in (folder / f"step_{step}").iterdir()}
        cdn_hub.commit(repo_id, files, revision=f"step_{step}")
    cdn_hub.requests.clear()
    return repo_id


@pytest.mark.parametrize(
    "dtypes", [(torch.float32,), BF16, (torch.float64, *BF16, torch.float32, torch.float16)], ids=str
)
def test_a_sample_of_all_weights_is_the_exact_scan(tmp_path: Path, dtypes: Sequence[torch.dtype]) -> None:
    folder = make_run(tmp_path / "run", dtypes)
    scan, exact = sampled(folder, size=10**6), scan_folder(folder)
    assert scan.tensors == exact.tensors
    for row, tensor in enumerate(scan.tensors):
        values = weights(folder, tensor).astype(np.float32).astype(np.float64)
        deltas = values - values[0]
        gram = deltas @ deltas.T
        np.testing.assert_allclose(scan.gram_table.gram[row], gram, rtol=0, atol=1e-9 * gram.max())
        np.testing.assert_array_equal(scan.counts[row], count_linearity(STEPS, values.T))
    np.testing.assert_allclose(scan.gram_table.total(), exact.gram_table.total(), rtol=1e-6)
    assert not scan.gram_table.sampling_factors.any()
    content(scan, tmp_path / "scan")


def test_a_sample_holds_the_weights_of_its_places(folder: Path, tmp_path: Path) -> None:
    scan = sampled(folder)
    content(scan, tmp_path / "scan")
    table = scan.gram_table
    assert table.sample is not None
    assert scan.weights is not None
    assert scan.block_counts is not None
    assert scan.sampled == scan.weights.size == SIZE
    np.testing.assert_array_equal(table.gram, table.sample.blocks.sum(axis=1))
    for row, tensor in enumerate(scan.tensors):
        elements = int(table.elements[row])
        places = places_of(tensor, elements, SIZE)
        values = weights(folder, tensor)[:, places.in_tensor()]
        for k in range(len(STEPS)):
            stored = scan.weights.of_tensor(k, row, table.elements.tolist())
            half = torch.frombuffer(bytearray(stored.tobytes()), dtype=torch.bfloat16)
            np.testing.assert_array_equal(half.double().numpy(), values[k])
        for group, part in enumerate(np.split(values, np.cumsum(places.groups)[:-1], axis=1)):
            deltas = part - part[0]
            wanted = deltas @ deltas.T * elements / len(places.inside)
            found = table.sample.blocks[row, group]
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9 * abs(found).max())
            np.testing.assert_array_equal(found, found.T)
            assert not found[0].any()
            np.testing.assert_array_equal(scan.block_counts[row, group], count_linearity(STEPS, part.T))
        assert scan.counts[row].sum() == elements
        first = min(4, elements)
        np.testing.assert_array_equal(scan.example_places[row, :first], places.in_tensor()[:4])
        np.testing.assert_array_equal(scan.example_values[row, :first], values[:, :4].T)


def test_it_comes_near_the_exact_one(folder: Path) -> None:
    exact, scan = scan_folder(folder).gram_table.total(), sampled(folder, size=4096).gram_table.total()
    assert 0 < abs(scan[-1, -1] / exact[-1, -1] - 1) < 0.1


def test_wherever_it_lies_and_however_it_is_read(
    folder: Path, on_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = sampled(folder)
    for how in ({"workers": 1}, {"workers": 5}, {"memory": 700 * MiB}):
        assert figures(sampled(folder, **how)) == figures(there)
    for how in ({}, {"cache": True}):
        assert figures(sampled(on_hub, **how)) == figures(there)
    monkeypatch.setattr(sampling, "GAP", 0)
    assert figures(sampled(on_hub)) == figures(there)


def test_in_whatever_order_checkpoints_come(folder: Path, tmp_path: Path) -> None:
    whole = find_trajectory(str(folder))
    fresh = content(sampled(whole), tmp_path / "fresh")
    for order in list(permutations(range(len(STEPS))))[::50]:
        known, there = None, sorted(order[:2])
        for number in (None, *order[2:]):
            there = sorted({*there, *([] if number is None else [number])})
            known = sampled(replace(whole, checkpoints=tuple(whole.checkpoints[k] for k in there)), known)
        assert known is not None
        assert content(known, tmp_path / "grown") == fresh


def test_figures_of_a_pair_do_not_depend_on_others(folder: Path) -> None:
    whole = find_trajectory(str(folder))
    table = sampled(whole).gram_table
    for count in range(2, len(STEPS)):
        part = sampled(replace(whole, checkpoints=whole.checkpoints[:count])).gram_table
        assert part.gram.tobytes() == np.ascontiguousarray(table.gram[:, :count, :count]).tobytes()


def test_what_is_known_is_of_the_same_bytes_and_the_same_size(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", BF16, shapes=SHAPES)
    before = sampled(folder)
    changed = load_file(folder / "step_30" / "model.safetensors")
    changed[LARGE] = changed[LARGE] + 1
    write_checkpoint(folder / "step_30", changed)
    after = sampled(folder, before)
    assert figures(after) == figures(sampled(folder)) != figures(before)
    assert figures(sampled(folder, before, size=100)) == figures(sampled(folder, size=100))
    assert figures(sampled(folder, scan_folder(folder))) == figures(after)


def test_few_requests_and_one_resolve(cdn_hub: LocalHub, on_hub: str, tmp_path: Path) -> None:
    trajectory = find_trajectory(on_hub)
    cdn_hub.requests.clear()
    known = sampled(replace(trajectory, checkpoints=trajectory.checkpoints[:-1]))
    files = [one.path for one in cdn_hub.requests if "/resolve/" in one.path and ".safetensors" in one.path]
    assert Counter(files) == dict.fromkeys(files, 1)
    assert len(files) == len(STEPS) - 1
    reads = [one for one in cdn_hub.requests if "Signature=" in one.path]
    headers = [one for one in reads if one.headers["Range"].startswith("bytes=0-")]
    assert len(headers) == len(files)
    # four stretches, which lie so close together that some are one; the small tensors beside them come along
    assert len(reads) - len(headers) <= GROUPS * len(files)
    cdn_hub.requests.clear()
    grown = sampled(trajectory, known)
    asked = " ".join(one.path for one in cdn_hub.requests if "/resolve/" in one.path or "/lfs/" in one.path)
    assert trajectory.last.commit is not None
    assert trajectory.last.commit in asked
    assert not any(str(one.commit) in asked for one in trajectory.checkpoints[:-1])
    storage = [one for one in cdn_hub.requests if "Signature=" in one.path]
    assert len(storage) <= 1 + GROUPS
    cdn_hub.requests.clear()
    assert content(sampled(trajectory, grown), tmp_path / "a") == content(grown, tmp_path / "b")
    assert not [one for one in cdn_hub.requests if "Signature=" in one.path]


def test_many_requests_of_all_checkpoints_are_on_their_way_together(
    on_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2 * remote.IN_FLIGHT)
    files: list[object] = []

    def fetch(target: transfer.Target, part: transfer.Part) -> None:
        files.append(target.url)
        if len(files) <= together.parties:
            together.wait(20)
        transfer.fetch(target, part)

    monkeypatch.setattr(sampling, "GAP", 0)
    with Run(find_trajectory(on_hub)) as run:
        assert run.layouts  # headers and addresses are there
        monkeypatch.setattr(remote, "fetch", fetch)
        run.scan_sample(SIZE)
    assert len(set(files[: together.parties])) == len(STEPS)


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", shapes=SHAPES)
    state = load_file(folder / "step_30" / "model.safetensors")
    place = int(places_of(LARGE, 200_000, SIZE).in_tensor()[100])
    state[LARGE].view(-1)[place] = float("nan")
    write_checkpoint(folder / "step_30", state)
    with pytest.raises(NonFinite, match=f"{LARGE}: step 30 .*holds NaN or infinite weights") as caught:
        sampled(folder)
    assert (caught.value.tensor, caught.value.step) == (LARGE, 30)
    state[LARGE].view(-1)[place] = 3e38
    write_checkpoint(folder / "step_30", state)
    with pytest.raises(NonFinite, match=f"{LARGE}: its weights differ so much") as caught:
        sampled(folder)
    assert caught.value.tensor == LARGE


def test_frozen_and_integer_tensors(tmp_path: Path) -> None:
    still, floats = torch.arange(300_000) / 7, torch.arange(12.0)
    for step in (0, 10, 20):
        state = {"a.frozen": still, "c.weight": floats + step}
        write_checkpoint(tmp_path / "run" / f"step_{step}", state | {"d.position_ids": torch.arange(9)})
    scan = sampled(tmp_path / "run")
    content(scan, tmp_path / "scan")
    assert scan.tensors == ("a.frozen", "c.weight")
    assert not scan.gram_table.gram[0].any()
    np.testing.assert_array_equal(scan.gram_table.gram[1], 12 * np.outer((0, 10, 20), (0, 10, 20)))
    assert scan.gram_table.same_weights() == ()


@pytest.mark.parametrize("apart", [False, True])
def test_tied_copies_count_once_and_are_compared(tmp_path: Path, apart: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for step in (0, 10):
        table = torch.randn(500, 400, generator=generator)
        state = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()}
        if apart and step == 0:  # a last checkpoint whose copies differ has not tied them
            place = places_of("model.embed_tokens.weight", 200_000, SIZE).in_tensor()[7]
            state["lm_head.weight"].view(-1)[place] += 1
        write_checkpoint(tmp_path / f"step_{step}", state)
        (tmp_path / f"step_{step}" / "config.json").write_text('{"tie_word_embeddings": true}')
    if apart:
        with pytest.raises(CheckpointMismatch, match=r"step 0 .*lm_head.weight differs from model.embed"):
            sampled(tmp_path)
        return
    scan = sampled(tmp_path)
    assert scan.tensors == ("model.embed_tokens.weight",)
    assert figures(sampled(tmp_path, scan)) == figures(scan)


TIED = '{"tie_word_embeddings": true}'


def tied_run(folder: Path, stored: Sequence[str]) -> Trajectory:
    """Checkpoints of a tied table, each under the names it is given: of the input, of the output, both."""
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate(stored):
        table = torch.randn(300, 200, generator=generator)
        state = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()}
        kept = {name: one for name, one in state.items() if names in ("both", name.split(".")[-2])}
        place = folder / f"step_{10 * number}"
        write_checkpoint(place, {**kept, "model.norm.weight": torch.randn(5, generator=generator)})
        (place / "config.json").write_text(TIED)
    return find_trajectory(str(folder))


@pytest.mark.parametrize(
    "stored", [("both",) * 4, ("embed_tokens", "lm_head", "both", "lm_head")], ids=["alike", "mixed"]
)
def test_tied_copies_are_one_tensor_in_whatever_order_checkpoints_come(
    tmp_path: Path, stored: Sequence[str]
) -> None:
    trajectory = tied_run(tmp_path / "run", stored)
    whole = content(sampled(trajectory), tmp_path / "whole")
    for first in (
        pair for count in (2, 3) for pair in permutations(range(4), count) if [*pair] == sorted(pair)
    ):
        known = sampled(replace(trajectory, checkpoints=tuple(trajectory.checkpoints[k] for k in first)))
        assert content(sampled(trajectory, known), tmp_path / "grown") == whole


def test_copies_that_turn_out_to_be_tied_are_compared_in_checkpoints_that_are_known(tmp_path: Path) -> None:
    trajectory = tied_run(tmp_path / "run", ("both",) * 3)
    for step, config in ((0, "{}"), (10, "{}"), (20, TIED)):
        (tmp_path / f"run/step_{step}/config.json").write_text(config)
    state = load_file(tmp_path / "run/step_10/model.safetensors")
    write_checkpoint(tmp_path / "run/step_10", state | {"lm_head.weight": state["lm_head.weight"] + 1})
    known = sampled(replace(trajectory, checkpoints=trajectory.checkpoints[:2]))
    assert len(known.tensors) == 3
    with pytest.raises(CheckpointMismatch, match=r"step 10 .*lm_head.weight differs from model.embed"):
        sampled(trajectory, known)


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (torch.ones(30, 21), r"a.weight has shape \[30, 20\] in step 0 .*, \[30, 21\] in step 20"),
        (torch.ones(30, 20, dtype=torch.int32), r"a.weight is F32 in step 0 .*, I32 in step 20"),
    ],
    ids=["shape", "integers"],
)
def test_what_does_not_fit_to_known_checkpoints_is_told_by_their_headers(
    tmp_path: Path, new: torch.Tensor, said: str
) -> None:
    for step, table in ((0, torch.zeros(30, 20)), (10, torch.ones(30, 20)), (20, new)):
        write_checkpoint(
            tmp_path / f"step_{step}", {"a.weight": table, "b.weight": torch.full((5,), 1.0 + step)}
        )
    trajectory = find_trajectory(str(tmp_path))
    known = sampled(replace(trajectory, checkpoints=trajectory.checkpoints[:2]))
    with pytest.raises(CheckpointMismatch, match=said):
        sampled(trajectory, known)


@pytest.mark.parametrize("afterwards", [0, 64 * MiB])
def test_memory_that_is_too_small_says_the_need(folder: Path, afterwards: int) -> None:
    """What is done with the sample afterwards, such as a backtest, included."""

    def within(memory: int) -> Scan:
        with Run(find_trajectory(str(folder)), ReadingOptions(memory=memory)) as run:
            return run.scan_sample(SIZE, afterwards=afterwards)

    with pytest.raises(
        OutputError, match=r"memory: 100 MiB are not enough .*give at least \d+ MiB"
    ) as caught:
        within(100 * MiB)
    need = int(str(caught.value).split("at least ")[1].split(" MiB")[0])
    assert figures(within(need * MiB)) == figures(sampled(folder))
    with pytest.raises(OutputError):
        within((need - 1) * MiB)


def test_what_cannot_be_read_names_the_step_and_the_tensor(
    cdn_hub: LocalHub, on_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "Patience", lambda: Patience(attempts=2, first_wait=0.01))
    with Run(find_trajectory(on_hub)) as run:
        assert run.layouts
        cdn_hub.faults.add(Fault("Signature=", status=403, count=10**6))
        with pytest.raises(
            SourceError, match=r"server answered 403.* \(step \d+, a sample of tensor model\."
        ):
            run.scan_sample(SIZE)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("hubextrap_")]


def test_large_runs_on_the_hub_are_sampled(folder: Path, on_hub: str) -> None:
    local, remote = find_trajectory(str(folder)), find_trajectory(on_hub)
    large = replace(remote, checkpoints=tuple(replace(one, size=3 * 10**8) for one in remote.checkpoints))
    for trajectory, choice, how, wanted in (
        (large, "auto", {}, DEFAULT_SAMPLE),
        (large, "auto", {"cache": True}, None),
        (large, "exact", {}, None),
        (large, 100, {}, 100),
        (remote, "auto", {}, None),
        (local, "auto", {}, None),
        (local, 100, {}, 100),
    ):
        with Run(trajectory, ReadingOptions(**how)) as run:  # type: ignore[arg-type]
            assert run.sample_size(choice) == wanted  # type: ignore[arg-type]
    unknown = replace(large, checkpoints=tuple(replace(one, size=None) for one in large.checkpoints))
    asked = []
    with Run(unknown) as run:
        assert sample_size("auto", unknown, lambda k: asked.append(k) or run.sources[k]) is None
    assert asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_error_ends_it(workers: int) -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 5:
            raise SourceError("that is it")
        time.sleep(0.001)  # a thread that is held up before it raises is not overtaken by all of them

    with pytest.raises(SourceError, match="that is it"):
        for_each(workers, work, range(10**5))
    assert len(begun) < 10**5
    done: list[int] = []
    for_each(workers, done.append, range(100))
    assert sorted(done) == list(range(100))
    for_each(workers, done.append, [])
    assert len(done) == 100


def test_stretches_are_read_and_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "GAP", -1)
    folder, lines = make_run(tmp_path / "run", BF16, shapes={"w.weight": (1500, 1000)}), Lines()
    with Run(find_trajectory(str(folder)), progress=lines) as run:
        run.scan_sample(4096)
    read, kept = (2 * len(STEPS) * count / 1e6 for count in (GROUPS * STRETCH, 4096))
    told = f"{read:,.1f} of 15.0 MB in 20 reads of 5 checkpoints; a scan's file of all 5 keeps {kept:,.1f} MB"
    assert lines.said == [f"a sample of 4,096 weights per tensor: {told}"]


def test_a_sample_that_reads_all_says_that_it_saves_nothing(tmp_path: Path) -> None:
    folder, lines = make_run(tmp_path / "run", BF16, shapes={"w.weight": (64, 64)}), Lines()
    with Run(find_trajectory(str(folder)), progress=lines) as run:
        run.scan_sample(1024)
    (told,) = lines.said
    assert "in 5 reads of 5 checkpoints; to read all weights (--exact) would cost no more; a scan" in told
