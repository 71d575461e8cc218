"""Training on the embedded model: it learns from groups, survives SIGKILL, and publishes what serving loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cli.main import main
from tests.sums import SUMS, sum_rows
from trainer.history import StepMetrics, read_history

pytestmark = pytest.mark.usefixtures("model_files")

ROOT = Path(__file__).parents[2]
# float32: in bfloat16 the order of a sum can decide a token. Few tokens: most rewrites end before, and a step is short.
SETTINGS = """
[rewrite]
max_tokens = 96
[engine]
dtype = "float32"
[train]
steps = 2
groups = 4
samples = 4
eval_rows = 2
eval_samples = 2
eval_every = 2
save_every = 1
refills = 0
sample_every = 1
[train.lora]
rank = 4
target_modules = ["q_proj", "v_proj"]
[train.optimizer]
groups_per_pass = 2
learning_rate = 1e-3
warmup_steps = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sum_rows()))
    (folder / "train.toml").write_text(SETTINGS)
    return folder


def start(folder: Path, name: str, *further: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cli.main", "train", "rows.jsonl", "-o", name, "--config", "train.toml", *further]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Path:
    process = start(folder, "whole")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return folder / "whole"


def train_metrics(training: Path) -> list[StepMetrics]:
    return [record for record in read_history(training / "training" / "history.jsonl") if record.kind == "train"]


def test_every_step_is_logged_with_its_terms(uninterrupted: Path) -> None:
    records = train_metrics(uninterrupted)
    assert [record.step for record in records] == [1, 2]
    assert {"reward", "pass_rate", "loss", "grad_norm", "entropy", "seconds/rollout"} <= set(records[0].metrics)
    assert [record.metrics["staleness"] for record in records] == [0, 0]
    assert any(record.metrics["grad_norm"] > 0 for record in records), "some group must have a signal"
    moved = {record.step: record.metrics["kl"] for record in records if record.metrics["grad_norm"] > 0}
    assert moved.get(1, 0) == pytest.approx(0, abs=1e-6), "a new adapter is the base model"
    assert moved.get(2, 1) > 0


def test_the_published_version_holds_weights_card_curves_and_samples(uninterrupted: Path) -> None:
    version = uninterrupted / "1"
    assert {path.name for path in version.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "rewright.json",
        "curves.png",
        "samples.md",
    }
    card = json.loads((version / "rewright.json").read_text())
    assert (card["name"], card["version"], card["base_model"]) == ("whole", "1", "smollm2-135m")
    assert card["data"]["rows"] == len(SUMS)
    assert [curve["step"] for curve in card["curves"]] == [0, 2]
    assert "## Step 0" in (version / "samples.md").read_text()


def test_a_finished_training_that_is_resumed_is_not_published_again(uninterrupted: Path, folder: Path) -> None:
    process = start(folder, "whole", "--resume")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "published whole/1" in " ".join(output.split())
    assert sorted(path.name for path in uninterrupted.iterdir()) == ["1", "training"]
    assert [record.step for record in train_metrics(uninterrupted)] == [1, 2]


def test_serving_loads_what_was_published(uninterrupted: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "rewrite", "rows.jsonl", "-o", "out.jsonl", "--adapter", "whole"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--limit", "2"], cwd=folder, env=environment, check=True, capture_output=True)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["adapter"] in ("whole@1", "") for row in rows)


@pytest.mark.parametrize(("name", "when"), [("early", "best-0"), ("killed", "checkpoint-1")])
def test_after_a_kill_the_next_step_is_that_of_an_uninterrupted_run(
    name: str, when: str, uninterrupted: Path, folder: Path
) -> None:
    process = start(folder, name)
    while not (folder / name / "training" / when).exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(folder, name, "--resume")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    runs = uninterrupted, folder / name
    expected, resumed = (train_metrics(run) for run in runs)
    assert [record.step for record in resumed] == [1, 2]
    for metric in ("loss", "reward", "grad_norm", "length", "learning_rate"):
        values: list[Any] = [record.metrics[metric] for record in expected]
        assert [record.metrics[metric] for record in resumed] == pytest.approx(values, rel=1e-3, abs=1e-6), metric
    weights, again = (moved_weights(run / "training/checkpoint-2") for run in runs)
    assert torch.linalg.norm(again - weights) < 0.05 * torch.linalg.norm(weights), "the optimizer's state was lost"


def moved_weights(checkpoint: Path) -> torch.Tensor:
    """The half of an adapter that begins at zero, flat."""
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if "lora_B" in name])


def test_a_step_in_which_every_rewrite_is_cut_off_changes_nothing(folder: Path) -> None:
    (folder / "short.toml").write_text(SETTINGS.replace("steps = 2", "steps = 1").replace("tokens = 96", "tokens = 4"))
    process = start(folder, "short", "--config", "short.toml")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    [record] = train_metrics(folder / "short")
    assert record.metrics["truncated"] == 1
    assert record.metrics["loss"] == record.metrics["grad_norm"] == 0


@pytest.fixture
def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `rewright train` in this process; returns what it says when it ends as wrong use."""
    monkeypatch.chdir(folder)
    before = signal.getsignal(signal.SIGTERM)

    def train(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rewright", "train", "rows.jsonl", *arguments])
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert ended.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return train


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "whole"], "pass --resume, or another output"),
        (["-o", "absent", "--resume"], "there is no checkpoint to resume from"),
        (["-o", "other", "--reward", "generous"], "train.reward.preset"),
        (["-o", "other", "--workers", "2"], "--ray ADDRESS"),
        (["-o", "other", "--limit", "2"], "2 usable rows, but 2 are to be held out"),
    ],
)
@pytest.mark.usefixtures("uninterrupted")
def test_wrong_use_is_one_clear_message_before_the_model_loads(
    arguments: list[str], said: str, refused: Callable[..., str]
) -> None:
    assert said in refused("--config", "train.toml", *arguments)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("samples = 1", "train.samples"),
        ("groups = 5", "groups stay whole"),
    ],
)
def test_groups_that_cannot_be_are_refused(setting: str, said: str, folder: Path, refused: Callable[..., str]) -> None:
    (folder / "wrong.toml").write_text(f"[train]\n{setting}\n")
    assert said in refused("-o", "x", "--config", "wrong.toml")
