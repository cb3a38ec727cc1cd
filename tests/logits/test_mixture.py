"""What is loaded, shared and refused; forward as other models have it."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hubextrap.errors import CheckpointMismatch, CorruptFile, MethodError, UnsupportedCheckpoint
from hubextrap.logits import ExtrapolatedForCausalLM, Mixture
from hubextrap.logits.cache import CACHE, CombinedCache
from hubextrap.logits.loading import load_causal_lm, share_equal_parameters
from hubextrap.trajectory import Checkpoint, resolve_checkpoint

TOKENS = torch.tensor([[5, 2, 6, 11, 8, 5, 4, 12], [3, 3, 4, 11, 9, 9, 9, 12]])
Make = Callable[..., Any]


def steps(folder: Path, *numbers: int) -> list[str]:
    return [str(folder / f"step_{number}") for number in numbers]


@pytest.mark.parametrize(("alpha", "step"), [(1.0, 200), (0.0, 0)])
def test_alpha_1_is_the_last_checkpoint_and_0_the_base(trajectory_c: Path, alpha: float, step: int) -> None:
    mixed: Any = ExtrapolatedForCausalLM.from_checkpoints(steps(trajectory_c, 0, 200), [1 - alpha, alpha])
    own: Any = AutoModelForCausalLM.from_pretrained(trajectory_c / f"step_{step}")
    assert len(mixed.models) == 1
    with torch.no_grad():
        assert torch.equal(mixed(TOKENS).logits, own(TOKENS).logits.float())


def test_only_checkpoints_with_a_coefficient_are_loaded(trajectory_c: Path, tmp_path: Path) -> None:
    broken = tmp_path / "step_40"
    shutil.copytree(trajectory_c / "step_40", broken)
    (broken / "config.json").write_text("{")
    folders = [*steps(trajectory_c, 0), str(broken), *steps(trajectory_c, 200)]
    mixed = ExtrapolatedForCausalLM.from_checkpoints(folders, [-0.5, 0.0, 1.5])
    assert mixed.mixture is not None
    assert [checkpoint.step for checkpoint in mixed.mixture.checkpoints] == [0, 200]
    assert mixed.config._name_or_path == "logits -0.5 × step 0, 1.5 × step 200"
    with pytest.raises(CorruptFile, match=r"step_40: config.json: not valid JSON"):
        ExtrapolatedForCausalLM.from_checkpoints(folders, [-0.5, 1.5, 0.0])


def test_half_precision_models_are_mixed_in_float32(trajectory_c: Path) -> None:
    mixed: Any = ExtrapolatedForCausalLM.from_checkpoints(
        steps(trajectory_c, 0, 200), [-0.5, 1.5], dtype="bfloat16"
    )
    assert mixed.dtype == torch.bfloat16
    with torch.no_grad():
        logits = mixed(TOKENS).logits
        each = [model(TOKENS).logits for model in mixed.models]
    assert logits.dtype == torch.float32
    assert torch.equal(logits, -0.5 * each[0].float() + 1.5 * each[1].float())


def test_equal_parameters_are_there_once(make: Make, tmp_path: Path) -> None:
    first, second, third = (make("llama", seed) for seed in (1, 2, 3))
    with torch.no_grad():
        second.model.embed_tokens.weight.copy_(first.model.embed_tokens.weight)
        second.model.norm.weight.copy_(first.model.norm.weight).view(-1)[0] = -0.0
        first.model.norm.weight.view(-1)[0] = 0.0
        third.lm_head.weight.copy_(second.lm_head.weight).view(-1)[0] = torch.nan
        second.lm_head.weight.copy_(third.lm_head.weight)
    freed = share_equal_parameters(second, [first])
    equal = {name for name, parameter in second.named_parameters() if parameter is first.get_parameter(name)}
    norms = {
        f"model.layers.{layer}.{name}_layernorm.weight"
        for layer in (0, 1)
        for name in ("input", "post_attention")
    }
    assert equal == {"model.embed_tokens.weight"} | norms
    assert freed == sum(first.get_parameter(name).nbytes for name in equal)
    assert share_equal_parameters(third, [first, second]) > 0
    assert third.lm_head.weight is second.lm_head.weight, "NaN is NaN, byte for byte"
    both: Any = ExtrapolatedForCausalLM([first, second], [-1.0, 2.0])
    moved = both.to(torch.bfloat16)
    one, other = (model.get_input_embeddings().weight for model in moved.models)
    assert one.data_ptr() == other.data_ptr()
    assert one.dtype == torch.bfloat16


def test_a_tied_parameter_stays_tied_when_it_is_shared(make: Make) -> None:
    first, second = make("qwen2", 1), make("qwen2", 2)
    with torch.no_grad():
        second.model.embed_tokens.weight.copy_(first.model.embed_tokens.weight)
    freed = share_equal_parameters(second, [first])
    assert second.lm_head.weight is second.model.embed_tokens.weight is first.lm_head.weight
    assert freed >= first.lm_head.weight.nbytes
    own = ExtrapolatedForCausalLM([first, second], [-1.0, 2.0])
    own.tie_weights()
    assert second.lm_head.weight is first.model.embed_tokens.weight


def test_sharing_on_load_changes_no_logit(trajectory_c: Path, tmp_path: Path) -> None:
    for name, seed in (("step_1", 1), ("step_2", 2)):
        model: Any = AutoModelForCausalLM.from_pretrained(trajectory_c / "step_0")
        with torch.no_grad():
            model.lm_head.weight += seed * 1e-3
        model.save_pretrained(tmp_path / name)
        for file in (trajectory_c / "step_0").glob("token*"):
            shutil.copy(file, tmp_path / name)
    mixed: Any = ExtrapolatedForCausalLM.from_checkpoints(steps(tmp_path, 1, 2), [-2.0, 3.0])
    one, other = mixed.models
    assert other.model.embed_tokens.weight is one.model.embed_tokens.weight
    assert other.lm_head.weight is not one.lm_head.weight
    for model, folder in zip(mixed.models, steps(tmp_path, 1, 2), strict=True):
        own: Any = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(model(TOKENS).logits, own(TOKENS).logits)


def test_a_reward_model_is_no_language_model(trajectory_c: Path, tmp_path: Path) -> None:
    """transformers would load it and make up its head."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(trajectory_c / "step_0")
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match=r"not a complete language model: .* as lm_head"):
        load_causal_lm(Checkpoint(1, None, "", None, str(tmp_path)))


