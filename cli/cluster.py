"""Commands whose work may be a job of a Ray cluster: submit, follow, look at, stop."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from cli.console import console, say
from cli.exceptions import UsageError
from trainer.request import SftRequest, TrainingRequest, WorkerResources


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a command's work runs, as its flags say.

    Attributes:
        command: `train` or `sft`.
        address: of the cluster's dashboard; None to work here.
        workers, cpus, gpus: processes, and what each reserves; None where the flag was not used.
        detach: return as soon as the job is submitted.
    """

    command: str
    address: str | None
    workers: int | None
    cpus: int | None
    gpus: int | None
    detach: bool

    @property
    def _sized(self) -> bool:
        """Whether a flag says how a new job is run."""
        return self.detach or any(count is not None for count in (self.workers, self.cpus, self.gpus))

    def attend(self, job_id: str | None, *, stop: bool, status: bool, as_json: bool, submits: bool) -> bool:
        """Follow, stop or tell the status of a job that runs already; False when the flags name none.

        Args:
            job_id: of that job.
            stop, status: what to do with it, instead of following it.
            as_json: whether a summary as JSON is wanted, which no job leaves here.
            submits: whether IN, OUT or --resume is given, which only a new job has.

        Raises:
            UsageError: the flags contradict each other.
            JobError: as `trainer.ray_jobs` raises it.
        """
        if as_json and self.address is not None:
            raise UsageError("--json and --ray exclude each other: what a job makes lies on the cluster")
        if job_id is None:
            if stop or status:
                raise UsageError("--stop and --status need the job's id: --job ID")
            if self._sized and self.address is None:
                raise UsageError("--workers, --cpus, --gpus and --detach need a cluster: --ray ADDRESS")
            return False
        from trainer import ray_jobs

        if self.address is None:
            raise UsageError("--job needs the cluster: --ray ADDRESS")
        if submits or self._sized:
            raise UsageError(
                "--job is about a job that was submitted before: IN, -o, --resume, --workers, --cpus, --gpus and "
                "--detach are of a new one"
            )
        if stop:
            ray_jobs.stop(self.address, job_id)
        if stop or status:
            state = ray_jobs.status(self.address, job_id)
            print(f"{state.status}{f': {state.message}' if state.message else ''}")
        else:
            self._follow(self.address, job_id)
        return True

    def run(self, request: TrainingRequest | SftRequest, *, resume: bool) -> bool:
        """Submit `request` and follow it, or print its id; False when there is no cluster.

        Raises:
            JobError, TrainingSettingsError: as `trainer.ray_jobs` raises it.
        """
        if self.address is None:
            return False
        from trainer.ray_jobs import submit

        resources = WorkerResources(cpus=self.cpus or 1, gpus=self.gpus or 0)
        job = submit(self.address, request, resume=resume, workers=self.workers or 1, resources=resources)
        say(f"submitted {job}; follow it with: rewright {self.command} --ray {self.address} --job {job}")
        if self.detach:
            print(job)
        else:
            self._follow(self.address, job)
        return True

    def _follow(self, address: str, job_id: str) -> None:
        from trainer.exceptions import JobStoppedError
        from trainer.ray_jobs import follow

        def write(text: str) -> None:
            sys.stderr.write(text)
            sys.stderr.flush()

        try:
            outcome = follow(address, job_id, write)
        except KeyboardInterrupt:
            console.print()
            say(f"the job goes on; stop it with: rewright {self.command} --ray {address} --job {job_id} --stop")
            raise
        if outcome.status == "STOPPED":
            raise JobStoppedError(
                f"job {job_id} was stopped before its end; what was asked for, with --resume, goes on from its last "
                "checkpoint"
            )
        say(f"{job_id}: {outcome.status}")
