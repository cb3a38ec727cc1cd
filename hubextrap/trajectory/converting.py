"""How checkpoints that are not read as they lie are made into whole models: by their own trainer's command.

Sources of the commands: transformers; verl, its page on checkpoints (``verl.model_merger``); slime,
its quick start (tools/convert_torch_dist_to_hf.py); NeMo RL,
its page on checkpointing (examples/converters/convert_megatron_to_hf.py); Megatron
Bridge, its guide (``AutoBridge.export_ckpt``); DeepSpeed,
deepspeed/utils/zero_to_fp32.py, which OpenRLHF and transformers' Trainer rely on; accelerate,
``accelerate merge-weights``.
"""

from __future__ import annotations

from collections import Counter
from operator import add
from pathlib import PurePosixPath
from shlex import quote
from typing import TYPE_CHECKING

from hubextrap.step_names import read_step
from hubextrap.trajectory.bucket_files import is_bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hubextrap.trajectory.checkpoint import Checkpoint

PICKLE, MEGATRON, BRIDGE, ZERO, FLAX, TENSORFLOW, GGUF, UNUSUAL, PICKLES = (
    "pickle",
    "Megatron",
    "Megatron Bridge",
    "DeepSpeed ZeRO",
    "Flax",
    "TensorFlow",
    "GGUF",
    "safetensors under other names",
    "trainer's pickle",
)
"""Forms of weights that are not read: transformers' pickles first, last those of which no more is known."""
UNREADABLE = (PICKLE, MEGATRON, BRIDGE, ZERO, FLAX, TENSORFLOW, GGUF, UNUSUAL, PICKLES)

Parts = tuple[str, ...]
"""The folders of a path."""

_WITH_TRANSFORMERS = (
    "python -c 'import pathlib, sys; from transformers import AutoModelForCausalLM as M; "
    "f = sys.argv[1]; M.from_pretrained(f, {}).save_pretrained(f)' {{folder}}"
)
_COMMANDS = {
    PICKLE: _WITH_TRANSFORMERS.format('dtype="auto"'),
    FLAX: _WITH_TRANSFORMERS.format("from_flax=True"),
    TENSORFLOW: _WITH_TRANSFORMERS.format("from_tf=True"),
    GGUF: _WITH_TRANSFORMERS.format('gguf_file=next(pathlib.Path(f).glob("*.gguf")).name'),
    UNUSUAL: "(cd {folder} && ln -s *.safetensors model.safetensors)",
    ZERO: "python -m deepspeed.utils.zero_to_fp32 {outer} {target} --tag {name} --safe_serialization",
    "FSDP shards": "python -m verl.model_merger merge --backend fsdp --local_dir {folder} "
    "--target_dir {folder}/huggingface",
    "torch DCP": "accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}",
}
_BY_VERL = (
    "python -m verl.model_merger merge --backend megatron --local_dir {outer} "
    "--target_dir {outer}/huggingface"
)
_BY_NEMO = (
    "uv run --extra mcore python examples/converters/convert_megatron_to_hf.py --config {unit}/config.yaml "
    "--megatron-ckpt-path {folder} --hf-ckpt-path {unit}/hf"
)
_BY_SLIME = (
    "python tools/convert_torch_dist_to_hf.py --input-dir {folder} --output-dir {folder}-hf --origin-hf-dir "
    '"$BASE"'
)
_BY_BRIDGE = (
    "python -c 'import sys; from megatron.bridge import AutoBridge; "
    'AutoBridge.from_hf_pretrained(sys.argv[1]).export_ckpt(*sys.argv[2:])\' "$BASE" {folder} {folder}-hf'
)
_BASE = "BASE=FOLDER of the model that the run began with, in its Hugging Face form"
_TO_KNOW = {
    UNUSUAL: "where that one file holds the whole model",
    _BY_BRIDGE: f"where Megatron Bridge is installed, with {_BASE}",
    FLAX: "with transformers 4 and flax installed",
    TENSORFLOW: "with transformers 4 and tensorflow installed",
    ZERO: "with the base model's config.json and tokenizer copied beside the new weights where none are "
    "(OpenRLHF saves whole models at once with --save_hf_ckpt)",
    _BY_VERL: "where verl is installed",
    _BY_NEMO: "in the repository of NeMo RL",
    _BY_SLIME: f"in the repository of slime, with Megatron-LM in PYTHONPATH and {_BASE}",
}
"""What has to be known beside a command."""
_VERL_FOLDER, _NEMO_FOLDERS = "dist_ckpt", ("policy", "weights")


def said_of(form: str, file: str) -> str:
    """What weights of a form are, for the error that they are not read; ``file`` is one of them."""
    if form in (PICKLE, PICKLES):
        return f"{file} is a pickle, and pickles are never loaded because they can run code"
    if form == ZERO:
        return f"{file} is a state of DeepSpeed's, not a model"
    if form == UNUSUAL:
        return f"{file} is neither model.safetensors nor in its index, so transformers does not load it"
    return f"{file} is of another format, {form}"


