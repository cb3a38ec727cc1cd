"""Tensors that are called or cut otherwise in the base than in the run, or that one of them lacks.

Every prediction is compared with that of the same run where the base has the names of the last checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from case_runs import Tensors, random, recipe_for, tiny, write_model, write_run
from command_lines import Ended
from safetensors.torch import load_file

from hubextrap.executors.local import LocalExecutor
from hubextrap.progress import Progress
from hubextrap.work.kinds import Work, load_work
from hubextrap.work.places import Place
from hubextrap.work.records import Record

Renaming = Callable[[str], str]


def vl(step: int) -> Tensors:
    """A model of text and images, by the names of transformers 5."""
    moved = {
        f"model.language_model.layers.{i}.mlp.up_proj.weight": random(i, 4, 4) + step * i for i in range(3)
    }
    moved["model.language_model.norm.weight"] = torch.ones(4)
    moved |= {f"model.visual.blocks.{i}.attn.qkv.weight": random(9 + i, 4, 4) + step for i in range(3)}
    return {name: tensor.bfloat16() for name, tensor in {**moved, "lm_head.weight": random(8, 8, 4)}.items()}


def of_qwen(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def of_gemma(name: str) -> str:
    name = name.replace("model.language_model.", "language_model.model.")
    name = name.replace("model.visual.", "vision_tower.vision_model.")
    return name.replace("lm_head.", "language_model.lm_head.")


def compiled(name: str) -> str:
    return f"_orig_mod.{name}"


def layers_compiled(name: str) -> str:
    return re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", name)


def wrapped(name: str) -> str:
    return f"module._fsdp_wrapped_module.{layers_compiled(name)}"


def renamed(tensors: Mapping[str, torch.Tensor], renaming: Renaming) -> Tensors:
    return {renaming(name): tensor for name, tensor in tensors.items()}


def write_both(root: Path, base: Tensors, run: Callable[[int], Tensors], **how: Any) -> Path:
    """A base and a run of steps 100 and 200, and a recipe for them; its path.

    No class is named, so the transformers that is installed is not asked, which takes seconds.
    """
    how.setdefault("config", {"architectures": None})
    write_model(root / "base", base, **how)
    write_run(root / "run", tensors=run, **how)
    trajectory = {"repo": str(root / "run"), "base": str(root / "base")}
    return recipe_for("", root / "r.yaml", trajectory=trajectory)


def predicted(cli: Callable[..., Ended], recipe: Path, out: Path) -> bytes:
    ended = cli("merge", recipe, "--out", out, "-q")
    assert ended.code == 0, ended.err
    return (out / "model.safetensors").read_bytes()


def with_names(recipe: Path, said: str) -> Path:
    """The recipe with the line that a message prints, pasted under trajectory."""
    (line,) = [line for line in said.splitlines() if line.startswith("  tensors: {")]
    content = json.loads(recipe.read_text())
    content["trajectory"] |= yaml.safe_load(line)
    recipe.with_name("mended.yaml").write_text(json.dumps(content))
    return recipe.with_name("mended.yaml")


def problem(cli: Callable[..., Ended], recipe: Path) -> str:
    """What plan and merge say alike."""
    planned = cli("plan", recipe, "--out", recipe.with_name("none"), "--json")
    merged = cli("merge", recipe, "--out", recipe.with_name("none"), "-q")
    assert (planned.code, merged.code) == (1, 1)
    (said,) = json.loads(planned.out)["problems"]
    assert merged.err.partition("error: ")[2].rstrip("\n") == said
    return str(said)


@pytest.mark.parametrize(
    "renaming", [of_qwen, compiled, layers_compiled, wrapped, lambda n: compiled(of_qwen(n))]
)
def test_known_names_are_the_same_tensors(
    renaming: Renaming, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """hiyouga/LlamaFactory#8338, vllm-project/vllm#19054: the same model by the names of another version."""
    plain = write_both(tmp_path / "plain", vl(0), vl)
    other = write_both(tmp_path / "other", renamed(vl(0), renaming), vl)
    assert predicted(cli, other, tmp_path / "p") == predicted(cli, plain, tmp_path / "q")
    planned = cli("plan", other, "--out", tmp_path / "n", "--json")
    said = "\n".join(json.loads(planned.out)["notes"])
    assert "called as in the last checkpoint" in said
    assert re.search(r"→ (?:model\.language_model|model\.visual|lm_head)\.", said)


