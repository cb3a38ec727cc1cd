"""lm-eval's model ``hubextrap``: a prediction that is made when it is loaded, of weights or of logits.

Importing this module registers it; so do `hubextrap lm-eval`, and the entry point ``lm_eval.models`` with
versions of lm-eval that read it (0.4.13 does not)::

    hubextrap lm-eval run --tasks gsm8k --model hubextrap --model_args \\
        trajectory=me/run,max_step=200,target_step=300,method=two_point,base_step=100,space=logits

Imports torch, transformers and lm-eval's Hugging Face model (3-5 s).
"""

from __future__ import annotations

import sys
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hubextrap.extras import require

require("eval", "lm-eval's model hubextrap")

import lm_eval.models  # noqa: F401 - registering before it is imported would hide lm-eval's own models
import torch
import yaml
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from hubextrap import api
from hubextrap.adapters.base import Bases
from hubextrap.errors import RecipeError
from hubextrap.evaluation.quiet import quiet_libraries
from hubextrap.foreign_text import as_shown, own_lines
from hubextrap.hub_access import reason
from hubextrap.logits import ExtrapolatedForCausalLM, load_tokenizer, recipe_mixture
from hubextrap.logits.loading import Models
from hubextrap.opening import Run
from hubextrap.progress import SilentProgress
from hubextrap.recipe import Recipe, load_recipe, parse_recipe
from hubextrap.tensors.devices import device_problem
from hubextrap.trajectory import resolve_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STEP_KEYS = {
    "pattern": "pattern",
    "series": "series",
    "min_step": "min",
    "max_step": "max",
    "steps": "only",
    "step_scale": "scale",
}
"""Keys of model_args by the keys of a recipe's ``trajectory.steps``."""
PASSED = (
    "batch_size", "max_batch_size", "max_length", "truncation", "logits_cache", "softmax_dtype",
    "mixed_precision_dtype", "add_bos_token", "prefix_token_id", "think_end_token", "enable_thinking",
    "chat_template_args", "backend",
)  # fmt: skip
"""What lm-eval's own Hugging Face model takes, and does with a prediction as with any model."""
OWN = ("device", "dtype", "use_fast_tokenizer")
"""What it takes and this module sees to."""
_CHECKPOINTS = "name the checkpoints by trajectory or recipe, with @revision and :folder where they need it"
_WHOLE = "a prediction is loaded whole, onto the device that `device` names"
_MERGED = "merge it into a folder (`hubextrap merge`) and give that to lm-eval's model hf"
_PLACING = "parallelize", "max_memory_per_gpu", "max_cpu_memory", "offload_folder", "tp_plan", "device_map"
REFUSED = {
    **dict.fromkeys(("pretrained", "revision", "subfolder"), _CHECKPOINTS),
    **dict.fromkeys(_PLACING, _WHOLE),
    **dict.fromkeys(("peft", "delta", "autogptq", "gptqmodel", "gguf_file"), _MERGED),
    "tokenizer": "the tokenizer is that of the last checkpoint",
    "trust_remote_code": "no code from the Hub is run for a prediction",
}
"""What it takes and a prediction cannot have, and why. Given with lm-eval's default, it changes nothing."""


@register_model("hubextrap")
class HubextrapLM(HFLM):  # type: ignore[misc]
    """A prediction as a model of lm-eval."""

    def __init__(
        self,
        *,
        device: str | None = None,
        dtype: str = "auto",
        use_fast_tokenizer: bool | None = True,
        **arguments: Any,
    ) -> None:
        """Predict, load, and hand the model to lm-eval.

        Args:
            device: as torch names it; the GPU if None. Without one, the CPU.
            dtype: ``auto`` for the checkpoints' own, or as torch names it.
            use_fast_tokenizer: as for lm-eval's Hugging Face model.
            arguments: the prediction, and what lm-eval's Hugging Face model takes: all that is in `PASSED`.

                - ``recipe``: a recipe file; with ``target_step`` where it has several, and ``space``.
                - or ``trajectory`` (a reference), ``target_step``, ``method`` and its parameters,
                  ``damping``, ``space`` (``weights``, the default, or ``logits``), ``base``, ``pattern``,
                  ``series``, ``min_step``, ``max_step``, ``steps``, ``step_scale``, as in a recipe.

        Raises:
            RecipeError: an argument is missing, unknown or wrong.
            HubExtrapError: see `hubextrap.api.merge` and `hubextrap.logits.recipe_mixture`.
        """
        own = {key: arguments.pop(key) for key in PASSED if key in arguments}
        _check(arguments, own, device)
        recipe = _recipe(arguments)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"  # lm-eval asks for cuda:0 on its own accord, also where there is none
        if (problem := device_problem(device)) is not None:
            raise RecipeError(f"model_args: {problem}")
        spelling = {"use_fast": use_fast_tokenizer}
        if own.get("add_bos_token") is not None:  # the tokenizer itself has to be told
            spelling["add_bos_token"] = own["add_bos_token"]
        with quiet_libraries():
            made = _mixed if recipe.space == "logits" else _merged
            model, tokenizer, self._made_from = made(recipe, dtype, device, spelling)
            # a checkpoint's own max_new_tokens would come before the task's max_gen_toks
            model.generation_config.max_new_tokens = None
            try:
                super().__init__(pretrained=model, tokenizer=tokenizer, **{"backend": "causal"} | own)
            except Exception as error:  # lm-eval checks its arguments as they are used
                raise RecipeError(f"model_args: lm-eval's model refuses them: {reason(error)}") from error

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results beside the arguments."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_made_from": self._made_from,
        }


