"""Predicted adapters: files that peft loads, which change the base as the prediction says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_runs import EXPERT_PARAMETERS, changes, write_adapter_run
from numpy.typing import NDArray
from opened_adapters import open_adapters
from safetensors.torch import load_file, save_file

from hubextrap.adapters.predicted import PredictedSource, predicted_config
from hubextrap.adapters.reading import ADAPTER_FILE
from hubextrap.adapters.run import AdapterRun
from hubextrap.engine import Budget, plan_merge, run_plan
from hubextrap.errors import NonFinite, RecipeError
from hubextrap.tensors import LocalSink
from hubextrap.tensors.weights import read_shards

ROW = np.array([-0.2123456789, -0.5102030405, 1.7225487194])


def rows(name: str) -> NDArray[np.float64]:
    return ROW


def written(source: PredictedSource, folder: Path, **budget: Any) -> Path:
    """What the engine makes of it, as a prediction's folder holds it."""
    folder.mkdir(parents=True)
    plan = plan_merge((30,), (source.layout,), lambda name: np.eye(1), budget=Budget(**budget))
    run_plan(plan, (source,), [LocalSink(folder)])
    (folder / "adapter_config.json").write_bytes(source.config)
    return folder


def predicted_changes(root: Path) -> dict[str, Any]:
    """Σ c_k·(W_k − W_0), of what peft merges itself."""
    one, two = changes(root, 10), changes(root, 20)
    return {name: ROW[1] * one[name] + ROW[2] * two[name] for name in one}


KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rank": {10: 2, 20: 3}, "use_rslora": True},
    "patterns": {"rank_pattern": {"v_proj": 1}, "alpha_pattern": {"down_proj": 40}},
    "transposed": {"architecture": "gpt2", "fan_in_fan_out": True},
    "embedding": {"target_modules": ["embed_tokens", "up_proj"]},
    "whole": {"modules_to_save": ["lm_head"]},
    "bias": {"architecture": "gpt2", "fan_in_fan_out": True, "bias": "all"},
    "lora_bias": {"architecture": "gpt2", "fan_in_fan_out": True, "lora_bias": True},
    "experts": {"architecture": "mixtral", "target_parameters": EXPERT_PARAMETERS},
    "experts, turned": {"architecture": "gpt_oss", "target_parameters": EXPERT_PARAMETERS},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_peft_merges_an_exact_one_to_the_float64_formula(tmp_path: Path, kind: str) -> None:
    root = write_adapter_run(tmp_path, [10, 20], **KINDS[kind])
    source = PredictedSource(open_adapters(root, [0, 10, 20]), rows, None, out_dtype="float64", step=30)
    assert not any(source.lost.values())
    wanted = predicted_changes(root)
    written(source, root / "step_30")
    made = changes(root, 30)
    assert set(made) == set(wanted)
    for name, change in made.items():
        assert torch.allclose(change, wanted[name], rtol=1e-9, atol=1e-12), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    return write_adapter_run(
        root, [10, 20], modules_to_save=["lm_head"], rank={10: 2, 20: 3}, dtype="bfloat16"
    )


@pytest.fixture
def run(folder: Path) -> AdapterRun:
    return open_adapters(folder, [0, 10, 20])


def product(file: dict[str, Any], module: str) -> Any:
    return file[f"{module}.lora_B.weight"].double() @ file[f"{module}.lora_A.weight"].double()


def formula(folder: Path, module: str) -> Any:
    files = [load_file(folder / f"step_{step}" / ADAPTER_FILE) for step in (10, 20)]
    return sum(c * 2 * product(file, module) for c, file in zip(ROW[1:], files, strict=True))


MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_a_cut_is_the_best_of_its_rank(folder: Path, run: AdapterRun, tmp_path: Path, rank: int) -> None:
    source = PredictedSource(run, rows, rank, out_dtype="float32", step=30)
    made = load_file(written(source, tmp_path / "out") / ADAPTER_FILE)
    assert made[f"{MODULE}.lora_A.weight"].shape[0] == rank == source.rank
    wanted = formula(folder, MODULE)
    values = torch.linalg.svdvals(wanted)
    share = float((values[rank:] ** 2).sum() / (values**2).sum())
    tensor = "model.layers.0.self_attn.q_proj.weight"
    assert source.lost[tensor] == pytest.approx(share, abs=1e-12)
    missed = (wanted - product(made, MODULE)).square().sum() / wanted.square().sum()
    assert float(missed) == pytest.approx(share, abs=1e-12)
    assert set(source.lost) == set(run.last.factors)


