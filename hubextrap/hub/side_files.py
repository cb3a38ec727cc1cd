"""What a model needs beside its weights: configuration, tokenizer, chat templates, licence and more.

They come from the last checkpoint: all that lies in its folder, but for what `left_behind` knows to be
weights, a trainer's state, figures of that checkpoint, junk, programs or secrets. Model code (``*.py``) comes
along only when a configuration refers to it (``auto_map``); it is copied, never run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from hubextrap.containment import shown
from hubextrap.errors import CorruptFile, SourceError, UnsupportedCheckpoint
from hubextrap.foreign_text import own_lines
from hubextrap.hub.left_behind import is_dropped, is_kept_back
from hubextrap.redaction import holds_secret, hub_token_lines
from hubextrap.tensors.assembled import AssembledSource
from hubextrap.tensors.configuration import config_object
from hubextrap.tensors.interfaces import SMALL_FILE, TEMPLATE_FOLDER
from hubextrap.tensors.native_names import refuse_native_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hubextrap.tensors.interfaces import FileInfo, Source

CODE_REFERENCE = b'"auto_map"'
"""What stands in a configuration that refers to code beside it."""

PARSED = 25
"""Bytes that Python takes for one of JSON at most, measured with lists of lists."""
TEXT = 6
"""The same for one of a card: bytes, and a text of up to four bytes a character."""

_AT_ONCE, _OVERLAP = 2**18, 2**10
"""Bytes of a file that are searched for secrets at once, and by which the next ones begin earlier."""

_SIDE_FILES = (
    *("config.json", "generation_config.json", "*tokenizer_config.json", "special_tokens_map.json"),
    "*processor_config.json",  # of images, videos, features, and all of them together
    *("*chat_template*.json*", "*.jinja", "added_tokens.json", "normalizer.json", "byte_maps.json"),
    *("*tokenizer.json", "tokenizer[-.]*.json", "tokenizer_v*.json", "tokenizer.model*", "*.tokenizer"),
    *("*vocab.json", "*vocab.txt", "vocab.tsv", "vocab[-_]*.json", "vocab[-_]*.txt", "*.vocab", "dict.txt"),
    *("*merges.txt", "*tekken*.json", "*.tiktoken", "*.spm", "*.bpe", "*.codes", "emoji.json"),
    "*.model",  # sentencepiece
    *("word_pronunciation.json", "word_shape.json"),
)
_LOADED = frozenset(
    (
        *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
        *("video_preprocessor_config.json", "audio_tokenizer_config.json", "chat_template.json"),
        *("chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
        *("added_tokens.json", "tokenizer.model", "tekken.json", "bpe.codes", "byte_maps.json", "dict.txt"),
        *("emoji.json", "entity_vocab.json", "merges.txt", "normalizer.json", "prophetnet.tokenizer"),
        *("sentencepiece.bpe.model", "sentencepiece.model", "source.spm", "spiece.model", "spm.model"),
        *("spm_char.model", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json"),
        *("vocab.json", "vocab.tsv", "vocab.txt", "word_pronunciation.json", "word_shape.json"),
        *("qwen.tiktoken", "tiktoken.model"),  # of tokenizers that bring their own code
    )
)
"""The names under which transformers looks for what a model needs beside its weights."""
_LOADED_VERSION = re.compile(r"tokenizer\.\d[\w.]*\.json|tokenizer\.model\.v\d+\w*|tekken_\d+\.json")
_LEGAL = re.compile(
    r"(?:[\w-]+[-_. ])?(?:(?:licen[cs]es?|notices?)(?:[-_. ].*)?"
    r"|(?:copying|copyright|(?:acceptable[-_])?use[-_]policy|terms(?:[-_]of[-_](?:use|service))?)(?:\.\w+)?)",
    re.IGNORECASE,
)
_LEGAL_SUFFIXES = ("", "txt", "md", "rst", "html", "pdf")
_WEIGHT_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*.safetensors.index.*.json"),
    *("pytorch_model*.bin", "pytorch_model*.bin.index*.json", "tf_model*.h5", "tf_model*.h5.index*.json"),
    *("flax_model*.msgpack", "flax_model*.msgpack.index*.json", "consolidated*.pth", "*.gguf"),
    *("*.onnx", "*.onnx_data", "adapter_config.json", "adapter_model.*"),
)
_BESIDE_THE_MODEL = re.compile(
    r"(?!(?:model|pytorch_model|consolidated|adapter|shard-|optim|scheduler|rng)[^/]*)[^/]+\.safetensors"
)
"""Safetensors that are neither the model once more nor a trainer's state: figures by which a policy
normalises, a head or a draft model of its own."""
_NEVER = (
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"),
    *("*.safetensors", "*.h5", "*.msgpack", "*.gguf"),
)
_OF_THE_BASE = "; its trainer leaves none: copy config.json and the tokenizer files of the base model into it"
_DTYPE_FIELD = re.compile(
    r'("(?:torch_)?dtype"\s*:\s*")((?:torch\.)?)(?:float64|float32|float16|bfloat16|float8_\w+)(")'
)


@dataclass(frozen=True, slots=True)
class SideFiles:
    """Which files of a checkpoint go into what is predicted from it. Paths, sorted."""

    taken: tuple[str, ...]
    left_out: tuple[str, ...]
    """Neither taken nor weights nor a trainer's state, so that somebody may miss them; some say why."""


