"""Token log-probabilities of the bundled run, held to one sequence at a time without batches or padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_llama import tiny_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from hubextrap import api
from hubextrap.cli.app import app
from hubextrap.errors import EvaluationError, ReferenceNotFound, UnsupportedCheckpoint
from hubextrap.logits import LogProbRequest, measure_logprobs, responses
from hubextrap.logits.responses import Encoded, as_chat, score
from hubextrap.scans import LogProbs, LogProbSource, Scan
from hubextrap.trajectory import Trajectory, find_trajectory

DEMO = Path(__file__).parent.parent.parent / "demo" / "data" / "rlvr-C"
STEPS = (0, 100, 400)


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    return find_trajectory(str(DEMO), steps=STEPS)


def prompts_file(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


PROBLEMS = [
    {"question": "526+850=", "answer": "6731"},
    {"question": "1+9=", "answer": "01"},
    {"prompt": "110+939=", "response": "9401"},
    {"question": "7+5=", "answer": "2"},
    {"question": "945+922=", "answer": "7681"},
]


def naive(checkpoint: str, pairs: list[tuple[str, list[int]]]) -> list[float]:
    """Each response by itself, in float64 from the logits on."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    for prompt, response in pairs:
        context = tokenizer(prompt).input_ids
        for number, token in enumerate(response):
            with torch.no_grad():
                logits = model(torch.tensor([context + response[:number]])).logits[0, -1].double()
            found.append(float(logits[token] - torch.logsumexp(logits, 0)))
    return found


@pytest.mark.parametrize("batch_size", [1, 3])
def test_values_are_those_of_one_sequence_at_a_time(
    trajectory: Trajectory, tmp_path: Path, batch_size: int
) -> None:
    request = LogProbRequest(prompts_file(tmp_path, *PROBLEMS), batch_size=batch_size)
    found = measure_logprobs(trajectory, request)
    assert found.steps == STEPS
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "step_0")
    pairs = [
        (
            str(entry.get("question") or entry.get("prompt")),
            [
                *tokenizer(entry.get("answer") or entry.get("response"), add_special_tokens=False).input_ids,
                tokenizer.eos_token_id,
            ],
        )
        for entry in PROBLEMS
    ]
    assert found.tokens.tolist() == [token for _, response in pairs for token in response]
    assert found.responses.tolist() == [i for i, (_, response) in enumerate(pairs) for _ in response]
    assert "".join(found.texts[:4]) == "6731"
    for k, step in enumerate(STEPS):
        np.testing.assert_allclose(found.values[:, k], naive(str(DEMO / f"step_{step}"), pairs), atol=2e-5)


def test_sampled_responses_are_fixed_and_scored_like_any_other(
    trajectory: Trajectory, tmp_path: Path
) -> None:
    path = prompts_file(tmp_path, {"question": "526+850="}, {"question": "1+9="}, {"question": "77+12="})
    request = LogProbRequest(path, sample_from=100, max_new_tokens=6, batch_size=2)
    found = measure_logprobs(trajectory, request)
    again = measure_logprobs(trajectory, request)
    assert found.tokens.tolist() == again.tokens.tolist()
    assert found.source.sampled_from == 100
    responses = [found.tokens[found.responses == i].tolist() for i in range(3)]
    end = AutoTokenizer.from_pretrained(DEMO / "step_0").eos_token_id
    assert all(1 <= len(response) <= 6 for response in responses)
    assert all(end not in response[:-1] for response in responses)
    pairs = list(zip(["526+850=", "1+9=", "77+12="], responses, strict=True))
    np.testing.assert_allclose(found.values[:, 1], naive(str(DEMO / "step_100"), pairs), atol=2e-5)


