"""Our merge methods as merge methods of mergekit (0.1.5 or later); importing this module registers them.

mergekit discovers no plugins: a process that is to know the methods imports this module first, as
`hubextrap mergekit-yaml` does. Every method that `hubextrap.methods` knows is there under its own name.

A model says its step in its own ``parameters``, and mergekit binds it to that model's tensors, so neither the
order of the list nor an absent tensor can pair a step with other weights. The sums run in the engine's own
kernels: the same inputs give the same bits as `hubextrap merge`.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from functools import lru_cache
from inspect import Parameter as Argument
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hubextrap.extras import require

require("mergekit", "the plugin for mergekit")

import numpy as np
import torch
from pydantic import PlainValidator

from hubextrap.engine.comparison import FLOATS
from hubextrap.engine.kernels import Combiner
from hubextrap.engine.plan import combination
from hubextrap.engine.torch_kernels import BLOCK, TorchCombiner, count_non_finite, torch_dtype
from hubextrap.errors import CheckpointMismatch, MethodError, NonFinite, StepError, UnsupportedCheckpoint
from hubextrap.methods import Rule, find_method, method_names, nearest
from hubextrap.recipe.fits import NOTHING_IS_FITTED, read_mergekit_fit
from hubextrap.scans.places import places_of
from hubextrap.statistics.linearity import BINS
from hubextrap.step_names import settled_step
from hubextrap.tensors import LocalSource, read_layout
from hubextrap.tensors.combinable import MERGE_ADAPTER, is_adapter_tensor
from hubextrap.tensors.configuration import quantisation_method
from hubextrap.tensors.quantised import quantised_pair

try:
    from mergekit.merge_methods import (
        BasePolicy,
        GroupMergeMethod,
        InputContract,
        MergeMethodSpec,
        ParameterScope,
        register,
        registered_methods,
    )
    from mergekit.merge_methods.base import ParameterSpec
except Exception as error:  # of pydantic too: mergekit 0.1.4 does not import beside a new one
    raise MethodError(
        f"mergekit cannot be used ({str(error).splitlines()[0]}); the plugin needs the interface of "
        "mergekit 0.1.5, which 0.1.4 does not have: pip install 'hubextrap[mergekit]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mergekit.common import ModelReference
    from numpy.typing import NDArray

    from hubextrap.methods import Method, Parameter
    from hubextrap.recipe.fits import Fit

DTYPE_NAMES = {torch_dtype(name): name for name in FLOATS}
"""safetensors' names of what the compiled kernels combine."""
_QUANTISED = (
    "its weights are quantised, and mergekit hands over the stored numbers without their scales; use the "
    "checkpoints from before that, or `hubextrap merge`, which reads FP8 blocks and MXFP4 as floats"
)
ABSENT = Argument.empty
"""Default of a parameter that has to be given: reading it is the error, so that the message is ours."""


