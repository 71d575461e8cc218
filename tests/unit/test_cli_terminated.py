"""What SIGTERM does to a long command."""

from __future__ import annotations

import subprocess
import sys

_COMMAND = """
import asyncio, os, signal
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


def test_what_is_awaited_is_cancelled_before_the_command_is_interrupted() -> None:
    ended = subprocess.run([sys.executable, "-c", _COMMAND], capture_output=True, text=True, check=True)
    assert ended.stdout.split("\n")[:2] == ["work cancelled", "interrupted"]
