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
    """

    command: str
    address: str | None

    def attend(self, job_id: str | None, *, stop: bool, status: bool) -> bool:
        """Follow, stop or tell the status of a job that runs already; False when the flags name none.

        Raises:
            UsageError: the flags contradict each other.
            JobError: as `trainer.ray_jobs` raises it.
        """
        if job_id is None:
            if stop or status:
                raise UsageError("--stop and --status need the job's id: --job ID")
            return False
        from trainer import ray_jobs

        if self.address is None:
            raise UsageError("--job needs the cluster: --ray ADDRESS")
        if stop:
            ray_jobs.stop(self.address, job_id)
        if stop or status:
            state = ray_jobs.status(self.address, job_id)
            print(f"{state.status}{f': {state.message}' if state.message else ''}")
        else:
            self._follow(self.address, job_id)
        return True

    def run(
        self,
        request: TrainingRequest | SftRequest,
        *,
        resume: bool,
        workers: int,
        resources: WorkerResources,
        detach: bool,
    ) -> bool:
        """Submit `request` and follow it, or print its id; False when there is no cluster.

        Raises:
            UsageError: flags that need a cluster.
            JobError: as `trainer.ray_jobs` raises it.
        """
        if self.address is None:
            if workers > 1 or detach:
                raise UsageError("--workers and --detach need a cluster: --ray ADDRESS")
            return False
        from trainer.ray_jobs import submit

        job = submit(self.address, request, resume=resume, workers=workers, resources=resources)
        say(f"submitted {job}; follow it with: rewright {self.command} --ray {self.address} --job {job}")
        if detach:
            print(job)
        else:
            self._follow(self.address, job)
        return True

    def _follow(self, address: str, job_id: str) -> None:
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
        say(f"{job_id}: {outcome.status}")
