"""Scores into a model's repo in one commit: its card, the Hub's format for benchmarks, what lies beside."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hubextrap.errors import CorruptFile, PushError
from hubextrap.foreign_data import parse_yaml
from hubextrap.hub.card import with_results, with_verdict
from hubextrap.hub.carried_over import METADATA
from hubextrap.hub.commit import PushResult, commit_files
from hubextrap.hub.outgoing import OutgoingFile, is_score_file
from hubextrap.hub.provenance import PROVENANCE_FILE
from hubextrap.hub.push_errors import push_errors
from hubextrap.hub.side_files import belongs_to_model
from hubextrap.hub.target import check_target, refusal, remote_files
from hubextrap.hub_access import hub_api
from hubextrap.patience import retried
from hubextrap.tensors.cache import check_cached

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from huggingface_hub import EvalResult, EvalResultEntry

    from hubextrap.hub.target import PushTarget, RemoteState
    from hubextrap.progress import Progress

SOURCE = "hubextrap"
"""Name of the source that our entries of a model-index have; others are left as they are."""
_INDEX_BLOCK = re.compile(r"^model-index[ \t]*:[^\n]*(?:\n(?:[ \t-][^\n]*)?(?=\n|\Z))*", re.MULTILINE)
_BENCHMARK_FILE = "eval.yaml"


@dataclass(frozen=True, slots=True)
class Results:
    """What is published."""

    markdown: str
    """For the card."""
    figures: Sequence[EvalResult]
    """For the card's model-index; their source is named ``SOURCE``."""
    benchmarks: Mapping[str, EvalResultEntry] = field(default_factory=dict)
    """For ``.eval_results``, by a name for the file."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What else goes into the repo, by path."""
    verdict: str = ""
    """One line for the top of the card, in the place of what the weights alone say."""


def check_publishable(target: PushTarget, commit: str) -> RemoteState:
    """Look whether scores of the model at ``commit`` can go to ``target``. Changes nothing on the Hub.

    Raises:
        PushError: no token, no such branch, or the branch holds another model, another card or other scores
            by now, and what is published would stand there as if it were theirs.
    """
    state = check_target(target)
    if not state.exists or not state.has_branch or state.head is None:
        raise refusal(target, "no such branch; scores can only be added to a model that exists")
    with push_errors(target.name):
        measured = remote_files(target.repo, commit)
    paths = [path for path in {*measured, *state.files} if _is_told_of(path)]
    if changed := sorted(path for path in paths if measured.get(path) != state.files.get(path)):
        raise refusal(
            target,
            f"{', '.join(changed[:5])} changed since commit {commit}, which was evaluated; evaluate the "
            "model as it is now",
        )
    return state


def _is_told_of(path: str) -> bool:
    """Whether scores would be taken for those of this file, or take the place of what is in it."""
    told = path in ("README.md", PROVENANCE_FILE) or path.endswith(".py")
    return told or belongs_to_model(path) or is_score_file(path)


def publish_results(
    target: PushTarget, commit: str, results: Results, *, message: str, progress: Progress | None = None
) -> PushResult:
    """Add scores to the model at ``target`` in one commit or pull request; what else is in the card stays.

    Args:
        commit: what was measured.

    Raises:
        PushError: as `check_publishable`, or the card cannot be understood, or the Hub did not take it.
    """
    from huggingface_hub import eval_result_entries_to_yaml

    state = check_publishable(target, commit)
    card = _card(target, state)
    if results.verdict:
        card = with_verdict(card, results.verdict)
    card = with_model_index(
        with_results(card, results.markdown), target.repo.partition("/")[2], results.figures
    )
    files = {"README.md": card.encode(), **results.files}
    for name, entry in results.benchmarks.items():
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        files[f".eval_results/{SOURCE}-{name}.yaml"] = text.encode()
    return commit_files(
        target,
        [OutgoingFile(path, content) for path, content in files.items()],
        message=message,
        state=state,
        whole_model=False,
        progress=progress,
    )