def test_it_stores_what_the_last_adapter_does_and_rounds_once(
    folder: Path, run: AdapterRun, tmp_path: Path
) -> None:
    source = PredictedSource(run, rows, 3, step=30)
    made = load_file(written(source, tmp_path / "own") / ADAPTER_FILE)
    last = load_file(folder / "step_20" / ADAPTER_FILE)
    assert {name: one.dtype for name, one in made.items()} == {name: one.dtype for name, one in last.items()}
    wide = PredictedSource(run, rows, 3, out_dtype="float64", step=30)
    exact = load_file(written(wide, tmp_path / "wide") / ADAPTER_FILE)
    for name, values in exact.items():
        assert made[name].shape == last[name].shape
        spacing = 2.0 ** (torch.floor(torch.log2(values.abs().clamp(min=1e-30))) - 8)
        assert bool(((made[name].double() - values).abs() <= spacing).all()), name
    head = "base_model.model.lm_head.weight"
    base = load_file(folder / "base" / "model.safetensors")["lm_head.weight"].double()
    files = [load_file(folder / f"step_{step}" / ADAPTER_FILE)[head].double() for step in (10, 20)]
    wanted = sum(c * one for c, one in zip(ROW, (base, *files), strict=True))
    assert torch.allclose(exact[head], wanted, rtol=0, atol=1e-15)


def test_its_files_are_those_of_peft(run: AdapterRun) -> None:
    source = PredictedSource(run, rows, 2, step=30)
    assert set(source.files()) == {ADAPTER_FILE, "adapter_config.json"}
    assert source.read_file("adapter_config.json") == source.config
    said = json.loads(source.config)
    before = dict(run.last.config.content)
    assert (said["r"], said["lora_alpha"], said["use_rslora"]) == (2, 2, False)
    for field in ("base_model_name_or_path", "target_modules", "modules_to_save"):
        assert said[field] == before[field]
    whole = source.read_file(ADAPTER_FILE)
    assert len(whole) == source.files()[ADAPTER_FILE].size
    (mine,), (theirs,) = source.layout.shards, read_shards([(source, ADAPTER_FILE)])
    assert (mine.tensors, mine.metadata, mine.size) == (theirs.tensors, theirs.metadata, theirs.size)
    assert mine.metadata == {"format": "pt"}


def test_a_configuration_says_nothing_of_what_was() -> None:
    content = {
        "r": 8,
        "lora_alpha": 16,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"q_proj": 8},
        "init_lora_weights": "eva",
        "eva_config": {"rho": 2.0},
        "inference_mode": False,
        "revision": "abc",
        "target_modules": "all-linear",
    }
    assert predicted_config(content, 5) == {
        "r": 5,
        "lora_alpha": 5,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "inference_mode": True,
        "revision": "abc",
        "target_modules": "all-linear",
    }
    assert content["r"] == 8


def test_an_exact_one_has_the_rank_of_what_takes_part(folder: Path, run: AdapterRun) -> None:
    assert PredictedSource(run, rows, None, step=30).rank == 5
    assert PredictedSource(run, lambda name: np.array([0.5, 0.5, 0]), None, step=30).rank == 2
    nothing = PredictedSource(run, lambda name: np.array([1.0, 0, 0]), None, step=30)
    assert nothing.rank == 1
    info = nothing.layout.tensors[f"{MODULE}.lora_B.weight"]
    content = nothing.read_file(ADAPTER_FILE)
    assert not any(content[info.offset : info.offset + info.nbytes])


def test_bytes_do_not_depend_on_memory_or_workers(run: AdapterRun, tmp_path: Path) -> None:
    every = set()
    for workers, size in ((1, None), (3, 600), (2, 4000)):
        source = PredictedSource(run, rows, 3, step=30)
        out = written(source, tmp_path / f"{workers}-{size}", workers=workers, read_size=size)
        every.add((out / ADAPTER_FILE).read_bytes())
    assert len(every) == 1