def test_loss_is_that_of_the_mixed_logits(mixed_c: Any) -> None:
    labels = TOKENS.clone()
    labels[0, :3] = -100
    with torch.no_grad():
        output = mixed_c(TOKENS, labels=labels)
    expected = cross_entropy(output.logits[:, :-1].reshape(-1, 28), labels[:, 1:].reshape(-1))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])  # whichever transformers is installed
def test_forward_as_other_models_have_it(mixed_c: Any, name: str) -> None:
    with torch.no_grad():
        whole = mixed_c(TOKENS)
        kept = mixed_c(TOKENS, logits_to_keep=2).logits
        as_tuple = mixed_c(TOKENS, return_dict=False)
        start = mixed_c(TOKENS[:, :6])
        start[CACHE].crop(-1)
        assert start[CACHE].get_seq_length() == 5
        rest = mixed_c(TOKENS[:, 5:], **{name: start[CACHE]})
        uncached = mixed_c(TOKENS, use_cache=False)
    assert kept.shape == (2, 2, 28)
    assert (kept - whole.logits[:, -2:]).abs().max() < 1e-4
    assert torch.equal(as_tuple[0], whole.logits)
    assert (rest.logits - whole.logits[:, 5:]).abs().max() < 1e-4
    assert len(rest[CACHE]) == 2 * mixed_c.config.num_hidden_layers
    assert CACHE not in uncached


def test_a_model_whose_own_code_has_the_cache_s_older_name(make: Make) -> None:
    class Older(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, past_key_values: Any = None, **others: Any) -> Any:
            return super().forward(input_ids, **{CACHE: past_key_values}, **others)

    models = [make("llama", seed) for seed in (1, 2)]
    expected = ExtrapolatedForCausalLM(models, [-0.5, 1.5])
    for model in models:
        model.__class__ = Older
    mixed = ExtrapolatedForCausalLM(models, [-0.5, 1.5])
    with torch.no_grad():
        start = mixed(TOKENS[:, :6])
        rest = mixed(TOKENS[:, 6:], cache=start[CACHE])
        for model in models:
            model.__class__ = LlamaForCausalLM
        whole = expected(TOKENS)
    assert (rest.logits - whole.logits[:, 6:]).abs().max() < 1e-4


def test_caches_that_get_their_layers_while_the_models_run() -> None:
    parts = [DynamicCache(), DynamicCache()]
    combined = CombinedCache(parts)
    for part in parts:
        part.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    assert len(combined) == 2
    combined.crop(-1)
    assert [part.get_seq_length() for part in parts] == [2, 2]