def is_side_file(file: str) -> bool:
    """Whether a loader of the model that a folder holds may look for ``file`` in it, beside the weights."""
    return _is_template(file) or (_matches(file, _SIDE_FILES) and not _matches(file, _NEVER))


def is_legal_file(file: str) -> bool:
    """Whether ``file``, at the root of a checkpoint, says on what terms the model may be used."""
    stem, dot, suffix = file.rpartition(".")
    return (
        "/" not in file
        and (suffix.lower() if dot and stem else "") in _LEGAL_SUFFIXES
        and _LEGAL.fullmatch(file) is not None
    )


def is_weight_file(file: str) -> bool:
    """Whether ``file``, at the root of a repo, is weights (or an index of them) that a loader picks up."""
    return _matches(file, _WEIGHT_FILES)


def belongs_to_model(file: str) -> bool:
    """Whether ``file``, in a repo, is another model's once it has other bytes."""
    return is_weight_file(file) or is_side_file(file)


def is_mixed_in(file: str) -> bool:
    """Whether ``file``, in a repo, goes when another model takes the place of the one that is there.

    Only what a loader finds by its name does, as it would take it for the new model's. Whatever merely looks
    like a model's (``train.vocab``) may be anything.
    """
    loaded = file in _LOADED or _LOADED_VERSION.fullmatch(file) is not None
    return loaded or is_weight_file(file) or _is_template(file)


def side_files(last: Source, out_dtype: str | None) -> dict[str, bytes]:
    """What `read_side_files` takes, by path."""
    return read_side_files(last, out_dtype)[1]


def read_side_files(
    last: Source,
    out_dtype: str | None,
    check_memory: Callable[[int], object] = lambda count: None,
    *,
    whole_model: bool = True,
) -> tuple[SideFiles, dict[str, bytes]]:
    """Which files of the last checkpoint are taken, and what they hold, by path.

    Args:
        out_dtype: the configuration's dtype is set to it (bfloat16); stays as it is when None.
        check_memory: called with the bytes that they and the card take in memory before most of them are
            read; raises if those are too many.
        whole_model: False for an adapter, which has no ``config.json``; one that lies there is its base's.

    Raises:
        CorruptFile: ``config.json`` is not there or is not a JSON object.
        UnsupportedCheckpoint: ``config.json`` names other weights than those that are written.
        SourceError: a file could not be read, is too large to be taken along, or holds a token of the Hub.
    """
    chosen, read = _choose(last, whole_model)
    check_memory(_memory(last, chosen))
    files = {file: read[file] if file in read else last.read_file(file) for file in chosen.taken}
    for file in chosen.taken:
        if not _is_known(file) and file not in read and _gives_away(files[file]):
            del files[file]
            why = (*chosen.left_out, f"{file} (it seems to hold a token or a password)")
            chosen = SideFiles(tuple(files), tuple(sorted(why)))
    _refuse_tokens(last.name, files)
    if out_dtype is not None:
        files["config.json"] = with_dtype(files["config.json"], out_dtype)
    return chosen, files


def _gives_away(content: bytes) -> bool:
    """Whether a file holds a secret. Decoded piece by piece: a text takes up to four times its bytes."""
    starts = range(0, len(content), _AT_ONCE)
    pieces = (content[start : start + _AT_ONCE + _OVERLAP] for start in starts)
    return any(holds_secret(piece.decode(errors="replace")) for piece in pieces)


def _refuse_tokens(where: str, files: Mapping[str, bytes]) -> None:
    """A model without its tokenizer is none, so a file that is needed is not left out, whatever it holds."""
    problems = [
        f"{where}/{shown(file)}: line {line} seems to hold a token of the Hub, which would be part of "
        "the prediction; take it out in a copy of the last checkpoint, and invalidate it at "
        "https://huggingface.co/settings/tokens"
        for file, content in files.items()
        # tokens are ASCII, and latin-1 takes a byte of memory for each of the file's
        if (line := next(hub_token_lines(content.decode("latin-1")), None)) is not None
    ]
    if problems:
        raise SourceError(own_lines(*problems))