def test_each_module_is_made_once(run: AdapterRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    terms: Callable[..., Any] = run.terms
    monkeypatch.setattr(run, "terms", lambda name, row: asked.append(name) or terms(name, row))
    source = PredictedSource(run, rows, 3, step=30)
    assert asked == [], "nothing is read before it is wanted"
    written(source, tmp_path / "out", workers=3, read_size=600)
    assert source.lost
    assert sorted(asked) == sorted(run.last.factors)


def test_the_base_is_read_for_what_was_trained_whole_alone(folder: Path, tmp_path: Path) -> None:
    root = write_adapter_run(tmp_path / "run", [10, 20])
    source = PredictedSource(open_adapters(root, [0, 10, 20], with_base=False), rows, 2, step=30)
    assert written(source, tmp_path / "out")
    whole = PredictedSource(open_adapters(folder, [0, 10, 20], with_base=False), rows, 2, step=30)
    with pytest.raises(AssertionError, match="the base was opened"):
        whole.read_file(ADAPTER_FILE)


def test_an_out_dtype_that_is_none_is_refused(run: AdapterRun) -> None:
    with pytest.raises(RecipeError, match="out_dtype: 'int8'"):
        PredictedSource(run, rows, 2, out_dtype="int8", step=30)


def test_the_real_run_loses_what_its_issue_says(rlvr: Path, tmp_path: Path) -> None:
    """Two steps of rank 8: rank 16 is exact, and rank 8 loses a thousandth of the energy."""
    root = rlvr / "rlvr-F"
    run = open_adapters(root, [0, 100, 200])
    row = np.array([0.0, -1.0, 2.0])
    sixteen, eight = (PredictedSource(run, lambda name: row, rank, step=300) for rank in (16, 8))
    assert max(sixteen.lost.values()) < 1e-14
    assert 0 < max(eight.lost.values()) < 2e-3
    assert sum(eight.lost.values()) / len(eight.lost) < 1e-3
    made = load_file(written(sixteen, tmp_path / "out") / ADAPTER_FILE)
    files = [load_file(root / f"step_{step}" / ADAPTER_FILE) for step in (100, 200)]
    for name in files[1]:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            wanted = sum(c * 2 * product(file, module) for c, file in zip(row[1:], files, strict=True))
            missed = (product(made, module) - wanted).square().sum() / wanted.square().sum()
            assert missed < 1e-12, name


def changed(folder: Path, root: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> AdapterRun:
    """A copy of the run whose last adapter holds other tensors, opened without a base."""
    shutil.copytree(folder, root)
    file = root / "step_20" / ADAPTER_FILE
    save_file(change(load_file(file)), file)
    return open_adapters(root, [0, 10, 20], with_base=False)


def test_what_a_trainer_named_otherwise_has_pefts_names(
    folder: Path, run: AdapterRun, tmp_path: Path
) -> None:
    def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
        short = {name.removeprefix("base_model.model."): one for name, one in tensors.items()}
        return {
            name.replace("A.weight", "A.default.weight").replace(
                "lm_head", "lm_head.modules_to_save.default"
            ): one
            for name, one in short.items()
        }

    other = changed(folder, tmp_path / "run", renamed)
    usual = PredictedSource(run, rows, 3, step=30)
    made = PredictedSource(other, rows, 3, step=30)
    assert made.layout.tensors.keys() == usual.layout.tensors.keys()
    assert made.lost == usual.lost
    for name, info in made.layout.tensors.items():
        if ".lora_" in name:
            read = [np.empty(info.nbytes, np.uint8) for _ in range(2)]
            made.read(info.file, info.offset, read[0].data)
            usual.read(info.file, usual.layout.tensors[name].offset, read[1].data)
            assert (read[0] == read[1]).all(), name


TENSOR = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("rank", [2, None])
def test_what_is_not_finite_is_refused_by_the_step_that_holds_it(
    folder: Path, tmp_path: Path, rank: int | None
) -> None:
    def broken(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors[f"{MODULE}.lora_A.weight"][0, 0] = float("nan")
        return tensors

    run = changed(folder, tmp_path / "run", broken)
    with pytest.raises(NonFinite, match=r"step 20 \(.*step_20\) holds NaN or infinity; leave that") as caught:
        _ = PredictedSource(run, rows, rank, step=30).lost
    assert (caught.value.tensor, caught.value.step) == (TENSOR, 20)
    unused = PredictedSource(run, lambda name: np.array([-1.0, 2.0, 0.0]), rank, step=30)
    assert 0 <= unused.lost[TENSOR] < 1


def test_what_no_number_holds_is_refused(folder: Path, tmp_path: Path) -> None:
    def times(factor: float, dtype: torch.dtype) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda tensors: {
            name: one.to(dtype) * (factor if MODULE in name else 1) for name, one in tensors.items()
        }

    run = changed(folder, tmp_path / "half", times(1e4, torch.float16))
    with pytest.raises(NonFinite, match=r"q_proj\.lora_.* too large for F16; give a wider out_dtype"):
        _ = PredictedSource(run, lambda name: ROW * 1e5, 2, step=30).lost
    assert PredictedSource(run, lambda name: ROW * 1e5, 2, step=30, out_dtype="float32").lost
    run = changed(folder, tmp_path / "double", times(1e200, torch.float64))
    with pytest.raises(NonFinite, match="their sum exceeds float64; leave out the checkpoints") as caught:
        _ = PredictedSource(run, rows, 2, step=30).lost
    assert caught.value.tensor == TENSOR
