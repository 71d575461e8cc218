from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.demonstrations import Message
from agent.exceptions import RowError
from agent.rows import MAX_ID_LENGTH, parse_row

SOLVED = {"question": "2+2?", "answer": "4"}


def refusal(row: object) -> RowError:
    with pytest.raises(RowError) as caught:
        parse_row(row, line=7, number=3)
    return caught.value


def test_messages_end_with_the_expert():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    row = parse_row({"messages": [*turns, {"role": "assistant", "content": "4"}]}, line=1, number=1)
    assert row.prompt == (Message("system", "Be brief."), Message("user", "2+2?"))
    assert row.expert == "4"


@pytest.mark.parametrize("prompt", ["2+2?", [{"role": "user", "content": "2+2?"}]])
@pytest.mark.parametrize("completion", ["4", [{"role": "assistant", "content": "4"}]])
def test_prompt_and_completion_are_strings_or_turns(prompt: Any, completion: Any):
    row = parse_row({"prompt": prompt, "completion": completion}, line=1, number=1)
    assert row.prompt == (Message("user", "2+2?"),)
    assert row.expert == "4"


@pytest.mark.parametrize(
    ("further", "prompt"), [(None, "Add."), ("", "Add."), (" \n", "Add."), ("2 and 2", "Add.\n\n2 and 2")]
)
def test_the_input_of_an_instruction_is_appended(further: str | None, prompt: str):
    row = parse_row({"instruction": "Add.", "input": further, "output": "4"}, line=1, number=1)
    assert row.question == prompt
    assert row.expert == "4"


def test_conversations_name_human_gpt_and_system():
    said = [("system", "Be brief."), ("human", "2+2?"), ("gpt", "4"), ("human", "And 3+3?"), ("gpt", "6")]
    row = parse_row({"conversations": [{"from": who, "value": what} for who, what in said]}, line=1, number=1)
    assert [m.role for m in row.prompt] == ["system", "user", "assistant", "user"]
    assert (row.question, row.expert) == ("And 3+3?", "6")


@pytest.mark.parametrize("question", ["problem", "question"])
@pytest.mark.parametrize("solution", ["solution", "answer"])
def test_a_problem_has_a_solution_or_an_answer(question: str, solution: str):
    row = parse_row({question: "2+2?", solution: "Four."}, line=1, number=1)
    assert (row.question, row.expert, row.reference_answer) == ("2+2?", "Four.", None)


def test_an_answer_beside_a_solution_is_the_reference():
    row = parse_row({"problem": "2+2?", "solution": r"It is \boxed{4}.", "answer": "4"}, line=1, number=1)
    assert (row.expert, row.reference_answer) == (r"It is \boxed{4}.", "4")


def test_a_gsm8k_answer_gives_the_reference_and_loses_its_calculator():
    answer = "Half is 48/2=<<48/2=24>>24.\nTogether $<<48+24.5=72.50>>72.50\n#### 72"
    row = parse_row({"question": "?", "answer": answer}, line=1, number=1)
    assert row.expert == "Half is 48/2=24.\nTogether $72.50\n#### 72"
    assert row.reference_answer == "72"
    assert row.source["answer"] == answer


def test_an_expert_of_calculator_notes_alone_is_empty():
    with pytest.raises(RowError, match=r"^empty: the expert has written calculator notes alone"):
        parse_row({"question": "?", "answer": "<<48/2=24>>\n"}, line=1, number=1)


@pytest.mark.parametrize(
    ("ending", "reference"),
    [
        ("#### 7", "7"),
        ("####7  ", "7"),
        ("#### -1,234,567.5", "-1234567.5"),
        ("#### $1,250", "$1250"),
        ("#### 1,23", "1,23"),
        ("#### (1,234)", "(1,234)"),
        ("#### 3/4\n\n", "3/4"),
        ("#### 7\nand more", None),
        ("#### Conclusion", None),
        ("##### 5 apples", None),
        ("see #### 7", None),
    ],
)
def test_the_answer_after_four_hashes_is_read_from_the_last_line(ending: str, reference: str | None):
    assert parse_row({"question": "?", "answer": f"So\n{ending}"}, line=1, number=1).reference_answer == reference


