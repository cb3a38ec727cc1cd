"""The scan's file, its journal, and the command: resumed, refused, read back, and the same from a Hub."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Lines
from safetensors import safe_open
from scan_runs import make_run, scan_folder, write_checkpoint
from typer.testing import CliRunner

from hubextrap import api
from hubextrap.cli.app import app
from hubextrap.errors import CorruptFile, NonFinite, OutputError, RecipeError, ReferenceNotFound
from hubextrap.localhub import LocalHub
from hubextrap.logits import LogProbRequest
from hubextrap.scans import LogProbs, LogProbSource, Scan, module_kind
from hubextrap.scans.tables import write_tables
from hubextrap.scans.tensor_scan import ScanJournal, TensorScan
from hubextrap.trajectory import find_trajectory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def with_logprobs(scan: Scan) -> Scan:
    values = np.linspace(-3, -0.1, 2 * len(scan.steps), dtype=np.float32).reshape(2, -1)
    source = LogProbSource("p.jsonl", "00", None, None, False)
    responses, tokens = np.array([0, 1]), np.array([7, 9])
    return replace(scan, logprobs=LogProbs(scan.steps, source, ("a", "ö"), responses, tokens, values))


def test_what_is_saved_is_read_back(run: Path, tmp_path: Path) -> None:
    scan = with_logprobs(scan_folder(run, reference_share=0.1))
    scan.save(tmp_path / "scan")
    again = Scan.load(tmp_path / "scan")
    assert again.as_dict() == scan.as_dict()
    assert again.checkpoints == scan.checkpoints
    np.testing.assert_array_equal(again.gram_table.gram, scan.gram_table.gram)
    assert again.logprobs is not None
    assert again.logprobs.texts == ("a", "ö")
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "scan").read_bytes()
    with safe_open(tmp_path / "scan", "np") as file:  # any safetensors reader takes it
        assert file.metadata()["format"] == "hubextrap-scan"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "run", "scan"]


def edited(path: Path, edit: Any) -> Path:
    """The file with its tables and its metadata changed."""
    with safe_open(path, "np") as file:
        tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    described = json.loads(metadata["scan"])
    edit(tables, metadata, described)
    write_tables(
        path, tables, {**metadata, "scan": json.dumps(described)} if "scan" in metadata else metadata
    )
    return path


EDITS = {
    "no scan": (lambda t, m, d: m.clear(), "not a scan; make one with"),
    "version": (lambda t, m, d: m.update(version="2"), "format version 2"),
    "table missing": (
        lambda t, m, d: t.pop("counts"),
        "table counts is missing",
    ),
    "table added": (lambda t, m, d: t.update(more=t["counts"]), "unknown table more"),
    "shape": (lambda t, m, d: t.update(gram=t["gram"][:, 1:]), "table gram is float64"),
    "dtype": (lambda t, m, d: t.update(elements=t["elements"] * 1.0), "table elements is float64"),
    "steps": (lambda t, m, d: d["checkpoints"][0].update(step=99), "do not increase"),
    "field": (lambda t, m, d: d["checkpoints"][0].pop("dtype"), "damaged scan"),
    "counts": (
        lambda t, m, d: t.update(counts=t["counts"] + 1),
        "counts: does not add up to elements, of tensor 'model",
    ),
    "nan": (lambda t, m, d: t.update(gram=t["gram"] * np.nan), "gram: is not finite, of tensor"),
}


@pytest.mark.parametrize("name", EDITS)
def test_files_that_are_no_good(run: Path, tmp_path: Path, name: str) -> None:
    scan_folder(run).save(tmp_path / "scan")
    edit, message = EDITS[name]
    with pytest.raises(CorruptFile, match=message) as caught:
        Scan.load(edited(tmp_path / "scan", edit))
    assert str(caught.value).startswith(f"{tmp_path / 'scan'}: ")


def test_files_that_are_none(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ReferenceNotFound, match="no such file; make it with `hubextrap scan`"):
        Scan.load(tmp_path / "absent")
    scan_folder(run).save(tmp_path / "scan")
    content = (tmp_path / "scan").read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "scan").write_bytes(content[:size])
        with pytest.raises(CorruptFile):
            Scan.load(tmp_path / "scan")
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        scan_folder(run).save(tmp_path / "nowhere" / "scan")


class Stopped(Exception):
    """What ends a scan in the middle."""


class StopAfter(Lines):
    """Progress that ends the scan once so many bytes have been read."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def stage(self, label: str, total: int | None, unit: str = "B") -> Any:
        return nullcontext(self) if label == "scan" else super().stage(label, total, unit)

    def advance(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise Stopped


def many_tensors(folder: Path) -> Path:
    return make_run(folder, shapes={f"layer.{number:02}.weight": (50_000,) for number in range(12)})


def stop_in_the_middle(folder: Path, out: Path) -> None:
    settings = api.ReadingOptions(workers=1, memory=434 * 2**20)  # jobs of a few tensors
    with pytest.raises(Stopped):
        api.scan(find_trajectory(str(folder)), out=out, settings=settings, progress=StopAfter(8_000_000))
    assert out.with_name(f".{out.name}.partial").exists()
    assert not out.exists()


def test_a_scan_that_was_stopped_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    folder, out = many_tensors(tmp_path / "run"), tmp_path / "scan"
    api.scan(find_trajectory(str(folder)), out=tmp_path / "whole")
    stop_in_the_middle(folder, out)
    with out.with_name(".scan.partial").open("ab") as file:
        file.write(b'{"tensor": "cut sho')  # as a kill would leave it
    lines = Lines()
    api.scan(find_trajectory(str(folder)), out=out, progress=lines)
    assert any("scan: going on after" in line for line in lines.said)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "scan", "whole"]


