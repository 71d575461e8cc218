"""A real training on the embedded model, run as a Ray job runs it: the job's own process, alone and with workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.models import ModelFiles
from agent.settings import EngineSettings, RewriteSettings
from trainer.ray_jobs import ENTRYPOINT, job_environment
from trainer.request import TrainingJob, TrainingRequest
from trainer.settings import LoraSettings, OptimizerSettings, TrainSettings

PATIENCE_S = 3600.0


@pytest.fixture
def request_of_test(tmp_path: Path) -> TrainingRequest:
    source = tmp_path / "rows.jsonl"
    rows = [
        {
            "question": f"Ida has {n} pens and buys {n + 2}. How many?",
            "answer": f"{n}+{n + 2}={2 * n + 2}\n#### {2 * n + 2}",
        }
        for n in range(2, 8)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainingRequest(
        source=source,
        output=tmp_path / "pens",
        engine=EngineSettings(threads=1),
        rewrite=RewriteSettings(max_tokens=24),
        train=TrainSettings(
            steps=1,
            groups=2,
            samples=2,
            refills=0,
            eval_rows=2,
            eval_samples=1,
            lora=LoraSettings(rank=2, target_modules=("q_proj", "v_proj")),
            optimizer=OptimizerSettings(groups_per_pass=1),
        ),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_trains_and_publishes(workers: int, request_of_test: TrainingRequest, model_files: ModelFiles) -> None:
    job = TrainingJob(request=request_of_test, workers=workers)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, *ENTRYPOINT.split()[1:]],
        env=inherited | job_environment(job) | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    adapter = request_of_test.output / "1"
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"adapter published: {adapter}"
    assert done.stdout.count("step 1/1 train: ") == 1
    assert json.loads((adapter / "rewright.json").read_text())["data"]["rows"] == 6
    assert (adapter / "adapter_model.safetensors").stat().st_size > 0