@pytest.mark.parametrize("code", ["cout << x >> y;", "a << 2 and b >> 3 if c", "<<EOF\n1=1\nEOF>>", "<<name=1>>"])
def test_code_with_shift_operators_is_left_alone(code: str):
    assert parse_row({"prompt": "?", "completion": code}, line=1, number=1).expert == code


@pytest.mark.parametrize(("stated", "reference"), [("5", "5"), (5, "5"), (2.5, "2.5"), (" 5 ", "5"), ("", "4")])
def test_a_stated_reference_answer_comes_first(stated: Any, reference: str):
    row = {"question": "2+2?", "answer": "#### 4", "reference_answer": stated}
    assert parse_row(row, line=1, number=1).reference_answer == reference


@pytest.mark.parametrize(
    ("stated", "reference"),
    [
        (5e-05, "0.00005"),
        (-2.5e-7, "-0.00000025"),
        (1e16, "10000000000000000"),
        (1.5e20, "150000000000000000000"),
        (42.0, "42.0"),
        (0.1, "0.1"),
        (-0.0, "-0.0"),
    ],
)
def test_an_answer_that_is_a_float_has_no_exponent(stated: float, reference: str):
    row = {"question": "?", "answer": "#### 4", "reference_answer": stated}
    assert parse_row(row, line=1, number=1).reference_answer == reference


def test_text_parts_are_joined():
    content = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "4"}]}
    assert parse_row(row, line=1, number=1).question == "2+2?"


def test_the_first_complete_shape_decides():
    row = {
        "instruction": "from instruction",
        "output": "a",
        "prompt": "alone",
        "question": "from question",
        "answer": "b",
    }
    assert parse_row(row, line=1, number=1).question == "from instruction"


def test_a_null_field_counts_as_absent():
    row = {"messages": None, "conversations": None, "prompt": "x", "completion": None, "id": None, **SOLVED}
    assert parse_row(row, line=1, number=5).id == "row-5"
    assert parse_row(row, line=1, number=5).question == "2+2?"


def test_other_fields_stay_in_the_source():
    row = {**SOLVED, "candidate": "4", "label": True, "meta": {"level": 5}}
    assert parse_row(row, line=1, number=1).source == row


@pytest.mark.parametrize(("stated", "read"), [("a b", "a b"), (12, "12"), ("Ж-1", "Ж-1"), ("x" * MAX_ID_LENGTH,) * 2])
def test_a_row_keeps_its_own_id(stated: Any, read: str):
    assert parse_row({**SOLVED, "id": stated}, line=1, number=1).id == read


@pytest.mark.parametrize("stated", ["", "a\nb", "\x00", "‮evil", "x" * (MAX_ID_LENGTH + 1), True, 1.5, [1], {}])
def test_an_unusable_id_is_refused(stated: Any):
    assert refusal({**SOLVED, "id": stated}).field == "id"


@pytest.mark.parametrize("task", ["", "a\nb", "x" * 100, 3, ["math"]])
def test_an_unusable_task_is_refused(task: Any):
    assert refusal({**SOLVED, "task": task}).field == "task"


