"""`rewright mismatch` in this process, with a tiny real model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli.main import main
from tests.tiny_chat import NO_SYSTEM, write_tiny_model

PLAIN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_turns_that_the_chat_template_refuses_fail_their_row_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conversations = [PLAIN, [{"role": "system", "content": "Be brief"}, *PLAIN], PLAIN]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations))
    model = write_tiny_model(tmp_path / "model", NO_SYSTEM)
    monkeypatch.setattr(sys, "argv", ["rewright", "mismatch", str(source), "-o", str(output), "--model", str(model)])
    with pytest.raises(SystemExit) as ended:
        main()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert ended.value.code == 1
    assert [row["tokens"] for row in rows] == [["Hello", "<|im_end|>"], [], ["Hello", "<|im_end|>"]]
    assert rows[1]["error"] == ("line 2: the model's chat template refuses these turns: System role not supported")


def test_rows_are_written_to_standard_output_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"id": "a", "messages": PLAIN}) + "\n")
    model = write_tiny_model(tmp_path / "model", NO_SYSTEM)
    monkeypatch.setattr(sys, "argv", ["rewright", "mismatch", str(source), "-o", "-", "--model", str(model)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["id"], row["tokens"]) == ("a", ["Hello", "<|im_end|>"])