def test_names_of_gemma_meet_those_of_transformers_5(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    def run(step: int) -> Tensors:
        return renamed(
            vl(step), lambda name: name.replace("model.visual.", "model.vision_tower.vision_model.")
        )

    plain = write_both(tmp_path / "plain", run(0), run)
    other = write_both(tmp_path / "other", renamed(vl(0), of_gemma), run)
    assert predicted(cli, other, tmp_path / "p") == predicted(cli, plain, tmp_path / "q")


@pytest.mark.parametrize("renaming", [compiled, layers_compiled, "module.{}".format])
def test_names_that_no_loader_knows_are_not_written(
    renaming: Renaming, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """The last checkpoint's names are those of the output; transformers makes up what it does not find."""
    recipe = write_both(tmp_path, vl(0), lambda step: renamed(vl(step), renaming))
    plain = write_both(tmp_path / "plain", renamed(vl(0), renaming), vl)
    assert predicted(cli, recipe, tmp_path / "p") == predicted(cli, plain, tmp_path / "q")


def test_a_head_that_the_last_checkpoint_does_not_store_is_called_as_it_would_be(
    tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """Tied: the base stores the copy under a wrapper's name, step 100 under its own, step 200 none."""

    def tied(step: int, *, head: bool) -> Tensors:
        copy = {"lm_head.weight": tiny(step)["model.embed_tokens.weight"].clone()} if head else {}
        return {name: one for name, one in tiny(step).items() if name != "lm_head.weight"} | copy

    config = {"architectures": None, "tie_word_embeddings": True}
    plain, other = (
        write_both(tmp_path / name, base, lambda step: tied(step, head=step == 100), config=config)
        for name, base in (("plain", tied(0, head=False)), ("other", renamed(tied(0, head=True), wrapped)))
    )
    assert predicted(cli, other, tmp_path / "p") == predicted(cli, plain, tmp_path / "q")


def test_a_name_that_may_be_two_is_none(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """Both names of the base stand for one of the last checkpoint's: nothing is taken for it."""
    both = {f"_orig_mod.{name}": tensor for name, tensor in tiny(0).items()}
    both["module.model.norm.weight"] = torch.ones(4).bfloat16()
    recipe = write_both(tmp_path, both, tiny)
    said = problem(cli, recipe)
    assert "_orig_mod.model.norm.weight is model.norm.weight" in said
    assert "module.model.norm.weight is in step 0" in said
    assert "lm_head" not in said
    with_names(recipe, said)


@pytest.mark.parametrize(
    ("renaming", "lines", "mends"),
    [
        (lambda name: name.replace("model.", "net.", 1), 1, {"rename": {"net.*": "model.*"}}),
        (lambda name: f"policy.{name}", 2, {"rename": {"policy.*": "*"}}),
        (
            lambda name: name.replace("model.visual.", "eyes.").replace("model.language_model.", "text."),
            2,
            {"rename": {"text.*": "model.language_model.*", "eyes.*": "model.visual.*"}},
        ),
    ],
)
def test_a_prefix_is_one_line_and_its_recipe_line_works(
    renaming: Renaming, lines: int, mends: dict[str, Any], tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    plain = write_both(tmp_path / "plain", vl(0), vl)
    other = write_both(tmp_path / "other", renamed(vl(0), renaming), vl)
    said = problem(cli, other)
    head, *rest = said.splitlines()
    assert len([line for line in rest if line.startswith("  ") and " called " in line]) <= lines
    assert yaml.safe_load(next(line for line in rest if "tensors:" in line))["tensors"] == mends
    assert "48" not in head
    mended = with_names(other, said)
    assert predicted(cli, mended, tmp_path / "p") == predicted(cli, plain, tmp_path / "q")


@pytest.mark.parametrize(
    ("more", "glob"),
    [
        (
            {f"mtp.layers.0.{n}.weight": (4, 4) for n in ("q_proj", "up_proj")} | {"mtp.norm.weight": (4,)},
            "mtp.*",
        ),
        ({f"model.layers.1.{n}.weight": (4, 4) for n in ("eh_proj", "enorm")}, "model.layers.1.*"),
        ({f"model.layers.{n}.rotary_emb.inv_freq": (2,) for n in range(3)}, None),
        ({"model.vision_tower.position_ids": (4,), "model.vision_tower.w": (4,)}, "model.vision_tower.*"),
        ({"v_head[0].weight": (4,)}, "v_head[[]0].weight"),
    ],
)
def test_what_only_the_base_has_is_ignored(
    more: dict[str, tuple[int, ...]], glob: str | None, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """modelscope/ms-swift#9802: transformers drops mtp.* as it loads the base, so the run lacks it."""
    base = {**tiny(0), **{name: torch.ones(shape).bfloat16() for name, shape in more.items()}}
    recipe = write_both(tmp_path, base, tiny)
    plain = write_both(tmp_path / "plain", tiny(0), tiny)
    said = problem(cli, recipe)
    assert sum("in step 0" in line for line in said.splitlines()) == 1
    mended = with_names(recipe, said)
    if glob is not None:
        assert json.loads(mended.read_text())["trajectory"]["tensors"] == {"ignore": [glob]}
    assert predicted(cli, mended, tmp_path / "p") == predicted(cli, plain, tmp_path / "q")
    assert (
        "ignored, as the last checkpoint has no such tensors"
        in cli("plan", mended, "--out", tmp_path / "n").out
    )


@pytest.mark.parametrize("command", ["predict", "backtest", "scan", "report"])
def test_every_command_says_the_same_in_the_same_lines(
    command: str, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    run = write_run(
        tmp_path / "run",
        (0, 100, 200, 300),
        lambda step: tiny(step) if step else renamed(tiny(0), "x.{}".format),
    )
    said = problem(cli, recipe_for(run, tmp_path / "r.yaml", 320))
    ended = cli(command, run, *([] if command == "backtest" else ["--out", tmp_path / "made"]), "-q")
    assert ended.code == 1
    told, _, advice = (
        ended.err.partition("error: ")[2].rstrip("\n").partition("\npredict has no option for it: ")
    )
    assert told == said
    assert bool(advice) == (command == "predict")  # the others take a recipe


def test_what_the_base_lacks_or_holds_otherwise_is_copied(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """A value head that training added, and a vocabulary that it padded, come from the last checkpoint."""

    def run(step: int) -> Tensors:
        padded = {"lm_head.weight": random(step, 10, 4).bfloat16()}
        return {**tiny(step), **padded, "v_head.weight": random(step + 1, 4).bfloat16()}

    recipe = write_both(tmp_path, tiny(0), run)
    said = problem(cli, recipe)
    assert "lm_head.weight has shape [8, 4] in step 0" in said
    mended = with_names(recipe, said)
    predicted(cli, mended, tmp_path / "p")
    made = load_file(tmp_path / "p" / "model.safetensors")
    for name in ("lm_head.weight", "v_head.weight"):
        assert torch.equal(made[name], run(200)[name])
    assert not torch.equal(made["model.embed_tokens.weight"], run(200)["model.embed_tokens.weight"])
    scanned = cli("scan", mended, "--out", tmp_path / "s.safetensors", "--json")
    assert scanned.code == 0, scanned.err
    assert "v_head" not in (tmp_path / "s.safetensors").read_bytes().decode(errors="replace")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"ignore": ["mtp.*"]}, "trajectory.tensors.ignore: 'mtp.*' matches no tensor"),
        ({"ignore": ["lm_head*"]}, "write it under copy"),
        ({"copy": ["mtp.*"]}, "trajectory.tensors.copy: 'mtp.*' matches no tensor"),
        ({"copy": ["*"]}, "takes every tensor"),
        ({"rename": {"a.*": "model.*"}}, "'a.*' renames nothing"),
        ({"rename": {"one.*": "model.*"}}, "makes one tensor"),
        ({"rename": {"one.*": "model.x"}}, "needs one * on both sides"),
        ({"rename": {"x": "x"}}, "renamed to itself"),
        ({}, "says nothing"),
    ],
)
def test_what_has_no_effect_is_an_error_with_its_line(
    section: dict[str, Any], said: str, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    base = dict(tiny(0))
    norm = base.pop("model.norm.weight")
    write_both(tmp_path, {**base, "one.norm.weight": norm, "model.norm.weight": norm + 1}, tiny)
    text = yaml.safe_dump(
        {
            "merge_method": "two_point",
            "parameters": {"target_step": 300},
            "trajectory": {"repo": str(tmp_path / "run"), "base": str(tmp_path / "base"), "tensors": section},
        }
    )
    recipe = tmp_path / "lines.yaml"
    recipe.write_text(text)
    ended = cli("merge", recipe, "--out", tmp_path / "p")
    assert ended.code == 1
    if said == "makes one tensor":  # only where the last checkpoint lacks the old name
        assert "model.norm.weight, of model.norm.weight and one.norm.weight" in ended.err
    assert said in " ".join(ended.err.split())
    assert re.search(r"lines\.yaml:\d+", ended.err)


def experts(
    step: int, *, fused: bool, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Tensors:
    """Two layers of four experts, hidden size 5, inner size 3."""
    found = dict(tiny(step))
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up = (random(10 * layer + n, 4, 3, 5) + step * random(n + 2, 4, 3, 5) / 100 for n in (0, 1))
        down = random(10 * layer + 5, 4, 5, 3) * (1 + step / 100)
        if fused:
            found[f"{prefix}.gate_up_proj"] = torch.cat([gate, up], 1).bfloat16()
            found[f"{prefix}.down_proj"] = down.bfloat16()
            continue
        for expert in range(4):
            for name, tensor in zip(names, (gate, up, down), strict=True):
                found[f"{prefix}.{expert}.{name}.weight"] = tensor[expert].bfloat16()
    return found


@pytest.mark.parametrize("last_is_fused", [True, False])
@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")])
@pytest.mark.parametrize("sections", [{}, {"merge_method": "low_rank", "parameters": {"target_step": 300}}])
def test_experts_combine_whether_fused_or_not(
    last_is_fused: bool,
    names: tuple[str, str, str],
    sections: dict[str, Any],
    tmp_path: Path,
    cli: Callable[..., Ended],
) -> None:
    """modelscope/ms-swift#9802: experts one by one in the base, one tensor for all in what was saved."""

    def run(step: int) -> Tensors:
        return experts(step, fused=last_is_fused, names=names)

    made = []
    for place, base in (("same", run(0)), ("other", experts(0, fused=not last_is_fused, names=names))):
        recipe = write_both(tmp_path / place, base, run)
        recipe.write_text(json.dumps(json.loads(recipe.read_text()) | sections))
        made.append(predicted(cli, recipe, tmp_path / place / "p"))
    assert made[0] == made[1]


def test_fused_experts_under_other_names(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """Mixtral's base has block_sparse_moe and w1, w3, w2, and a wrapper is in the way."""

    def run(step: int) -> Tensors:
        return experts(step, fused=True)

    old = experts(0, fused=False, names=("w1", "w3", "w2"))
    base = renamed(old, lambda name: f"_orig_mod.{name.replace('.mlp.', '.block_sparse_moe.')}")
    plain = write_both(tmp_path / "plain", run(0), run)
    other = write_both(tmp_path / "other", base, run)
    assert predicted(cli, other, tmp_path / "p") == predicted(cli, plain, tmp_path / "q")


def test_experts_that_do_not_fit_are_told_together(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """One expert more than the fused tensor holds: not combined, and not 24 lines."""
    base = experts(0, fused=False)
    for name in ("gate_proj", "up_proj"):
        base[f"model.layers.0.mlp.experts.4.{name}.weight"] = random(1, 3, 5).bfloat16()
    said = problem(cli, write_both(tmp_path, base, lambda step: experts(step, fused=True)))
    assert "gate_up_proj is in step 200 but not in step 0" in said
    assert len(said.splitlines()) < 12


@pytest.mark.parametrize("model_type", ["qwen2_audio", "mistral3"])
def test_a_head_that_differs_is_not_tied(model_type: str, tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """vllm-project/vllm#46479, #51063: config.json says tied, the file holds a head of its own."""
    config = {"tie_word_embeddings": True, "model_type": model_type}
    tied = recipe_for(write_run(tmp_path / "tied", config=config), tmp_path / "tied.yaml")
    untied = recipe_for(write_run(tmp_path / "untied"), tmp_path / "untied.yaml")
    assert predicted(cli, tied, tmp_path / "p") == predicted(cli, untied, tmp_path / "q")
    assert "lm_head.weight" in load_file(tmp_path / "p" / "model.safetensors")
    assert "stores a head that differs" in " ".join(cli("plan", tied, "--out", tmp_path / "n").out.split())
    assert cli("scan", tmp_path / "tied", "--out", tmp_path / "s.safetensors").code == 0


def test_an_earlier_head_that_differs_is_found_by_plan(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """The last checkpoint's copy is one, so it is tied; one whose head differs does not go with it."""

    def run(step: int) -> Tensors:
        tensors = tiny(step)
        return (
            tensors
            if step == 100
            else {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        )

    recipe = recipe_for(
        write_run(tmp_path / "run", tensors=run, config={"tie_word_embeddings": True}), tmp_path / "r"
    )
    said = problem(cli, recipe)
    assert "lm_head.weight differs from model.embed_tokens.weight" in said
    assert "step 100" in said


def test_a_head_that_was_untied_after_the_base(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """arcee-ai/mergekit#424: the base is tied and stores no head, the run has one of its own."""
    base = {name: tensor for name, tensor in tiny(0).items() if name != "lm_head.weight"}
    said = problem(cli, write_both(tmp_path, base, tiny))
    assert "lm_head.weight is in step 200 but not in step 0" in said
    assert "a model whose embeddings are tied stores none" in said


def test_a_scan_under_other_names_is_not_taken(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """The same files, other tensors: two layers of one shape that a recipe exchanges."""
    layers = {f"net.{n}.w": random(n, 4, 4).bfloat16() for n in (0, 1)}

    def run(step: int) -> Tensors:
        return {f"model.{n}.w": (random(n, 4, 4) + step).bfloat16() for n in (0, 1)}

    recipe = write_both(tmp_path, layers, run)
    content = json.loads(recipe.read_text())
    content |= {"merge_method": "low_rank"}
    straight, crossed = {"net.*": "model.*"}, {"net.0.w": "model.1.w", "net.1.w": "model.0.w"}
    files = []
    for number, rename in enumerate((straight, crossed)):
        content["trajectory"]["tensors"] = {"rename": rename}
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(json.dumps(content))
    assert cli("scan", files[0], "--out", tmp_path / "s.safetensors").code == 0
    assert cli("plan", files[0], "--scan", tmp_path / "s.safetensors", "--out", tmp_path / "p").code == 0
    ended = cli("plan", files[1], "--scan", tmp_path / "s.safetensors", "--out", tmp_path / "p")
    assert ended.code == 1
    assert "of other files" in ended.err


class Elsewhere(LocalExecutor):
    """Workers that know nothing but the plan's JSON, as on another machine."""

    def run(self, plan: Work, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        return super().run(load_work(place), place, units, progress)


@pytest.mark.parametrize("last_is_fused", [True, False])
def test_workers_elsewhere_read_the_same(
    last_is_fused: bool, tmp_path: Path, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, experts and what is left out travel with the plan, of a merge and of its scan."""
    used: list[Elsewhere] = []

    def executor(_: str) -> Elsewhere:
        used.append(Elsewhere())
        return used[-1]

    monkeypatch.setattr("hubextrap.api.elsewhere.executor_named", executor)
    monkeypatch.setattr("hubextrap.api.distributing.executor_named", executor)

    def run(step: int) -> Tensors:
        return {**experts(step, fused=last_is_fused), "head.weight": random(step, 3).bfloat16()}

    base = renamed(experts(0, fused=not last_is_fused), compiled) | {"mtp.norm.weight": torch.ones(4)}
    recipe = write_both(tmp_path, base, run)
    content = json.loads(recipe.read_text()) | {"merge_method": "low_rank"}
    content["trajectory"]["tensors"] = {"ignore": ["mtp.*"], "copy": ["head.weight"]}
    recipe.write_text(json.dumps(content))
    here = predicted(cli, recipe, tmp_path / "here")
    ended = cli("merge", recipe, "--out", tmp_path / "there", "--executor", "ray", "-q")
    assert ended.code == 0, ended.err
    assert (tmp_path / "there" / "model.safetensors").read_bytes() == here
    assert len(used) == 2


@pytest.mark.slow
def test_the_mapping_of_the_installed_transformers(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """The names of Qwen2.5-VL as its own library has them; a class that it lacks leaves names as they are."""
    transformers = pytest.importorskip("transformers")
    from hubextrap.tensors.local import LocalSource
    from hubextrap.tensors.transformers_names import names_in_transformers

    config = transformers.Qwen2_5_VLConfig().to_dict() | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"]
    }
    source = LocalSource(write_model(tmp_path / "m", tiny(0), json.loads(json.dumps(config, default=str))))
    asked = ["model.layers.0.x", "visual.blocks.0.w", "model.language_model.norm.weight", "lm_head.weight"]
    now = ["model.language_model.layers.0.x", "model.visual.blocks.0.w", *asked[2:]]
    assert list(names_in_transformers(source, asked)) == now
    unknown = LocalSource(write_model(tmp_path / "u", tiny(0), {"architectures": ["NoSuchModel"]}))
    assert list(names_in_transformers(unknown, asked)) == asked
