"""A real training on the embedded model, run as a Ray job runs it: the job's own process, alone and with workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agent.models import ModelFiles
from agent.settings import EngineSettings, RewriteSettings
from tests.sums import sum_rows
from trainer.history import read_history
from trainer.ray_jobs import ENTRYPOINT, job_environment
from trainer.request import TrainingJob, TrainingRequest
from trainer.settings import LoraSettings, OptimizerSettings, TrainSettings

PATIENCE_S = 3600.0


def request_in(folder: Path, name: str) -> TrainingRequest:
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in sum_rows(6)))
    return TrainingRequest(
        source=source,
        output=folder / name,
        engine=EngineSettings(threads=1, dtype="float32"),
        rewrite=RewriteSettings(max_tokens=96),
        train=TrainSettings(
            steps=1,
            groups=4,
            samples=8,
            refills=0,
            eval_rows=2,
            eval_samples=1,
            lora=LoraSettings(rank=2, target_modules=("q_proj", "v_proj")),
            optimizer=OptimizerSettings(groups_per_pass=2, warmup_steps=0),
        ),
    )


def train(folder: Path, name: str, workers: int) -> Path:
    job = TrainingJob(request=request_in(folder, name), workers=workers)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    inherited["RAY_ADDRESS"] = "local"  # a cluster of somebody else on this machine is not to be joined
    done = subprocess.run(
        [sys.executable, *ENTRYPOINT.split()[1:]],
        env=inherited | job_environment(job) | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"adapter published: {job.request.output / '1'}"
    return job.request.output


def test_two_workers_make_the_update_of_one(tmp_path: Path, model_files: ModelFiles) -> None:
    alone, together = (train(tmp_path, name, workers) for name, workers in (("alone", 1), ("together", 2)))
    steps = [
        [record.metrics for record in read_history(run / "training" / "history.jsonl") if record.kind == "train"]
        for run in (alone, together)
    ]
    assert [len(records) for records in steps] == [1, 1]
    assert steps[0][0]["grad_norm"] > 0, "some group must have a signal"
    for name in ("loss", "grad_norm", "reward", "pass_rate", "length"):
        assert steps[1][0][name] == pytest.approx(steps[0][0][name], rel=1e-2, abs=1e-6), name
    weights = [
        torch.cat(
            [
                tensor.flatten()
                for name, tensor in sorted(load_file(run / "training/checkpoint-1/adapter_model.safetensors").items())
                if "lora_B" in name
            ]
        )
        for run in (alone, together)
    ]
    assert weights[0].abs().max() > 0
    assert torch.cosine_similarity(*weights, dim=0) > 0.99
