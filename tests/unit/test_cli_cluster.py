"""Commands whose work is a job of a Ray cluster: flags that contradict each other, and how a job's end is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.command_line import run_main
from trainer.exceptions import JobError
from trainer.ray_jobs import JobState

Run = Callable[..., tuple[int, str, str]]
NOWHERE = ["--ray", "http://127.0.0.1:9"]
NEEDS_CLUSTER = "--workers, --cpus, --gpus and --detach need a cluster: --ray ADDRESS"
NOT_BESIDE_JOB = "--job is about a job that was submitted before: IN, -o, --resume"


@pytest.fixture(params=["train", "sft"])
def run(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Run:
    """Runs `rewright train` and `rewright sft` in an empty folder; returns exit code and what is written."""
    monkeypatch.chdir(tmp_path)
    return partial(run_main, monkeypatch, capsys, request.param)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.jsonl", "-o", "m", "--workers", "2"], NEEDS_CLUSTER),
        (["in.jsonl", "-o", "m", "--workers", "1"], NEEDS_CLUSTER),
        (["in.jsonl", "-o", "m", "--cpus", "4"], NEEDS_CLUSTER),
        (["in.jsonl", "-o", "m", "--gpus", "0"], NEEDS_CLUSTER),
        (["in.jsonl", "-o", "m", "--detach"], NEEDS_CLUSTER),
        (["/in.jsonl", "-o", "/m", "--json", *NOWHERE], "--json and --ray exclude each other"),
        (["--job", "x", "--json", *NOWHERE], "--json and --ray exclude each other"),
        (["--job", "x"], "--job needs the cluster: --ray ADDRESS"),
        (["--stop"], "--stop and --status need the job's id"),
        (["in.jsonl", "--job", "x", *NOWHERE], NOT_BESIDE_JOB),
        (["-o", "m", "--job", "x", *NOWHERE], NOT_BESIDE_JOB),
        (["--resume", "--job", "x", "--status", *NOWHERE], NOT_BESIDE_JOB),
        (["--gpus", "1", "--job", "x", "--stop", *NOWHERE], NOT_BESIDE_JOB),
        (["/in.jsonl", "-o", "/m", "--workers", "5", *NOWHERE], "must be divisible by 5 workers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_would_have_no_effect_are_refused(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("arguments", [["/in.jsonl", "-o", "/m"], ["--job", "x"]], ids=" ".join)
def test_a_job_that_was_stopped_is_no_success(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr("trainer.ray_jobs.submit", lambda *_, **__: "x")
    monkeypatch.setattr("trainer.ray_jobs.follow", lambda *_: JobState("x", "STOPPED", "", None))
    code, _, err = run(*arguments, *NOWHERE)
    assert code == 3
    assert "error: job x was stopped before its end" in err


def test_a_job_that_succeeded_is_a_success(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.ray_jobs.follow", lambda *_: JobState("x", "SUCCEEDED", "", 0))
    code, _, err = run("--job", "x", *NOWHERE)
    assert (code, err) == (0, "x: SUCCEEDED")


def test_what_a_job_reserves_is_one_core_and_no_gpu_unless_the_flags_say_otherwise(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []

    def refuse(*_: object, workers: int, resources: object, **__: object) -> None:
        asked.append((workers, resources.cpus, resources.gpus))  # type: ignore[attr-defined]
        raise JobError("not here")

    monkeypatch.setattr("trainer.ray_jobs.submit", refuse)
    run("/in.jsonl", "-o", "/m", *NOWHERE)
    run("/in.jsonl", "-o", "/m", "--workers", "2", "--cpus", "3", "--gpus", "1", *NOWHERE)
    assert asked == [(1, 1, 0), (2, 3, 1)]
