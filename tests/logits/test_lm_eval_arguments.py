"""What lm-eval's model ``hf`` takes: ``hubextrap`` does the same with it, or refuses it."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubextrap.errors import RecipeError, UnsupportedCheckpoint
from hubextrap.evaluation.quiet import quiet_libraries
from hubextrap.logits import ExtrapolatedForCausalLM

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ prompt | default('') }}{% if enable_thinking %}1+{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def plugin() -> Any:
    return import_module("hubextrap.lm_eval_plugin")


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_no_garbage(plugin: Any) -> None:
    """lm-eval collects garbage around each batch size that it tries, and looks at all of the libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundled checkpoints with a chat template, and without a length limit of their own."""
    root = tmp_path_factory.mktemp("run")
    data = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
    for step in ("step_0", "step_200"):
        shutil.copytree(data / step, root / step)
        (root / step / "chat_template.jinja").write_text(TEMPLATE)
        file = root / step / "generation_config.json"
        config = json.loads(file.read_text())
        del config["max_new_tokens"]
        file.write_text(json.dumps(config))
    return root


def of_last(plugin: Any, run: Path, **arguments: Any) -> Any:
    """A prediction that is the last checkpoint: its coefficients are one-hot."""
    settings = {"trajectory": str(run), "target_step": 300, "method": "persistence"}
    return plugin.HubextrapLM(**settings | {"device": "cpu"} | arguments)


def hf(run: Path, **arguments: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    with quiet_libraries():
        return HFLM(pretrained=str(run / "step_200"), **{"device": "cpu"} | arguments)


def answers(model: Any, *, thinking: bool = False) -> dict[str, list[Any]]:
    """What a model makes of all kinds of requests."""
    from lm_eval.api.instance import Instance

    prompts = ["526+850=", "1+1=", "110+939=", "7"]
    pairs = [*zip(prompts, ("6731", "2", "9401", "1"), strict=True), ("", "12"), ("526+850=", "1")]
    texts = ["526+850=6731", "1+" * 20 + "1=12", "945+922=7681" * 6]
    chats = [model.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in prompts]
    generate = {"until": ["<eos>"], "max_gen_toks": 6}
    found: dict[str, list[Any]] = {"chats": chats}
    with quiet_libraries():
        for kind, contexts in (("generated", prompts), ("chatted", chats)):
            requests = [
                Instance("generate_until", {}, (text, dict(generate)), index)
                for index, text in enumerate(contexts)
            ]
            found[kind] = model.generate_until(requests, disable_tqdm=True)
        if not thinking:
            scored = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
            rolled = [
                Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(texts)
            ]
            found["greedy"] = [greedy for _, greedy in model.loglikelihood(scored, disable_tqdm=True)]
            found["scores"] = [score for score, _ in model.loglikelihood(scored, disable_tqdm=True)]
            found["rolled"] = model.loglikelihood_rolling(rolled, disable_tqdm=True)
    return found


def differing(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [
        kind
        for kind, values in theirs.items()
        if (
            ours[kind] != pytest.approx(values, abs=1e-4)
            if kind in ("scores", "rolled")
            else ours[kind] != values
        )
    ]


FLOAT = {"softmax_dtype": "float32"}  # logits are mixed in float32, whatever the models' dtype
CASES: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"add_bos_token": True}, True),
    ({"add_bos_token": False}, False),
    ({"prefix_token_id": 5}, True),
    ({"max_length": 12}, True),
    ({"truncation": True}, False),
    ({"logits_cache": False}, False),
    ({"batch_size": 3}, False),
    ({"batch_size": "auto", "max_batch_size": 2}, False),
    ({"batch_size": "auto:2", "max_batch_size": 4}, False),
    ({"dtype": "float32"}, False),
    ({"dtype": "bfloat16"} | FLOAT, True),
    ({"dtype": "float16"} | FLOAT, True),
    ({"softmax_dtype": "float64"}, False),
    ({"mixed_precision_dtype": "bfloat16"} | FLOAT, True),
    ({"think_end_token": "9"}, True),
    ({"think_end_token": 9}, True),
    ({"think_end_token": "7", "enable_thinking": True}, True),
    ({"enable_thinking": False, "chat_template_args": {"prompt": "2+"}}, True),
    ({"backend": "default"}, False),
    ({"backend": "causal"}, False),
    ({"use_fast_tokenizer": False}, False),
]


@pytest.fixture(scope="module")
def theirs(run: Path) -> Callable[[dict[str, Any]], dict[str, list[Any]]]:
    """Answers of lm-eval's own model to all requests, with these arguments: made once for both spaces."""
    made: dict[str, dict[str, list[Any]]] = {}

    def found(arguments: dict[str, Any]) -> dict[str, list[Any]]:
        if (key := str(arguments)) not in made:
            made[key] = answers(hf(run, **arguments), thinking=bool(arguments.get("enable_thinking")))
        return made[key]

    return found


