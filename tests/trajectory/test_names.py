"""Every name and trap that was seen on the Hub."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubextrap.errors import TrajectoryError
from hubextrap.step_names import pattern_reader, read_step, read_title


@pytest.mark.parametrize(
    ("name", "step", "pattern"),
    [
        ("step_100", 100, "step_{step}"),
        ("step_0", 0, "step_{step}"),
        ("step0", 0, "step{step}"),
        ("Step-7", 7, "Step-{step}"),
        ("step-000100", 100, "step-{step}"),
        ("step0400000", 400000, "step{step}"),  # Lucie
        ("step1000-tokens4B", 1000, "step{step}-tokens{tokens}"),  # OLMo
        ("step1200000-tokens5033B", 1200000, "step{step}-tokens{tokens}"),
        ("stage1-step1000-tokens4B", 1000, "stage1-step{step}-tokens{tokens}"),  # OLMo 2
        ("stage1-step-40000", 40000, "stage1-step-{step}"),  # SmolLM3
        ("lc-4k-to-32k-step-4000", 4000, "lc-4k-to-32k-step-{step}"),
        ("stage2-ingredient1-step3000-tokens13B", 3000, "stage2-ingredient1-step{step}-tokens{tokens}"),
        ("step1250-seed-large-aux-2", 1250, "step{step}-seed-large-aux-2"),  # DataDecide
        ("global_step_100/actor/huggingface", 100, "global_step_{step}/actor/huggingface"),  # verl
        ("global_step10000", 10000, "global_step{step}"),
        ("new_global_step_20", 20, "new_global_step_{step}"),
        ("checkpoint-500", 500, "checkpoint-{step}"),  # Trainer
        ("run1/checkpoint-500", 500, "run1/checkpoint-{step}"),
        ("checkpoint-9500step", 9500, "checkpoint-{step}step"),
        ("checkpoint-step-1000", 1000, "checkpoint-step-{step}"),
        ("ckpt_100", 100, "ckpt_{step}"),
        ("954step/0.5", 954, "{step}step/0.5"),
        ("step-001000-2BT", 1000, "step-{step}-{tokens}"),  # FineWeb ablations
        ("iter_0001000", 1000, "iter_{step}"),
        ("pretrain_iter_0373000", 373000, "pretrain_iter_{step}"),  # OpenCoder
        ("anneal_iter_0001000", 1000, "anneal_iter_{step}"),
        ("update_011250", 11250, "update_{step}"),
        ("tldr-1step_100", 100, "tldr-1step_{step}"),
        ("multiberts-seed_0-step_1000k", 1000000, "multiberts-seed_0-step_{step}"),
        ("TinyLlama-1.1B-intermediate-step-50K-105b", 50000, "TinyLlama-1.1B-intermediate-step-{step}-105b"),
        ("Qwen2.5-7B-grpo-step-100", 100, "Qwen2.5-7B-grpo-step-{step}"),
        ("epoch=1-step=100", 100, "epoch=1-step={step}"),  # Lightning
        ("checkpoint-500-merged", 500, "checkpoint-{step}-merged"),
        ("step01-sft/checkpoint-500", 500, "step01-sft/checkpoint-{step}"),
        ("step01-sft-step-500", 500, "step01-sft-step-{step}"),
        ("checkpoint-600/global_step1200", 600, "checkpoint-{step}/global_step{inner}"),
    ],
)
def test_names_that_say_a_step(name: str, step: int, pattern: str) -> None:
    found = read_step(name)
    assert found is not None
    assert (found.step, found.pattern) == (step, pattern)


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "",
        "checkpoint_pct010",
        "checkpoint-10pct",
        "checkpoint-10%",
        "step01-sft",
        "step02-rm",
        "step_03-dpo",
        "tokens252B",
        "2BT",
        "100BT",
        "train_00220B",  # Baichuan 2: tokens
        "Skywork-13B-Base-500B",
        "128000",  # B-GPT: only a pattern can tell
        "2-step-grpo",
        "timestep_3",
        "multistep-2",
        "step_100.5",
        "epoch_3",
        "last-checkpoint",
        "fp32",
        "refs/pr/3",
    ],
)
def test_names_that_say_none(name: str) -> None:
    assert read_step(name) is None


def test_the_outermost_step_counts_and_what_is_under_it_belongs_to_it() -> None:
    outer, verl = (
        read_step("runs/checkpoint-600/global_step1200"),
        read_step("global_step_5/actor/huggingface"),
    )
    assert outer is not None
    assert verl is not None
    assert (outer.step, outer.unit) == (600, "runs/checkpoint-600")
    assert (verl.step, verl.unit) == (5, "global_step_5")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("global_step_20", "new_global_step_20"),
        ("pretrain_iter_0001000", "anneal_iter_0001000"),
        ("stage1-step1000-tokens4B", "stage2-ingredient1-step1000-tokens4B"),
        ("stage2-ingredient1-step1000-tokens4B", "stage2-ingredient2-step1000-tokens4B"),
        ("step_100", "step-100"),
        ("a/step_100", "b/step_100"),
        ("grpo-step-100-7B", "grpo-step-100-1.5B"),
        ("Llama-7B-step-100", "Llama-13B-step-100"),
    ],
)
def test_different_runs_are_different_patterns(one: str, other: str) -> None:
    first, second = read_step(one), read_step(other)
    assert first is not None
    assert second is not None
    assert first.pattern != second.pattern


@pytest.mark.parametrize(
    ("title", "step", "pattern"),
    [
        ("Training in progress, step 500", 500, "Training in progress, step {step}"),
        ("step 500", 500, "step {step}"),
        ("Step 500", 500, "Step {step}"),
        ("Upload step_100", 100, "Upload step_{step}"),
    ],
)
def test_titles_that_say_a_step(title: str, step: int, pattern: str) -> None:
    found = read_title(title)
    assert found is not None
    assert (found.step, found.pattern) == (step, pattern)


@pytest.mark.parametrize(
    "title",
    [
        "Training in progress, step 500, checkpoint",
        "Training in progress, epoch 3",
        "End of training",
        "initial commit",
        "Upload checkpoint-9500step with huggingface_hub",
        "Revert step 500 because of a bug",
    ],
)
def test_titles_that_say_none(title: str) -> None:
    assert read_title(title) is None


@pytest.mark.parametrize(
    ("pattern", "name", "step", "series"),
    [
        ("step_{step}", "step_000100", 100, "step_{step}"),
        ("{step}", "128000", 128000, "{step}"),
        ("epoch_{step}", "epoch_3", 3, "epoch_{step}"),
        ("checkpoint_pct{step}", "checkpoint_pct010", 10, "checkpoint_pct{step}"),
        ("step{step}-tokens{tokens}", "step1000-tokens4B", 1000, "step{step}-tokens{tokens}"),
        ("epoch={e}-step={step}", "epoch=1-step=100", 100, "epoch={e}-step={step}"),
        ("x-step-{step}-{tokens}", "x-step-50K-105b", 50000, "x-step-{step}-{tokens}"),
        ("step_{step}", "step_5/actor/hf", 5, "step_{step}/actor/hf"),
        ("global_step_{step}/actor", "global_step_5/actor", 5, "global_step_{step}/actor"),
        ("a.b(c)_{step}", "a.b(c)_7", 7, "a.b(c)_{step}"),
    ],
)
def test_a_pattern_reads_its_names(pattern: str, name: str, step: int, series: str) -> None:
    found = pattern_reader(pattern)(name)
    assert found is not None
    assert (found.step, found.pattern) == (step, series)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("step_{step}", "new_step_100"),
        ("step_{step}", "step_100-old"),
        ("step_{step}", "runs/step_100"),
        ("a.b_{step}", "axb_100"),
        ("x-{anything}-{step}", "x-a/b-3"),
    ],
)
def test_a_pattern_reads_nothing_else(pattern: str, name: str) -> None:
    assert pattern_reader(pattern)(name) is None


@pytest.mark.parametrize("pattern", ["step_", "{step}-{step}", "step_{steps}"])
def test_a_pattern_needs_one_step(pattern: str) -> None:
    with pytest.raises(TrajectoryError, match=r"it needs \{step\} exactly once"):
        pattern_reader(pattern)


COUNTERS = st.sampled_from(["step_", "step-", "step", "global_step_", "checkpoint-", "iter_", "update_"])


@settings(deadline=None)
@given(st.integers(0, 10**9), COUNTERS, st.integers(3, 12), st.sampled_from(["", "new_", "run/", "7B-"]))
def test_the_pattern_of_a_name_reads_the_name_back(step: int, word: str, width: int, prefix: str) -> None:
    name = f"{prefix}{word}{step:0{width}}"
    found = read_step(name)
    assert found is not None
    assert found.step == step
    again = pattern_reader(found.pattern)(name)
    assert again is not None
    assert again.step == step


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_name(name: str) -> None:
    found = read_step(name)
    if found is not None:
        assert found.step >= 0
        assert found.pattern.count("{step}") >= 1
        assert name.startswith(found.unit)
