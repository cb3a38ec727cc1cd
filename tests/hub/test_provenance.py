from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubextrap.errors import CorruptFile
from hubextrap.hub import model_card
from hubextrap.hub.provenance import (
    ClockRecord,
    InputCheckpoint,
    OutputShard,
    TrustRecord,
    without_private_parts,
)
from hubextrap.hub.provenance_checks import read_provenance

Make = Callable[..., Any]


def test_round_trip_and_fixed_bytes(make_provenance: Make) -> None:
    written = make_provenance().to_bytes()
    assert read_provenance(written) == make_provenance()
    assert make_provenance(parameters={"base_step": 100, "target_step": 400}).to_bytes() == written
    content = json.loads(written)
    assert list(content["coefficients"][1]["coefficients"]) == ["0", "100", "200"]
    assert content["versions"].keys() == {"hubextrap", "numba", "safetensors", "huggingface_hub"}
    assert content["inputs"][1] == {
        "step": 100,
        "repo": "me/run",
        "revision": "step_100",
        "commit": f"{100:040x}",
        "path": "",
        "files": [],
    }


def test_coefficients_come_back_exactly(make_provenance: Make) -> None:
    value = 1.4285714285714286
    rule = make_provenance().coefficients[0].model_copy(update={"coefficients": {0: 1 - value, 200: value}})
    assert read_provenance(make_provenance(coefficients=[rule]).to_bytes()).coefficients == (rule,)


def test_what_a_merge_of_many_tensors_writes_can_be_read(make_provenance: Make) -> None:
    """Coefficients for each of 45,000 tensors of many checkpoints are tens of megabytes."""
    written = make_provenance(recipe="# " + "x" * 17_000_000).to_bytes()
    assert len(read_provenance(written).recipe) > 17_000_000


def test_shards_are_in_the_order_of_their_names(make_provenance: Make) -> None:
    shards = [OutputShard(file=f"model-{n}.safetensors", size=n, sha256=f"{n:064x}") for n in (2, 1)]
    assert [shard.size for shard in make_provenance(shards).shards] == [1, 2]


@pytest.mark.parametrize(
    ("steps", "target", "horizon"),
    [((0, 100, 200), 400, 1.0), ((100, 200), 250, 0.5), ((200,), 400, None), ((0, 200), None, None)],
)
def test_horizon(
    steps: tuple[int, ...],
    target: int | None,
    horizon: float | None,
    make_provenance: Make,
    make_checkpoint: Make,
) -> None:
    provenance = make_provenance(checkpoints=[make_checkpoint(step) for step in steps], target_step=target)
    assert provenance.horizon == horizon
    assert provenance.steps == steps


def test_the_trusted_step_is_written_where_it_is_known_and_checked(make_provenance: Make) -> None:
    assert b"trusted" not in make_provenance().to_bytes()
    provenance = make_provenance(trusted=TrustRecord(horizon=0.5, step=300))
    assert read_provenance(provenance.to_bytes()) == provenance
    assert provenance.trusted_in_words == "step 300"
    for wrong in (
        TrustRecord(horizon=0.5, step=302),
        TrustRecord(horizon=0.25, step=300),
        TrustRecord(horizon=0.5, step=None),
    ):
        with pytest.raises(CorruptFile, match="trusted"):
            read_provenance(make_provenance(trusted=wrong).to_bytes())


def test_a_trusted_step_that_the_clock_never_reaches_is_said_in_full_rate_steps(
    make_provenance: Make,
) -> None:
    clock = ClockRecord(
        name="learning_rate", said="cosine", details={}, times=(0.0, 80.0, 100.0), target_time=110.0
    )
    provenance = make_provenance(clock=clock, trusted=TrustRecord(horizon=0.5, step=None))
    assert read_provenance(provenance.to_bytes()) == provenance
    assert provenance.trusted_in_words == "step 200 + 50 full-rate steps"
    assert "**step 200 + 50 full-rate steps**, horizon 0.5" in model_card(provenance)
    early = make_provenance(clock=clock, trusted=TrustRecord(horizon=0.5, step=199))
    with pytest.raises(CorruptFile, match=r"trusted: step 199 does not lie at horizon 0\.5"):
        read_provenance(early.to_bytes())


