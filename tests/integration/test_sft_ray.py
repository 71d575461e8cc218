"""A fine-tuning as a Ray job runs it, shared between two processes, against the same in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agent.settings import EngineSettings, ModelSettings
from tests.tiny_chat import write_tiny_model
from trainer.history import read_history
from trainer.ray_jobs import ENTRYPOINT, job_environment
from trainer.request import SftRequest, TrainingJob
from trainer.sft.run import run_sft
from trainer.sft.settings import SftSettings


def test_two_workers_make_the_updates_of_one(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")
    rows = [
        {"question": f"What is {a} + {b} ?", "answer": f"{'so ' * a}It is {a + b}"} for a in (1, 2) for b in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    alone, together = (
        SftRequest(
            source=tmp_path / "rows.jsonl",
            output=tmp_path / name,
            model=ModelSettings(name=str(tmp_path / "tiny")),
            engine=EngineSettings(dtype="float32", threads=1),
            sft=SftSettings.model_validate(
                {
                    "method": "full",
                    "batch_rows": 4,
                    "rows_per_pass": 2,
                    "learning_rate": 1e-2,
                    "kl_weight": 0.1,
                    "weights": {"kind": "entropy", "apply_to": "all"},
                }
            ),
        )
        for name in ("alone", "together")
    )
    run_sft(alone, resume=False)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    inherited["RAY_ADDRESS"] = "local"  # a cluster of somebody else on this machine is not to be joined
    done = subprocess.run(
        [sys.executable, *ENTRYPOINT.split()[1:]],
        env=inherited | job_environment(TrainingJob(request=together, workers=2)) | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"model written: {together.output}"
    histories = [read_history(request.output / "training" / "history.jsonl") for request in (alone, together)]
    assert [record.step for record in histories[1]] == [0, 1, 2, 2]
    for one, two in zip(*histories, strict=True):
        for name in {"loss", "nll", "kl", "grad_norm", "completion_tokens"} & one.metrics.keys():
            assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-3, abs=1e-6), name
    tensors = [load_file(request.output / "model.safetensors") for request in (alone, together)]
    for name, tensor in tensors[0].items():
        assert torch.allclose(tensor, tensors[1][name], atol=1e-4), name
