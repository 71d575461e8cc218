"""A request as a job of a cluster: refused here, on the client, where the cluster's machines could not run it.

Imports neither torch nor Ray. Not here: talking to the cluster (`trainer.ray_jobs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.intake import on_hub
from agent.settings import EngineSettings
from trainer.agreement import check_agreement
from trainer.exceptions import JobError
from trainer.request import SftRequest, TrainingJob, TrainingRequest, WorkerResources


def job_of(
    request: TrainingRequest | SftRequest, *, resume: bool, workers: int, resources: WorkerResources
) -> TrainingJob:
    """The job that trains `request`: with as many threads as cores are reserved unless it says itself.

    Raises:
        JobError: a path is relative, or the engine needs a GPU and none is reserved.
        TrainingSettingsError: the settings do not fit together, or not so many workers.
    """
    _require_absolute_paths(request)
    check_agreement(request, workers)
    changes: dict[str, object] = {"threads": request.engine.threads or resources.cpus}
    if not resources.gpus:
        _require_no_gpu(request.engine)
        changes["device"] = "cpu"  # Ray may leave a machine's GPUs visible to a process that reserved none
    request = request.model_copy(update={"engine": request.engine.model_copy(update=changes)})
    return TrainingJob(request=request, resume=resume, workers=workers, resources=resources)


def _require_no_gpu(engine: EngineSettings) -> None:
    if engine.device == "cuda":
        raise JobError('engine.device is cuda, and no GPU is reserved: give --gpus 1, or engine.device = "auto"')
    if engine.kind == "vllm" and engine.device == "auto":
        raise JobError(
            "engine.kind is vllm, and no GPU is reserved: give --gpus 1, or, where the cluster has vLLM's CPU build, "
            'engine.device = "cpu"'
        )


def _require_absolute_paths(request: TrainingRequest | SftRequest) -> None:
    for name, path in _paths(request):
        if not path.is_absolute():
            raise JobError(f"{name} {str(path)!r}: paths are read by the cluster's machines and must be absolute")


def _paths(request: TrainingRequest | SftRequest) -> Iterator[tuple[str, Path]]:
    """The files and folders that a request names, each with its setting; what is meant for the hub is none."""
    yield "output", request.output
    files, models = {"source": request.source}, {"model.name": request.model.name}
    if isinstance(request, TrainingRequest):
        models["gate.text_model"] = request.gate.text_model
        if request.train.warm_start.file is not None:
            files["train.warm_start.file"] = request.train.warm_start.file
    yield from ((name, file) for name, file in files.items() if not on_hub(file))
    yield from ((name, Path(model)) for name, model in models.items() if model.startswith(".") or Path(model).is_dir())
