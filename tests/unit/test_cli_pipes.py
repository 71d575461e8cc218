"""Rows that come through standard input, from a producer that is in no hurry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def test_a_row_is_answered_and_ctrl_c_heard_while_the_producer_thinks() -> None:
    row = {"question": "1 + 1?", "answer": "1+1=2\n#### 2", "candidate": "1 + 1 = 2. The answer is 2."}
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", "check", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(row), file=process.stdin, flush=True)
        assert json.loads(process.stdout.readline())["status"] == "passed"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130  # standard input is still open
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