def test_a_local_input_gives_its_folders_name_only(make_provenance: Make, make_checkpoint: Make) -> None:
    source = InputCheckpoint.of(make_checkpoint(100, None, "/home/secret/runs/step_100"))
    assert source.model_dump() == {
        "step": 100,
        "repo": None,
        "revision": "local",
        "commit": None,
        "path": "step_100",
        "files": (),
    }
    local = make_provenance(
        checkpoints=[make_checkpoint(0), make_checkpoint(100, None, "/home/secret/runs/step_100")]
    )
    assert b"secret" not in local.to_bytes()
    assert local.repos == ("me/run",)


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("repo: /home/me/runs/grpo", "repo: grpo"),
        ("repo: ~/runs/grpo/", "repo: grpo"),
        ('repo: "/home/me/my runs/grpo 2"', 'repo: "grpo 2"'),
        ("repo: 'C:\\Users\\me\\grpo'", "repo: 'grpo'"),
        ("list: [/a/b, /c/d]", "list: [b, d]"),
        ("repo: file:///home/me/grpo", "repo: grpo"),
        ("repo: https://me:hf_abcdefgh@huggingface.co/me/x", "repo: https://***@huggingface.co/me/x"),
        ("repo: https://user:password1@host/me/x", "repo: https://***@host/me/x"),
        ("# Bearer hf_abcdefghijk", "# Bearer ***"),
        ("token: hf_abcdefghijk", "token: hf_***"),
        ("repo: hf://me/x@step_1", "repo: hf://me/x@step_1"),
        ("steps: {pattern: step_{step}/actor}", "steps: {pattern: step_{step}/actor}"),
        ("# half / of it", "# half / of it"),
        ("repo: me/x", "repo: me/x"),
    ],
)
def test_what_is_published_of_a_recipe(text: str, published: str) -> None:
    assert without_private_parts(text) == published


def test_no_secret_or_path_in_the_file(make_provenance: Make) -> None:
    written = make_provenance(
        parameters={"note": "hf_abcdefghijklmnopqrstuvwxyz", "deep": [{"path": "/home/secret/x"}]},
        recipe="repo: https://u:hf_abcdefghijkl@h/x\nbase: /home/secret/x\n",
    ).to_bytes()
    assert b"abcdefgh" not in written
    assert b"secret" not in written


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "me/x: not valid JSON"),
        (b"\xff\xfe{}", "me/x: not valid JSON"),
        (b"[]", "me/x: the file: Input should be"),
        ({"format": 2}, "me/x: has format 2, this hubextrap reads format 1; upgrade hubextrap"),
        ({"inputs": []}, "me/x: inputs: Tuple should have at least 1 item"),
        ({"stray": 1}, "me/x: stray: Extra inputs are not permitted"),
        (
            {"shards": [{"file": "../../x", "size": 1, "sha256": "a" * 64}]},
            "me/x: shards.0.file: Value error, '../../x' does not lie inside the model's folder",
        ),
        ({"shards": [{"file": "x", "size": 1, "sha256": "a"}]}, "me/x: shards.0.sha256: String should match"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(
    content: bytes | dict[str, Any], said: str, make_provenance: Make
) -> None:
    if isinstance(content, dict):
        content = json.dumps({**json.loads(make_provenance().to_bytes()), **content}).encode()
    with pytest.raises(CorruptFile) as error:
        read_provenance(content, "me/x")
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("file", ["/etc/x", "C:/x", "a\\b", "a/../../b", ""])
def test_a_shard_outside_the_folder_is_refused(file: str, make_provenance: Make) -> None:
    content = json.loads(make_provenance().to_bytes())
    content["shards"][0]["file"] = file
    with pytest.raises(CorruptFile, match=r"shards\.0\.file"):
        read_provenance(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"compared": False}, "compared"),
        ({"read": "part"}, "compared"),
        ({"listed": None}, "compared"),
        ({"listed": "abc"}, "listed"),
        ({"file": "../model.safetensors"}, "file"),
    ],
)
def test_what_is_said_of_an_input_cannot_contradict_itself(
    make_provenance: Make, change: dict[str, object], field: str
) -> None:
    content = json.loads(make_provenance().to_bytes())
    file = {"file": "model.safetensors", "size": 1, "read": "whole", "listed": "a" * 64, "compared": True}
    content["inputs"][1]["files"] = [file]
    del content["digest"]
    assert read_provenance(json.dumps(content).encode()).inputs[1].files[0].compared
    content["inputs"][1]["files"] = [file | change]
    with pytest.raises(CorruptFile, match=rf"inputs\.1\.files\.0\.{field}: "):
        read_provenance(json.dumps(content).encode())
    content["inputs"][1]["files"] = [file, file]
    with pytest.raises(CorruptFile, match=r"inputs\.1\.files: a file is named twice"):
        read_provenance(json.dumps(content).encode())


def test_read_from_a_folder(tmp_path: Path, make_provenance: Make) -> None:
    with pytest.raises(CorruptFile, match=r"hubextrap\.json: cannot be read"):
        read_provenance(tmp_path)
    (tmp_path / "hubextrap.json").write_bytes(make_provenance().to_bytes())
    assert read_provenance(tmp_path) == make_provenance()