def conversion(form: str, checkpoints: Sequence[Checkpoint]) -> tuple[str, str]:
    """The commands that make whole models in safetensors of checkpoints of one form, where discovery finds
    them: a loop over their folders, after a download of what lies on the Hub; "" where no command is known.
    And what has to be known beside them."""
    paths, download = _on_this_disk(checkpoints)
    command = _COMMANDS.get(form, "")
    if form in (MEGATRON, BRIDGE):
        first = paths[0]
        command = _BY_SLIME if form == MEGATRON else _BY_BRIDGE
        if first[-1] == _VERL_FOLDER:
            command = _BY_VERL
        if first[-3:-1] == _NEMO_FOLDERS:
            command = _BY_NEMO
    if not command:
        return "", ""
    folders = _Folders(paths)
    in_step = len(paths[0]) > 1 and read_step(paths[0][-2]) is not None
    body = command.format(
        folder=folders.shell(),
        outer=folders.shell(up=1),
        unit=folders.shell(up=3),
        name=folders.name(),
        target=folders.shell(up=1) if in_step else f"{folders.shell()}_hf",
    )
    commands = "; ".join(filter(None, (download, body)))
    commands = f"for step in {' '.join(map(quote, folders.items))}; do {commands}; done"
    return commands, _TO_KNOW.get(form) or _TO_KNOW.get(command) or ""


def how_to_convert(checkpoints: Iterable[Checkpoint]) -> tuple[str, ...]:
    """How those that cannot be read can be converted, in lines, of which one is a command to paste; of the
    form that most have. None where all can be read."""
    found = [one for one in checkpoints if one.weights in UNREADABLE]
    if not found:
        return ()
    form = Counter(one.weights for one in found).most_common(1)[0][0]
    alike = [one for one in found if one.weights == form]
    commands, known = conversion(form, alike)
    what = "it" if len(alike) == 1 else "them"
    if not commands:
        return (f"save whole models of {what} with the trainer itself",)
    return (f"convert {what}{known and f', {known}'}:", f"  {commands}")


class _Folders:
    """Folders that differ in one place, in a shell's words: that place is ``$step``."""

    def __init__(self, paths: Sequence[Parts]) -> None:
        first = paths[0]
        start, end = len(first) - 1, 0
        if len(paths) > 1:
            start = next(at for at, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1)
            most = min(map(len, paths)) - start - 1
            end = next((at for at in range(most) if len({path[-1 - at] for path in paths}) > 1), most)
        self._head, self._tail = first[:start], first[len(first) - end :]
        self.items = ["/".join(path[start : len(path) - end]) for path in paths]
        """What ``$step`` stands for."""

    def shell(self, up: int = 0) -> str:
        """The folder, or the one so many levels above it."""
        parts = [quote(part) if part != "/" else "" for part in self._head]
        parts += ['"$step"', *map(quote, self._tail)]
        if up > len(self._tail) and any(
            "/" in item for item in self.items
        ):  # what is above lies within $step
            return "/".join(parts) + "/.." * up
        return "/".join(parts[: len(parts) - up]) or ("." if up else "/")

    def name(self) -> str:
        """The folder's own name."""
        return quote(self._tail[-1]) if self._tail else '"$(basename "$step")"'


def _on_this_disk(checkpoints: Sequence[Checkpoint]) -> tuple[list[Parts], str]:
    """Where the checkpoints' folders lie on this disk, or will; and the command that brings one from the
    Hub."""
    first = checkpoints[0]
    if first.repo is None:
        return [PurePosixPath(one.path).parts for one in checkpoints], ""
    name = first.repo.rpartition("/")[2]
    inside = [PurePosixPath(one.path).parts for one in checkpoints]
    if len({one.repo for one in checkpoints}) > 1:  # a repo per step
        repos = [(str(one.repo).rpartition("/")[2],) for one in checkpoints]
        owner = quote(first.repo.rpartition("/")[0])
        step = _Folders(repos).shell()
        return [*map(add, repos, inside)], f"hf download {owner}/{step} --local-dir {step}"
    if len({one.revision for one in checkpoints}) > 1:  # a branch or commit per step
        revisions = [(one.revision,) for one in checkpoints]
        step = _Folders(revisions).shell()
        paths = [(name, *revision, *parts) for revision, parts in zip(revisions, inside, strict=True)]
        return paths, f"hf download {quote(first.repo)} --revision {step} --local-dir {quote(name)}/{step}"
    paths = [(name, *parts) for parts in inside]
    folder = _Folders(inside).shell() if all(inside) else ""
    if is_bucket(first.repo):
        return paths, f"hf buckets sync hf://{first.repo}/{folder} {quote(name)}/{folder}"
    only = f' --include {folder}/"*"' if folder else ""
    return (
        paths,
        f"hf download {quote(first.repo)} --revision {quote(first.revision)}{only} --local-dir {quote(name)}",
    )
