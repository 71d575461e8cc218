"""One training in several processes: Ray Train starts them and joins them in a torch process group.

Each process runs the ordinary trainer, which finds RANK and WORLD_SIZE in its environment. Not here: what the
processes share out and who publishes, which is the trainer's.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.exceptions import RewrightError
from trainer.ray_entry import run_request
from trainer.request import TrainingJob, WorkerResources

_START_TIMEOUT_S = 600
_LOG_DELAY_S = 1.0


def train_on_workers(job: TrainingJob) -> Path:
    """Train with `job.workers` processes of the Ray cluster that this one belongs to.

    Source and output must lie on storage that all its nodes see.

    Returns:
        What was written, as rank 0 reports it.

    Raises:
        RewrightError: that of a worker which raised one.
        ray.train.TrainingFailedError: any other failure of a worker.
    """
    # Read when Ray is imported. The log is read by people and by `trainer.ray_jobs`: each line plain, and once.
    os.environ.update(RAY_COLOR_PREFIX="0", RAY_DEDUP_LOGS="0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_TIMEOUT_S))
    import ray

    ray.init()
    try:
        return _fit(job)
    finally:
        time.sleep(_LOG_DELAY_S)  # the workers' last lines are on their way to this process
        ray.shutdown()


def _fit(job: TrainingJob) -> Path:
    from ray.train import RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    # Ray Train wants a place of its own though nothing is checkpointed through it.
    with tempfile.TemporaryDirectory(prefix="rewright-train-") as scratch:
        trainer = TorchTrainer(
            _train,  # type: ignore[arg-type]  # rank 0's return value is kept
            train_loop_config={"job": job.model_dump_json()},
            scaling_config=ScalingConfig(
                num_workers=job.workers,
                use_gpu=job.resources.gpus > 0,
                resources_per_worker=_reserved(job.resources),
            ),
            run_config=RunConfig(storage_path=scratch),
        )
        try:
            return Path(trainer.fit().return_value)  # type: ignore[attr-defined]  # as the annotation is of the old API
        except WorkerGroupError as error:
            _raise_explained(error)
            raise


def _train(config: dict[str, Any]) -> str:
    """On every worker, in a thread of its own, with the process group joined."""
    job = TrainingJob.model_validate_json(config["job"])
    if not job.resources.gpus:
        # Without it Accelerate, seeing no accelerator, would train every process by itself.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return str(run_request(job))


def _reserved(resources: WorkerResources) -> dict[str, float]:
    reserved: dict[str, float] = {"CPU": resources.cpus, "GPU": resources.gpus}
    if resources.memory_mb:
        reserved["memory"] = resources.memory_mb * 2**20
    return {name: amount for name, amount in reserved.items() if amount}


def _raise_explained(error: Any) -> None:
    """Raise the first error of ours among those of the workers, if there is one."""
    for _, failure in sorted(error.worker_failures.items()):
        cause = getattr(failure, "_base_exc", failure)  # Ray wraps what a worker raised
        if isinstance(cause, RewrightError):
            raise cause from error