class TrajectoryMergeMethod(GroupMergeMethod):  # type: ignore[misc]  # mergekit is not typed
    """One of our methods, as mergekit calls it."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.spec = MergeMethodSpec(
            name=method.name,
            pretty_name=f"hubextrap {method.name}",
            parameters=(
                # read in merge_group, where the model is known and can be named
                ParameterSpec("step", Any, ParameterScope.INPUT, None),
                _shared("target_step", ABSENT, _target_step),
                _shared("damping", 1.0, _damping),
                _shared("max_expected_error", None, _no_limit),
                _shared("fit", "exact", _fit),
                *(_shared(own.name, own.default, _own_value(method.name, own)) for own in method.parameters),
            ),
            contract=InputContract(base=BasePolicy.OPTIONAL),
        )

    def merge_group(self, group: Any, /, **parameters: Any) -> torch.Tensor:
        """The prediction of one tensor.

        Args:
            group: K tensors of one shape, dtype and device, each with its model; mergekit casts them to
                ``dtype`` if the config names one.
            parameters: ``step`` by model, and the shared ones.

        Returns:
            The tensor in the inputs' dtype; sums are in float32, for float64 inputs in float64.

        Raises:
            StepError: a model without a step, two of one step, a target before the last step.
            MethodError: the method cannot serve these steps.
            CheckpointMismatch: tensors that are no floating-point numbers.
            UnsupportedCheckpoint: a tensor of an adapter, or a model whose weights are quantised.
            NonFinite: NaN or infinity came out.
        """
        tensor = group.metadata.name or "tensor"
        for entry in group.entries:
            if _quantised(entry.id):
                raise UnsupportedCheckpoint(f"{entry.id}: {_QUANTISED}", tensor=tensor)
        steps, inputs = _in_step_order(group, parameters.pop("step"))
        if is_adapter_tensor(tensor):
            what = f"{tensor} is part of an adapter, whose factors cannot be combined separately"
            raise UnsupportedCheckpoint(f"{what}; {MERGE_ADAPTER}", tensor=tensor)
        if not inputs[0].is_floating_point():
            what = f"{tensor} is {inputs[0].dtype}, which cannot be combined"
            raise CheckpointMismatch(what, tensor=tensor)
        own = {
            parameter.name: parameters[parameter.name]
            for parameter in self.method.parameters
            if parameters[parameter.name] is not parameter.default
        }
        rule = Rule(("*",), self.method.name, own, parameters["damping"])
        gram, fit = None, parameters["fit"]
        if rule.needs_gram_matrix:
            all_weights = fit == "exact"
            gram = gram_matrix(steps, inputs) if all_weights else sampled_gram_matrix(tensor, inputs, fit)
            if not np.isfinite(gram).all():
                what = f"{tensor}: a checkpoint holds NaN or infinity; leave it out"
                raise NonFinite(what, tensor=tensor)
        try:
            (weights,) = rule.coefficients(steps, [parameters["target_step"]], gram)
        except MethodError as error:
            raise MethodError(f"{tensor}: {error}", tensor=tensor) from error
        result = combine(inputs, weights)
        if count := count_non_finite(result.view(-1)):
            raise NonFinite(
                f"{tensor}: {count:,} of {result.numel():,} results are NaN or infinite; leave out the "
                "checkpoint that holds them, or choose a nearer target_step",
                tensor=tensor,
            )
        return result


def register_methods() -> None:
    """Make every method of `hubextrap.methods` known to mergekit; those that already are stay as they are.

    Raises:
        MethodError: mergekit or another package has a method of that name, or one of ours cannot be imported.
    """
    known = {method.spec.name: method for method in registered_methods()}
    for name in method_names():
        if name in known and not isinstance(known[name], TrajectoryMergeMethod):
            raise MethodError(
                f"mergekit has a merge method {name} already, from {type(known[name]).__module__}; "
                "register ours under another name (hubextrap.methods.register_method)"
            )
    for name in method_names():
        if name not in known:
            register(TrajectoryMergeMethod(find_method(name)))


def combine(inputs: Sequence[torch.Tensor], weights: NDArray[np.float64]) -> torch.Tensor:
    """Σ weights_k · inputs_k, in the engine's form and kernels.

    Args:
        inputs: K tensors of one shape, dtype and device.
        weights: (K,), with sum 1; inputs of weight 0 are not read.

    Returns:
        The sum in the inputs' shape and dtype, rounded to it once.
    """
    used = np.flatnonzero(weights).tolist()
    result = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
    itemsize = max(torch.float32.itemsize, result.element_size())
    flat, output = [inputs[k].detach().contiguous().view(-1) for k in used], result.view(-1)
    form, dtype = combination(weights, used), DTYPE_NAMES.get(result.dtype)
    if result.device.type == "cpu" and dtype is not None:
        stored = [tensor.view(torch.uint8).numpy() for tensor in flat]
        made = output.view(torch.uint8).numpy()
        Combiner(1, itemsize).combine(stored, [dtype] * len(used), [form], [made], dtype)
    else:
        block = max(1, min(BLOCK, result.numel()))
        TorchCombiner(1, itemsize, str(result.device), block).combine_tensors(flat, [form], [output])
    return result


def gram_matrix(steps: Sequence[int], inputs: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """⟨W_i − W_0, W_j − W_0⟩ of K tensors, (K, K): the figures of `hubextrap scan`, to the last bit.

    NaN where one of them holds NaN or infinity.
    """
    from hubextrap.statistics.elements import BlockScanner  # numba: half a second
    from hubextrap.statistics.table import SCAN_BLOCK

    total = np.zeros((len(inputs), len(inputs)))
    if len(inputs) < 2:
        return total
    flat = [tensor.reshape(-1) for tensor in inputs]
    scanner = BlockScanner(steps)
    for start in range(0, flat[0].numel(), SCAN_BLOCK):
        parts = [tensor[start : start + SCAN_BLOCK].to(torch.float32) for tensor in flat]
        rows = torch.stack(parts).cpu().numpy()
        block = scanner.scan(list(rows), np.zeros(BINS + 3, np.int64))
        total += math.nan if block is None else block[0]
    return total


def sampled_gram_matrix(tensor: str, inputs: Sequence[torch.Tensor], size: int) -> NDArray[np.float64]:
    """The same estimated from ``size`` weights: the figures of `hubextrap scan --sample`, to the last bit.

    Args:
        tensor: its name, by which the weights are drawn.
    """
    from hubextrap.engine.sampled import sample_blocks

    count = len(inputs)
    if count < 2 or not inputs[0].numel():
        return np.zeros((count, count))
    drawn = places_of(tensor, inputs[0].numel(), size)
    at = torch.from_numpy(drawn.in_tensor()).to(inputs[0].device)
    values = torch.stack([one.detach().reshape(-1)[at].to(torch.float32) for one in inputs]).cpu().numpy()
    return np.asarray(sample_blocks(values, drawn).sum(axis=0), dtype=np.float64)


def config_problems(config: object) -> list[str]:
    """What mergekit would pass over in silence in a config with one of our methods; else empty.

    These are parameters that no method reads, and steps that stand anywhere but whole beside a model.

    Args:
        config: the parsed YAML.
    """
    if not isinstance(config, dict) or config.get("merge_method") not in method_names():
        return []
    method = str(config["merge_method"])
    shared = ["target_step", "damping", "fit", *(own.name for own in find_method(method).parameters)]
    sections = list(_parameter_sections(config))
    fitted = find_method(method).needs_gram_matrix or any(_says_auto(section) for _, section, _ in sections)
    problems = []
    for place, section, of_model in sections:
        if "fit" in section and not fitted:
            problems.append(f"{place}.fit {NOTHING_IS_FITTED}")
        for name, value in section.items():
            if name == "max_expected_error":
                continue  # the method refuses it, with the reason
            if name == "step" and not of_model:
                problems.append(
                    f"{place}.step: a step belongs to a model; write it under models[].parameters"
                )
            elif name == "step" and isinstance(value, (list, dict)):
                problems.append(f"{place}.step: has to be one number, for all tensors of the model")
            elif name != "step" and name not in shared:
                takes = nearest(str(name), ["step", *shared]) or f"; {method} takes step, {', '.join(shared)}"
                problems.append(f"{place}.{name}: unknown parameter{takes}")
    return _each_once(problems)


def _says_auto(value: object) -> bool:
    """Whether a parameter is chosen by the weights, under a condition or everywhere."""
    if isinstance(value, dict):
        return any(map(_says_auto, value.values()))
    return any(map(_says_auto, value)) if isinstance(value, list) else value == "auto"


def _each_once(problems: list[str]) -> list[str]:
    """What is wrong in the same way at several models, at the first of them."""
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(re.sub(r"\[\d+\]", "[]", problem), []).append(problem)
    return [first + (f" (and {len(more)} more)" if more else "") for first, *more in alike.values()]


def _parameter_sections(
    section: Mapping[str, Any], place: str = "", of_model: bool = False
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every ``parameters`` of a mergekit config: where it is, what it holds, whether it is of one model."""
    parameters = section.get("parameters")
    if isinstance(parameters, dict):
        yield f"{place}parameters", parameters, of_model
    inner = [
        (f"{place}{key}[{index}].", entry, key != "slices")
        for key in ("models", "slices", "sources")
        if isinstance(section.get(key), list)
        for index, entry in enumerate(section[key])
    ]
    if isinstance(section.get("modules"), dict):
        inner += [(f"{place}modules.{name}.", module, False) for name, module in section["modules"].items()]
    for inner_place, entry, is_model in inner:
        if isinstance(entry, dict):
            yield from _parameter_sections(entry, inner_place, is_model)