def _memory(last: Source, chosen: SideFiles) -> int:
    """Bytes that the side files and the card take: one is there twice while it is read."""
    present = last.files()
    sizes = [present[file].size for file in chosen.taken]
    parsed = sum(present[file].size for file in chosen.taken if file.endswith("config.json"))
    card = present["README.md"].size if "README.md" in present else 0
    text = card if card <= SMALL_FILE else 0
    return sum(sizes) + max(sizes, default=0) + PARSED * parsed + TEXT * text


def _choose(last: Source, whole_model: bool) -> tuple[SideFiles, dict[str, bytes]]:
    """Which files are taken, and what was read to know it: configurations, and code that they refer to."""
    present = last.files()
    if whole_model:
        refuse_native_names(last)
    if whole_model and "config.json" not in present:
        raise CorruptFile(
            f"{last.name}: no config.json; a model cannot be loaded without one, add it to the checkpoint"
            f"{_OF_THE_BASE if isinstance(last, AssembledSource) else ''}",
            file="config.json",
        )
    taken = {file for file in present if _is_known(file)}
    if not whole_model:
        taken.discard("config.json")
    read = {file: last.read_file(file) for file in sorted(taken) if file.endswith("config.json")}
    named = config_object(read.get("config.json", b"{}"), last.name).get("transformers_weights")
    if named is not None:
        raise UnsupportedCheckpoint(
            f"{last.name}: config.json has transformers load {named!r} (transformers_weights), but hubextrap "
            "reads the usual names only; in a copy of the checkpoint, give the file its usual name and "
            "remove that field",
            file="config.json",
        )
    if any(CODE_REFERENCE in content for content in read.values()):
        code = {file for file in present if file.endswith(".py") and not is_dropped(file)}
        read |= {file: last.read_file(file) for file in sorted(code)}
        taken |= code
    problems = []
    for file in sorted({*taken, *({"README.md"} & present.keys())}):  # whose metadata the card takes over
        if (problem := present[file].problem) is not None:
            problems.append(f"{last.name}/{shown(file)}: {problem}")
        elif file in taken and present[file].size > SMALL_FILE:
            problems.append(
                f"{last.name}/{file}: {present[file].size:,} bytes are more than the {SMALL_FILE:,} that a "
                "file beside the weights may have; use a copy of the last checkpoint without this file"
            )
    if problems:
        raise SourceError(own_lines(*problems))
    others, left_out = _others(present, {*taken, "config.json"})
    return SideFiles(tuple(sorted(taken | others)), tuple(sorted(left_out))), read


def _is_known(file: str) -> bool:
    return is_side_file(file) or is_legal_file(file)


def _others(present: Mapping[str, FileInfo], known: set[str]) -> tuple[set[str], list[str]]:
    """Files that nobody knows by their name and that are taken all the same; and those that are left out.

    Together they have no more bytes than one file may have, taken in the order of their names.
    """
    others: set[str] = set()
    left_out, room = [], SMALL_FILE
    for file, info in sorted(present.items()):
        if file not in known and _BESIDE_THE_MODEL.fullmatch(file):
            left_out.append(file)
        if file in known or is_weight_file(file) or is_dropped(file):
            continue
        templates = file.startswith(f"{TEMPLATE_FOLDER}/")
        if "/" in file and not templates:  # of a folder that is read for one file in it
            continue
        if templates or is_kept_back(file) or info.problem is not None or not is_utf8(file):
            left_out.append(file)
        elif info.size > room:
            left_out.append(f"{file} ({info.size:,} bytes; of such files, {SMALL_FILE:,} in all are taken)")
        else:
            others.add(file)
            room -= info.size
    return others, left_out


def with_dtype(config: bytes, dtype: str) -> bytes:
    """``config.json`` with every dtype in it (nested configurations too) set; all other bytes stay."""
    return _DTYPE_FIELD.sub(rf"\g<1>\g<2>{dtype}\g<3>", config.decode()).encode()


def is_utf8(text: str) -> bool:
    """Whether a text, a file's name say, can be written into a file: names on a disk may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_template(file: str) -> bool:
    folder, _, name = file.rpartition("/")
    return folder == TEMPLATE_FOLDER and name.endswith(".jinja")


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in file and any(fnmatchcase(file, pattern) for pattern in patterns)
