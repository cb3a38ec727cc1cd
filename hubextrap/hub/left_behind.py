"""What of a checkpoint's folder does not go into a prediction, by its name.

Weights in any format, what a trainer keeps to go on, what it measured of that very checkpoint, junk,
programs, and what is called like a secret. All else comes along: a tokenizer may have its vocabulary under
any name.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from hubextrap.tensors.weights import PICKLE_SUFFIXES
from hubextrap.trajectory.weights import OTHER, kind_of

_DROPPED = (
    # the card, and what a prediction has of its own: the folder may hold an earlier one
    *("readme.md", "hubextrap*"),
    # what a trainer goes on from
    *(
        "optim*",
        "*_optim_states*",
        "*_model_states*",
        "scheduler*",
        "scaler*",
        "rng_state*",
        "random_states*",
    ),
    *("train*_state.json", "training_args.*", "zero_to_fp32.py", "latest", "latest_*", "fsdp_config.json"),
    *("extra_state*", "*dataloader*", "sampler*.bin", "data.pt", "dataset.pt", "common.pt", "*.distcp"),
    # what it wrote down of this checkpoint
    *("*.log", "*log.jsonl", "*_results.json", "events.out.tfevents*", "slurm-*.out", "nohup.out"),
    # checksums and signatures of weights that are other ones in the prediction
    *("*.sha256", "*.sha512", "*.md5", "*sha256sum*", "*md5sum*", "*.sig", "*.asc"),
    # of systems and editors, and of programs that were stopped
    *(".*", "thumbs.db", "desktop.ini", "*.lock", "*.tmp", "*.temp", "*.swp", "*~", "*.bak", "*.part"),
    # memory of programs that crashed, and what somebody typed
    *("*.incomplete", "core", "core.[0-9]*", "*_history"),
)
_KEPT_BACK = (
    *(f"*{suffix}" for suffix in (*PICKLE_SUFFIXES, ".pickle", ".joblib", ".dill")),
    # other formats of weights, and what may hold anything
    *("*.onnx_data", "*.tflite", "*.pb", "*.mlmodel", "*.ot", "*.npy", "*.nemo", "*.engine", "*.ggml"),
    *("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.gz", "*.bz2", "*.xz", "*.7z", "*.rar", "*.zst", "*.exe"),
    # say that the weights are quantised, as those of a prediction are not
    *("hf_quant_config.json", "quant*_config.json"),
    *("*.pem", "*.key", "*.p12", "*.env", "id_rsa*", "id_ed25519*", "[._]netrc", "netrc", "*kubeconfig"),
    *("*.whl", "*.egg", "*.so.[0-9]*", "*.sbatch", "*.slurm", "makefile", "dockerfile"),
)
_CODE = frozenset(
    (
        *(".py", ".pyc", ".pyo", ".pyd", ".pyw", ".pyx", ".pyz", ".so", ".dll", ".dylib", ".ipynb", ".sh"),
        *(".bat", ".cmd", ".ps1", ".js", ".mjs", ".jar", ".class", ".wasm", ".pl", ".rb", ".lua", ".r"),
    )
)
_SECRET = re.compile(
    r"(?:.*[-_. ])?(?:token|secrets?|credentials?|passw(?:or)?ds?|(?:api)?keys?)"
    r"(?:\.(?:txt|json|ya?ml|toml|csv|ini|cfg))?"
)


_LONGEST_NAME = 240
"""Bytes of a name; of a longer one no file can be made, as it is written under a longer name first."""


def is_dropped(file: str) -> bool:
    """Whether ``file`` stays where it is and nobody would miss it: weights, a trainer's own, junk."""
    kind = kind_of(file)
    weights = kind is not None and (kind != OTHER or not is_kept_back(file))
    return weights or _matches(file, _DROPPED) or len(os.fsencode(file)) > _LONGEST_NAME


def is_kept_back(file: str) -> bool:
    """Whether ``file`` stays where it is although somebody may miss it: a pickle, a program, a secret."""
    return is_code(file) or _matches(file, _KEPT_BACK) or _SECRET.fullmatch(file.lower()) is not None


def is_code(file: str) -> bool:
    """Whether ``file`` is a program, by its name."""
    return PurePosixPath(file).suffix.lower() in _CODE


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(file.lower(), pattern) for pattern in patterns)