def _check(arguments: dict[str, Any], own: dict[str, Any], device: object) -> None:
    """Take out of ``arguments`` what changes nothing, and refuse what a prediction cannot have.

    Raises:
        RecipeError: names it.
    """
    defaults = signature(HFLM.__init__).parameters
    problems = []
    for key in [key for key in arguments if key in REFUSED]:
        value = arguments.pop(key)
        if key not in defaults or value != defaults[key].default:
            problems.append(f"{key}={value}: the model hubextrap does not take it: {REFUSED[key]}")
    if own.get("backend", "causal") not in ("causal", "default"):
        problems.append(f"backend={own['backend']}: a prediction is a causal language model")
    if device is not None and not isinstance(device, str):
        problems.append(f"device={device}: has to be as torch names it, e.g. cuda:{device}")
    if problems:
        raise RecipeError(own_lines(*(f"model_args: {problem}" for problem in problems)))


def _recipe(arguments: dict[str, Any]) -> Recipe:
    """The recipe that the arguments stand for, with one target step and nothing to push."""
    if "recipe" in arguments:
        known = ("recipe", "target_step", "space")
        if unknown := [key for key in arguments if key not in known]:
            beside = ", ".join([*known[1:], *PASSED, *OWN])
            raise RecipeError(
                f"model_args: {', '.join(unknown)} cannot go with recipe; write it into the recipe if it is "
                f"about the prediction; beside a recipe go {beside}"
            )
        recipe = load_recipe(Path(str(arguments["recipe"])))
        content = recipe.model_dump(
            mode="json", exclude_defaults=True, exclude={"push", "evaluate"}, by_alias=True
        )
        if "space" in arguments:
            content["space"] = arguments["space"]
        if recipe.parameters.target is not None:
            return _of_full_rate(recipe, content, arguments)
        targets = recipe.target_steps
        target = arguments.get("target_step", targets[0] if len(targets) == 1 else None)
        if target not in targets:
            listed = ", ".join(map(str, targets))
            raise RecipeError(f"model_args: target_step has to be one of the recipe's: {listed}")
        content["parameters"]["target_step"] = target
        return parse_recipe(yaml.safe_dump(content, sort_keys=False), str(arguments["recipe"]))
    if missing := [key for key in ("trajectory", "target_step", "method") if key not in arguments]:
        raise RecipeError(
            f"model_args: {', '.join(missing)} missing; e.g. trajectory=org/name,target_step=300,"
            "method=two_point,space=logits, or recipe=FILE"
        )
    trajectory: dict[str, Any] = {"repo": str(arguments.pop("trajectory"))}
    if "base" in arguments:
        trajectory["base"] = arguments.pop("base")
    if steps := {name: arguments.pop(key) for key, name in _STEP_KEYS.items() if key in arguments}:
        trajectory["steps"] = steps
    content = {
        "trajectory": trajectory,
        "merge_method": arguments.pop("method"),
        "space": arguments.pop("space", "weights"),
        "parameters": arguments,  # all the rest; the recipe refuses what the method does not take
    }
    return parse_recipe(yaml.safe_dump(content, sort_keys=False), "model_args as a recipe")


def _of_full_rate(recipe: Recipe, content: dict[str, Any], arguments: dict[str, Any]) -> Recipe:
    """That of a recipe whose target is no step."""
    if "target_step" in arguments or recipe.target_count > 1:
        raise RecipeError(
            "model_args: the recipe predicts full-rate steps; give it one number of them, and no target_step"
        )
    return parse_recipe(yaml.safe_dump(content, sort_keys=False), str(arguments["recipe"]))


class _Said(SilentProgress):
    """Facts about the run, beside lm-eval's own log: which checkpoints were left out, or are the same."""

    def say(self, line: str) -> None:
        print(as_shown(line), file=sys.stderr)

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")


def _mixed(
    recipe: Recipe, dtype: str, device: str, spelling: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    mixture = recipe_mixture(recipe, progress=_Said())
    model = ExtrapolatedForCausalLM.from_mixture(mixture, dtype=dtype, device=device)
    tokenizer = load_tokenizer(mixture.checkpoints[-1], bases=Bases(mixture.base_model), **spelling)
    return model, tokenizer, f"logits: {mixture.pinned_name}"


def _merged(
    recipe: Recipe, dtype: str, device: str, spelling: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    with Run.of(recipe, progress=_Said()) as run, TemporaryDirectory(prefix="hubextrap-") as parent:
        models = Models(run.bases, dtype=dtype, device=device)
        # what is wrong with it should not cost a merge
        tokenizer = load_tokenizer(run.trajectory.last, bases=models.bases, **spelling)
        # an evaluation has the last word on a target that the past cannot rehearse
        settings = api.MergeOptions(force=True)
        (prediction,) = api.merge(
            recipe, out=Path(parent) / "prediction", run=run, settings=settings
        ).predictions
        merged = resolve_checkpoint(str(prediction.folder))
        model = models.load(merged)
    inputs = ", ".join(
        f"step {item.step} {item.repo or item.path}" + (f" ({item.commit})" if item.commit else "")
        for item in prediction.provenance.inputs
    )
    return model, tokenizer, f"weights: {recipe.merge_method} to step {prediction.step} of {inputs}"
