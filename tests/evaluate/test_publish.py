"""`hubextrap eval --publish` against the loopback Hub, read back by the real client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download, parse_eval_result_entries
from typer.testing import CliRunner, Result

from hubextrap.cli.app import app
from hubextrap.errors import HubExtrapError
from hubextrap.evaluation import EvaluationTable
from hubextrap.localhub import Fault, LocalHub

CARD = b"""\
---
license: apache-2.0  # really
---

# A model of mine

Nothing of this may be lost.
"""


@pytest.fixture
def model(hub: LocalHub, repo_id: str, trajectory: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repo with step 200 and step 400 as branches; the latter has a card."""
    monkeypatch.setenv("HF_TOKEN", token)
    hub.create_repo(repo_id)
    for step in (200, 400):
        files: dict[str, Any] = {file.name: file for file in (trajectory / f"step_{step}").iterdir()}
        hub.commit(repo_id, files | {"README.md": CARD}, revision=f"step_{step}")
    return repo_id


@pytest.fixture
def evaluate(trajectory: Path, tmp_path: Path) -> Callable[..., Result]:
    """The command on 60 problems of a file, step 400 against step 200."""
    problems = tmp_path / "held_out.jsonl"
    problems.write_text("\n".join((trajectory / "problems.jsonl").read_text().splitlines()[:60]))

    def run(model: str, *more: str) -> Result:
        arguments = ["eval", f"{model}@step_400", "--batch-size", "60", "--task-file", str(problems), "-q"]
        against = [] if "--no-against" in more else ["--against", f"last={model}@step_200"]
        return CliRunner().invoke(app, [*arguments, *against, *more])

    return run


def read(model: str, path: str, revision: str = "step_400") -> str:
    return Path(hf_hub_download(model, path, revision=revision)).read_text()


def test_one_commit_with_all_that_is_needed(
    model: str, evaluate: Callable[..., Result], trajectory: Path, tmp_path: Path
) -> None:
    api = HfApi()
    before = api.list_repo_commits(model, revision="step_400")
    weights = api.get_paths_info(model, "model.safetensors", revision="step_400")[0].lfs
    result = evaluate(model, "--publish", "--output", str(tmp_path / "results.json"))
    assert result.exit_code == 0, result.output
    after = api.list_repo_commits(model, revision="step_400")
    assert len(after) == len(before) + 1
    assert after[0].title == "Scores on held_out"
    assert f"scores published: {api.endpoint}/{model}/commit/{after[0].commit_id}" in result.stdout
    assert api.get_paths_info(model, "model.safetensors", revision="step_400")[0].lfs == weights

    text = read(model, "README.md")
    card = ModelCard(text)
    table = EvaluationTable.load(tmp_path / "results.json")
    value = table.rows[0].scores[0].value
    (figure,) = card.data.eval_results
    assert (figure.dataset_type, figure.metric_type) == ("held_out", "exact_match")
    assert figure.metric_value == pytest.approx(value, abs=1e-6)
    assert figure.source_name == "hubextrap"
    assert text.startswith("---\nlicense: apache-2.0  # really\nmodel-index:\n")
    assert "# A model of mine\n\nNothing of this may be lost." in text
    assert " better |" in text
    commits = {row.label: row.commit for row in table.rows}
    command = (
        f"hubextrap eval {model}@{before[0].commit_id} --against last={model}@{commits['last']} "
        f"--task-file held_out.jsonl --format exact --batch-size 60 --seed 0 "
        f"--device {table.settings.device} --dtype auto"
    )
    assert command in text
    assert str(tmp_path) not in text
    published = EvaluationTable.model_validate_json(read(model, "hubextrap-eval.json"))
    assert published == table
    assert "![score against step](hubextrap-eval.png)" in text
    assert api.file_exists(model, "hubextrap-eval.png", revision="step_400")

    again = evaluate(model, "--publish", "--repeats", "4", "--no-against")
    assert again.exit_code == 0, again.output
    names = {each.metric_type for each in ModelCard(read(model, "README.md")).data.eval_results}
    assert names == {"avg@4", "maj@4", "pass@4"}
    assert read(model, "README.md").count("<!-- hubextrap: results -->") == 1