@lru_cache(maxsize=256)
def _quantised(model: ModelReference) -> bool:
    """Whether a model's tensors, as mergekit hands them over, are not its weights."""
    with suppress(Exception):  # whatever is wrong with it, mergekit says
        stated = quantisation_method(model.config().to_dict()) is not None
        return stated or quantised_pair(read_layout(LocalSource(Path(model.model.path))).tensors) is not None
    return False


def _in_step_order(group: Any, step_of: Mapping[Any, object]) -> tuple[list[int], list[torch.Tensor]]:
    """Steps and tensors of a group, sorted by the steps that are stated or that the models' names say.

    A LoRA on its base, which mergekit has merged, is called by the LoRA's own name.
    """
    names = {entry.id: str(getattr(entry.id, "lora", None) or entry.id) for entry in group.entries}
    found: dict[int, Any] = {}
    for entry in group.entries:
        model, stated = names[entry.id], step_of[entry.id]
        step = settled_step(
            model,
            None if stated is None else _step(model, stated),
            [name for key, name in names.items() if key != entry.id],
            is_base=entry.is_base,
        )
        if step in found:
            raise StepError(f"step {step} is there twice: {found[step].id} and {entry.id}", step=step)
        found[step] = entry
    return sorted(found), [found[step].tensor for step in sorted(found)]