@pytest.mark.slow
@pytest.mark.parametrize("space", ["logits", "weights"])
@pytest.mark.parametrize(("arguments", "changes"), CASES, ids=str)
def test_an_argument_does_what_it_does_with_hf(
    space: str,
    arguments: dict[str, Any],
    changes: bool,
    plugin: Any,
    run: Path,
    theirs: Callable[[dict[str, Any]], dict[str, list[Any]]],
) -> None:
    thinking = bool(arguments.get("enable_thinking"))
    ours = answers(of_last(plugin, run, space=space, **arguments), thinking=thinking)
    assert differing(ours, theirs(arguments)) == []
    if changes:
        assert differing(ours, {kind: theirs({})[kind] for kind in ours}), "it has an effect to be compared"


def test_every_argument_of_hf_is_decided(plugin: Any) -> None:
    """A new one in a later lm-eval has to be put among those that are passed on or refused."""
    from lm_eval.models.huggingface import HFLM

    taken = set(signature(HFLM.__init__).parameters) - {"self", "kwargs"}
    decided = [*plugin.PASSED, *plugin.OWN, *plugin.REFUSED]
    assert len(decided) == len(set(decided)), "decided once"
    assert taken - set(decided) == set(), "neither passed on nor refused"
    assert set(plugin.PASSED) - taken == set(), "passed on to nobody"
    tested = {key for arguments, _ in CASES for key in arguments} | {"device"}
    assert tested == {*plugin.PASSED, *plugin.OWN}, "compared with hf above"


@pytest.mark.parametrize("given", ["trajectory", "recipe"])
def test_the_others_are_refused_by_name(given: str, plugin: Any, run: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"trajectory": str(run), "target_step": 300, "method": "persistence"}
    if given == "recipe":
        content = {"trajectory": {"repo": str(run)}, "merge_method": "persistence"}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content | {"parameters": {"target_step": 300}}))
        arguments = {"recipe": str(tmp_path / "recipe.yaml")}
    for key, why in plugin.REFUSED.items():
        value: Any = True if key in ("parallelize", "trust_remote_code", "autogptq", "gptqmodel") else "x"
        with pytest.raises(RecipeError) as caught:
            plugin.HubextrapLM(**arguments, **{key: value})
        assert str(caught.value) == f"model_args: {key}={value}: the model hubextrap does not take it: {why}"
    # what lm-eval passes on to from_pretrained
    for key in (
        "attn_implementation",
        "load_in_4bit",
        "torch_dtype",
        "low_cpu_mem_usage",
        "token",
        "add_bos",
    ):
        with pytest.raises(RecipeError, match=rf"\b{key}\b(: unknown key| cannot go with recipe)"):
            plugin.HubextrapLM(**arguments, **{key: "x"})
    with pytest.raises(RecipeError) as caught:
        plugin.HubextrapLM(**arguments, peft="me/lora", backend="seq2seq", device=0)
    assert str(caught.value).splitlines() == [
        f"model_args: peft=me/lora: the model hubextrap does not take it: {plugin.REFUSED['peft']}",
        "model_args: backend=seq2seq: a prediction is a causal language model",
        "model_args: device=0: has to be as torch names it, e.g. cuda:0",
    ]


def test_lm_eval_s_own_defaults_may_be_given(plugin: Any, run: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    parameters = signature(HFLM.__init__).parameters
    defaults = {
        key: parameters[key].default for key in plugin.REFUSED if key in parameters and key != "pretrained"
    }
    assert defaults["trust_remote_code"] is False
    of_last(plugin, run, space="logits", **defaults)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"enable_thinking": True},
            r"model_args: lm-eval's model refuses them: .*think_end_token is required",
        ),
        (
            {"batch_size": "many"},
            r"model_args: lm-eval's model refuses them: ValueError: invalid literal.*many",
        ),
        ({"softmax_dtype": "float99"}, r"model_args: lm-eval's model refuses them: .*float99"),
    ],
)
def test_values_that_lm_eval_refuses(arguments: dict[str, Any], said: str, plugin: Any, run: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        of_last(plugin, run, space="logits", **arguments)


@pytest.mark.parametrize("space", ["weights", "logits"])
def test_a_checkpoint_s_own_code_does_not_run(space: str, plugin: Any, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for folder in (tmp_path / "run").iterdir():
        (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        file = folder / "config.json"
        own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "modeling_own.Config"}}
        file.write_text(json.dumps(json.loads(file.read_text()) | own | {"model_type": "own"}))
    with pytest.raises(UnsupportedCheckpoint):
        of_last(plugin, tmp_path / "run", space=space)
    assert not (tmp_path / "ran").exists()


def test_what_a_mixture_cannot_do_is_refused(mixed_c: Any, tmp_path: Path, make: Callable[..., Any]) -> None:
    """Not a keyword is taken and dropped when a mixture is loaded or saved."""
    for keyword in ("push_to_hub", "safe_serialization", "state_dict", "variant", "token"):
        with pytest.raises(TypeError, match=keyword):
            mixed_c.save_pretrained(tmp_path / "mixed", **{keyword: True})
    assert not (tmp_path / "mixed").exists()
    mixed_c.save_pretrained(tmp_path / "mixed")
    loaders: Any = ExtrapolatedForCausalLM
    for keyword in (
        "attn_implementation",
        "device_map",
        "trust_remote_code",
        "quantization_config",
        "revision",
    ):
        with pytest.raises(TypeError, match=keyword):
            loaders.from_pretrained(tmp_path / "mixed", **{keyword: "x"})
