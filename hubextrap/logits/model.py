"""A causal LM whose logits are a fixed mixture of K checkpoints' logits (arXiv 2601.04537, output space).

Imports torch and transformers: import this module inside functions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from hubextrap.extras import require

require("logits", "a mixture of logits")

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from hubextrap.adapters.base import Bases
from hubextrap.errors import CheckpointMismatch, OutputError, UnsupportedCheckpoint
from hubextrap.logits.cache import CACHE, CombinedCache, cache_argument
from hubextrap.logits.loading import Models, load_common_tokenizer, share_equal_parameters
from hubextrap.logits.manifest import read_manifest, write_manifest
from hubextrap.logits.mixture import Mixture, check_sum, recipe_mixture
from hubextrap.progress import Progress, SilentProgress
from hubextrap.trajectory import Checkpoint, Pins, resolve_checkpoint

if TYPE_CHECKING:
    import os

    from transformers import PreTrainedTokenizerBase
    from transformers.generation.configuration_utils import GenerationConfig

    from hubextrap.recipe import Recipe

_SAME_CACHE = ("vocab_size", "num_hidden_layers", "layer_types", "sliding_window")
"""What the models' configurations have to agree on: the vocabulary, and what a layer's cache holds."""


class ExtrapolatedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """logits = Σ c_k · logits_k in float32, over K models of one class and one vocabulary.

    All of generation works as it does for one of the models: greedy, sampling, beams, left-padded batches,
    static caches. Configuration and generation defaults are the last model's. For inference; parameters that
    are equal between loaded checkpoints are shared. ``mixture`` says what was loaded, ``tokenizer`` is the
    last checkpoint's; both are None where the models were handed in.
    """

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, models: Sequence[PreTrainedModel], coefficients: Sequence[float]) -> None:
        """Mix ``models`` that are loaded already.

        Raises:
            MethodError: the coefficients do not sum to 1.
            CheckpointMismatch: not one coefficient per model, or the models do not fit together.
            UnsupportedCheckpoint: their class keeps its state in another way than transformers' caches.
        """
        argument = _check_models(models, coefficients)
        super().__init__(deepcopy(models[-1].config))
        self._cache_argument = argument
        self.models = torch.nn.ModuleList(models)
        self.coefficients = tuple(float(coefficient) for coefficient in coefficients)
        self.generation_config = deepcopy(self._last.generation_config)
        # annotated here: PreTrainedModel evaluates annotations of the class, and these are for types only
        self.mixture: Mixture | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.eval()  # type: ignore[no-untyped-call]

    @classmethod
    def from_checkpoints(
        cls,
        checkpoints: Sequence[Checkpoint | str],
        coefficients: Sequence[float],
        *,
        dtype: str = "auto",
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> ExtrapolatedForCausalLM:
        """Load the checkpoints whose coefficient is not 0, and mix them.

        Args:
            checkpoints: in step order; configuration and tokenizer come from the last one that takes part.
            coefficients: one per checkpoint, with sum 1; (1 − α, α) is the line through two checkpoints.
            dtype: ``auto`` for each checkpoint's own, or as torch names it.
            device: as torch names it.

        Raises:
            MethodError: not one coefficient per checkpoint, or their sum is not 1.
            TrajectoryError, CheckpointError: a reference leads nowhere, a model or tokenizer does not load,
                or they do not fit together.
        """
        # before the Hub is asked anything
        check_sum(coefficients)
        pins = Pins()
        pinned = [
            resolve_checkpoint(item, pins=pins) if isinstance(item, str) else item for item in checkpoints
        ]
        mixture = Mixture.of(pinned, coefficients, bases=Bases(pins=pins))
        return cls.from_mixture(mixture, dtype=dtype, device=device, progress=progress)

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        *,
        target_step: int | None = None,
        dtype: str = "auto",
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> ExtrapolatedForCausalLM:
        """Mix a recipe's checkpoints with its method's coefficients.

        Args:
            target_step: one of the recipe's; may be left out where it has just one.

        Raises:
            HubExtrapError: see `recipe_mixture` and `from_checkpoints`.
        """
        mixture = recipe_mixture(recipe, target_step=target_step, progress=progress)
        return cls.from_mixture(mixture, dtype=dtype, device=device, progress=progress)

    @classmethod
    def from_mixture(
        cls, mixture: Mixture, *, dtype: str = "auto", device: str = "cpu", progress: Progress | None = None
    ) -> ExtrapolatedForCausalLM:
        """Load a mixture; see `from_checkpoints`. Adapters share one base in memory."""
        loading = Models(Bases(mixture.base_model), dtype=dtype, device=device)
        tokenizer = load_common_tokenizer(mixture.checkpoints, loading.bases)
        models: list[PreTrainedModel] = []
        stage = (progress or SilentProgress()).stage("load models", len(mixture.checkpoints), "models")
        with stage as loaded:
            for checkpoint in mixture.checkpoints:
                model = loading.load(checkpoint)
                share_equal_parameters(model, models)
                models.append(model)
                loaded.advance(1)
        mixed = cls(models, mixture.coefficients)
        mixed.mixture, mixed.tokenizer = mixture, tokenizer
        mixed.config._name_or_path = mixed.name_or_path = mixture.name
        return mixed

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        reference: str | os.PathLike[str],
        *,
        dtype: str = "auto",
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> ExtrapolatedForCausalLM:
        """Load what `save_pretrained` wrote: a local folder, or ``owner/name@revision:folder`` on the Hub.

        Raises:
            CorruptFile: there is no manifest, or it does not say what it must.
            HubExtrapError: see `from_checkpoints`.
        """
        return cls.from_mixture(read_manifest(str(reference)), dtype=dtype, device=device, progress=progress)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *, max_shard_size: int | str | None = None
    ) -> None:
        """Write the manifest, pinned references and coefficients: the weights stay where they are.

        Args:
            save_directory: a folder, which is made if need be.
            max_shard_size: what `push_to_hub` passes on; a manifest has no shards.

        Raises:
            OutputError: the models were handed in, so there is nothing to refer to; or the file cannot be
                written.
        """
        if self.mixture is None:
            raise OutputError(
                "this mixture was made from models in memory, so it cannot name their weights; "
                "make it with from_checkpoints or from_recipe to save it"
            )
        write_manifest(self.mixture, save_directory)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: CombinedCache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: CombinedCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run every model on the same tokens and mix their logits.

        Args:
            input_ids: int64 (batch, positions).
            attention_mask: (batch, cached + positions), 0 at padding.
            cache: the cache of an earlier call on this model.
            labels: int64 (batch, positions), -100 where nothing is scored; shifted here, as in transformers.
            logits_to_keep: only the last so many positions, or these positions; 0 keeps all.
            past_key_values: the same as ``cache``, by its name before transformers 5.24.

        Returns:
            ``logits`` float32 (batch, kept positions, vocabulary), ``loss`` where there are labels, and the
            combined cache, as ``cache`` (transformers before 5.24: ``past_key_values``). No hidden states and
            no attentions: a mixture has none of its own.
        """
        if cache is not None and past_key_values is not None:
            raise ValueError("cache and past_key_values are two names of one argument; pass one of them")
        cache = past_key_values if cache is None else cache
        caches = self._parts_of(cache)
        mixed: torch.Tensor | None = None
        for index, (model, coefficient) in enumerate(zip(self.models, self.coefficients, strict=True)):
            output = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                return_dict=True,
                **{self._cache_argument: caches[index]},
                **_for_children(kwargs),
            )
            caches[index] = output.get(CACHE)
            # in place: logits over a whole vocabulary are the largest tensors there are
            if mixed is None:
                mixed = output.logits.float().mul_(coefficient)
            else:
                mixed.add_(output.logits, alpha=coefficient)
            del output  # or its logits would stay while the next model runs
        assert mixed is not None
        loss = None
        if labels is not None:
            counted = {key: kwargs[key] for key in ("num_items_in_batch",) if key in kwargs}
            loss = self._last.loss_function(
                logits=mixed, labels=labels, vocab_size=mixed.shape[-1], **counted
            )
        if cache is None and all(part is not None for part in caches):
            cache = CombinedCache(caches)
        fields: dict[str, Any] = {"loss": loss, "logits": mixed, CACHE: cache}
        return CausalLMOutputWithPast(**fields)

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, **kwargs: Any) -> dict[str, Any]:
        """As the last model does; masks of a static cache are the same for all of them."""
        prepared: dict[str, Any] = self._last.prepare_inputs_for_generation(input_ids, **kwargs)
        return prepared

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """The models have theirs already; a configuration that names one may be the mixture's too."""
        return True

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: each model's weights were tied when it was loaded."""

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return self._last._prepare_position_ids_for_generation(*args, **kwargs)

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return self._last._update_model_kwargs_for_generation(*args, **kwargs)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *settings: Any
    ) -> None:
        """Each model makes its own cache, of the kind that the configuration asks for."""
        if model_kwargs.get(CACHE) is not None:
            self._parts_of(model_kwargs[CACHE])
            self._last._prepare_cache_for_generation(generation_config, model_kwargs, *settings)
            return
        parts: list[Any] = []
        model: Any
        for model in self.models:
            own: dict[str, Any] = {}
            model._prepare_cache_for_generation(generation_config, own, *settings)
            parts.append(own.get(CACHE))
        if all(part is not None for part in parts):
            model_kwargs[CACHE] = CombinedCache(parts)

    def _parts_of(self, cache: CombinedCache | None) -> list[Any]:
        if cache is None:
            return [None] * len(self.models)
        if not isinstance(cache, CombinedCache) or len(cache.parts) != len(self.models):
            raise TypeError(
                f"{CACHE}: a {type(cache).__name__} is not a cache of these {len(self.models)} "
                "models; pass the one that an earlier call returned"
            )
        return list(cache.parts)

    @property
    def _last(self) -> Any:
        return self.models[-1]


