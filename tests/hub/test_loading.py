"""The class that a card's snippet loads, against what transformers itself says and does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hubextrap.hub.loading import loading_snippet, model_class, placed_at


def classes_of_transformers() -> Iterator[tuple[str, str, set[str]]]:
    """(class, model type, Auto classes that load it as that class) of all that transformers has."""
    from transformers.models.auto import modeling_auto

    found: dict[tuple[str, str], set[str]] = {}
    for name, auto in vars(modeling_auto).items():
        if name.startswith("AutoModel") and hasattr(auto, "_model_mapping"):
            for model_type, classes in auto._model_mapping._model_mapping.items():
                for one in classes if isinstance(classes, (tuple, list)) else (classes,):
                    found.setdefault((one, model_type), set()).add(name)
    for (one, model_type), autos in found.items():
        yield one, model_type, autos


def test_every_class_that_transformers_has() -> None:
    """By the architecture alone: an Auto class that leads to it, or itself."""
    known = list(classes_of_transformers())
    assert len(known) > 1000
    wrong = [
        (one, model_type, found)
        for one, model_type, autos in known
        if (found := model_class({"architectures": [one], "model_type": model_type})) not in {one, *autos}
    ]
    assert wrong == []
    assert {
        model_class({"architectures": [f"{name}ForCausalLM"]}) for name in ("Llama", "Qwen2", "Gemma3")
    } == {"AutoModelForCausalLM"}


def configuration(model_type: str) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    content: dict[str, Any] = json.loads(CONFIG_MAPPING[model_type]().to_json_string())
    return content


@pytest.mark.parametrize(
    ("model_type", "architecture", "expected"),
    [
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "AutoModelForImageTextToText"),
        ("llava", "LlavaForConditionalGeneration", "AutoModelForImageTextToText"),
        ("t5", "T5ForConditionalGeneration", "T5ForConditionalGeneration"),
        ("qwen2_audio", "Qwen2AudioForConditionalGeneration", "Qwen2AudioForConditionalGeneration"),
        ("qwen2", "Qwen2ForSequenceClassification", "AutoModelForSequenceClassification"),
        ("qwen2", "Qwen2ForTokenClassification", "AutoModelForTokenClassification"),
        ("hubert", "HubertForSequenceClassification", "HubertForSequenceClassification"),
        ("llama", "LlamaModel", "LlamaModel"),
        ("gpt2", "GPT2LMHeadModel", "AutoModelForCausalLM"),
    ],
)
def test_by_architecture_and_configuration(model_type: str, architecture: str, expected: str) -> None:
    assert model_class(configuration(model_type) | {"architectures": [architecture]}) == expected


@pytest.mark.slow
def test_every_conditional_generation_with_its_own_configuration() -> None:
    """Where the configuration has images in it, the Auto class for images and text leads to the class."""
    wrong, seen = [], 0
    for one, model_type, autos in classes_of_transformers():
        if not one.endswith(("ForConditionalGeneration", "ForCausalLM")):
            continue
        try:
            config = configuration(model_type)
        except Exception:  # some configurations cannot be made without arguments
            continue
        found = model_class(config | {"architectures": [one]})
        seen += found == "AutoModelForImageTextToText"
        if found not in {one, *autos}:
            wrong.append((one, model_type, found))
    assert wrong == []
    assert seen > 20


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "AutoModelForCausalLM"),
        ({"vision_config": {}}, "AutoModelForImageTextToText"),
        (
            {
                "architectures": ["X"],
                "auto_map": {"AutoConfig": "c.C", "AutoModel": "m.Y", "AutoModelForZ": "m.X"},
            },
            "AutoModelForZ",
        ),
        ({"auto_map": {"AutoConfig": "c.C"}, "architectures": ["XForCausalLM"]}, "AutoModelForCausalLM"),
        ({"architectures": ["A\nimport os"]}, "AutoModelForCausalLM"),
        ({"architectures": "LlamaModel", "auto_map": ["AutoModel"]}, "AutoModelForCausalLM"),
        ({"auto_map": {"AutoModel; import os": "x.Y"}}, "AutoModelForCausalLM"),
    ],
)
def test_configurations_of_all_kinds(config: dict[str, Any], expected: str) -> None:
    """Nothing but a name gets into code that people run."""
    assert model_class(config) == expected


@pytest.mark.parametrize(
    ("beside", "architecture", "expected"),
    [
        ({"video_preprocessor_config.json": b"{}"}, "Qwen3_5", "AutoModelForImageTextToText"),
        (
            {"preprocessor_config.json": b'{"image_processor_type": "X"}'},
            "New",
            "AutoModelForImageTextToText",
        ),
        ({"preprocessor_config.json": b'{"feature_size": 80}'}, "Whisper", "WhisperForConditionalGeneration"),
        ({"video_preprocessor_config.json": b"{}"}, "Qwen2_5Omni", "Qwen2_5OmniForConditionalGeneration"),
        ({}, "T5", "T5ForConditionalGeneration"),
    ],
)
def test_by_what_prepares_the_inputs(beside: dict[str, bytes], architecture: str, expected: str) -> None:
    """A configuration may keep silent about images, and be completed by transformers' defaults."""
    config = {"architectures": [f"{architecture}ForConditionalGeneration"]}
    snippet = loading_snippet({"config.json": json.dumps(config).encode(), **beside}, "here")
    assert f"model = {expected}.from_pretrained(" in snippet


def test_a_processor_and_own_code() -> None:
    files = {"config.json": b'{"auto_map": {"AutoModel": "m.X"}}', "processor_config.json": b"{}"}
    assert placed_at(loading_snippet(files, "here"), "me/x", "step_4") == (
        "```python\n"
        "from transformers import AutoModel, AutoProcessor\n\n"
        "# trust_remote_code runs the Python files beside the weights: read them first\n"
        'model = AutoModel.from_pretrained("me/x", revision="step_4", trust_remote_code=True)\n'
        'processor = AutoProcessor.from_pretrained("me/x", revision="step_4", trust_remote_code=True)\n'
        "```"
    )


def test_the_snippet_runs(models: Callable[..., Path], tmp_path: Path) -> None:
    """A reward model keeps its head: as a language model it would get a random one."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(models(1))
    made: Any = transformers.LlamaForSequenceClassification(config)
    made.save_pretrained(tmp_path)
    for file in models(1).glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    snippet = placed_at(loading_snippet(files, "path/to/this/folder"), str(tmp_path), "main")
    names: dict[str, Any] = {}
    exec(snippet.removeprefix("```python").removesuffix("```"), names)
    assert type(names["model"]) is transformers.LlamaForSequenceClassification
    assert (names["model"].score.weight == made.score.weight).all()
    assert names["tokenizer"]("1+2=")["input_ids"]
