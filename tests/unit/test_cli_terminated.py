"""What SIGTERM does to a long command."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COMMAND = """
import asyncio, os, signal
{before}
from cli.console import interrupt_when_terminated

async def work() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
    finally:
        print("work cancelled")

interrupt_when_terminated()
with asyncio.Runner() as runner:
    try:
        runner.run(work())
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)  # a background command of a shell",
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a job of Ray",
    ],
)
def test_what_is_awaited_is_cancelled_before_the_command_is_interrupted(before: str) -> None:
    command = _COMMAND.replace("{before}", before)
    ended = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=50)
    assert ended.stdout.split("\n")[:2] == ["work cancelled", "interrupted"]
