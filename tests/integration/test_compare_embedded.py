"""The real comparison on the embedded model, interrupted in a training: it goes on there, and the report is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.models import ModelFiles
from cli.compare import request_of
from cli.settings import load_settings
from tests.facts import FACTS
from tests.lines import write_lines
from trainer.compare.results import Comparison
from trainer.compare.run import Progress, run_comparison
from trainer.history import StepMetrics, read_history

ROOT = Path(__file__).parents[2]
SETTINGS = """
[engine]
dtype = "float32"
threads = 1
[gate]
steps = false
[rewrite]
max_tokens = 64
[[rewrite.strategies.rewrite]]
proposer = "rewrite"
temperatures = [0.4]
samples = 16
[sft]
batch_rows = 4
rows_per_pass = 4
save_every = 1
warmup = 0
[evaluate]
max_tokens = 12
kl_rows = 1
kl_max_tokens = 8
[compare]
train = "train.jsonl"
methods = ["sft", "sdft"]
learning_rates = [1e-3]
steps = [2]
retention = ["arc_easy"]
benchmarks = "benchmarks"
draws = 100
[compare.accuracy]
sums = "questions.jsonl"
[compare.shapes.small.lora]
rank = 4
target_modules = ["q_proj", "v_proj"]
"""
PEOPLE = [("Ida", "pens", 12, 7), ("Tom", "cards", 30, 14), ("Eva", "plums", 9, 8), ("Max", "stamps", 41, 19)]
PEOPLE += [("Lea", "books", 16, 6), ("Jan", "coins", 55, 12), ("Mia", "shells", 23, 31), ("Ben", "keys", 4, 9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_files: ModelFiles) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    rows = [
        {
            "question": f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have?",
            "answer": f"{a}+{b}={a + b}\n#### {a + b}",
        }
        for who, what, a, b in PEOPLE
    ]
    write_lines(folder / "train.jsonl", rows[:6])
    write_lines(folder / "questions.jsonl", rows[4:])
    write_lines(folder / "benchmarks" / "arc_easy" / "test.jsonl", FACTS)
    (folder / "compare.toml").write_text(SETTINGS)
    return folder


def test_an_interrupted_comparison_goes_on_with_the_unit_that_was_running(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    output = Path("out")
    running: list[Path] = []

    def interrupt(progress: Progress) -> None:
        if progress.unit.kind == "train" and progress.done_part == 2:
            running.append(output / progress.unit.folder)
            raise KeyboardInterrupt

    settings = load_settings(Path("compare.toml"), {})
    with pytest.raises(KeyboardInterrupt):
        run_comparison(request_of(settings, output), on_progress=interrupt)
    done = {path: path.stat().st_mtime_ns for path in output.glob("*/*/done")}
    assert [path.parent.name.split("-")[0] for path in done] == ["base"]
    first = updates(running[0])[0]

    command = [sys.executable, "-m", "cli.main", "compare", "--config", "compare.toml", "-o", "out", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is not done again"
    assert updates(running[0])[0] == first, "the step before the interruption is not trained again"
    assert [update.step for update in updates(running[0])] == [1, 2]

    comparison = Comparison.model_validate_json(again.stdout)
    assert comparison == Comparison.model_validate_json((output / "results.json").read_bytes())
    assert [(point.method, point.seeds) for point in comparison.points] == [("sft", [0]), ("sdft", [0])]
    assert [(task.name, task.kind, task.rows) for task in comparison.tasks] == [
        ("sums", "accuracy", 4),
        ("lenient:sums", "lenient", 4),
        ("arc_easy", "retention", 4),
        ("kl:sums", "divergence", 1),
    ]
    expert, rewritten = comparison.runs
    assert expert.statuses == {"expert": 6}
    assert sum(rewritten.statuses.values()) == 6
    assert "rewritten" in rewritten.statuses, "with these rows some rewrite is accepted"
    assert rewritten.initial_loss < expert.initial_loss
    by_method = {point.method: point.initial_loss for point in comparison.points}
    assert by_method["sft"].value == pytest.approx(expert.initial_loss, rel=1e-6)
    assert by_method["sdft"].value == pytest.approx(rewritten.initial_loss, rel=1e-6)
    assert expert.spent.rewriting_passes == 0 < rewritten.spent.rewriting_completion_tokens
    assert (output / "report.html").read_text().count("data:image/png;base64,") == 4


def updates(unit: Path) -> list[StepMetrics]:
    return [record for record in read_history(unit / "training" / "history.jsonl") if record.kind == "train"]