def test_what_a_mixture_does_not_have_is_said(mixed_c: Any) -> None:
    with pytest.raises(TypeError, match="a DynamicCache is not a cache of these 2"):
        mixed_c(TOKENS, cache=DynamicCache())
    with pytest.raises(TypeError, match=r"a DynamicCache is not a cache"):
        mixed_c.generate(TOKENS, **{CACHE: DynamicCache()}, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"two names of one argument"):
        mixed_c(TOKENS, cache=DynamicCache(), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match=r"output_hidden_states: .* has none"):
        mixed_c(TOKENS, output_hidden_states=True)
    with pytest.raises(ValueError, match="inputs_embeds"):
        mixed_c.generate(inputs_embeds=torch.zeros(1, 3, 128), max_new_tokens=2)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        (
            [0.5, 1.5],
            r"the coefficients 0\.5, 1\.5 sum to 2, not 1; another sum would change the temperature",
        ),
        ([], r"sum to 0, not 1"),
        ([float("nan"), 1.0], r"sum to nan, not 1"),
        ([1.0], r"2 checkpoints and 1 coefficients; give one per checkpoint"),
    ],
)
def test_wrong_coefficients(trajectory_c: Path, coefficients: list[float], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        ExtrapolatedForCausalLM.from_checkpoints(steps(trajectory_c, 0, 200), coefficients)


def test_models_that_do_not_fit_together(make: Make) -> None:
    def refused(one: Any, other: Any, message: str, kind: type[Exception] = CheckpointMismatch) -> None:
        with pytest.raises(kind, match=message):
            ExtrapolatedForCausalLM([one, other], [-1.0, 2.0])

    llama = make("llama", 1)
    refused(llama, make("qwen3", 1), r"of different classes, LlamaForCausalLM and Qwen3ForCausalLM")
    refused(make("llama", 1, vocab_size=62), llama, r"vocab_size differs between the models: 62 and 61")
    refused(
        make("llama", 1, num_hidden_layers=1), llama, r"num_hidden_layers differs between the models: 1 and 2"
    )
    with pytest.raises(CheckpointMismatch, match=r"1 models and 2 coefficients"):
        ExtrapolatedForCausalLM([llama], [-1.0, 2.0])
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    refused(t5, t5, r"T5ForConditionalGeneration is not a causal language model", UnsupportedCheckpoint)


def test_a_model_without_a_cache_of_the_usual_kind() -> None:
    from transformers import RwkvConfig, RwkvForCausalLM

    rwkv = RwkvForCausalLM(RwkvConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2))
    with pytest.raises(
        UnsupportedCheckpoint, match=r"RwkvForCausalLM does not keep its state .*space: weights"
    ):
        ExtrapolatedForCausalLM([rwkv], [1.0])


def test_vocabularies_that_number_tokens_differently(trajectory_c: Path, tmp_path: Path) -> None:
    other = tmp_path / "step_0"
    shutil.copytree(trajectory_c / "step_0", other)
    text = (other / "tokenizer.json").read_text()
    swapped = text.replace('"7": ', '"@": ').replace('"8": ', '"7": ').replace('"@": ', '"8": ')
    assert swapped != text
    (other / "tokenizer.json").write_text(swapped)
    with pytest.raises(CheckpointMismatch, match=r"step_0 and .*step_200 number 2 tokens .*'7'"):
        ExtrapolatedForCausalLM.from_checkpoints([str(other), *steps(trajectory_c, 200)], [-0.5, 1.5])
    for file in other.glob("token*"):
        file.unlink()
    mixed = ExtrapolatedForCausalLM.from_checkpoints([str(other), *steps(trajectory_c, 200)], [-0.5, 1.5])
    assert mixed.tokenizer is not None


def test_names_of_a_mixture(trajectory_c: Path) -> None:
    pinned = [resolve_checkpoint(folder) for folder in steps(trajectory_c, 0, 200)]
    mixture = Mixture.of(pinned, [-0.25, 1.25], 250)
    assert mixture.name == "logits -0.25 × step 0, 1.25 × step 200"
    assert mixture.pinned_name == "-0.25 × step_0, 1.25 × step_200"


def test_one_set_of_logits_is_there_beside_the_mixed_ones(trajectory_c: Path) -> None:
    """While a model runs, the logits of the one before it are gone."""
    mixed: Any = ExtrapolatedForCausalLM.from_checkpoints(
        steps(trajectory_c, 0, 100, 200), [0.5, -1.5, 2.0], dtype="bfloat16"
    )
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    for model in mixed.models:
        model.register_forward_pre_hook(lambda *_: alive.append(sum(each() is not None for each in made)))
        model.register_forward_hook(lambda _, __, output: made.append(weakref.ref(output.logits)))
    with torch.no_grad():
        mixed(TOKENS)
    assert alive == [0, 0, 0]
