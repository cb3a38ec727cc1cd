"""Damaged scans, journals, provenance, states, manifests: refused in our words, or the same result as before.

Each kind is tried 1,000 times by a fixed seed. The same result is compared, not assumed.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from mutations import damaged_bytes, damaged_json, damaged_tables, mutations

from hubextrap.claims import DIGEST, sealed
from hubextrap.errors import CorruptFile, HubExtrapError
from hubextrap.hub import CoefficientRule, OutputShard, Provenance, build_provenance, read_provenance
from hubextrap.logits import Mixture
from hubextrap.logits.manifest import MANIFEST_FILE, read_manifest, write_manifest
from hubextrap.regrounding.history import Decision, read_history, rewrite_history
from hubextrap.regrounding.jumps import Clocks, Window
from hubextrap.regrounding.resuming import Saved, load_checkpoint, save_checkpoint
from hubextrap.regrounding.ring import Layout, SnapshotRing
from hubextrap.regrounding.state import RunState, StartModel, load_state, save_state
from hubextrap.scans import LogProbs, LogProbSource, ReferenceSample, Scan, ScannedCheckpoint
from hubextrap.scans.scan import EXAMPLES
from hubextrap.scans.tables import tables_digest
from hubextrap.scans.tensor_scan import ScanJournal, TensorScan
from hubextrap.statistics import random_walk
from hubextrap.statistics.backtesting import backtest_table
from hubextrap.statistics.linearity import BINS, UNMOVED
from hubextrap.statistics.table import GramTable
from hubextrap.tensors import FinishedShard, Journal
from hubextrap.trajectory import Checkpoint

COUNT = 1_000
STEPS = (0, 10, 20, 40, 80)


T = TypeVar("T")


def outcome(call: Callable[[], T], *said: str) -> T | None:
    """What the call gives; None where it refuses in one of our errors, briefly, that says one of ``said``."""
    try:
        return call()
    except HubExtrapError as error:
        message = str(error)
    assert any(words in message for words in said), message
    assert len(message) < 1_000
    return None


@pytest.fixture(autouse=True)
def _warnings_are_failures() -> Any:
    """numpy says in a warning what it should not have been given."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def make_scan() -> Scan:
    generator = np.random.default_rng(0)
    names, elements = ("model.embed.weight", "model.norm.weight", "model.still.bias"), np.array([60, 7, 3])
    deltas = [generator.normal(size=(len(STEPS), count)).cumsum(axis=0) for count in elements]
    deltas[2][:] = 0
    gram = np.array([(d - d[0]) @ (d - d[0]).T for d in deltas])
    counts = np.zeros((3, BINS + 3), np.int64)
    counts[0, :60], counts[1, 100], counts[2, UNMOVED] = 1, 7, 3
    places = np.array([[0, 7, 21, 59], [0, 1, 2, 6], [0, 1, 2, -1]])
    values = generator.normal(size=(3, EXAMPLES, len(STEPS))).astype(np.float32)
    values[2, 3] = np.nan
    checkpoints = tuple(
        ScannedCheckpoint(
            step, f"me/run@step_{step}", "me/run", f"step_{step}", f"{step:040x}", "", "BF16", "p"
        )
        for step in STEPS
    )
    source = LogProbSource("p.jsonl", "0" * 64, None, None, False)
    logprobs = LogProbs(
        STEPS,
        source,
        ("a", "ö"),
        np.array([0, 1]),
        np.array([7, 9]),
        np.linspace(-3, -0.1, 2 * len(STEPS), dtype=np.float32).reshape(2, -1),
    )
    return Scan(
        GramTable(STEPS, names, elements, gram),
        "me/run@step_{step}",
        checkpoints,
        counts,
        random_walk(STEPS, 1_000),
        places,
        values,
        ReferenceSample(0.5, counts // 2),
        logprobs,
    )


def answer(scan: Scan) -> str:
    """What a scan says: its summary, and the backtest, to the last bit."""
    backtest = backtest_table(scan.gram_table, dtypes=scan.dtypes)
    return json.dumps(scan.as_dict(), sort_keys=True) + json.dumps(
        asdict(backtest), default=str, sort_keys=True
    )


def loaded(path: Path, content: bytes) -> Scan | None:
    """The scan; None where it is refused, and then in words that help."""
    path.write_bytes(content)
    return outcome(
        lambda: Scan.load(path), "remove it, then scan again", "make one with", "; scan again, or use"
    )


@pytest.mark.slow
def test_scans(tmp_path: Path) -> None:
    scan, path = make_scan(), tmp_path / "scan"
    scan.save(path)
    good, right = path.read_bytes(), answer(scan)
    same = 0
    for content in mutations(
        1,
        COUNT,
        lambda dice: damaged_bytes(dice, good),
        lambda dice: damaged_tables(dice, good, lambda metadata, tables: metadata),
    ):
        if (found := loaded(path, content)) is not None:
            assert answer(found) == right
            found.save(path)  # whatever else is asked of it, a report for one, is a function of this
            assert path.read_bytes() == good
            same += 1
    assert same < COUNT / 10  # most damage is seen


def with_digest(metadata: dict[str, str], tables: dict[str, Any]) -> dict[str, str]:
    stated = {key: value for key, value in metadata.items() if key != DIGEST}
    return stated | {DIGEST: tables_digest(stated, tables)}


def without_digest(metadata: dict[str, str], tables: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key != DIGEST}


@pytest.mark.slow
@pytest.mark.parametrize("count", [COUNT // 5, pytest.param(COUNT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("digest", [with_digest, without_digest])
def test_scans_that_were_made_up(tmp_path: Path, digest: Any, count: int) -> None:
    """Whoever states a digest that fits, or none, is believed only what can be, and it breaks nothing."""
    path = tmp_path / "scan"
    make_scan().save(path)
    good = path.read_bytes()
    believed = 0
    for content in mutations(2, count, lambda dice: damaged_tables(dice, good, digest)):
        if (found := loaded(path, content)) is not None:
            believed += 1
            gram = found.gram_table.gram
            assert np.isfinite(gram).all()
            assert (gram[:, 0] == 0).all()
            assert (
                np.diagonal(gram, axis1=1, axis2=2) >= -1e-4 * np.abs(gram).max(axis=(1, 2))[:, None]
            ).all()
            outcome(lambda found=found: answer(found), "")
    assert 0 < believed < count / 2


def edited(scan: Scan, change: Callable[[Any], Any]) -> Scan:
    return replace(scan, gram_table=replace(scan.gram_table, gram=change(scan.gram_table.gram.copy())))


def at(place: tuple[int, ...], value: float) -> Callable[[Any], Any]:
    def change(gram: Any) -> Any:
        gram[place] = value
        return gram

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (at((0, 1, 1), np.nan), "gram: is not finite, of tensor 'model.embed.weight'"),
        (at((1, 2, 2), np.inf), "gram: is not finite, of tensor 'model.norm.weight'"),
        (at((0, 2, 2), -1.0), "gram: is not positive semi-definite, of tensor 'model.embed.weight'"),
        (at((0, 1, 2), 1e3), "gram: is not symmetric, of tensor 'model.embed.weight'"),
        (at((0, 0, 0), 1.0), "gram: is not 0 at the base, of tensor 'model.embed.weight'"),
        (at((0, 3, 0), 1.0), "gram: is not 0 at the base, of tensor 'model.embed.weight'"),
        (at((2, 1, 1), 1.0), "gram: is not 0 although no weight moved, of tensor 'model.still.bias'"),
        (at((0, 4, 4), 1e300), "gram: is larger than its weights can have moved"),
        (lambda gram: -gram, "gram: is not positive semi-definite"),
    ],
)
def test_a_gram_matrix_that_cannot_be(change: Callable[[Any], Any], said: str, tmp_path: Path) -> None:
    edited(make_scan(), change).save(tmp_path / "scan")  # so that its digest fits
    with pytest.raises(CorruptFile) as error:
        Scan.load(tmp_path / "scan")
    assert f"{tmp_path / 'scan'}: is a damaged scan ({said}" in str(error.value)
    assert str(error.value).endswith("remove it, then scan again")


def make_provenance() -> Provenance:
    return build_provenance(
        checkpoints=[Checkpoint(step, "me/run", f"step_{step}", f"{step:040x}", "") for step in STEPS[:3]],
        merge_method="two_point",
        parameters={"base_step": 10},
        target_step=40,
        coefficients=[
            CoefficientRule(match="*norm*", method="persistence", coefficients={20: 1.0}),
            CoefficientRule(match="*", method="two_point", coefficients={0: 0.0, 10: -2.0, 20: 3.0}),
        ],
        shards=[OutputShard(file="model.safetensors", size=3, sha256="a" * 64)],
        dtype="float32",
        out_dtype="bfloat16",
        recipe="trajectory:\n  repo: me/run\n",
        expected_relative_error=0.5,
        files={"config.json": b"{}", "tokenizer.json": b"[]"},
    )


def test_provenance() -> None:
    right = make_provenance()
    good = right.to_bytes()
    for content in mutations(
        3, COUNT, lambda dice: damaged_bytes(dice, good), lambda dice: damaged_json(dice, good)
    ):
        found = outcome(
            lambda c=content: read_provenance(c, "me/x"), "merge the model again", "upgrade hubextrap"
        )
        assert found in (None, right)


def test_provenance_that_was_made_up() -> None:
    """Without the digest, or with one that fits: what is believed can be true."""
    content = json.loads(make_provenance().to_bytes())
    del content[DIGEST]
    dice = random.Random(4)
    for number in range(COUNT):
        text = damaged_json(dice, json.dumps(content).encode())
        if number % 2:
            try:
                text = json.dumps(sealed(json.loads(text))).encode()
            except (ValueError, RecursionError, TypeError):
                continue
        found = outcome(lambda t=text: read_provenance(t), "merge the model again", "upgrade hubextrap")
        if found is None:
            continue
        assert list(found.steps) == sorted(set(found.steps))
        for rule in found.coefficients:
            assert set(rule.coefficients) <= set(found.steps)
            assert abs(sum(rule.coefficients.values()) - 1) < 1e-5


def damaged_line(dice: random.Random, good: bytes) -> bytes:
    """A text of JSON lines in which one is damaged."""
    lines = good.splitlines(keepends=True)
    number = dice.randrange(len(lines))
    lines[number] = damaged_json(dice, lines[number])
    return b"".join(lines)


@pytest.mark.slow
def test_journals(tmp_path: Path) -> None:
    """What is believed of a damaged journal was in it; the rest is made again."""
    path, made = tmp_path / "journal", {"the recipe": "a", "the checkpoint of step 0": "b"}
    journal = Journal(path, made)
    shards = [FinishedShard(f"model-{n}.safetensors", 10 + n, f"{n:064x}") for n in range(4)]
    for number, shard in enumerate(shards):
        journal.identical = number < 2
        journal.record(shard)
    journal.close()
    good = path.read_bytes()
    kept = 0
    for content in mutations(
        5, COUNT, lambda dice: damaged_bytes(dice, good), lambda dice: damaged_line(dice, good)
    ):
        path.write_bytes(content)
        journal = Journal(path, made)
        found = list(journal.finished.values())
        assert found == shards[: len(found)]
        assert journal.identical == (len(found) < 3)
        kept += len(found)
        journal.close()
    assert kept > COUNT / 2


def test_scan_journals(tmp_path: Path) -> None:
    path, made = tmp_path / "journal", {"the checkpoint of step 0": "b"}
    scan = make_scan()
    journal = ScanJournal(path, made)
    tensors = []
    for n, name in enumerate(scan.tensors):
        tensors.append(
            TensorScan(
                name,
                int(scan.gram_table.elements[n]),
                scan.gram_table.gram[n],
                scan.counts[n],
                scan.counts[n],
                scan.example_places[n],
                scan.example_values[n],
            )
        )
        journal.record(tensors[-1])
    journal.close()
    good = path.read_bytes()
    for content in mutations(
        6, COUNT, lambda dice: damaged_bytes(dice, good), lambda dice: damaged_line(dice, good)
    ):
        path.write_bytes(content)
        opened = outcome(lambda: ScanJournal(path, made), "exists, but a stopped scan did not leave it")
        if opened is None:  # not even its first line is, so it may be somebody else's
            assert path.read_bytes() == content
            continue
        with closing(opened) as journal:
            found = list(journal.finished.values())
            for one, right in zip(found, tensors, strict=False):
                assert (one.name, one.elements) == (right.name, right.elements)
                for field in ("gram", "counts", "sample_counts", "example_places", "example_values"):
                    np.testing.assert_array_equal(getattr(one, field), getattr(right, field))


JUMP = Decision(20, 80, "two_point", 60, 60, "jumped", "it is better", (0, 20), {"*": (-3.0, 4.0)}, 1 / 3)
SKIP = Decision(40, 100, "calibrated", 60, 0, "skipped", "too little", (0, 20, 80, 100), None)


def both(good: bytes) -> tuple[Callable[[random.Random], bytes], Callable[[random.Random], bytes]]:
    return (lambda dice: damaged_bytes(dice, good), lambda dice: damaged_json(dice, good))


@pytest.mark.slow
def test_histories(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    rewrite_history(path, [JUMP, SKIP])
    good = path.read_bytes()
    first, second = good.splitlines(keepends=True)
    for content in mutations(
        7, COUNT, lambda dice: damaged_bytes(dice, good), lambda dice: first + damaged_json(dice, second)
    ):
        path.write_bytes(content)
        found = outcome(lambda: read_history(path), f"{path}, line ")
        if found is None:
            continue
        assert found == [JUMP, SKIP][: len(found)]  # a last line without its end was never written
        assert len(found) >= content.count(b"\n")


@pytest.mark.slow
def test_states_of_runs(tmp_path: Path) -> None:
    right = RunState(
        recipe={"reground.steps": 20},
        start=StartModel(reference="me/x", folder="start"),
        size=10,
        round=2,
        clocks=Clocks(20, 60),
        n=60,
        model="round-001/extrapolated",
        windows=(Window(0, 20), Window(80, 100)),
        snapshots={0: "start", 20: "round-001/checkpoint"},
        weights={"model.safetensors": "a" * 64},
        decision=SKIP,
        decisions=(JUMP,),
    )
    save_state(tmp_path, right)
    assert load_state(tmp_path) == right
    for content in mutations(8, COUNT, *both((tmp_path / "state.json").read_bytes())):
        (tmp_path / "state.json").write_bytes(content)
        assert outcome(lambda: load_state(tmp_path), "cannot be read as the state of a run") in (None, right)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["state.json", "rank-0/step-20.safetensors"])
def test_checkpoints_of_the_callback(tmp_path: Path, file: str) -> None:
    layouts = {"w": Layout("F32", 3), "v": Layout("BF16", 5)}
    tensors = {"w": torch.arange(3.0), "v": torch.arange(5).to(torch.bfloat16)}
    ring = SnapshotRing(layouts)
    for step in (0, 20):
        ring.put(step, tensors)
    right = Saved(Clocks(20, 0), 20, 60, (Window(0, 20),))
    save_checkpoint(tmp_path, right, [JUMP], {"window": 20}, ring, False, True)
    path = tmp_path / "reground" / file
    good = path.read_bytes()
    kinds = both(good) if file == "state.json" else (lambda dice: damaged_bytes(dice, good),)
    for content in mutations(9, COUNT, *kinds):
        path.write_bytes(content)
        again = SnapshotRing(layouts)
        found = outcome(
            lambda again=again: load_checkpoint(tmp_path / "reground", {"window": 20}, again, False),
            str(tmp_path),
        )
        if found is None:
            continue
        assert found == (right, [JUMP])
        assert all(torch.equal(again.read(step, name), tensors[name]) for step in (0, 20) for name in layouts)


@pytest.mark.slow
def test_manifests_of_logits(tmp_path: Path) -> None:
    checkpoints = [Checkpoint(step, "me/run", f"step_{step}", f"{step:040x}", "") for step in (0, 20)]
    right = Mixture.of(checkpoints, [-0.5, 1.5], 30)
    write_manifest(right, tmp_path)
    path = tmp_path / MANIFEST_FILE
    for content in mutations(10, COUNT, *both(path.read_bytes())):
        path.write_bytes(content)
        assert outcome(lambda: read_manifest(str(tmp_path)), MANIFEST_FILE) in (None, right)
