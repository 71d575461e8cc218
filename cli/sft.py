"""`rewright sft`: a model is fine-tuned on rewritten or raw demonstrations."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.cluster import Cluster
from cli.console import interrupt_when_terminated, say, stepping
from cli.exceptions import UsageError
from cli.settings import Given, load_settings
from trainer.request import SftRequest

if TYPE_CHECKING:
    from trainer.report import StepReport

_SHOWN = ("loss", "nll", "kl", "grad_norm")


def sft(
    source: Annotated[
        Path | None, typer.Argument(metavar="IN", help="Output rows of rewrite, or raw demonstrations.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="MODEL", help="Folder of the model.")] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    method: Annotated[str | None, typer.Option("--method", metavar="METHOD", help="lora or full.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="KIND", help="none, mask, entropy or prob.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Updates to train for.")] = None,
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
    """Fine-tune a model on rewritten or raw demonstrations.

    The loss is on the tokens that mismatch scores. MODEL becomes a model folder with a card,
    MODEL/training what --resume goes on from.
    With --ray IN and MODEL are paths of the cluster, and the job goes on when this command ends.
    """
    cluster = Cluster("sft", ray, workers, cpus, gpus, detach)
    submits = source is not None or output is not None or resume
    if cluster.attend(job, stop=stop, status=status, as_json=as_json, submits=submits):
        return
    flags = [
        Given.by_flag("model.name", "--model", model),
        Given.by_flag("model.revision", "--revision", revision),
        Given.by_flag("sft.method", "--method", method),
        Given.by_flag("sft.weights.kind", "--weights", weights),
        Given.by_flag("sft.steps", "--steps", steps),
    ]
    settings = load_settings(config, os.environ, flags)
    if dry_run:
        print(settings.model_dump_json(indent=2))
        return
    if source is None or output is None:
        raise UsageError("what to train on and where to put the model: rewright sft IN -o MODEL")
    request = SftRequest(
        source=source, output=output, model=settings.model, engine=settings.engine, sft=settings.sft, limit=limit
    )
    if not cluster.run(request, resume=resume):
        _train_here(request, resume=resume, as_json=as_json)


def _train_here(request: SftRequest, *, resume: bool, as_json: bool) -> None:
    from cli.engine import fetch_model
    from trainer.sft.run import check_output, run_sft

    check_output(request, request.output / "training", resume)
    fetch_model(request.model)
    interrupt_when_terminated()
    try:
        with tuning_progress() as report:
            model = run_sft(request, resume=resume, on_report=report, on_note=say)
    except KeyboardInterrupt:
        say("interrupted: the same command with --resume goes on from the last checkpoint")
        raise
    card = json.loads((model / "sft.json").read_text())
    say(f"wrote {model}: loss {card['initial_loss']:.4f} before, {card['final_loss']:.4f} after; see its README.md")
    if as_json:
        shown = ("initial_loss", "final_loss", "steps", "shares", "left_out")
        print(json.dumps({"model": str(model), **{name: card[name] for name in shown}}))


@contextmanager
def tuning_progress() -> Iterator[Callable[[StepReport], None]]:
    """A bar with the loss on a terminal, else a line a step; a line for each measured loss on both."""
    with ExitStack() as stack:
        show: Callable[[int, str], None] | None = None

        def report(step: StepReport) -> None:
            nonlocal show
            show = show or stack.enter_context(stepping("fine-tuning", step.steps))
            if step.kind == "eval":
                say(f"loss without weights at step {step.step}: {step.told(_SHOWN)}")
            else:
                show(step.step, step.told(_SHOWN))

        yield report
