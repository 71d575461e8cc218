"""`rewright train`: the rewriting agent learns on demonstrations, here or as a job of a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.console import console, say, stepping
from cli.exceptions import UsageError
from cli.settings import Given, Settings, load_settings
from trainer.request import TrainingRequest, WorkerResources

if TYPE_CHECKING:
    from trainer.report import StepReport

_SHOWN = ("reward", "pass_rate", "mismatch", "no_signal", "kl", "entropy", "accepted", "score", "loss")


def train(
    source: Annotated[Path | None, typer.Argument(metavar="IN", help="Demonstrations to train on.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="ADAPTER", help="Folder of the adapter's name.")
    ] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="PRESET", help="gate_only, paper or rewright.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Generations to train for.")] = None,
    limit: options.Limit = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Run as a job of this Ray cluster, http://head:8265.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, metavar="N", help="Processes, with --ray.")] = 1,
    cpus: Annotated[int, typer.Option("--cpus", min=1, metavar="N", help="Cores a process, with --ray.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=0, metavar="N", help="GPUs a process, with --ray.")] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Submit, print the job's id and return.")] = False,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="Follow this job instead.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the job --job.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Print the status of the job --job.")] = False,
    config: options.Config = None,
    as_json: options.AsJson = False,
    dry_run: options.DryRun = False,
) -> None:
    """Train the rewriting agent with GRPO and publish the adapter that does best on held-out rows.

    ADAPTER/1, ADAPTER/2 ... are the published versions, ADAPTER/training what --resume goes on from.
    With --ray IN and ADAPTER are paths of the cluster, and the job goes on when this command ends.
    """
    if job is not None:
        _attend(ray, job, stop=stop, status=status)
        return
    if stop or status:
        raise UsageError("--stop and --status need the job's id: --job ID")
    if ray is None and (workers > 1 or detach):
        raise UsageError("--workers and --detach need a cluster: --ray ADDRESS")
    flags = [
        Given.by_flag("model.name", "--model", model),
        Given.by_flag("model.revision", "--revision", revision),
        Given.by_flag("train.reward.preset", "--reward", reward),
        Given.by_flag("train.steps", "--steps", steps),
    ]
    settings = load_settings(config, os.environ, flags)
    if dry_run:
        print(settings.model_dump_json(indent=2))
        return
    if source is None or output is None:
        raise UsageError("what to train on and where to put the adapter: rewright train IN -o ADAPTER")
    request = _request(settings, source, output, limit)
    if ray is not None:
        from trainer.ray_jobs import submit

        resources = WorkerResources(cpus=cpus, gpus=gpus)
        job = submit(ray, request, resume=resume, workers=workers, resources=resources)
        say(f"submitted {job}; follow it with: rewright train --ray {ray} --job {job}")
        if detach:
            print(job)
        else:
            _follow(ray, job)
    else:
        _train_here(request, resume=resume, as_json=as_json)


def _request(settings: Settings, source: Path, output: Path, limit: int | None) -> TrainingRequest:
    return TrainingRequest(
        source=source,
        output=output,
        model=settings.model,
        engine=settings.engine,
        gate=settings.gate,
        rewrite=settings.rewrite,
        train=settings.train,
        limit=limit,
    )


def _train_here(request: TrainingRequest, *, resume: bool, as_json: bool) -> None:
    from trainer.train import run_training

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _progress(request.train.optimizer_steps) as report:
            adapter = run_training(request, resume=resume, on_report=report)
    except KeyboardInterrupt:
        say("interrupted: the same command with --resume goes on from the last checkpoint")
        raise
    say(f"published {adapter}: see curves.png and samples.md there")
    if as_json:
        card = json.loads((adapter / "rewright.json").read_text())
        print(json.dumps({"adapter": str(adapter), "step": card["step"], "held_out": card["held_out"]}))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[StepReport], None]]:
    """A bar with reward and pass rate on a terminal, else a line a step; a line an evaluation on both."""
    with stepping("training", steps) as show:

        def report(step: StepReport) -> None:
            told = step.told(_SHOWN)
            if step.kind == "eval":
                say(f"held out at step {step.step}: {told}")
            elif step.kind == "warm start":
                say(f"warm start {step.step}/{step.steps}: {told}")
            else:
                show(step.step, told)

        yield report


def _attend(address: str | None, job_id: str, *, stop: bool, status: bool) -> None:
    from trainer import ray_jobs

    if address is None:
        raise UsageError("--job needs the cluster: --ray ADDRESS")
    if stop:
        ray_jobs.stop(address, job_id)
    if stop or status:
        state = ray_jobs.status(address, job_id)
        print(f"{state.status}{f': {state.message}' if state.message else ''}")
    else:
        _follow(address, job_id)


def _follow(address: str, job_id: str) -> None:
    from trainer.ray_jobs import follow

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    try:
        outcome = follow(address, job_id, write)
    except KeyboardInterrupt:
        console.print()
        say(f"the job goes on; stop it with: rewright train --ray {address} --job {job_id} --stop")
        raise
    say(f"{job_id}: {outcome.status}")