def test_a_reward_model_is_no_language_model(tmp_path: Path) -> None:
    """transformers would load it and make up its head."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(DEMO / "step_0")
    for step in (1, 2):
        model.save_pretrained(tmp_path / f"step_{step}")
        AutoTokenizer.from_pretrained(DEMO / "step_0").save_pretrained(tmp_path / f"step_{step}")
    request = LogProbRequest(prompts_file(tmp_path, *PROBLEMS))
    with pytest.raises(UnsupportedCheckpoint, match=r"not a complete language model: .* as lm_head"):
        measure_logprobs(find_trajectory(str(tmp_path)), request)


def logprobs(values: NDArray[np.float32], steps: tuple[int, ...]) -> LogProbs:
    count = len(values)
    source = LogProbSource("p", "0", None, None, False)
    return LogProbs(
        steps, source, ("t",) * count, np.zeros(count, np.int64), np.zeros(count, np.int64), values
    )


def test_the_reference_filter_and_r_squared() -> None:
    steps = (0, 10, 40)
    values = np.array(
        [
            [-2.0, -1.9, -1.6],  # on a line
            [-2.0, -0.1, -1.9],  # wild, but the last is close to the first
            [-1.0, -1.3, -1.21],  # off the line
            [-0.5, -0.5, -0.5],
        ],
        dtype=np.float32,
    )
    found = logprobs(values, steps)
    assert found.moved().tolist() == [True, False, True, False]
    expected = [1.0, np.corrcoef(steps, values[2])[0, 1] ** 2]
    np.testing.assert_allclose(found.r_squared(), expected, rtol=1e-6)
    summary = found.as_dict()
    assert (summary["tokens"], summary["tokens_kept"], summary["responses"]) == (4, 2, 1)
    assert summary["share_r_squared_above_0.7"] == 0.5
    nothing = logprobs(values[3:], steps).as_dict()
    assert nothing["median_r_squared"] is None


def test_prompts_that_do_not_serve(trajectory: Trajectory, tmp_path: Path) -> None:
    def refused(*lines: object, **options: int) -> str:
        with pytest.raises(EvaluationError) as caught:
            measure_logprobs(trajectory, LogProbRequest(prompts_file(tmp_path, *lines), **options))
        return str(caught.value).removeprefix(str(tmp_path) + "/")

    assert refused() == "prompts.jsonl: holds no prompts"
    assert refused([1]) == (
        "prompts.jsonl, line 1: holds neither prompt and response nor question and answer"
    )
    assert refused(PROBLEMS[0], {"question": "1+1="}) == (
        "prompts.jsonl, line 2: answer is not text; add the responses, or let a checkpoint give them "
        "(--sample-from STEP)"
    )
    assert refused({"prompt": 3}) == "prompts.jsonl, line 1: prompt is not text"
    assert refused(PROBLEMS[0], sample_from=50) == (
        "--sample-from 50: no such step; choose one of 0, 100, 400"
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": \n')
    with pytest.raises(EvaluationError, match=r"prompts\.jsonl, line 1: not valid JSON"):
        measure_logprobs(trajectory, LogProbRequest(tmp_path / "prompts.jsonl"))
    with pytest.raises(ReferenceNotFound, match=r"--logprobs: no such file: .*/absent"):
        measure_logprobs(trajectory, LogProbRequest(tmp_path / "absent"))


def test_bad_prompts_do_not_cost_a_scan(trajectory: Trajectory, tmp_path: Path) -> None:
    request = LogProbRequest(prompts_file(tmp_path, PROBLEMS[0]), sample_from=50)
    with pytest.raises(EvaluationError, match="--sample-from 50"):
        api.scan(trajectory, out=tmp_path / "scan", logprobs=request)
    assert not (tmp_path / "scan").exists()


def test_the_command_adds_them_to_a_scan_that_is_there(tmp_path: Path) -> None:
    path, out = prompts_file(tmp_path, *PROBLEMS), tmp_path / "scan"
    arguments = ["scan", str(DEMO), "--out", str(out), "--max-step", "120", "-q"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    before = Scan.load(out)
    result = CliRunner().invoke(app, [*arguments, "--logprobs", str(path)])
    assert result.exit_code == 0, result.output
    assert "log-probs: 20 tokens of 5 responses" in " ".join(result.stdout.split())
    assert result.stderr == ""
    after = Scan.load(out)
    assert after.logprobs is not None
    assert after.logprobs.values.shape == (20, 5)
    np.testing.assert_array_equal(after.gram_table.gram, before.gram_table.gram)
    as_json = CliRunner().invoke(app, [*arguments, "--logprobs", str(path), "--json"])
    assert json.loads(as_json.stdout)["logprobs"]["prompts"] == "prompts.jsonl"


def test_a_chat_template_that_does_not_serve(trajectory: Trajectory, tmp_path: Path) -> None:
    request = LogProbRequest(prompts_file(tmp_path, *PROBLEMS), apply_chat_template=True)
    with pytest.raises(UnsupportedCheckpoint, match="has no chat template"):
        measure_logprobs(trajectory, request)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "step_0")
    tokenizer.chat_template = "{{ raise_exception('tools only') }}"
    with pytest.raises(UnsupportedCheckpoint, match=r"cannot take a user's message .*tools only"):
        as_chat(tokenizer, "1+1=")


@pytest.mark.slow
def test_linearity_of_the_full_run(rlvr: Path) -> None:
    """Not the same responses as were measured, which were sampled; so near, not equal."""
    folder = rlvr / "rlvr-C"
    known = json.loads((folder / "results.json").read_text())["logprob_linearity"]["responses_of_step_0"]
    request = LogProbRequest(folder / "problems.jsonl", sample_from=0, max_new_tokens=6, batch_size=64)
    found = measure_logprobs(find_trajectory(str(folder)), request).as_dict()
    assert found["median_r_squared"] == pytest.approx(known["median_r2"], abs=0.05)
    assert found["share_r_squared_above_0.7"] == pytest.approx(known["share_r2_above_0p7"], abs=0.08)
    share = known["tokens_moved_over_0p2"] / known["tokens"]
    assert found["tokens_kept"] / found["tokens"] == pytest.approx(share, abs=0.05)


def test_a_batch_is_bounded_by_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 150,000 words, 8 answers of 2,000 tokens are 10 GB; how many go together changes no score."""
    model = tiny_llama().eval()
    texts = [Encoded((5, 6), tuple(range(4, 4 + length))) for length in (3, 9, 4, 7, 8)]
    counts: list[int] = []
    together = score(model, texts, 8, counts.append)
    monkeypatch.setattr(responses, "LOGITS", 4 * model.config.vocab_size * 20)
    apart: list[int] = []
    np.testing.assert_allclose(score(model, texts, 8, apart.append), together, rtol=1e-5)
    assert (counts, apart) == ([5], [2, 2, 1])
