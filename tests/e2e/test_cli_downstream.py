"""Fine-tuning on 300 rewritten rows, an exam of what came of it, and a comparison: the commands one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.models import ModelFiles
from tests.facts import FACTS
from tests.lines import write_lines

PROJECT = Path(__file__).parents[2]
ROWS = 300
SETTINGS = """
[sft]
steps = 3
batch_rows = 8
rows_per_pass = 8
learning_rate = 1e-3
warmup = 0
loss_rows = 32
merge = false
[sft.lora]
rank = 4
target_modules = ["q_proj", "v_proj"]
[evaluate]
max_tokens = 16
kl_rows = 2
kl_max_tokens = 8
[compare]
train = "expert.jsonl"
methods = ["sft", "mask"]
learning_rates = [1e-3]
steps = [3]
retention = ["arc_easy"]
benchmarks = "benchmarks"
limit = 4
draws = 100
[compare.accuracy]
sums = "questions.jsonl"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 expert rows; the same as the rewriter writes them, every third as it was; questions, and a benchmark."""
    folder = tmp_path_factory.mktemp("downstream")
    experts, rewritten = [], []
    for number in range(ROWS):
        a, b = 3 + number % 25, 2 + number // 25
        question = f"Ida has {a} pens and buys {b} more. How many pens does she have?"
        expert = f"{a}+{b}={a + b}\n#### {a + b}"
        kept = number % 3 == 0
        text = expert if kept else f"Ida starts with {a} pens and buys {b} more, so she has {a} + {b} = {a + b} pens."
        experts.append({"question": question, "answer": expert})
        rewritten.append(
            {
                "id": f"row-{number + 1}",
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": text}],
                "status": "fallback" if kept else "rewritten",
                "proposer": "expert" if kept else "rewrite",
            }
        )
    write_lines(folder / "expert.jsonl", experts)
    write_lines(folder / "rewritten.jsonl", rewritten)
    write_lines(folder / "questions.jsonl", experts[:4])
    write_lines(folder / "benchmarks" / "arc_easy" / "test.jsonl", FACTS)
    (folder / "settings.toml").write_text(SETTINGS)
    return folder


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments, "--config", "settings.toml", "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_rows_are_trained_on_examined_and_compared(folder: Path, model_files: ModelFiles) -> None:
    told = run(folder, "sft", "rewritten.jsonl", "-o", "tuned")
    assert told["shares"] == pytest.approx({"rewritten": 2 / 3, "fallback": 1 / 3})
    assert told["final_loss"] < told["initial_loss"]

    tasks = ("--tasks", "sums=questions.jsonl,arc_easy", "--data", "benchmarks", "--limit", "4")
    before = run(folder, "evaluate", "smollm2-135m", *tasks, "-o", "before.json")["tasks"]
    after = run(folder, "evaluate", "smollm2-135m", "--adapter", "tuned/adapter", *tasks, "-o", "after.json")["tasks"]
    assert before["arc_easy"]["metrics"]["acc"]["value"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert after["arc_easy"]["rows"] == after["sums"]["rows"] == 4
    assert "kl:sums" not in before
    assert after["kl:sums"]["metrics"]["kl_per_token"]["value"] != 0.0

    compared = run(folder, "compare", "-o", "out")
    assert compared["failures"] == []
    assert [(run["method"], run["statuses"]) for run in compared["runs"]] == [
        ("sft", {"expert": ROWS}),
        ("mask", {"expert": ROWS}),
    ]
    expert = compared["points"][0]["initial_loss"]
    assert told["initial_loss"] < expert["low"] < expert["value"] < expert["high"], "rewritten rows are more natural"
    assert compared["points"][1]["initial_loss"] == expert
    base = {task["name"]: task["base"]["value"] for task in compared["tasks"]}
    assert base["arc_easy"] == before["arc_easy"]["metrics"]["acc"]["value"], "the same exam as the command's"
    assert (folder / "out" / "report.html").stat().st_size > 100_000