def _for_children(kwargs: dict[str, Any]) -> dict[str, Any]:
    for key in ("output_hidden_states", "output_attentions", "inputs_embeds"):
        if kwargs.get(key) not in (None, False):
            raise ValueError(f"{key}: a mixture of logits has none; ask one of its models")
    return {key: value for key, value in kwargs.items() if key not in ("num_items_in_batch", "inputs_embeds")}


def _check_models(models: Sequence[PreTrainedModel], coefficients: Sequence[float]) -> str:
    """The name under which the models take a cache, once they are found to fit together."""
    if not models or len(models) != len(coefficients):
        raise CheckpointMismatch(
            f"{len(models)} models and {len(coefficients)} coefficients; give one coefficient per model"
        )
    check_sum(coefficients)
    last = models[-1]
    if last.config.is_encoder_decoder or not hasattr(last, "prepare_inputs_for_generation"):
        raise UnsupportedCheckpoint(f"{type(last).__name__} is not a causal language model")
    argument = cache_argument(last)
    if argument is None:
        raise UnsupportedCheckpoint(
            f"{type(last).__name__} does not keep its state in a transformers cache; extrapolate "
            "its weights instead (space: weights)"
        )
    for model in models[:-1]:
        if type(model) is not type(last):
            raise CheckpointMismatch(
                f"the models are of different classes, {type(model).__name__} and {type(last).__name__}; "
                "logits are mixed over checkpoints of one run"
            )
        for key in _SAME_CACHE:
            ours, theirs = getattr(model.config, key, None), getattr(last.config, key, None)
            if ours != theirs:
                raise CheckpointMismatch(
                    f"{key} differs between the models: {ours} and {theirs}; logits are mixed over "
                    "checkpoints of one run"
                )
    return argument