USER = {"role": "user", "content": "2+2?"}
EXPERT = {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, None),
        ({"text": "a document"}, None),
        ({"prompt": "x"}, "completion"),
        ({"completion": "x"}, "prompt"),
        ({"instruction": "x"}, "output"),
        ({"output": "x"}, "instruction"),
        ({"question": "x"}, "answer"),
        ({"solution": "x"}, "question"),
        ({"question": 5, "answer": "x"}, "question"),
        ({"question": "x", "answer": 42}, "answer"),
        ({"question": "x", "answer": " \n"}, "answer"),
        ({"question": "", "answer": "x"}, "question"),
        ({"problem": "x", "question": "y", "answer": "z"}, "problem"),
        ({"problem": "x", "solution": "y", "answer": ["z"]}, "answer"),
        ({"instruction": "x", "input": 3, "output": "y"}, "input"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [EXPERT]}, "messages"),
        ({"messages": [USER]}, "messages"),
        ({"messages": [EXPERT, USER]}, "messages[1]"),
        ({"messages": [USER, EXPERT, EXPERT]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}, EXPERT]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}, EXPERT]}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages[1]"),
        ({"messages": ["hello", EXPERT]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}, EXPERT]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}, EXPERT]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}, EXPERT]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, EXPERT]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": ["x"]}, EXPERT]}, "messages[0].content[0]"),
        ({"messages": [USER, {**EXPERT, "tool_calls": [{}]}]}, "messages[1].tool_calls"),
        ({"prompt": [USER, EXPERT], "completion": "x"}, "prompt"),
        ({"prompt": [], "completion": "x"}, "prompt"),
        ({"prompt": {"role": "user"}, "completion": "x"}, "prompt"),
        ({"prompt": "x", "completion": [EXPERT, EXPERT]}, "completion"),
        ({"prompt": "x", "completion": [USER]}, "completion"),
        ({"prompt": "x", "completion": 3}, "completion"),
        ({"conversations": 3}, "conversations"),
        ({"conversations": [3, 4]}, "conversations[0]"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "conversations[0].from"),
        ({"conversations": [{"role": "user", "content": "x"}]}, "conversations[0].from"),
        ({"conversations": [{"from": "human", "value": 1}]}, "conversations[0].value"),
        ({**SOLVED, "reference_answer": [1]}, "reference_answer"),
        ({**SOLVED, "reference_answer": True}, "reference_answer"),
    ],
)
def test_a_row_that_cannot_be_used_names_its_field(row: dict[str, Any], field: str | None):
    error = refusal(row)
    assert error.field == field
    assert error.line == 7
    assert field is None or f"'{field}'" in str(error)


@pytest.mark.parametrize(("row", "kind"), [(None, "null"), (3, "a number"), ("x", "a string"), ([], "a list")])
def test_a_row_that_is_no_object_is_refused(row: object, kind: str):
    assert str(refusal(row)) == f"a row must be a JSON object, got {kind}"


words = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: bool(text.strip()))
plain = words.filter(lambda text: not re.search("<<|####", text))
turns = st.lists(st.tuples(words, words), max_size=3)


@settings(deadline=None)
@given(question=words, expert=plain, earlier=turns)
def test_every_shape_of_one_conversation_reads_the_same(question: str, expert: str, earlier: list[tuple[str, str]]):
    said = [turn for pair in earlier for turn in zip(("user", "assistant"), pair, strict=True)]
    said += [("user", question), ("assistant", expert)]
    messages = [{"role": role, "content": text} for role, text in said]
    names = {"user": "human", "assistant": "gpt"}
    shapes: list[dict[str, Any]] = [
        {"messages": messages},
        {"conversations": [{"from": names[role], "value": text} for role, text in said]},
        {"prompt": messages[:-1], "completion": messages[-1:]},
        {"prompt": messages[:-1], "completion": expert},
    ]
    if not earlier:
        shapes += [
            {"prompt": question, "completion": expert},
            {"instruction": question, "output": expert},
            {"question": question, "answer": expert},
            {"problem": question, "solution": expert},
        ]
    for shape in shapes:
        row = parse_row(shape, line=1, number=1)
        assert [(m.role, m.content) for m in row.prompt] == said[:-1]
        assert row.expert == expert
        assert row.source == shape


def test_a_row_of_svamp_is_a_problem_with_its_equation() -> None:
    row = {
        "Body": "Allan brought 6 balloons and Jake brought 2 balloons. Jake then bought 3 more balloons",
        "Question": "How many more balloons did Allan have than Jake?",
        "Equation": "( 6.0 - ( 2.0 + 3.0 ) )",
        "Answer": 1.0,
    }
    read = parse_row(row, line=1, number=1)
    assert read.question == (
        "Allan brought 6 balloons and Jake brought 2 balloons. Jake then bought 3 more balloons. "
        "How many more balloons did Allan have than Jake?"
    )
    assert read.reference_answer == "1"
    assert read.expert == "( 6 - ( 2 + 3 ) ) = 1\nThe answer is 1."
    del row["Equation"]
    assert parse_row(row | {"Answer": "2.50"}, line=1, number=1).expert == "The answer is 2.50."
    with pytest.raises(RowError, match="'Question': must be a string"):
        parse_row(row | {"Question": 3}, line=1, number=1)
