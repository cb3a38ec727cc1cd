"""`hubextrap verify`: good, changed, missing and unnamed weight files, on disk and on the Hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hubextrap
from hubextrap.claims import sealed
from hubextrap.cli.app import app
from hubextrap.errors import CorruptFile, ReferenceNotFound
from hubextrap.localhub import LocalHub

SECOND, THIRD = "model-00002-of-00012.safetensors", "model-00003-of-00012.safetensors"


@pytest.fixture
def prediction(run_folder: Path, recipe_file: Callable[..., Path], tmp_path: Path) -> Path:
    out = tmp_path / "out"
    hubextrap.merge(hubextrap.load_recipe(recipe_file(run_folder)), out=out)
    return out


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_good(prediction: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(prediction), "-q"])
    assert result.exit_code == 0
    assert result.stdout == f"{prediction}: 12 weight files, 1.8 MB, as hubextrap.json says\n"


def test_every_mismatch_is_named(prediction: Path) -> None:
    should = hashlib.sha256((prediction / SECOND).read_bytes()).hexdigest()
    flip(prediction / SECOND)
    found = hashlib.sha256((prediction / SECOND).read_bytes()).hexdigest()
    (prediction / THIRD).write_bytes((prediction / THIRD).read_bytes()[:-1])
    (prediction / "model-00004-of-00012.safetensors").unlink()
    (prediction / "model.safetensors").write_bytes(b"a stray that transformers would load")
    result = CliRunner().invoke(app, ["verify", str(prediction), "-q"])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"mismatch: {SECOND}: has sha256 {found}, should have {should}",
        f"mismatch: {THIRD}: has 131,287 bytes, should have 131,288",
        "mismatch: model-00004-of-00012.safetensors: is missing",
        "mismatch: model.safetensors: is not named in hubextrap.json",
        f"{prediction}: 4 of 13 weight files are not as hubextrap.json says",
    ]
    result = CliRunner().invoke(app, ["verify", str(prediction), "-q", "--json"])
    assert result.exit_code == 1
    listed = {file["file"]: file["problem"] for file in json.loads(result.stdout)["files"]}
    assert listed["model-00001-of-00012.safetensors"] is None
    assert listed["model.safetensors"] == "is not named in hubextrap.json"


def test_one_is_not_many(prediction: Path) -> None:
    flip(prediction / SECOND)
    result = CliRunner().invoke(app, ["verify", str(prediction), "-q"])
    assert result.stdout.splitlines()[1:] == [
        f"{prediction}: 1 of 12 weight files is not as hubextrap.json says"
    ]


def test_a_revision_on_the_hub(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    good = hub.commit(repo_id, {path.name: path for path in prediction.iterdir()}, revision="step_20")
    flip(prediction / SECOND)
    bad = hub.commit(repo_id, {SECOND: prediction / SECOND, THIRD: None}, revision="step_20")
    result = CliRunner().invoke(app, ["verify", f"{repo_id}@{good}", "-q"])
    assert result.exit_code == 0, result.output
    hub.requests.clear()
    result = CliRunner().invoke(app, ["verify", f"{repo_id}@step_20", "-q"])
    assert result.exit_code == 1
    assert result.stdout.startswith(f"mismatch: {SECOND}: has sha256 ")
    assert f"mismatch: {THIRD}: is missing\n{repo_id}@step_20 ({bad}): 2 of 12 weight" in result.stdout
    ranges = [r for r in hub.requests if r.method == "GET" and "/resolve/" in r.path]
    assert ranges
    assert all(bad in request.path and "Range" in request.headers for request in ranges)


def test_large_files_are_read_in_blocks(
    prediction: Path, hub: LocalHub, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {path.name: path for path in prediction.iterdir()})
    monkeypatch.setattr("hubextrap.tensors.hashing._READ_SIZE", 10_007)
    assert hubextrap.verify(prediction).problems == ()
    assert hubextrap.verify(repo_id).problems == ()


def test_nothing_to_verify_against(prediction: Path, run_folder: Path) -> None:
    with pytest.raises(CorruptFile, match=r"holds no hubextrap.json"):
        hubextrap.verify(run_folder / "step_0")
    (prediction / "hubextrap.json").write_text("{")
    with pytest.raises(CorruptFile, match=re.escape(f"{prediction}/hubextrap.json: not valid JSON")):
        hubextrap.verify(str(prediction))


def test_no_such_place(tmp_path: Path, hub: LocalHub) -> None:
    with pytest.raises(ReferenceNotFound, match="absent: no such local folder"):
        hubextrap.verify(f"{tmp_path}/absent")
    with pytest.raises(ReferenceNotFound, match="me/absent: no such repo"):
        hubextrap.verify("me/absent")


STRANGE = (
    *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tf_model.h5"),
    *("flax_model.msgpack", "model.gguf", "model.onnx", "model.onnx_data", "adapter_model.safetensors"),
    *("adapter_config.json", "consolidated.00.pth", "model.fp16.safetensors", "weights.npz", "model.pkl"),
    *("model.safetensors.index.json.bak", "model.variant.safetensors.index.json", "weights", "model.keras"),
    *("modeling_mine.py", "modeling_mine.pyc", "native.so", "MODEL.SAFETENSORS", "Code.PY", "run.sh"),
    *("sub/model.safetensors", "a/b/pytorch_model.bin", "sub/modeling_mine.py", ".hidden/model.safetensors"),
    *("original/consolidated.00.pth", "custom_generate/generate.py", "generation_config.json"),
    *("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool.jinja", "modules.json"),
    *("events.out.tfevents.py", "events.out.tfevents.1.safetensors", "events.out.tfevents.1.pt"),
)
HARMLESS = (
    *(".gitattributes", "images/plot.png", "notes.md", "LICENSE", "data/rows.jsonl", "hubextrap-eval.json"),
    *(".eval_results/hubextrap-gsm8k.yaml", "train.log", "events.out.tfevents.1.host", "trainer_state.json"),
    *(
        ".cache/huggingface/download/config.json.metadata",
        ".cache/huggingface/.gitignore",
        ".git/hooks/run.py",
    ),
)


def problems(folder: Path) -> dict[str, str | None]:
    return {file.file: file.problem for file in hubextrap.verify(folder).files if file.problem}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGE)
def test_other_weights_code_and_settings_are_refused(prediction: Path, name: str) -> None:
    (prediction / name).parent.mkdir(parents=True, exist_ok=True)
    (prediction / name).write_bytes(b"{}")
    assert problems(prediction) == {name: "is not named in hubextrap.json"}
    assert CliRunner().invoke(app, ["verify", str(prediction), "-q"]).exit_code == 1


def test_what_no_loader_takes_may_be_there(prediction: Path) -> None:
    for name in HARMLESS:
        (prediction / name).parent.mkdir(parents=True, exist_ok=True)
        (prediction / name).write_bytes(b"{}")
    (prediction / "README.md").write_text("edited")
    assert problems(prediction) == {}


def test_links_to_folders_are_listed(prediction: Path, run_folder: Path) -> None:
    (prediction / "sub").symlink_to(run_folder / "step_0")
    assert problems(prediction) == {"sub": "is not named in hubextrap.json"}


def test_the_same_on_the_hub(prediction: Path, hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    files: dict[str, Path | bytes] = {path.name: path for path in prediction.iterdir()}
    hub.commit(repo_id, files | {"sub/pytorch_model.bin": b"x", "sub/notes.md": b"y", "code.py": b"z"})
    assert hubextrap.verify(repo_id).problems == tuple(
        f"{file}: is not named in hubextrap.json" for file in ("code.py", "sub/pytorch_model.bin")
    )
    inside = {f"predicted/{name}": content for name, content in files.items()}
    hub.commit(repo_id, inside | {"predicted/deep/x.bin": b"x"}, revision="folder")
    assert hubextrap.verify(f"{repo_id}@folder:predicted").problems == (
        "deep/x.bin: is not named in hubextrap.json",
    )


def test_every_file_beside_the_weights_is_covered(prediction: Path) -> None:
    named = json.loads((prediction / "hubextrap.json").read_bytes())["files"]
    beside = {path.name for path in prediction.iterdir() if path.suffix != ".safetensors"}
    assert {file["file"] for file in named} == beside - {"README.md", "hubextrap.json"}
    for file in named:
        before = (prediction / file["file"]).read_bytes()
        (prediction / file["file"]).write_bytes(before + b" ")
        assert list(problems(prediction)) == [file["file"]]
        (prediction / file["file"]).write_bytes(before)


def claim(folder: Path, **changes: object) -> None:
    """Another hubextrap.json, whose digest fits."""
    content = {**json.loads((folder / "hubextrap.json").read_bytes()), **changes}
    content.pop("digest")
    (folder / "hubextrap.json").write_text(json.dumps(sealed(content)))


def covered(folder: Path, file: str, content: object) -> None:
    """Write a file beside the weights, and have hubextrap.json name what it holds now."""
    data = json.dumps(content).encode()
    (folder / file).write_bytes(data)
    named = json.loads((folder / "hubextrap.json").read_bytes())["files"]
    others = [one for one in named if one["file"] != file]
    ours = {"file": file, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    claim(folder, files=[*others, ours])


def test_no_shards_shards_twice_and_names_that_lead_out(prediction: Path) -> None:
    shards = json.loads((prediction / "hubextrap.json").read_bytes())["shards"]
    claim(prediction, shards=[])
    assert len(problems(prediction)) == 12
    for path in prediction.glob("model*"):
        path.rename(path.with_suffix(".txt"))
    claim(prediction, files=[])
    (prediction / "config.json").unlink()
    assert problems(prediction) == {"hubextrap.json": "names no weight files"}
    for wrong, said in (
        ([*shards, shards[0]], "is named twice"),
        ([{**shards[0], "file": "../model.safetensors"}], "does not lie inside the model's folder"),
        ([{**shards[0], "file": "./model.safetensors"}], "does not lie inside the model's folder"),
        ([{**shards[0], "file": "a\nb.safetensors"}], "does not lie inside the model's folder"),
        ([{**shards[0], "file": "."}], "does not lie inside the model's folder"),
        ([{**shards[0], "file": "README.md"}], "README.md cannot be among them"),
    ):
        claim(prediction, shards=wrong)
        with pytest.raises(CorruptFile, match=said):
            hubextrap.verify(prediction)


def test_an_index_that_does_not_fit_the_shards(prediction: Path) -> None:
    name = "model.safetensors.index.json"
    index = json.loads((prediction / name).read_bytes())
    tensor = next(iter(index["weight_map"]))
    shards = json.loads((prediction / "hubextrap.json").read_bytes())["shards"]
    for change, said in (
        ({tensor: THIRD}, "which does not hold it"),
        ({"absent": SECOND}, "which does not hold it"),
        ({tensor: "../x.safetensors"}, "which is not a safetensors file of this folder"),
        ({tensor: "absent.safetensors"}, "names files that are not there"),
    ):
        covered(prediction, name, index | {"weight_map": index["weight_map"] | change})
        assert said in str(problems(prediction)["hubextrap.json"])
    covered(prediction, name, index)
    assert problems(prediction) == {}
    kept = [shard for shard in shards if shard["file"] != SECOND]
    (prediction / SECOND).rename(prediction / "model.txt")
    claim(prediction, shards=kept)
    assert "names files that are not there" in str(problems(prediction)["hubextrap.json"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auto_map": {"AutoModel": "owner/name--modeling.Model"}}, "takes code from another repo (auto_map"),
        ({"text_config": {"auto_map": {"AutoModel": "o/n--m.M"}}}, "takes code from another repo (auto_map"),
        ({"auto_map": {"AutoTokenizer": ["o/n--m.M", None]}}, "takes code from another repo (auto_map"),
        ({"auto_map": {"AutoModel": "/tmp/folder--m.M"}}, "takes code from another repo (auto_map"),
        ({"auto_map": {"AutoModel": "a/deep/folder--m.M"}}, "takes code from another repo (auto_map"),
        ({"auto_map": {"AutoModel": "a b--m.M"}}, "takes code from another repo (auto_map"),
        ({"transformers_weights": "other.safetensors"}, "has transformers load 'other.safetensors'"),
        ({"attn_implementation": "kernels/flash"}, "takes code from another repo (attn_implementation"),
        ({"attn_implementation": "./a/b"}, "takes code from another repo (attn_implementation"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_configuration_that_leads_elsewhere(
    prediction: Path, file: str, change: dict[str, object], said: str
) -> None:
    covered(prediction, file, {"model_type": "llama", **change})
    assert str(problems(prediction)[file]).startswith(said)


def test_code_that_came_with_the_last_checkpoint_is_named(
    run_folder: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "run")
    last = copy / "step_10"
    config = json.loads((last / "config.json").read_bytes())
    (last / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_mine.Mine"}}))
    (last / "modeling_mine.py").write_text("class Mine: ...\n")
    out = tmp_path / "with code"
    hubextrap.merge(hubextrap.load_recipe(recipe_file(copy)), out=out)
    assert problems(out) == {}
    (out / "modeling_mine.py").write_text("class Mine: planted = True\n")
    assert list(problems(out)) == ["modeling_mine.py"]


def test_a_file_from_before_it_named_more_than_weights(prediction: Path) -> None:
    content = json.loads((prediction / "hubextrap.json").read_bytes())
    beside = [file["file"] for file in content.pop("files")]
    content.pop("digest")
    (prediction / "hubextrap.json").write_text(json.dumps(content))
    found = hubextrap.verify(prediction)
    assert found.problems == ()
    assert list(found.not_covered) == sorted(beside)
    result = CliRunner().invoke(app, ["verify", str(prediction), "-q"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"not covered: {sorted(beside)[0]}\n")
    (prediction / "modeling_mine.py").write_text("")
    assert problems(prediction) == {"modeling_mine.py": "is not named in hubextrap.json"}


def test_the_same_prediction_says_the_same(
    run_folder: Path, recipe_file: Callable[..., Path], prediction: Path, tmp_path: Path
) -> None:
    hubextrap.merge(hubextrap.load_recipe(recipe_file(run_folder)), out=tmp_path / "again")
    assert (tmp_path / "again" / "hubextrap.json").read_bytes() == (
        prediction / "hubextrap.json"
    ).read_bytes()
