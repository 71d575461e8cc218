"""What a training trains on, and what it keeps apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.prompts import proposal_prompt
from agent.settings import RewriteSettings
from tests.tiny_chat import NO_SYSTEM, tiny_tokenizer
from trainer.data import TrainingData, fits_in, load_training_data
from trainer.exceptions import TrainingDataError

SYSTEM_FIRST = NO_SYSTEM.replace("m.role == 'system'", "m.role == 'system' and not loop.first")


def load(rows: list[dict[str, Any] | str], folder: Path, **changed: Any) -> TrainingData:
    source = folder / "rows.jsonl"
    source.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    options: dict[str, Any] = {"limit": None, "eval_rows": 3, "seed": 0} | changed
    fits = options.pop("fits", lambda row: True)
    return load_training_data(source, fits, **options)


def row(number: int, **changed: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "question": f"What is {number} + 1?", "answer": f"#### {number + 1}"} | changed


def questions(rows: list[Demonstration]) -> set[str]:
    return {row.question for row in rows}


def test_held_out_questions_are_never_trained_on(tmp_path: Path) -> None:
    data = load([row(i) for i in range(10)] + [row(20, question="What is 3 + 1?")], tmp_path)
    assert (len(data.train), len(data.held_out)) == (7, 3)
    assert not questions(data.train) & questions(data.held_out)
    assert data.left_out == {"question seen before": 1}


def test_a_copy_that_cannot_be_used_does_not_stand_in_the_way_of_one_that_can(tmp_path: Path) -> None:
    rows = [row(0, id="bad", task="math", answer="one"), *(row(i) for i in range(5)), row(0, id="again")]
    data = load(rows, tmp_path)
    assert {r.id for r in (*data.train, *data.held_out)} == {f"r{i}" for i in range(5)}
    assert data.left_out["question seen before"] == 1
    assert sum(data.left_out.values()) == 2


def test_conversations_that_end_alike_are_different_questions(tmp_path: Path) -> None:
    def conversation(number: int) -> dict[str, Any]:
        turns = [f"What is {number} + 1?", "Shall I?", "Yes, go on."]
        roles = ("user", "assistant", "user")
        prompt = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
        return {"prompt": prompt, "completion": f"It is {number + 1}.\n#### {number + 1}"}

    data = load([conversation(number) for number in (*range(8), 3)], tmp_path)
    assert (len(data.train), len(data.held_out)) == (5, 3)
    assert data.left_out == {"question seen before": 1}


def test_the_same_seed_holds_out_the_same_rows(tmp_path: Path) -> None:
    one, same, other = (load([row(i) for i in range(40)], tmp_path, seed=seed).held_out for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [row(i) for i in range(6)] + ["{broken", row(7, task="poetry"), row(8)]
    data = load(rows, tmp_path, fits=lambda row: row.id != "r8")
    assert data.left_out["cannot be read"] == 1
    assert data.left_out["longer than the model's context"] == 1
    assert sum("poetry" in reason for reason in data.left_out) == 1


def test_a_math_row_without_an_answer_is_left_out(tmp_path: Path) -> None:
    data = load([row(i) for i in range(5)] + [row(9, task="math", answer="No idea.")], tmp_path)
    assert "r9" not in {r.id for r in (*data.train, *data.held_out)}


def test_too_few_rows_are_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"2 usable rows, but 3 are to be held out.*1 x cannot be read"):
        load([row(1), row(2), "{"], tmp_path)


def test_the_hash_follows_the_content_not_the_format(tmp_path: Path) -> None:
    rows = [row(i) for i in range(5)]
    spaced = [json.dumps(r, indent=None, separators=(" , ", " : ")) for r in rows]
    assert load(rows, tmp_path).sha256 == load(spaced, tmp_path).sha256
    assert load(rows, tmp_path).sha256 != load([*rows[:4], row(99)], tmp_path).sha256


@pytest.mark.parametrize(
    ("template", "roles"),
    [
        (NO_SYSTEM, ["system", "user"]),
        (SYSTEM_FIRST, ["user", "assistant", "system", "user"]),  # the request has it first, the prompt itself has not
    ],
)
def test_a_row_that_the_chat_template_refuses_is_left_out(template: str, roles: list[str], tmp_path: Path) -> None:
    chat = ChatFormat(tiny_tokenizer(template))
    turns = [{"role": role, "content": "What is 1 + 2 ?"} for role in roles]
    rows = [row(i) for i in range(5)] + [{"prompt": turns, "completion": "#### 3"}]
    data = load(rows, tmp_path, fits=fits_in(4096, chat, RewriteSettings()))
    reason = "the model's chat template refuses these turns: System role not supported"
    assert data.left_out == {reason: 1}
    assert data.rows == 5
    assert data.notes == ["rows by task: 5 math", f"1 of 6 rows left out: 1 x {reason}"]


def test_a_row_fits_where_its_request_and_longest_rewrite_do(tmp_path: Path) -> None:
    chat = ChatFormat(tiny_tokenizer())
    [one] = load([row(i) for i in range(4)], tmp_path).train
    prompt = proposal_prompt("rewrite", one, "math", with_examples=False)
    assert prompt is not None
    needed = len(chat.prompt_ids(prompt)) + 10
    limited = RewriteSettings(max_tokens=10)
    assert fits_in(needed, chat, limited)(one)
    assert not fits_in(needed - 1, chat, limited)(one)


def test_rows_are_counted_by_task_and_those_without_an_answer_are_said_with_what_to_do(tmp_path: Path) -> None:
    asked_for = [row(7, task="text", answer="Hello."), row(8, reference_answer="9", answer="It makes nine.")]
    data = load([*(row(i) for i in range(4)), *asked_for, row(9, answer="I do not know.")], tmp_path)
    assert data.tasks == {"math": 5, "text": 2}
    tasks, unanswered = data.notes
    assert tasks == "rows by task: 5 math, 2 text"
    assert unanswered.startswith("in 1 of 7 rows no reference answer was found")
    assert "give `reference_answer`" in unanswered
    assert "say `task`" in unanswered


def test_rows_of_which_all_have_an_answer_are_only_counted(tmp_path: Path) -> None:
    assert load([row(i) for i in range(4)], tmp_path).notes == ["rows by task: 4 math"]


def test_the_hash_follows_the_task_and_is_of_the_rows_that_are_used(tmp_path: Path) -> None:
    rows = [row(i) for i in range(5)]
    known = load(rows, tmp_path).sha256
    assert load([*rows[:4], row(4, task="text")], tmp_path).sha256 != known
    assert load([*rows, "{broken", row(6, question=rows[0]["question"])], tmp_path).sha256 == known
