"""The commands as a user types them: output, exit codes, progress, JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from adapter_runs import write_adapter_run

from hubextrap.cli.options import parse_size
from hubextrap.cli.progress import LineProgress, format_bytes, format_seconds
from hubextrap.hub import read_provenance
from hubextrap.localhub import LocalHub

Run = Callable[..., object]


def test_plan_reads_headers_only(
    cli: Run, hub: LocalHub, checkpoints: Path, on_hub: Callable[..., str], recipe_file: Callable[..., Path]
) -> None:
    repo = on_hub(checkpoints)
    hub.requests.clear()
    result = cli("plan", recipe_file(repo))
    assert result.code == 0
    assert "predict   step 60, horizon 1" in result.out
    assert "-1 × step 0, +2 × step 30" in result.out
    assert f"{repo}@step_20" in result.out
    assert "no problems found" in result.out
    gets = [request for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    weights = [request for request in gets if ".safetensors" in request.path and "index" not in request.path]
    assert weights
    for request in weights:
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"]).groups())
        assert first == 0
        assert last < 200_000  # the header guess; these shards are smaller than it
    assert not [request for request in hub.requests if request.method not in ("GET", "HEAD", "POST")]


def test_plan_lists_problems_and_fails(
    cli: Run, checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    result = cli("plan", recipe_file(checkpoints), "--out", tmp_path / "out", "--json", "--quiet")
    assert result.code == 1
    assert result.err == ""
    report = json.loads(result.out)
    assert len(report["problems"]) == 1
    assert "not empty" in report["problems"][0]
    assert report["bytes_read"] == 2 * sum(
        path.stat().st_size for path in (checkpoints / "step_0").glob("*.safetensors")
    ) - 2 * sum(header_size(path) for path in (checkpoints / "step_0").glob("*.safetensors"))


def header_size(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_merge_json_is_the_provenance(
    cli: Run, checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    result = cli("merge", recipe_file(checkpoints), "--out", tmp_path / "out", "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    (prediction,) = json.loads(result.out)
    assert prediction["provenance"] == read_provenance(tmp_path / "out").model_dump(mode="json")


def test_progress_is_plain_lines_off_a_terminal(
    cli: Run, checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    result = cli("merge", recipe_file(checkpoints), "--out", tmp_path / "out")
    assert re.search(r"^merge: [\d.]+ kB in [\d.]+ s, [\d.]+ [kMG]B/s$", result.err, re.MULTILINE)
    assert "\x1b" not in result.err + result.out
    assert ": 0 " not in result.err  # a stage in which there is nothing to do is not told
    assert "\npredicted step 60 from steps up to 30, horizon 1\n" in result.out


@pytest.mark.slow
def test_what_was_made_of_adapters_is_said(cli: Run, tmp_path: Path) -> None:
    run, recipe = write_adapter_run(tmp_path / "run", (0, 10, 20)), tmp_path / "recipe.yaml"
    recipe.write_text(
        f"trajectory: {{repo: {run}, base: {run / 'base'}}}\n"
        "merge_method: two_point\nparameters: {target_step: 40}\n"
    )
    for options, kind in (
        (["--rank", "2"], "an adapter of rank 2"),
        (["--as", "merged"], "a full model"),
    ):
        result = cli("merge", recipe, "--out", tmp_path / options[-1], *options)
        assert f"\npredicted step 40 as {kind} from steps up to 20, horizon 1\n" in "\n" + result.out
    result = cli("predict", run, "--to", 40, "--out", tmp_path / "predicted", "-q")
    assert "  predicted  step 40 (horizon 1), as an adapter of rank 4\n" in result.out


def test_line_progress_tells_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 2.0, 10.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with LineProgress(sys.stdout).stage("merge", 4_000_000) as stage:
        stage.advance(100_000)
        stage.advance(900_000)
    assert capsys.readouterr().out.splitlines() == [
        "merge: 1.0 MB of 4.0 MB (25 %), 100.0 kB/s, ETA 30 s",
        "merge: 1.0 MB in 10.0 s, 100.0 kB/s",
    ]


def test_sizes_and_times() -> None:
    assert [parse_size(text) for text in ("512MiB", "2GB", "1.5 kB", "77")] == [2**29, 2 * 10**9, 1500, 77]
    for wrong in ("", "GB", "-1GB", "12 apples", "nan"):
        with pytest.raises(typer.BadParameter):
            parse_size(wrong)
    assert [format_bytes(count) for count in (0, 999, 1000, 3.56e9)] == ["0 B", "999 B", "1.0 kB", "3.6 GB"]
    assert [format_seconds(s) for s in (0.4, 61, 3700)] == ["0 s", "1 min 01 s", "1 h 01 min"]


def test_merge_then_push(
    cli: Run,
    hub: LocalHub,
    checkpoints: Path,
    recipe_file: Callable[..., Path],
    repo_id: str,
    tmp_path: Path,
    logged_in: str,
) -> None:
    assert cli("merge", recipe_file(checkpoints), "--out", tmp_path / "out", "-q").code == 0
    pushed = cli("push", tmp_path / "out", f"{repo_id}@step_60", "--private", "-q")
    assert pushed.code == 0
    assert pushed.out.startswith(f"pushed to {repo_id}@step_60 as ")
    again = cli("push", tmp_path / "out", f"{repo_id}@step_60", "--private", "--json", "-q")
    assert json.loads(again.out)["unchanged"] is True
    assert str(tmp_path) not in pushed.out + (tmp_path / "out" / "README.md").read_text()


def test_run_merges_pushes_and_evaluates(
    cli: Run,
    hub: LocalHub,
    demo_data: Path,
    on_hub: Callable[..., str],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    logged_in: str,
) -> None:
    """The demo's job, with a stricter eye on what comes out."""
    repo = on_hub(demo_data / "rlvr-C")
    path = recipe_file(
        repo,
        trajectory={"repo": repo, "steps": {"max": 200}},
        parameters={"target_step": 400, "base_step": 100},
        push={"repo": f"{repo}-predicted", "revision": "step_{target_step}"},
        evaluate={
            "tasks": ["radd"],
            "include_path": "demo/tasks",
            "against": ["last", "target"],
            "batch_size": 128,
        },
    )
    result = cli("run", path, "--output", tmp_path / "results.json", "-q")
    assert result.code == 0, result.err
    rows = {row["label"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    scores = {label: row["scores"][0]["value"] for label, row in rows.items()}
    assert scores["last"] == pytest.approx(0.828)
    assert scores["target"] == pytest.approx(0.984)
    assert scores["prediction"] >= 0.97
    assert rows["prediction"]["step"] == 400
    assert f"{repo}-predicted@step_400" in result.out


def test_token_stays_where_it_belongs(
    hub: LocalHub,
    checkpoints: Path,
    on_hub: Callable[..., str],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    token: str,
) -> None:
    """A whole process, debug logs on: no output, no file and no path of a request holds the token."""
    import os

    repo = on_hub(checkpoints, private=True)
    environment = os.environ | {"HF_TOKEN": token, "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    hub.requests.clear()
    command = [
        sys.executable,
        "-m",
        "hubextrap",
        "run",
        str(recipe_file(repo)),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert token not in done.stdout + done.stderr
    for path in (tmp_path / "out").iterdir():
        assert token.encode() not in path.read_bytes()
    assert any(token in request.headers.get("Authorization", "") for request in hub.requests)
    assert all(token not in request.path for request in hub.requests)


def test_token_does_not_reach_the_cdn(
    checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path, token: str
) -> None:
    import os

    with LocalHub(tmp_path / "hub", tokens={token: "me"}, cdn=True) as hub:
        hub.create_repo("me/run", private=True)
        for folder in sorted(checkpoints.iterdir()):
            files = {path.name: path for path in folder.iterdir()}
            hub.commit("me/run", files, revision=folder.name)
        environment = os.environ | {
            "HF_TOKEN": token,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
        }
        command = [sys.executable, "-m", "hubextrap", "merge", str(recipe_file("me/run")), "--out"]
        done = subprocess.run(
            [*command, str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        at_cdn = [request for request in hub.requests if request.port == hub.cdn_port]
        assert at_cdn
        assert not any("Authorization" in request.headers for request in at_cdn)


def test_version_and_usage() -> None:
    run = [sys.executable, "-m", "hubextrap"]
    version = subprocess.run([*run, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("hubextrap ")
    wrong = subprocess.run([*run, "merge"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    missing = subprocess.run([*run, "merge", "absent.yaml"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: absent.yaml")
    assert "Traceback" not in missing.stderr
