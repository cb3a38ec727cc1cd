"""Scoring of our own tasks on literal completions."""

from __future__ import annotations

import pytest

from hubextrap.evaluation.scoring import as_problems, math_answers, text_answers


def test_texts_are_equal_or_not() -> None:
    doc = {"answer": "6731"}
    assert text_answers(doc, ["6731"]) == {"exact_match": 1.0}
    assert text_answers(doc, [" 6731\n"]) == {"exact_match": 1.0}
    assert text_answers(doc, ["6731."]) == {"exact_match": 0.0}
    assert text_answers(doc, [["6731", "0", "0", "0"]]) == {
        "avg@4": 0.25,
        "maj@4": 0.0,
        "pass@4": 1.0,
    }


@pytest.mark.parametrize(
    ("answer", "completion", "is_right"),
    [
        ("204", "so the total is $\\boxed{204}$ minutes.", True),
        ("204", "so the total is $\\boxed{240}$ minutes.", False),
        ("070", "The answer is \\boxed{70}.", True),
        ("\\frac{1}{2}", "Half of them: \\boxed{0.5}", True),
        ("\\frac{1}{2}", "\\boxed{\\dfrac{2}{4}}", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}", True),
        ("p - q", "we find $\\boxed{-q+p}$", True),
        ("p - q", "we find $\\boxed{q-p}$", False),
        ("18", "She makes 9 * 2 = 18 dollars a day.", True),
        ("18", "I cannot say.", False),
        ("18", "", False),
    ],
)
def test_mathematics_is_compared_by_value(answer: str, completion: str, is_right: bool) -> None:
    assert math_answers({"answer": answer}, [completion]) == {"math_verify": float(is_right)}


def test_equal_answers_vote_together_however_they_are_written() -> None:
    samples = ["\\boxed{1/2}", "\\boxed{0.5}", "\\boxed{3}", "\\boxed{3}", "\\boxed{3.0}", "no idea"]
    half = math_answers({"answer": "\\frac{1}{2}"}, [samples])
    assert half["avg@6"] == pytest.approx(2 / 6)
    assert half["maj@6"] == 0.0
    assert half["pass@4"] == pytest.approx(1 - 1 / 15)
    three = math_answers({"answer": "3"}, [samples])
    assert three["avg@6"] == 0.5
    assert three["maj@6"] == 1.0


def test_fields_by_whatever_name() -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"ID": "1", "Problem": "1+1?", "Solution": "2.", "Answer": 2}])
    assert list(as_problems(rows)) == [{"question": "1+1?", "answer": "2"}]
    rows = Dataset.from_list([{"question": "Q", "answer": "10 <<5+5=10>>\n#### 1,010"}])
    assert list(as_problems(rows)) == [{"question": "Q", "answer": "1010"}]
