"""A method that comes to nothing is named with its error, what needs it is left out, and the others go on.

The model is tiny and random: it solves nothing, so rejection sampling has no row to train on.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.compare import request_of
from cli.settings import load_settings
from tests.tiny_chat import write_tiny_model
from trainer.compare.run import Progress, run_comparison

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


def test_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "tiny")
    rows = [{"question": f"What is {a} + 2 ?", "answer": f"It is {a + 2}\n#### {a + 2}"} for a in (1, 2, 3)]
    facts = [{"query": f"What is {a} + 2 ?", "choices": ["7", str(a + 2)], "gold": 1} for a in (1, 2, 3)]
    (tmp_path / "arc_easy").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "arc_easy" / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in facts))
    (tmp_path / "compare.toml").write_text(SETTINGS)
    request = request_of(load_settings(Path("compare.toml"), {}), Path("out"))

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

    states: list[tuple[str, str]] = []

    def note(progress: Progress) -> None:
        states.append((progress.unit.name.split("_")[0], progress.state))

    assert run_comparison(request, on_progress=note).points == found.points
    assert states == [
        ("base", "kept"),
        ("solve", "kept"),
        ("solve-success-only", "begun"),
        ("solve-success-only", "failed"),
        ("rft", "left out"),
        ("rft", "left out"),
        ("sft", "kept"),
        ("sft", "kept"),
    ]
