"""What of a request is refused on the client, and what a job makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.settings import EngineSettings
from trainer.exceptions import JobError, TrainingSettingsError
from trainer.request import SftRequest, TrainingJob, TrainingRequest, WorkerResources
from trainer.submission import job_of

PLACES = {"source": Path("/data/x.jsonl"), "output": Path("/models/mine")}


def job(
    kind: type[TrainingRequest] | type[SftRequest] = TrainingRequest, *, gpus: int = 0, workers: int = 1, **fields: Any
) -> TrainingJob:
    request = kind.model_validate(PLACES | fields)
    return job_of(request, resume=False, workers=workers, resources=WorkerResources(cpus=3, gpus=gpus))


@pytest.mark.parametrize("kind", [TrainingRequest, SftRequest])
def test_a_gpu_that_is_asked_for_must_be_reserved(kind: type[TrainingRequest] | type[SftRequest]) -> None:
    with pytest.raises(JobError, match=r"engine\.device is cuda, and no GPU is reserved: give --gpus 1"):
        job(kind, engine={"device": "cuda"})
    assert job(kind, engine={"device": "cuda"}, gpus=1).request.engine.device == "cuda"


def test_vllm_needs_a_gpu_unless_its_cpu_build_is_meant() -> None:
    with pytest.raises(JobError, match=r"engine\.kind is vllm, and no GPU is reserved: give --gpus 1"):
        job(engine={"kind": "vllm"})
    assert job(engine={"kind": "vllm"}, gpus=1).request.engine.device == "auto"
    assert job(engine={"kind": "vllm", "device": "cpu"}).request.engine.device == "cpu"


def test_without_a_gpu_auto_means_the_cpu_and_the_cores_that_are_reserved() -> None:
    assert job().request.engine == EngineSettings(device="cpu", threads=3)
    assert job(gpus=1).request.engine == EngineSettings(device="auto", threads=3)
    assert job(engine={"threads": 2}).request.engine.threads == 2


def test_workers_that_groups_or_rows_cannot_be_shared_out_to_are_refused() -> None:
    with pytest.raises(TrainingSettingsError, match=r"train\.groups \(16\) must be divisible by 3 workers"):
        job(workers=3)
    with pytest.raises(TrainingSettingsError, match=r"sft\.batch_rows \(\d+\) must be divisible by 3 workers"):
        job(SftRequest, workers=3, sft={"batch_rows": 16, "rows_per_pass": 4})
    with pytest.raises(TrainingSettingsError, match="not in 2 workers"):
        job(workers=2, gpus=1, engine={"kind": "vllm"})
    assert job(workers=2).workers == 2