def with_model_index(card: str, model_name: str, figures: Sequence[EvalResult]) -> str:
    """``card`` with ``figures`` in its metadata; those of the same tasks from before are replaced.

    Nothing else of the card changes: not the order of its metadata, nor comments in them.

    Raises:
        PushError: its metadata are no YAML mapping, or its model-index is not one.
    """
    from huggingface_hub.repocard_data import eval_results_to_model_index

    match = METADATA.match(card)
    text = match[1] if match else ""
    metadata = _parsed(text)
    index = metadata.get("model-index") or [{"name": model_name, "results": []}]
    if not _is_index(index):
        raise PushError(
            "README.md: its model-index is not a list of {name, results}, so no scores can be added; correct "
            "or remove it, then publish again"
        )
    ours = eval_results_to_model_index(model_name, list(figures))[0]["results"]
    replaced = {_identity(entry) for entry in ours}
    others = [entry for entry in index[0]["results"] if _identity(entry) not in replaced]
    index = [index[0] | {"results": [*others, *ours]}, *index[1:]]
    new = _replaced(text, metadata, index)
    if match is None:
        return f"---\n{new}\n---\n\n{card}"
    return card[: match.start(1)] + new + card[match.end(1) :]


def benchmark_task(dataset: str, config: str | None, split: str | None) -> tuple[str, str] | None:
    """(task id, commit) of a data set that is a registered benchmark; None where it is none.

    A benchmark lists its tasks in ``eval.yaml``; where there are several, the one with this configuration and
    split is meant.

    Raises:
        PushError: the Hub cannot be asked.
    """
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    api = hub_api()
    with push_errors(dataset):
        try:
            commit = retried(lambda: api.dataset_info(dataset)).sha
            path = retried(
                lambda: api.hf_hub_download(dataset, _BENCHMARK_FILE, repo_type="dataset", revision=commit)
            )
        except (EntryNotFoundError, RepositoryNotFoundError):
            return None
    try:
        content = check_cached(Path(path), f"{dataset}: {_BENCHMARK_FILE}")
        tasks = parse_yaml(content, f"{dataset}/{_BENCHMARK_FILE}", nan=True)["tasks"]
        fitting = [
            task["id"]
            for task in tasks
            if len(tasks) == 1
            or (
                task.get("config", config or "default") == (config or "default")
                and task.get("split", split) == split
            )
        ]
    except (CorruptFile, KeyError, TypeError, AttributeError):
        return None  # somebody else's file; it must not stop the scores from going elsewhere
    return (str(fitting[0]), commit or "") if len(fitting) == 1 else None


def _card(target: PushTarget, state: RemoteState) -> str:
    if "README.md" not in state.files:
        return ""
    with push_errors(target.name):
        path = retried(lambda: hub_api().hf_hub_download(target.repo, "README.md", revision=state.head))
    try:
        return check_cached(Path(path), f"{target.name}: README.md").decode()
    except UnicodeDecodeError as error:
        raise refusal(target, "README.md is not UTF-8 text; correct it, then publish again") from error


def _parsed(text: str) -> dict[str, Any]:
    where = "README.md: the metadata at its top"
    metadata = parse_yaml(text, where, error=PushError, remedy="correct them, then publish again", nan=True)
    metadata = {} if metadata is None and not text.strip() else metadata
    if not isinstance(metadata, dict):
        raise PushError(
            "README.md: the metadata at its top are not a mapping; correct them, then publish again"
        )
    return metadata


def _is_index(index: object) -> bool:
    return isinstance(index, list) and all(
        isinstance(model, dict)
        and isinstance(model.get("results"), list)
        and all(isinstance(entry, dict) for entry in model["results"])
        for model in index
    )


def _identity(entry: Mapping[str, Any]) -> tuple[object, ...]:
    """What makes an entry of ours the same as a later one; another's has its own."""
    source, dataset, task = (entry.get(name) or {} for name in ("source", "dataset", "task"))
    if not all(isinstance(part, dict) for part in (source, dataset, task)) or source.get("name") != SOURCE:
        return (id(entry),)
    return (task.get("type"), *(dataset.get(name) for name in ("type", "config", "split")))


def _replaced(text: str, metadata: dict[str, Any], index: list[Any]) -> str:
    """The metadata's YAML with another model-index, the rest as it was written."""
    wanted = metadata | {"model-index": index}
    block = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True).rstrip("\n")
    found = _INDEX_BLOCK.search(text)
    if found:
        new = text[: found.start()] + block + text[found.end() :]
    else:
        new = "\n".join(part for part in (text.rstrip("\n"), block) if part)
    with suppress(CorruptFile):
        if parse_yaml(new, "README.md", nan=True) == wanted:
            return new
    # an index that is written in an unusual way: then all is written anew
    return str(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)).rstrip("\n")
