"""`rewright train`: the rewriting agent learns on demonstrations, here or as a job of a Ray cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.cluster import Cluster
from cli.console import interrupt_when_terminated, say, stepping
from cli.exceptions import UsageError
from cli.settings import Given, Settings, load_settings
from trainer.request import TrainingRequest

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
    resume: options.Resume = False,
    ray: options.Ray = None,
    workers: options.Workers = None,
    cpus: options.Cpus = None,
    gpus: options.Gpus = None,
    detach: options.Detach = False,
    job: options.Job = None,
    stop: options.Stop = False,
    status: options.Status = False,
    config: options.Config = None,
    as_json: options.AsJson = False,
    dry_run: options.DryRun = False,
) -> None:
    """Train the rewriting agent with GRPO and publish the adapter that does best on held-out rows.

    ADAPTER/1, ADAPTER/2 ... are the published versions, ADAPTER/training what --resume goes on from.
    With --ray IN and ADAPTER are paths of the cluster, and the job goes on when this command ends.
    """
    cluster = Cluster("train", ray, workers, cpus, gpus, detach)
    submits = source is not None or output is not None or resume
    if cluster.attend(job, stop=stop, status=status, as_json=as_json, submits=submits):
        return
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
    if not cluster.run(request, resume=resume):
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
    from cli.engine import fetch_model
    from trainer.folder import check_output
    from trainer.train import run_training

    check_output(request, request.output / "training", resume)
    fetch_model(request.model)
    interrupt_when_terminated()
    try:
        with _progress(request.train.optimizer_steps) as report:
            adapter = run_training(request, resume=resume, on_report=report, on_note=say)
    except KeyboardInterrupt:
        say("interrupted: the same command with --resume goes on from the last checkpoint")
        raise
    say(f"published {adapter}: see curves.png and samples.md there")
    if as_json:
        card = json.loads((adapter / "rewright.json").read_text())
        print(json.dumps({"adapter": str(adapter), "step": card["step"], "held_out": card["held_out"]}))


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
