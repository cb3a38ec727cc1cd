"""Limits of files, names, commits and figures: what is just within is taken, what is one beyond is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hubextrap.engine.inputs import FileUse
from hubextrap.engine.torch_kernels import round_to
from hubextrap.errors import CorruptFile, EvaluationError, PushError
from hubextrap.evaluation import Row, Score
from hubextrap.evaluation.halves import halves, main_figures
from hubextrap.evaluation.paired import paired_interval
from hubextrap.hub import PushTarget
from hubextrap.hub.card import model_card
from hubextrap.hub.commit import check_files
from hubextrap.hub.provenance import CoefficientRule, build_provenance
from hubextrap.scans import LogProbs, LogProbSource
from hubextrap.tensors import ShardInfo, TensorInfo, build_header, parse_header
from hubextrap.tensors.headers import header_end
from hubextrap.trajectory.checkpoint import Checkpoint

MB = 2**20


def refused(sizes: dict[str, int]) -> str:
    """What `check_files` says; empty where it has nothing to say."""
    try:
        check_files(PushTarget("me/out"), sizes)
    except PushError as error:
        return str(error)
    return ""


def test_a_commit_takes_25_000_files_and_a_gigabyte_of_small_ones() -> None:
    names = [f"f{number}" for number in range(25_001)]
    assert refused(dict.fromkeys(names[:-1], 0)) == ""
    assert "25,001 files are more than the 25,000" in refused(dict.fromkeys(names, 0))
    assert refused({"a": 0, **dict.fromkeys(names[:100], 10**7)}) == ""
    assert "1,000,000,001 bytes of small files" in refused({"a": 1, **dict.fromkeys(names[:100], 10**7)})


def test_a_file_of_ten_mebibytes_is_no_small_one() -> None:
    assert refused({f"f{number}": 10 * MB for number in range(200)}) == ""
    assert "small files" in refused({f"f{number}": 10 * MB - 1 for number in range(200)})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("n" * 255, ""),
        ("n" * 256, "255 bytes"),
        ("folder/" + "n" * 255, ""),
        ("ä" * 127, ""),
        ("ä" * 128, "255 bytes"),
        ("n" * 255 + "/" + "n" * 256, "255 bytes"),
        ("a b", ""),
        ("a\x1fb", "control character"),
        ("a\x7fb", "control character"),
        ("a\\b", "backslash"),
        ("a\udcffb", "UTF-8"),
        ("~", ""),
    ],
)
def test_names_that_a_repo_can_hold(name: str, said: str) -> None:
    assert said in refused({name: 1})
    assert bool(refused({name: 1})) == bool(said)


def card(rules: int, steps: int) -> str:
    """The card of a prediction with so many rules over so many checkpoints."""
    row = dict.fromkeys(range(steps), 1.0 / steps)
    return model_card(
        build_provenance(
            checkpoints=[
                Checkpoint(step, "me/run", f"step_{step}", f"{step:040x}", "") for step in range(steps)
            ],
            merge_method="two_point",
            parameters={},
            target_step=400,
            coefficients=[
                CoefficientRule(match=f"tensor.{number}", method="two_point", coefficients=row)
                for number in range(rules)
            ],
            shards=[],
            dtype="float32",
            out_dtype=None,
            recipe="",
        )
    )


@pytest.mark.parametrize(("rules", "shown", "left"), [(8, 8, ""), (9, 8, "coefficients of 1 other")])
def test_a_card_shows_eight_rules(rules: int, shown: int, left: str) -> None:
    text = card(rules, 2)
    assert sum(f"tensor.{number}" in text for number in range(rules)) == shown
    assert ("other tensors or rules" in text) == bool(left)
    assert left in text


@pytest.mark.parametrize(("steps", "shown"), [(30, 30), (31, 30)])
def test_a_card_shows_thirty_coefficients(steps: int, shown: int) -> None:
    (row,) = [line for line in card(1, steps).splitlines() if line.startswith("| `tensor.0` |")]
    assert row.count("|") - 3 == shown


@pytest.mark.parametrize(
    ("start", "size", "said"),
    [
        ((0).to_bytes(8, "little"), 8, ""),
        ((1).to_bytes(8, "little"), 8, "cut short"),
        ((100_000_000).to_bytes(8, "little"), 100_000_008, ""),
        ((100_000_000).to_bytes(8, "little"), 100_000_007, "cut short"),
        ((100_000_001).to_bytes(8, "little"), 10**9, "more than the format allows"),
        (bytes(8), 7, "too few for a safetensors file"),
        (bytes(7), 8, "too few for a safetensors file"),
    ],
)
def test_a_header_is_in_its_file_and_at_most_100_million_bytes(start: bytes, size: int, said: str) -> None:
    if not said:
        assert header_end(start, size, "f") == 8 + int.from_bytes(start, "little")
        return
    with pytest.raises(CorruptFile, match=said):
        header_end(start, size, "f")


def test_a_shape_has_fewer_than_2_to_the_63_elements() -> None:
    header = build_header([("w", "U8", (2**31, 2**32 - 1))])
    assert parse_header(header, len(header) + 2**31 * (2**32 - 1), "f").tensors[0].shape == (2**31, 2**32 - 1)
    for shape in ((2**31, 2**32), (2**63,), (2**63, 0)):
        header = build_header([("w", "U8", shape)])
        with pytest.raises(CorruptFile):
            parse_header(header, len(header) + math.prod(shape), "f")


@pytest.mark.parametrize(
    ("size", "unread", "whole"),
    [
        (5 * MB, MB, True),
        (5 * MB, MB + 1, False),
        (16 * MB, MB, True),
        (32 * MB, 2 * MB, True),
        (32 * MB, 2 * MB + 1, False),
        (32 * MB + 15, 2 * MB + 1, False),
        (32 * MB + 16, 2 * MB + 1, True),
    ],
)
def test_a_file_is_read_whole_where_a_mebibyte_or_a_sixteenth_is_left(
    size: int, unread: int, whole: bool
) -> None:
    """What is unread of a file of this size, whose header and tied copies are read anyway."""
    tensor = TensorInfo("w", "U8", (size - 80,), "f", 80, size - 80)
    use = FileUse(needed=size - 80 - unread - 1000, twins=1000)
    assert use.is_whole(ShardInfo("f", size, (tensor,))) is whole


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (448.0, 448.0),
        (464.0, 448.0),
        (math.nextafter(464.0, 500), math.nan),
        (480.0, math.nan),
        (math.inf, math.nan),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_float8_e4m3_rounds_to_448_up_to_464_and_not_beyond(value: float, stored: float, sign: float) -> None:
    output = torch.empty(1, dtype=torch.float8_e4m3fn)
    round_to(output, torch.tensor([sign * value], dtype=torch.float64))
    assert output.double().tolist() == pytest.approx([sign * stored], nan_ok=True)


def moved(change: float) -> bool:
    """Whether a token whose log-probability changes so is kept."""
    values = np.array([[-3.0, -9.0, -3.0 + change]], dtype=np.float64)
    source = LogProbSource("p.jsonl", "00", None, None, False)
    tokens = LogProbs((0, 1, 2), source, ("a",), np.array([0]), np.array([7]), values)  # type: ignore[arg-type]
    return bool(tokens.moved()[0])


def test_a_token_counts_that_moved_by_more_than_two_tenths() -> None:
    assert [moved(change) for change in (0.19999, 0.20001, -0.19999, -0.20001, 0.0)] == [
        False,
        True,
        False,
        True,
        False,
    ]


def row(problems: int) -> Row:
    score = Score(
        task="a",
        metric="acc",
        filter="none",
        value=0.0,
        stderr=None,
        higher_is_better=True,
        problems=(0.0,) * problems,
    )
    return Row(label="last", step=1, reference="me/run@a", commit="0" * 40, scores=(score,))


def test_four_problems_can_be_halved_and_three_cannot() -> None:
    assert main_figures(row(4), ["a"]) == (("a", "acc", "none"),)
    with pytest.raises(EvaluationError, match=r"3 problems cannot be halved .* give at least 4"):
        main_figures(row(3), ["a"])


def test_halves_and_intervals_are_those_of_every_version() -> None:
    """Figures that were published have to come out again: seeds, resamples and level are fixed."""
    assert halves(9) == ((0, 2, 4, 8), (1, 3, 5, 6, 7))
    ours, theirs = (
        tuple(number * factor % prime / prime for number in range(40))
        for factor, prime in ((7919, 13), (104729, 17))
    )
    assert paired_interval(ours, theirs) == pytest.approx((-0.136406, 0.141259), rel=2e-4)
