"""What a training says before its first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest

from agent.exceptions import ModelError
from tests.tiny_chat import write_tiny_model
from trainer.request import TrainingRequest
from trainer.train import run_training


@pytest.mark.parametrize(("rank", "notes"), [("0", ["1 of 4 rows left out: 1 x cannot be read"]), ("1", [])])
def test_what_was_left_out_is_said_once_before_the_model_loads(
    rank: str, notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (model / "config.json").write_text(json.dumps(config))
    rows = [{"question": f"What is {i} + 1 ?", "answer": f"#### {i + 1}"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "{\n")
    request = TrainingRequest.model_validate(
        {
            "source": tmp_path / "rows.jsonl",
            "output": tmp_path / "math",
            "model": {"name": str(model)},
            "train": {"eval_rows": 1},
        }
    )

    def not_loaded(*_: object) -> NoReturn:
        raise ModelError("not loaded here")

    monkeypatch.setattr("trainer.train.open_policy", not_loaded)
    monkeypatch.setenv("RANK", rank)
    said: list[str] = []
    with pytest.raises(ModelError, match="not loaded here"):
        run_training(request, resume=False, on_note=said.append)
    assert said == notes
