"""`plan` and `merge` never disagree about whether an input can be merged, whatever it is.

Runs are drawn at random: tensors of any names, dtypes and shapes, missing and further ones, tied embeddings,
what looks quantised or like an adapter, empty tensors, broken headers and indices, pointers, side files. Of
each, `merge` fails with the problems that `plan` found, or does what `plan` found no problem with.

What only the values say, no plan can know, as it reads none: integers that differ between steps, copies
of tied embeddings that differ, NaN. So values are drawn that have none of that.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from case_runs import recipe_for
from safetensors.torch import save_file

from hubextrap import api
from hubextrap.errors import HubExtrapError

NAMES = (
    *(
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.mlp.up_proj.weight",
    ),
    *("model.layers.0.mlp.up_proj.weight_scale_inv", "model.layers.0.mlp.up_proj.bias", "position_ids"),
    *("base_model.model.x.lora_A.weight", "x.absmax", "model.mtp.0.weight", "_orig_mod.model.norm.weight"),
    *(
        "module.model.norm.weight",
        "model.rotary.inv_freq",
        "x.qweight",
        "y_blocks",
        "y_scales",
        "weird name ü",
    ),
)
DTYPES = (
    *(torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32, torch.float16, torch.float64),
    *(torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.int8),
)
SHAPES = ((4, 4), (4, 4), (4,), (8, 2), (0,), (), (1,), (2, 2, 2))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0a" * 32 + b"\nsize 12\n"
Tensors = dict[str, torch.Tensor]


def tensors_of(dice: random.Random) -> Tensors:
    """A few tensors of any kind; nine times in ten those of an ordinary model are among them."""
    made: Tensors = {}
    for name in dice.sample(NAMES[:4], 3) if dice.random() < 0.9 else ():
        made[name] = torch.ones(4, 4).bfloat16()
    for name in dice.sample(NAMES, dice.choice((0, 0, 0, 0, 1, 2))):
        made[name] = torch.ones(dice.choice(SHAPES)).to(dice.choice(DTYPES))
    return made or {"w": torch.ones(2)}


def altered(tensors: Tensors, dice: random.Random) -> Tensors:
    """What another step holds: mostly the same, and other values for what is combined."""
    factor = dice.uniform(0.5, 2)
    made = {
        name: one * factor if one.dtype.is_floating_point and one.itemsize > 1 else one
        for name, one in tensors.items()
    }
    match dice.choice((*["same"] * 12, "less", "more", "shape", "dtype")):
        case "less" if len(made) > 1:
            del made[dice.choice(sorted(made))]
        case "more":
            made[dice.choice(NAMES)] = torch.ones(3)
        case "shape":
            made[dice.choice(sorted(made))] = torch.ones(dice.choice(SHAPES))
        case "dtype":
            name = dice.choice(sorted(made))
            made[name] = made[name].float().to(dice.choice(DTYPES))
    return made


def write(folder: Path, tensors: Tensors, dice: random.Random) -> None:
    """The files of a step, some of them with a fault."""
    folder.mkdir(parents=True)
    config: dict[str, object] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config["tie_word_embeddings"] = dice.random() < 0.4
    if dice.random() < 0.03:
        config["quantization_config"] = {"quant_method": dice.choice(("fp8", "bitsandbytes", "x", 3))}
    files: dict[str, bytes] = {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}"}
    if dice.random() < 0.3:
        names = sorted(tensors)
        shards = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(names)}
        for shard in set(shards.values()):
            save_file(
                {name: tensors[name].contiguous() for name in names if shards[name] == shard}, folder / shard
            )
        match dice.choice((*["right"] * 9, "short", "elsewhere", "broken")):
            case "short":
                shards.popitem()
            case "elsewhere":
                shards[names[0]] = dice.choice(("model.safetensors", "../x.safetensors", "model-9.bin"))
            case "broken":
                files["model.safetensors.index.json"] = b"{"
        files.setdefault("model.safetensors.index.json", json.dumps({"weight_map": shards}).encode())
    else:
        save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors")
    fault = dice.choice((*[""] * 30, "pointer", "cut", "side", "code", "config", "adapter", "large"))
    weights = sorted(folder.glob("*.safetensors"))
    if fault == "pointer":
        files[dice.choice((weights[0].name, "config.json", "tokenizer.json", "notes.txt"))] = POINTER
    elif fault == "cut":
        weights[0].write_bytes(weights[0].read_bytes()[: dice.choice((0, 5, 60, -1))])
    elif fault == "side":
        files |= {"x.pt": b"x", "SYSTEM_PROMPT.txt": b"x", "LICENSE": b"x", "token": b"x"}
    elif fault == "code":
        files |= {"m.py": b"x", "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["m.T", null]}}'}
    elif fault == "config":
        files["config.json"] = dice.choice((b"{", b"[]", b"\xff", b"{}", b'{"transformers_weights": "x"}'))
    elif fault == "adapter":
        files["adapter_config.json"] = dice.choice((b"{}", b"{", b'{"peft_type": "LORA", "r": 2}'))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if fault == "large":
        with (folder / "tokenizer.json").open("r+b") as file:
            file.truncate(65 * 2**20)


def outcome(root: Path, dice: random.Random) -> tuple[list[str], str | None]:
    """What `plan` has against a run drawn at random; and what `merge` raises, None where it does not."""
    first = tensors_of(dice)
    for step in (10, 20, 30)[: dice.choice((2, 2, 3))]:
        write(root / "run" / f"step_{step}", altered(first, dice) if step > 10 else first, dice)
    sections: dict[str, object] = {}
    if dice.random() < 0.5:
        sections["out_dtype"] = dice.choice(("bfloat16", "float32", "float16"))
    recipe, out = recipe_for(root / "run", root / "r.yaml", 35, **sections), root / "out"

    def asked(work: Callable[[], object]) -> str | None:
        try:
            work()
        except HubExtrapError as error:
            return str(error)
        return None

    problems: list[str] = []
    refused = asked(lambda: problems.extend(api.plan(recipe, out=out).problems))
    found = asked(lambda: api.merge(recipe, out=out))
    assert (found is None) is out.exists()
    return ([refused] if refused is not None else problems), found


def check(root: Path, seeds: range) -> int:
    """Draw runs and compare; how many could not be merged."""
    failed = 0
    for seed in seeds:
        place = root / str(seed)
        planned, merged = outcome(place, random.Random(seed))
        assert "\n".join(planned) == (merged or ""), seed
        failed += merged is not None
        shutil.rmtree(place)
    return failed


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_of_a_few_runs(tmp_path: Path) -> None:
    assert 2 < check(tmp_path, range(10)) < 8, "the dice show both"


@pytest.mark.slow
def test_of_many_runs(tmp_path: Path) -> None:
    assert 60 < check(tmp_path, range(1000, 1200)) < 140, "the dice show both"
