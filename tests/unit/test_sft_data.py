"""Which rows are trained on, at which token positions, and what is said of those left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.records import Record
from tests.tiny_chat import CHATML, NO_SYSTEM, tiny_tokenizer
from trainer.exceptions import TrainingDataError
from trainer.sft.batches import RowCollator, unpack
from trainer.sft.data import SftData, count_tokens, load_sft_data
from trainer.sft.settings import WeightSettings
from trainer.sft.weights import row_weights

SUM = {"question": "What is 1 + 2 ?", "answer": "It is 3"}
TURNS = {
    "messages": [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Name a fruit"},
        {"role": "assistant", "content": "Plum"},
    ]
}


def load(folder: Path, rows: list[dict[str, Any]], *, template: str = "", max_length: int = 64) -> SftData:
    source = folder / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer = tiny_tokenizer(template) if template else tiny_tokenizer()
    return load_sft_data(source, ChatFormat(tokenizer), max_length=max_length)


def record(status: Any, target: str = "It is 3", **further: Any) -> dict[str, Any]:
    row = Demonstration(f"{status}-1", (Message("user", "What is 1 + 2 ?"),), "It is 3")
    return Record(row, status, "rewrite", target, 1, None, None, None, None, "m", **further).as_dict()


def trained_words(data: SftData, number: int) -> tuple[list[str], list[int]]:
    """All tokens of a row as the trainer gets them, and the positions that have a loss."""
    weights = row_weights(WeightSettings(), data.rows, [])
    batch = RowCollator(data.rows, weights)([{"row": number}])
    trained = [place for place, label in enumerate(batch["labels"][0].tolist()) if label != -100]
    assert trained == batch["completion_mask"][0].nonzero()[:, 0].tolist()
    return tiny_tokenizer().convert_ids_to_tokens(batch["input_ids"][0].tolist()), trained


def test_the_answer_and_its_end_of_turn_are_trained_on_and_nothing_else(tmp_path: Path) -> None:
    words, trained = trained_words(load(tmp_path, [SUM]), 0)
    opening = ["<|im_start|>", "user", "What", "is", "1", "+", "2", "?", "<|im_end|>", "<|im_start|>", "assistant"]
    assert words == [*opening, "It", "is", "3", "<|im_end|>"]
    assert trained == [11, 12, 13, 14]


def test_of_several_turns_only_the_last_answer_is_trained_on(tmp_path: Path) -> None:
    words, trained = trained_words(load(tmp_path, [TURNS]), 0)
    assert words[:5] == ["<|im_start|>", "system", "Be", "brief", "<|im_end|>"]
    assert words.count("<|im_end|>") == 5
    assert [words[place] for place in trained] == ["Plum", "<|im_end|>"]
    assert trained == [21, 22]


def test_an_end_of_turn_written_by_the_data_ends_no_turn(tmp_path: Path) -> None:
    data = load(tmp_path, [{"prompt": "Hi", "completion": "Hello <|im_end|> Plum"}])
    end = ChatFormat(tiny_tokenizer()).end_of_turn_id
    assert data.rows[0].completion_ids.count(end) == 1
    assert data.rows[0].completion_ids[-1] == end
    assert "1 rows hold control tokens" in data.notes[0]


def test_packed_rows_keep_their_positions_and_targets(tmp_path: Path) -> None:
    data = load(tmp_path, [SUM, TURNS])
    collate = RowCollator(data.rows, row_weights(WeightSettings(), data.rows, []))
    batch = unpack(collate([{"row": 1}, {"row": 0}]))
    assert batch.lengths == [23, 15]
    assert batch.positions_N.tolist() == [*range(23), *range(15)]
    assert batch.targets_T.tolist() == data.rows[1].completion_ids + data.rows[0].completion_ids
    assert batch.sources_T.tolist() == [20, 21, 33, 34, 35, 36]


def test_the_status_of_a_record_is_known_and_a_raw_row_is_the_experts(tmp_path: Path) -> None:
    rows = [record("rewritten"), record("self_solved"), record("fallback"), SUM, {**SUM, "status": "fallback"}]
    data = load(tmp_path, rows)
    assert [row.status for row in data.rows] == ["rewritten", "self_solved", "fallback", "expert", "expert"]
    assert data.statuses == {"rewritten": 1, "self_solved": 1, "fallback": 1, "expert": 2}


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    empty = {"prompt": "Hi", "completion": ""}
    long = {"prompt": "Hi", "completion": "so " * 60}
    data = load(tmp_path, [SUM, record("error", error="no memory"), empty, long, long])
    assert len(data.rows) == 1
    assert data.left_out == {"status is error": 1, "cannot be read": 1, "longer than 64 tokens": 2}
    assert "line 3: 'completion': empty" in data.notes[0]


def test_rows_with_an_id_that_another_has_are_left_out_for_that_reason(tmp_path: Path) -> None:
    data = load(tmp_path, [{**SUM, "id": "a"}, {**SUM, "id": "a"}, {**SUM, "id": "b"}, {"id": "a"}])
    assert [row.id for row in data.rows] == ["a", "b"]
    assert data.left_out == {"duplicate id": 1, "cannot be read": 1}
    assert "1 left out: duplicate id (line 2: 'id': duplicate id 'a', first used on line 1" in data.notes[0]


def test_a_row_of_exactly_the_longest_length_stays(tmp_path: Path) -> None:
    assert len(load(tmp_path, [SUM], max_length=15).rows) == 1
    with pytest.raises(TrainingDataError, match="longer than 14 tokens"):
        load(tmp_path, [SUM], max_length=14)


def test_roles_that_the_template_refuses_are_an_error_where_no_row_is_left(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"chat template refuses it .*System role not supported"):
        load(tmp_path, [TURNS], template=NO_SYSTEM)
    data = load(tmp_path, [TURNS, SUM], template=NO_SYSTEM)
    assert (len(data.rows), data.left_out) == (1, {"the model's chat template refuses it": 1})


def test_empty_completions_alone_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="no row can be trained on; 2 left out: cannot be read"):
        load(tmp_path, [{"prompt": "Hi", "completion": " "}, {"prompt": "Hi", "completion": ""}])


def test_a_file_of_fallbacks_alone_is_said_to_be_one(tmp_path: Path) -> None:
    assert "every row is a fallback" in load(tmp_path, [record("fallback")]).notes[0]
    assert load(tmp_path, [record("fallback"), SUM]).notes == []


def test_the_hash_depends_on_text_and_status(tmp_path: Path) -> None:
    hashes = {
        load(tmp_path, rows).sha256
        for rows in ([record("rewritten")], [record("fallback")], [record("rewritten", "It is 4")], [SUM])
    }
    assert len(hashes) == 4
    assert load(tmp_path, [SUM]).sha256 in hashes


def test_tokens_are_counted_apart(tmp_path: Path) -> None:
    assert count_tokens(load(tmp_path, [SUM, TURNS]).rows) == {"prompt": 11 + 21, "completion": 4 + 2}


def test_a_template_that_writes_answers_otherwise_is_said(tmp_path: Path) -> None:
    """This one leaves out what stands before the first `so` of an answer, as others leave out reasoning."""
    changing = CHATML.replace("{{ m.content }}", "{{ m.content.split('so')[-1] }}")
    rows = [SUM, {**SUM, "answer": "Hi so It is 3"}, {**SUM, "answer": "so then It is 3"}]
    (note,) = load(tmp_path, rows, template=changing).notes
    assert note.startswith("2 of the first 3 rows are trained on with other tokens than the chat template gives")
    assert load(tmp_path, rows).notes == []
    (note,) = load(tmp_path, [rows[1]] * 120, template=changing).notes
    assert note.startswith("100 of the first 100 rows")
