"""The real command on the embedded model: the loss falls, on the tokens that are scored, and the output loads."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agent.assembly import open_chat
from agent.demonstrations import Demonstration
from agent.engine.loading import load_model
from agent.engine.transformers_engine import TransformersEngine
from agent.intake import read_rows
from agent.mismatch import Surprisal, surprisal
from agent.models import ModelFiles, resolve_model
from agent.settings import EngineSettings, ModelSettings
from agent.weights import weights_sha256
from tests.sums import SUMS
from trainer.sft.data import load_sft_data
from trainer.sft.weights import base_tokens

ROOT = Path(__file__).parents[2]
ENGINE = EngineSettings(dtype="float32", threads=1)
SETTINGS = """
[engine]
dtype = "float32"
[sft]
steps = 2
batch_rows = 8
rows_per_pass = 4
learning_rate = 5e-3
warmup = 0
schedule = "constant_with_warmup"
[sft.lora]
rank = 4
alpha = 8
target_modules = ["q_proj", "v_proj"]
[sft.weights]
kind = "mask"
"""
ROWS = [
    (f"{name} has {a} {things} and buys {b} more. How many {things} are there?", a, b) for name, things, a, b in SUMS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_files: ModelFiles) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": f"{a}+{b}={a + b}\nThe answer is {a + b}"}],
            "status": "rewritten" if number % 2 else "fallback",
            "proposer": "rewrite" if number % 2 else "expert",
        }
        for number, (question, a, b) in enumerate(ROWS)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "sft.toml").write_text(SETTINGS)
    return folder


def test_the_command_lowers_the_loss_and_writes_a_model(folder: Path, model_files: ModelFiles) -> None:
    command = [sys.executable, "-m", "cli.main", "sft", "rows.jsonl", "-o", "tuned", "--config", "sft.toml", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["final_loss"] < told["initial_loss"]
    assert told["shares"] == {"rewritten": 0.5, "fallback": 0.5}
    card = json.loads((folder / "tuned" / "sft.json").read_text())
    assert card["base_revision"] == weights_sha256(model_files.path)
    assert 0 < card["tokens"]["without_weight"] < card["tokens"]["completion"] / 2
    tuned = resolve_model(ModelSettings(name=str(folder / "tuned")))
    rows = load_sft_data(folder / "rows.jsonl", open_chat(tuned), max_length=512).rows
    model = load_model(tuned.path, ENGINE)
    said = base_tokens(model, rows, 20, folder, ["tuned"])
    loss = torch.cat([row.surprisal_T for row in said]).mean().item()
    assert loss == pytest.approx(told["final_loss"], rel=1e-3)


def test_the_tokens_trained_on_are_those_that_mismatch_scores(folder: Path, model_files: ModelFiles) -> None:
    chat = open_chat(model_files)
    rows = load_sft_data(folder / "rows.jsonl", chat, max_length=512).rows[:3]
    demonstrations = [row for row in read_rows(folder / "rows.jsonl") if isinstance(row, Demonstration)][:3]

    async def score() -> list[Surprisal]:
        engine = TransformersEngine(model_files.name, model_files.path, chat.tokenizer, chat.stop_ids, ENGINE)
        try:
            return [await surprisal(engine, chat, row.prompt, row.expert) for row in demonstrations]
        finally:
            await engine.close()

    scored = asyncio.run(score())
    assert [row.completion_ids for row in rows] == [found.ids for found in scored]
    said = base_tokens(load_model(model_files.path, ENGINE), rows, 20, folder, ["embedded"])
    for row, found in zip(said, scored, strict=True):
        assert row.surprisal_T.tolist() == pytest.approx(found.nats, rel=1e-3, abs=1e-4)
