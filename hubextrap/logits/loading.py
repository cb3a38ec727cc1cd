"""From pinned checkpoints to models and tokenizers: safetensors only, no code from the Hub, redacted logs.

Imports torch and transformers inside functions.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from hubextrap.adapters.base import Bases
from hubextrap.errors import CheckpointMismatch, UnsupportedCheckpoint
from hubextrap.extras import require
from hubextrap.hub_access import keep_to_the_endpoint, reason, redact_logs
from hubextrap.logits.adapting import adapted, read_adapter, twin
from hubextrap.logits.responses import as_chat, quiet_transformers
from hubextrap.tensors import open_source
from hubextrap.tensors.cache import check_download
from hubextrap.tensors.local import check_folder
from hubextrap.tensors.unloadable import refuse_pieces
from hubextrap.tensors.weights import check_files
from hubextrap.trajectory.checkpoint import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hubextrap.trajectory import Checkpoint


class Models:
    """Loads the models of one command. Of adapters, the base is read once: what is loaded shares its weights.

    One base is held at a time, and none while a whole model is loaded, so that memory is that of one model.
    """

    def __init__(self, bases: Bases | None = None, *, dtype: str = "auto", device: str = "cpu") -> None:
        """
        Args:
            bases: what is known of the bases of adapters.
            dtype: ``auto`` for each checkpoint's own, of an adapter its base's; or as torch names it.
            device: as torch names it.
        """
        self.bases = bases or Bases()
        self._dtype, self._device = dtype, device
        self._held: tuple[Checkpoint, PreTrainedModel] | None = None

    def load(self, checkpoint: Checkpoint) -> PreTrainedModel:
        """A model of its own, in eval mode.

        Raises:
            MissingExtra: torch, transformers or peft cannot be imported.
            UnsupportedCheckpoint: it cannot be loaded, or weights would be made up, or it does not fit the
                device.
            CheckpointMismatch: an adapter does not fit its base.
            CorruptFile: a file is not what the Hub lists.
            HubExtrapError: the base cannot be had.
        """
        base = self.bases.of(checkpoint)
        if base is None:
            self.release()
            return _whole_model(checkpoint, self._dtype, self._device)
        weights = read_adapter(checkpoint) if checkpoint.kind == ADAPTER else None
        if self._held is None or self._held[0] != base:
            self.release()  # before the next one is loaded
            self._held = base, _whole_model(base, self._dtype, self._device)
        model = self._held[1]
        return twin(model) if weights is None else adapted(model, weights)

    def release(self) -> None:
        """Let go of the base that is held."""
        self._held = None


def load_causal_lm(checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """The model of one checkpoint, from its pinned commit or its folder, in eval mode; see `Models`.

    Raises:
        HubExtrapError: as `Models.load`.
    """
    return Models(dtype=dtype, device=device).load(checkpoint)


def _whole_model(checkpoint: Checkpoint, dtype: str, device: str) -> PreTrainedModel:
    require("logits", "loading a model")
    from transformers import AutoModelForCausalLM

    refuse_pieces(checkpoint)
    where, place = _checked_place(checkpoint, weights=True)
    try:
        with _without_bars():
            made: Any = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, use_safetensors=True, output_loading_info=True, **place
            )
        model, info = made
        loaded: PreTrainedModel = model.to(device).eval()
    except Exception as error:  # transformers raises nearly anything
        what = f"{checkpoint.name}: transformers cannot load it: {reason(error)}"
        raise UnsupportedCheckpoint(what, step=checkpoint.step, repo=checkpoint.repo) from error
    if missing := sorted(info["missing_keys"]):
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: this is not a complete language model: {len(missing)} of its "
            f"weights are missing, such as {missing[0]}, and transformers would make them up; use a "
            "causal language model, not a reward model or an encoder",
            step=checkpoint.step,
            repo=checkpoint.repo,
        )
    return loaded


def load_tokenizer(
    checkpoint: Checkpoint,
    *,
    use_fast: bool | None = None,
    add_bos_token: bool | None = None,
    bases: Bases | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; of an adapter that has none of its own, that of its base.

    Args:
        use_fast: which of two implementations, where transformers has two; None leaves it to transformers.
        add_bos_token: whether texts get the first special token; None leaves it to the checkpoint.
        bases: what is known of the bases of adapters.

    Raises:
        MissingExtra: torch or transformers cannot be imported.
        UnsupportedCheckpoint: transformers cannot load it.
        CorruptFile: a file is not what the Hub lists.
    """
    require("logits", "loading a tokenizer")
    from transformers import AutoTokenizer

    if not (checkpoint.kind == ADAPTER and _has_tokenizer(checkpoint)):
        checkpoint = (bases or Bases()).of(checkpoint) or checkpoint
    where, place = _checked_place(checkpoint, weights=False)
    asked = {"use_fast": use_fast, "add_bos_token": add_bos_token}
    place |= {key: value for key, value in asked.items() if value is not None}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **place)
    except Exception as error:
        refuse_pieces(checkpoint)  # where a trainer leaves shards, their tokenizer lies elsewhere
        what = f"{checkpoint.name}: transformers cannot load its tokenizer: {reason(error)}"
        raise UnsupportedCheckpoint(what, step=checkpoint.step, repo=checkpoint.repo) from error
    return tokenizer