def test_the_command_in_the_card_gives_the_same_figures(
    model: str, evaluate: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    assert evaluate(model, "--publish").exit_code == 0
    text = read(model, "README.md")
    command = text.split("```bash\n")[1].split("\n```")[0]
    monkeypatch.chdir(tmp_path)  # the file of problems lies there under its own name
    again = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json", "-q"])
    assert again.exit_code == 0, again.output
    published = EvaluationTable.model_validate_json(read(model, "hubextrap-eval.json"))
    repeated = EvaluationTable.model_validate_json(again.stdout)
    assert [row.scores for row in repeated.rows] == [row.scores for row in published.rows]


def test_a_pull_request_leaves_the_branch_alone(model: str, evaluate: Callable[..., Result]) -> None:
    api = HfApi()
    head = api.model_info(model, revision="step_400").sha
    result = evaluate(model, "--publish", "--create-pr", "--no-against")
    assert result.exit_code == 0, result.output
    assert f"scores published: {api.endpoint}/{model}/discussions/1" in result.stdout
    assert api.model_info(model, revision="step_400").sha == head
    assert "<!-- hubextrap: results -->" in read(model, "README.md", "refs/pr/1")
    assert api.file_exists(model, "model.safetensors", revision="refs/pr/1")


def test_a_registered_benchmark_gets_its_own_file(
    hub: LocalHub, model: str, trajectory: Path, tmp_path: Path
) -> None:
    dataset = f"{model}-problems"
    hub.create_repo(dataset, repo_type="dataset")
    rows = "\n".join((trajectory / "problems.jsonl").read_text().splitlines()[:40])
    benchmark = {"name": "Addition", "tasks": [{"id": "radd_hub", "config": "default", "split": "test"}]}
    commit = hub.commit(
        dataset,
        {"test.jsonl": rows.encode(), "eval.yaml": yaml.safe_dump(benchmark).encode()},
        repo_type="dataset",
    )
    (tmp_path / "task.yaml").write_text(
        f"task: radd_hub\ndataset_path: {dataset}\ntest_split: test\noutput_type: generate_until\n"
        'doc_to_text: question\ndoc_to_target: answer\ntarget_delimiter: ""\nnum_fewshot: 0\n'
        'generation_kwargs: {do_sample: false, max_gen_toks: 6, until: ["<eos>"]}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    arguments = ["eval", f"{model}@step_400", "--no-against", "--tasks", "radd_hub", "--publish", "-q"]
    result = CliRunner().invoke(app, [*arguments, "--include-path", str(tmp_path), "--batch-size", "40"])
    assert result.exit_code == 0, result.output
    (entry,) = parse_eval_result_entries(yaml.safe_load(read(model, ".eval_results/hubextrap-radd_hub.yaml")))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == (dataset, "radd_hub", commit)
    table = EvaluationTable.model_validate_json(read(model, "hubextrap-eval.json"))
    assert entry.value == pytest.approx(100 * table.rows[0].scores[0].value, abs=1e-3)
    (figure,) = ModelCard(read(model, "README.md")).data.eval_results
    assert (figure.dataset_type, figure.dataset_split) == (dataset, "test")


def test_another_model_pushed_there_takes_the_scores_away(
    model: str, evaluate: Callable[..., Result], trajectory: Path
) -> None:
    from hubextrap.hub import PushTarget, push_folder

    assert evaluate(model, "--publish").exit_code == 0
    result = push_folder(trajectory / "step_40", PushTarget(model, "step_400"))
    assert set(result.deleted) >= {"hubextrap-eval.json", "hubextrap-eval.png"}


def error_of(result: Result) -> str:
    assert isinstance(result.exception, HubExtrapError), result.output
    return str(result.exception)


def test_what_is_refused_before_anything_is_measured(
    hub: LocalHub,
    model: str,
    evaluate: Callable[..., Result],
    trajectory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import hubextrap.evaluation.run as module

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may be measured")

    monkeypatch.setattr(module, "_simple_evaluate", never)
    assert "with --limit 5 the figures are not those of the tasks" in error_of(
        evaluate(model, "--publish", "--limit", "5")
    )
    tasks = ["--tasks", "gsm8k", "--no-against", "--publish", "-q"]
    local = CliRunner().invoke(app, ["eval", str(trajectory / "step_400"), *tasks])
    assert "step_400 is a local folder; push it first" in error_of(local)
    two = CliRunner().invoke(app, ["eval", f"{model}@step_400", f"{model}@step_200", *tasks])
    assert "evaluate the models one by one" in error_of(two)
    sha = HfApi().model_info(model, revision="step_400").sha
    pinned = CliRunner().invoke(app, ["eval", f"{model}@{sha}", *tasks])
    assert "a push goes to a branch, not to a commit" in error_of(pinned)
    hub.tag(model, "v1", from_="step_400")
    tag = CliRunner().invoke(app, ["eval", f"{model}@v1", *tasks])
    assert "v1 is a tag, and a tag cannot be pushed to" in error_of(tag)
    monkeypatch.setenv("HF_TOKEN", "")
    assert "no token" in error_of(evaluate(model, "--publish"))
    assert evaluate(model, "--create-pr").exit_code == 2


def test_another_model_in_its_place_gets_no_scores(
    hub: LocalHub,
    model: str,
    evaluate: Callable[..., Result],
    trajectory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import hubextrap.api

    real = hubextrap.api.publish

    def late(*arguments: Any) -> Any:
        hub.commit(
            model, {"model.safetensors": trajectory / "step_0" / "model.safetensors"}, revision="step_400"
        )
        return real(*arguments)

    monkeypatch.setattr(hubextrap.api, "publish", late)
    said = error_of(evaluate(model, "--publish", "--no-against"))
    assert "model.safetensors changed since commit" in said
    assert "evaluate the model as it is now" in said


def test_a_commit_whose_answer_was_lost_is_made_once(
    hub: LocalHub, model: str, evaluate: Callable[..., Result]
) -> None:
    before = len(HfApi().list_repo_commits(model, revision="step_400"))
    hub.faults.add(Fault(path=r"/commit/", method="POST", status=503, after=True))
    result = evaluate(model, "--publish", "--no-against")
    assert result.exit_code == 0, result.output
    assert hub.faults.pending() == 0
    assert len(HfApi().list_repo_commits(model, revision="step_400")) == before + 1
    assert json.loads(read(model, "hubextrap-eval.json"))["format"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["README.md", "hubextrap.json", "modeling_mine.py", "hubextrap-eval.json", "tokenizer.json"]
)
@pytest.mark.parametrize("create_pr", [False, True])
def test_a_colleagues_later_card_does_not_get_our_scores(
    hub: LocalHub,
    model: str,
    evaluate: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    create_pr: bool,
) -> None:
    import hubextrap.api

    theirs: list[str] = []
    real = hubextrap.api.publish

    def late(*arguments: Any) -> Any:
        theirs.append(hub.commit(model, {file: b"theirs"}, revision="step_400"))
        return real(*arguments)

    monkeypatch.setattr(hubextrap.api, "publish", late)
    said = error_of(evaluate(model, "--publish", "--no-against", *["--create-pr"] * create_pr))
    assert f"{file} changed since commit" in said
    assert HfApi().model_info(model, revision="step_400").sha == theirs[0]
    assert read(model, file) == "theirs"
    assert not HfApi().list_repo_refs(model, include_pull_requests=True).pull_requests


def test_a_card_that_comes_while_ours_is_sent_stays(
    hub: LocalHub, model: str, evaluate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import hubextrap.hub.publish as module

    theirs: list[str] = []
    real = module.commit_files

    def late(*arguments: Any, **options: Any) -> Any:
        theirs.append(hub.commit(model, {"README.md": b"theirs"}, revision="step_400"))
        return real(*arguments, **options)

    monkeypatch.setattr(module, "commit_files", late)
    said = error_of(evaluate(model, "--publish", "--no-against"))
    assert f"somebody else changed README.md in the meantime (commit {theirs[0]})" in said
    assert read(model, "README.md") == "theirs"
