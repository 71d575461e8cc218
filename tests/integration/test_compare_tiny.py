"""What a comparison does when something comes to nothing, or later: with a tiny random model.

It solves nothing, so rejection sampling has no row to train on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.compare import request_of
from cli.settings import load_settings
from tests.lines import write_lines
from tests.tiny_chat import write_tiny_model
from trainer.compare.results import Comparison
from trainer.compare.run import Progress, run_comparison
from trainer.compare.settings import CompareRequest, CompareSettings

SETTINGS = """
[model]
name = "tiny"
[engine]
dtype = "float32"
threads = 1
[sft]
batch_rows = 2
rows_per_pass = 2
[evaluate]
max_tokens = 4
kl_rows = 1
kl_max_tokens = 4
[compare]
train = "rows.jsonl"
methods = ["rft", "sft"]
learning_rates = [1e-2]
steps = [1]
retention = ["arc_easy"]
benchmarks = "."
draws = 100
[compare.accuracy]
sums = "rows.jsonl"
[compare.shapes.full]
method = "full"
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the settings name, where the test runs."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(Path("tiny"))
    sums = [(f"What is {a} + 2 ?", str(a + 2)) for a in (1, 2, 3)]
    write_lines(Path("rows.jsonl"), [{"question": q, "answer": f"It is {a}\n#### {a}"} for q, a in sums])
    facts = [{"query": question, "choices": ["7", answer], "gold": 1} for question, answer in sums]
    write_lines(Path("arc_easy", "test.jsonl"), facts)
    write_lines(Path("piqa", "validation.jsonl"), facts)
    Path("compare.toml").write_text(SETTINGS)


def comparison(**further: Any) -> CompareRequest:
    request = request_of(load_settings(Path("compare.toml"), {}), Path("out"))
    return request.model_copy(update={"compare": CompareSettings(**request.compare.model_dump() | further)})


def states_of(request: CompareRequest) -> tuple[Comparison, list[tuple[str, str]]]:
    """The comparison, and what became of each unit."""
    states: dict[str, tuple[str, str]] = {}

    def note(progress: Progress) -> None:
        states[str(progress.unit.folder)] = (progress.unit.name.split("_")[0], progress.state)

    return run_comparison(request, on_progress=note), list(states.values())


def test_a_method_that_comes_to_nothing_is_named_and_the_others_go_on() -> None:
    request = comparison()
    found = run_comparison(request)
    assert [failure.unit.split("-")[0] for failure in found.failures] == [
        "data/solve",
        "train/rft_full_lr0.01_steps1_seed0",
        "exam/rft_full_lr0.01_steps1_seed0",
    ]
    assert "no row has an accepted rewrite" in found.failures[0].error
    assert "which failed" in found.failures[1].error
    assert found.headline.endswith("3 units failed or were left out, and are missing here.")
    (run,) = found.runs
    assert (run.method, run.statuses) == ("sft", {"expert": 3})
    assert run.kl["sums"] != 0
    assert len(list(Path("out/data/base-tokens").iterdir())) == 1, "what the base model says of the expert's rows"
    assert (Path("out") / run.model / "model.safetensors").exists()
    assert not list((Path("out") / run.model / "training").glob("checkpoint-*"))

    again, states = states_of(request)
    assert again.points == found.points
    assert states == [
        ("base", "kept"),
        ("solve", "kept"),
        ("solve-success-only", "failed"),
        ("rft", "left out"),
        ("rft", "left out"),
        ("sft", "kept"),
        ("sft", "kept"),
    ]


def test_a_task_that_is_added_later_is_asked_of_the_models_that_are_there() -> None:
    before, _ = states_of(comparison(methods=["sft"]))
    exams = {path: json.loads(path.read_text())["tasks"] for path in Path("out").glob("exam/*/exam.json")}

    after, states = states_of(comparison(methods=["sft"], retention=["arc_easy", "piqa"]))
    assert states == [("base", "done"), ("sft", "kept"), ("sft", "done")]
    assert [task.name for task in after.tasks] == ["sums", "lenient:sums", "arc_easy", "piqa", "kl:sums"]
    for path, tasks in exams.items():
        grown = json.loads(path.read_text())["tasks"]
        assert {name: grown[name] for name in tasks} == tasks, "no task is asked twice: its seconds are the same"
    assert len(exams) == 2

    without, states = states_of(comparison(methods=["sft"]))
    assert states == [("base", "kept"), ("sft", "kept"), ("sft", "kept")]
    assert without == before