def test_changed_inputs_start_over_and_it_is_said(tmp_path: Path) -> None:
    folder, out = many_tensors(tmp_path / "run"), tmp_path / "scan"
    stop_in_the_middle(folder, out)
    state = {f"layer.{number:02}.weight": torch.ones(50_000) for number in range(12)}
    write_checkpoint(folder / "step_30", state)
    lines = Lines()
    api.scan(find_trajectory(str(folder)), out=out, progress=lines)
    message = f"{out}: starting over, as the checkpoint of step 30 changed since the scan that was stopped"
    assert message in lines.said
    fresh = scan_folder(folder)
    np.testing.assert_array_equal(Scan.load(out).gram_table.gram, fresh.gram_table.gram)


def test_what_is_wrong_with_a_checkpoint_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = many_tensors(tmp_path / "run")
    state = {f"layer.{number:02}.weight": torch.ones(50_000) for number in range(12)}
    state["layer.11.weight"][7] = torch.nan
    write_checkpoint(folder / "step_30", state)
    with pytest.raises(NonFinite):
        api.scan(find_trajectory(str(folder)), out=tmp_path / "scan")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_one_scan_a_file(tmp_path: Path) -> None:
    journal = ScanJournal(tmp_path / "partial", {"it": "a"})
    journal.record(TensorScan.empty("w", 0, 2, 4))
    with pytest.raises(OutputError, match="another scan is writing it; wait for it to end"):
        ScanJournal(tmp_path / "partial", {"it": "a"})
    journal.close()
    again = ScanJournal(tmp_path / "partial", {"it": "a"})
    assert list(again.finished) == ["w"]
    again.close()
    other = ScanJournal(tmp_path / "partial", {"it": "b"})
    assert (other.finished, other.changed) == ({}, ("it",))
    other.remove()
    assert not (tmp_path / "partial").exists()


