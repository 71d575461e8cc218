"""What a Ray job runs: `python -m trainer.ray_entry`, with its `TrainingJob` in one environment variable.

Not here: submitting it (`trainer.ray_jobs`), more than one process (`trainer.ray_workers`), the training itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from agent.exceptions import RewrightError
from trainer.exceptions import JobError
from trainer.request import TrainingJob

if TYPE_CHECKING:
    from trainer.report import StepReport

JOB_VARIABLE = "REWRIGHT_TRAINING_JOB"

_LOGGED = ("reward", "pass_rate", "mismatch", "score", "loss", "nll")


def read_job(environment: Mapping[str, str]) -> TrainingJob:
    """The job that this process is to run.

    Raises:
        JobError: there is none, or it is not one of this version.
    """
    text = environment.get(JOB_VARIABLE)
    if text is None:
        raise JobError(
            f"{JOB_VARIABLE} is not set: this command is for Ray; use `rewright train --ray ADDRESS`, or `rewright sft`"
        )
    try:
        return TrainingJob.model_validate_json(text)
    except ValidationError as error:
        raise JobError(f"{JOB_VARIABLE}: {error}; client and cluster need the same version of rewright") from error


def print_report(report: StepReport) -> None:
    """One line of the job's log on a step."""
    print(f"step {report.step}/{report.steps} {report.kind}: {report.told(_LOGGED)}", flush=True)


def main() -> int:
    """Run the job. Exit codes: 0 done, those of errors, 143 stopped; the last line of the log says why, and where."""
    # Ray installs this very handler when a process connects to it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    try:
        job = read_job(os.environ)
        written = _train(job)
    except RewrightError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        print("stopped; the same training with --resume goes on from its last checkpoint", flush=True)
        return 128 + signal.SIGTERM
    print(f"{'model written' if job.request.kind == 'sft' else 'adapter published'}: {written}", flush=True)
    return 0


def run_request(job: TrainingJob) -> Path:
    """Run a job in this process; returns what it wrote, or where, in a process that writes nothing."""
    if job.request.kind == "sft":
        from trainer.sft.run import run_sft

        return run_sft(job.request, resume=job.resume, on_report=print_report, on_note=_print_note)
    from trainer.train import run_training

    return run_training(job.request, resume=job.resume, on_report=print_report, on_note=_print_note)


def _print_note(note: str) -> None:
    print(note, flush=True)


def _train(job: TrainingJob) -> Path:
    if job.workers > 1:
        from trainer.ray_workers import train_on_workers

        return train_on_workers(job)
    return run_request(job)


if __name__ == "__main__":
    sys.exit(main())