def check_loadable(
    checkpoint: Checkpoint, *, tokenizer: bool = True, chat: bool = False, bases: Bases | None = None
) -> None:
    """Find out from small files, and from adapters, whether `load_causal_lm` and `load_tokenizer` could load
    a checkpoint.

    Args:
        tokenizer: whether that is needed.
        chat: whether it has to have a chat template too.
        bases: what is known of the bases of adapters.

    Raises:
        MissingExtra: torch or transformers cannot be imported.
        UnsupportedCheckpoint: there are no safetensors, transformers does not know the model, or there is no
            tokenizer, or none with a chat template.
        CorruptFile: a file is not what the Hub lists.
        SourceError: a file cannot be read; of a gated repo, say.
        CheckpointMismatch: an adapter does not fit its base.
        HubExtrapError: the base of an adapter cannot be had.
    """
    require("logits", "loading a model")
    bases = bases or Bases()
    model = _without_weights(bases.of(checkpoint) or checkpoint)
    if checkpoint.kind == ADAPTER:
        adapted(model, read_adapter(checkpoint, weights=False))
    if not tokenizer:
        return
    loaded = load_tokenizer(checkpoint, bases=bases)
    if chat:
        try:
            as_chat(loaded, "1 + 1 =")
        except UnsupportedCheckpoint as error:
            what = f"{checkpoint.name}: {error}"
            raise UnsupportedCheckpoint(what, step=checkpoint.step, repo=checkpoint.repo) from error


def _without_weights(checkpoint: Checkpoint) -> PreTrainedModel:
    """A whole model on torch's device ``meta``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    refuse_pieces(checkpoint)
    with closing(open_source(checkpoint)) as source:
        check_files(source.files(), checkpoint.name)
    where, place = _checked_place(checkpoint, weights=False)
    try:
        config = AutoConfig.from_pretrained(where, **place)
        with quiet_transformers(), torch.device("meta"):  # as transformers does before it loads weights
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # transformers raises nearly anything
        what = f"{checkpoint.name}: transformers cannot load it: {reason(error)}"
        raise UnsupportedCheckpoint(what, step=checkpoint.step, repo=checkpoint.repo) from error
    return model


def _has_tokenizer(adapter: Checkpoint) -> bool:
    with closing(open_source(adapter)) as source:
        return "tokenizer_config.json" in source.files()


def load_common_tokenizer(
    checkpoints: Sequence[Checkpoint], bases: Bases | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of the last checkpoint, once no other checkpoint's is found to number tokens otherwise.

    Checkpoints other than the last may come without a tokenizer.

    Raises:
        UnsupportedCheckpoint: the last checkpoint has none.
        CheckpointMismatch: two checkpoints have different vocabularies, so their logits cannot be added.
    """
    *others, last = checkpoints
    bases = bases or Bases()
    bases.find(checkpoints)
    tokenizer = load_tokenizer(last, bases=bases)
    vocabulary = tokenizer.get_vocab()
    for checkpoint in others:
        try:
            other = load_tokenizer(checkpoint, bases=bases).get_vocab()
        except UnsupportedCheckpoint:
            continue
        differing = [token for token in {*vocabulary, *other} if vocabulary.get(token) != other.get(token)]
        if differing:
            raise CheckpointMismatch(
                f"{checkpoint.name} and {last.name} number {len(differing)} tokens differently, e.g. "
                f"{min(differing)!r}; logits can only be mixed over one vocabulary",
                step=checkpoint.step,
                repo=checkpoint.repo,
            )
    return tokenizer


def share_equal_parameters(model: PreTrainedModel, earlier: Iterable[PreTrainedModel]) -> int:
    """Let ``model`` use the parameters of ``earlier`` models that hold the same bytes under the same name.

    A parameter that training did not touch then takes its memory once. For inference: a change of a shared
    parameter is a change in every model.

    Returns:
        How many bytes of ``model`` were freed, a tied parameter counted once.
    """
    known: dict[str, list[torch.nn.Parameter]] = {}
    for one in earlier:
        for name, parameter in one.named_parameters(remove_duplicate=False):
            known.setdefault(name, []).append(parameter)
    freed: dict[int, int] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        same = next((other for other in known.get(name, ()) if _same_bytes(parameter, other)), None)
        if same is not None and same is not parameter:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, same)
            freed[id(parameter)] = parameter.nbytes
    return sum(freed.values())


@contextmanager
def _without_bars() -> Iterator[None]:
    """Progress is reported in one way here, and transformers' bar is another."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    if one is other:
        return True
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    # as bytes: NaN equals NaN, and 0 is not -0
    return torch.equal(
        one.detach().reshape(-1).view(torch.uint8), other.detach().reshape(-1).view(torch.uint8)
    )


def _checked_place(checkpoint: Checkpoint, *, weights: bool) -> tuple[str, dict[str, Any]]:
    """Its pinned commit or its folder, as transformers takes it: what is read there has been checked."""
    redact_logs()
    keep_to_the_endpoint()
    check_download(checkpoint, weights=weights)
    place: dict[str, Any] = {"trust_remote_code": False}
    if checkpoint.repo is None:
        check_folder(checkpoint.path, adapter=checkpoint.kind == ADAPTER)
        return checkpoint.path, place
    return checkpoint.repo, place | {"revision": checkpoint.commit, "subfolder": checkpoint.path}