def test_a_scan_that_is_there_is_used_and_one_of_other_checkpoints_is_kept(run: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "scan", Lines()
    first = api.scan(find_trajectory(str(run)), out=out)
    before = out.read_bytes()
    again = api.scan(find_trajectory(str(run)), out=out, progress=lines)
    assert f"{out}: holds a scan of these checkpoints already" in lines.said
    assert again.as_dict() == first.as_dict()
    assert api.scan(find_trajectory(str(run)), out=out, reference_share=0.5).reference is not None
    assert Scan.load(out).reference is not None
    out.write_bytes(before)
    with pytest.raises(OutputError, match="step 70 differs"):
        api.scan(find_trajectory(str(run), max_step=40), out=out)
    os.utime(next((run / "step_40").glob("*.safetensors")), (1, 1))
    with pytest.raises(OutputError, match="step 40 differs"):
        api.scan(find_trajectory(str(run)), out=out)
    assert out.read_bytes() == before
    out.write_text("a letter to my grandmother")
    with pytest.raises(CorruptFile):
        api.scan(find_trajectory(str(run)), out=out)
    assert out.read_text() == "a letter to my grandmother"
    with pytest.raises(RecipeError, match=r"--reference-share 1\.5: has to be a share"):
        api.scan(find_trajectory(str(run)), reference_share=1.5)


def test_a_rescan_loses_nothing(run: Path, tmp_path: Path) -> None:
    out, trajectory = tmp_path / "scan", find_trajectory(str(run))
    with_logprobs(api.scan(trajectory, out=out)).save(out)
    before = Scan.load(out)
    found = api.scan(trajectory, out=out, reference_share=0.5)
    assert found.reference is not None
    assert found.logprobs is not None
    after = Scan.load(out)
    assert (
        after.as_dict() == found.as_dict() == before.as_dict() | {"reference": after.as_dict()["reference"]}
    )
    assert after.logprobs is not None
    assert before.logprobs is not None
    np.testing.assert_array_equal(after.logprobs.values, before.logprobs.values)
    assert api.scan(trajectory, out=out).as_dict() == after.as_dict()
    assert api.scan(trajectory, out=out, reference_share=0.5).as_dict() == after.as_dict()


def test_what_a_rescan_would_lose_is_kept(run: Path, tmp_path: Path) -> None:
    out, trajectory = tmp_path / "scan", find_trajectory(str(run))
    with_logprobs(api.scan(trajectory, out=out, reference_share=0.5)).save(out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match=r"a sample of 0\.5 already"):
        api.scan(trajectory, out=out, reference_share=0.25)
    (tmp_path / "p.jsonl").write_text('{"prompt": "1", "response": "2"}\n')
    with pytest.raises(OutputError, match="of other responses already"):
        api.scan(trajectory, out=out, logprobs=LogProbRequest(tmp_path / "p.jsonl"))
    assert out.read_bytes() == before


def test_a_hub_gives_the_same_figures(hub: LocalHub, repo_id: str, run: Path, tmp_path: Path) -> None:
    hub.create_repo(repo_id)
    commits = {}
    for folder in run.iterdir():
        files: dict[str, bytes | Path] = {
            "config.json": b"{}",
            "model.safetensors": folder / "model.safetensors",
        }
        commits[folder.name] = hub.commit(repo_id, files, revision=folder.name)
    remote = api.scan(find_trajectory(repo_id), out=tmp_path / "scan")
    local = scan_folder(run)
    np.testing.assert_array_equal(remote.gram_table.gram, local.gram_table.gram)
    np.testing.assert_array_equal(remote.counts, local.counts)
    assert [checkpoint.commit for checkpoint in remote.checkpoints] == [
        commits[f"step_{step}"] for step in remote.steps
    ]


def test_module_kinds() -> None:
    kinds = {
        "model.layers.3.self_attn.q_proj.weight": "q_proj",
        "model.layers.3.self_attn.q_proj.bias": "q_proj.bias",
        "model.layers.3.mlp.experts.17.up_proj.weight": "up_proj",
        "lm_head.weight": "lm_head",
        "weight": "weight",
        "transformer.h.0.attn.A_log": "attn.A_log",
    }
    assert {name: module_kind(name) for name in kinds} == kinds


def test_the_command(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan"
    arguments = ["scan", str(run), "--out", str(out), "--reference-share", "0.1", "--memory", "1GiB", "-q"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert lines[0][1:] == ["5", "checkpoints,", "steps", "0", "to", "70"]
    assert ["q_proj", "1", "153,600"] in [line[:3] for line in lines]
    assert ["a", "random", "walk"] in [line[:3] for line in lines]
    assert result.output.splitlines()[-1] == f"saved in {out}"
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(as_json.stdout)
    assert found["file"] == str(out)
    assert found["kinds"][0]["kind"] == "embed_tokens"
    assert found["elements"] == 300 * 17 + 256 * 600 + 3 + 1
    assert found["reference"]["fraction"] == 0.1


def test_the_command_takes_a_recipe(run: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"trajectory:\n  repo: {run}\n  steps: {{max: 40}}\nmerge_method: two_point\n"
        "parameters: {target_step: 80}\n"
    )
    arguments = ["scan", str(recipe), "--out", str(tmp_path / "scan"), "-q"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert Scan.load(tmp_path / "scan").steps == (0, 10, 30, 40)
    refused = CliRunner().invoke(app, [*arguments, "--max-step", "30"])
    assert refused.exit_code == 2
    assert "--max-step is for a REF" in refused.output
    refused = CliRunner().invoke(app, ["scan", str(run), "--sample-from", "10"])
    assert "--sample-from goes with --logprobs" in refused.output
