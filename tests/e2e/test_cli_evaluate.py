"""`rewright evaluate` as a user runs it, on a small random model and rows of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agent.models import ModelFiles

PROJECT = Path(__file__).parents[2]
SETTINGS = """
[engine]
dtype = "float32"
max_length = 512
[evaluate]
max_tokens = 8
kl_max_tokens = 8
"""


@pytest.fixture(scope="module")
def folder(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, questions, and one benchmark of which one row is broken."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = AutoTokenizer.from_pretrained(model_files.path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    (folder / "sums.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "2 + 3?"}\n')
    (folder / "lambada").mkdir()
    rows = ['{"context": "Ann took her dog and walked the", "continuation": "dog"}', '{"context": "Ben"}', "x"]
    (folder / "lambada" / "test.jsonl").write_text("\n".join(rows))
    (folder / "settings.toml").write_text(SETTINGS)
    return folder


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "evaluate", *arguments, "--config", "settings.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_result_is_printed_kept_with_its_samples_and_resumed(folder: Path) -> None:
    asked = ["tiny", "--data", ".", "--samples", "2", "-o", "out.json"]
    code, out, err = run(folder, *asked, "--tasks", "lambada")
    assert code == 0, err
    assert "lambada" in out
    assert "perplexity" in out
    assert "lambada: 2 rows left out: cannot be read" in err
    code, out, err = run(folder, *asked, "--tasks", "sums=sums.jsonl,lambada", "--base", "tiny", "--json")
    assert (code, out) == (2, "")
    assert "out.json: exists already: resume it" in err
    code, out, err = run(folder, *asked, "--tasks", "sums=sums.jsonl,lambada", "--resume", "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed == json.loads((folder / "out.json").read_text())
    assert list(printed["tasks"]) == ["lambada", "sums"]
    assert printed["tasks"]["sums"]["left_out"] == {"cannot be read": 1}
    assert printed["tasks"]["sums"]["metrics"]["avg@2/tokens"]["value"] <= 8
    assert "sums: 1 of 1 rows" in err
    assert "lambada: 1 of 1 rows" not in err
    kept = [json.loads(line) for line in (folder / "out.samples.jsonl").read_text().splitlines()]
    assert [(row["task"], row["row"]) for row in kept] == [("lambada", 1), *[("sums", "row-1")] * 3]
