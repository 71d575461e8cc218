"""`rewright rewrite` as a user runs it: the real command, the real model, signals, and a service behind --url."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.models import ModelFiles
from server.ports import free_port

pytestmark = pytest.mark.usefixtures("model_files")

REWRIGHT = [sys.executable, "-m", "cli.main"]
QUICK = """
[rewrite]
strategy = "quick"
max_tokens = 48
concurrency = 2
strategies.quick = [{ proposer = "solve", temperatures = [0.7], samples = 2 }]
"""


def prepare(folder: Path) -> Path:
    """Settings that make for short runs, and twelve demonstrations."""
    (folder / "quick.toml").write_text(QUICK)
    lines = [
        json.dumps(
            {"id": f"q{i}", "question": f"What is {i} + {i + 1}?", "answer": f"It is {2 * i + 1}.\n#### {2 * i + 1}"}
        )
        for i in range(12)
    ]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare(tmp_path)


def start(folder: Path, *arguments: str, **further: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*REWRIGHT, *arguments, "--config", "quick.toml"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **further
    )


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def wait_for_lines(file: Path, count: int, process: subprocess.Popen[str]) -> None:
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_every_row_comes_out_in_order_and_a_bad_one_makes_the_exit_code_1(folder: Path) -> None:
    rows = (folder / "in.jsonl").read_text().splitlines()[:3]
    (folder / "in.jsonl").write_text("\n".join([rows[0], "no json", rows[1], rows[2]]))
    code, out, err = run(folder, "rewrite", "in.jsonl", "-o", "out.jsonl", "--json")
    assert code == 1, err
    written = read(folder / "out.jsonl")
    assert [row["id"] for row in written] == ["q0", "row-2", "q1", "q2"]
    assert written[1]["status"] == "error"
    assert written[1]["error"]["line"] == 2
    summary = json.loads(out)
    assert (summary["rows"], summary["errors"]) == (4, 1)
    assert sum(summary["accepted"].values()) + summary["fallback"] == 3
    assert "1 rows have status error, more than --max-errors 0" in err


def test_a_killed_run_is_resumed_without_doing_anything_twice(folder: Path) -> None:
    output = folder / "out.jsonl"
    process = start(folder, "rewrite", "in.jsonl", "-o", "out.jsonl")
    wait_for_lines(output, 3, process)
    process.kill()
    process.communicate()
    before = output.read_bytes()
    finished = before[: before.rindex(b"\n") + 1]
    assert finished.count(b"\n") < 12

    with output.open("ab") as cut:
        cut.write(b'{"id": "q11", "prom')
    code, _, err = run(folder, "rewrite", "in.jsonl", "-o", "out.jsonl", "--resume")
    assert code == 0, err
    assert output.read_bytes().startswith(finished)
    assert [row["id"] for row in read(output)] == [f"q{i}" for i in range(12)]


def test_ctrl_c_leaves_a_file_that_can_be_resumed(folder: Path) -> None:
    output = folder / "out.jsonl"
    process = start(folder, "rewrite", "in.jsonl", "-o", "out.jsonl")
    wait_for_lines(output, 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "--resume goes on where out.jsonl stops" in err
    assert "Traceback" not in err
    written = [row["id"] for row in read(output)]
    assert 2 <= len(written) < 12
    assert written == [f"q{i}" for i in range(len(written))]


def test_resuming_with_other_settings_is_refused(folder: Path) -> None:
    assert run(folder, "rewrite", "in.jsonl", "-o", "out.jsonl", "--limit", "1")[0] == 0
    code, _, err = run(folder, "rewrite", "in.jsonl", "-o", "out.jsonl", "--resume", "--max-tokens", "7")
    assert code == 2
    assert "out.jsonl: cannot be resumed: rewrite was" in " ".join(err.split())


def test_rows_can_be_piped_through(folder: Path) -> None:
    process = start(folder, "rewrite", "-", "--limit", "2", stdin=subprocess.PIPE)
    out, err = process.communicate((folder / "in.jsonl").read_text())
    assert process.returncode == 0, err
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["q0", "q1"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model_files: ModelFiles) -> Iterator[str]:
    """The address of a service in one process of its own, with the same settings."""
    folder = prepare(tmp_path_factory.mktemp("service"))
    port = free_port()
    process = start(folder, "serve", "--local", "--port", str(port), start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    while True:
        assert process.poll() is None, process.communicate()
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.1)
    yield url
    process.terminate()
    process.communicate()
    assert process.returncode == 0


def test_a_service_gives_the_same_rows_as_this_machine(folder: Path, service: str) -> None:
    rows = (folder / "in.jsonl").read_text().splitlines()[:4]
    (folder / "in.jsonl").write_text("\n".join([*rows, '{"question": "no answer"}']))
    there = run(folder, "rewrite", "in.jsonl", "-o", "there.jsonl", "--url", service, "--max-errors", "1")
    here = run(folder, "rewrite", "in.jsonl", "-o", "here.jsonl", "--max-errors", "1")
    assert (there[0], here[0]) == (0, 0), there[2] + here[2]
    remote, local = read(folder / "there.jsonl"), read(folder / "here.jsonl")
    assert [row["id"] for row in remote] == [row["id"] for row in local]
    for one, other in zip(remote, local, strict=True):
        assert list(one) == list(other)
        assert (one["source"], one["prompt"], one["error"], one["model"]) == (
            other["source"],
            other["prompt"],
            other["error"],
            other["model"],
        )
        assert (one["mismatch"]["expert"] or {}).get("tokens") == (other["mismatch"]["expert"] or {}).get("tokens")


def test_an_option_that_the_service_does_not_know_ends_the_work(folder: Path, service: str) -> None:
    code, _, err = run(folder, "rewrite", "in.jsonl", "-o", "x.jsonl", "--url", service, "--strategy", "magic")
    assert code == 2
    assert "unknown strategy 'magic'" in " ".join(err.split())