def _step(model: str, value: object) -> int:
    number = _number(value)
    if number is None or not number.is_integer() or number < 0:
        raise StepError(f"{model}: step must be a whole number from 0 on, not {value!r}")
    return int(number)


def _target_step(value: object) -> float:
    if value is ABSENT:
        raise StepError("target_step is missing; say which step to predict: parameters: {target_step: 400}")
    number = _number(value)
    if number is None:
        raise StepError(f"target_step must be a number, not {value!r}")
    return int(number) if number.is_integer() else number


def _damping(value: object) -> float | str:
    number = _number(value)
    if value == "auto":
        return "auto"
    if number is None or not 0.0 <= number <= 1.0:
        raise MethodError(
            f"damping must be a number from 0 (persistence) to 1 (no damping), or auto, not {value!r}"
        )
    return number


def _no_limit(value: object) -> None:
    if value is not None:
        raise MethodError(
            "max_expected_error: mergekit goes tensor by tensor, and what error to expect takes a scan "
            "of all; run this config with `hubextrap merge`, or leave it out"
        )


def _fit(value: object) -> Fit:
    try:
        return read_mergekit_fit(value)
    except ValueError as error:
        raise MethodError(f"fit: {error}") from error


def _own_value(method: str, parameter: Parameter) -> Callable[[object], object]:
    """The reader of a method's own parameter, which mergekit may hand over as a float or as text."""

    def read(value: object) -> object:
        if value is ABSENT:
            raise MethodError(f"{method}: {parameter.name} is missing; give it under parameters")
        if value is parameter.default:
            return value
        for reading in _readings(value):
            if not parameter.problem_with(reading):
                return reading
        raise MethodError(f"{method}: {parameter.name} {parameter.problem_with(value)}")

    return read


def _readings(value: object) -> Iterator[object]:
    """What a value may mean: itself, the number that a text spells, the whole number that a float is."""
    yield value
    number = _number(value)
    if number is not None:
        yield number
        if number.is_integer():
            yield int(number)


def _number(value: object) -> float | None:
    """A finite number, also from text, as YAML 1.1 reads 1e3; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shared(name: str, default: object, read: Callable[[Any], object]) -> Any:
    """A parameter of the whole merge. mergekit reads it for each tensor while it plans, filters applied."""
    return ParameterSpec(name, Annotated[Any, PlainValidator(read)], ParameterScope.SHARED, default)


register_methods()
