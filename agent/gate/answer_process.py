"""One worker process that compares answers, killed and started anew when a comparison takes too long.

A plain subprocess, not `multiprocessing`: it never forks this process (threads, torch, Ray) and never imports its
main module. Blocking: the caller brings a thread. Not here: what equal means (`equivalence`, `answer_worker`).
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

_START_LIMIT_S = 120.0
_ROOT = Path(__file__).resolve().parents[2]


class AnswerProcess:
    """Starts at the first question. One thread at a time."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, candidate: str, reference: str, *, percent_asked: bool) -> bool | None:
        """Whether the answers are equal; None when `limit_s` seconds of comparing were not enough.

        Raises:
            OSError: no worker process can be started.
        """
        request = {
            "candidate": candidate,
            "reference": reference,
            "percent_asked": percent_asked,
            "limit_s": self._limit_s,
        }
        line = b""
        for _ in range(2):
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:  # it died between two questions, and not of this one
                self.close()
                continue
            line = _read_line(process, self._limit_s)
            break
        if not line:
            self.close()
            return None
        return bool(json.loads(line)["equal"])

    def close(self) -> None:
        """Kill the process, if there is one; the next question starts another."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # a request that it never read

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent.gate.answer_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        if _read_line(self._process, _START_LIMIT_S) != b"ready\n":
            self.close()
            raise OSError("the answer comparison process does not start: try python -m agent.gate.answer_worker")
        return self._process


def _read_line(process: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """The next line the process writes; empty when it takes longer or ends."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    deadline = time.monotonic() + limit_s
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, 65536) if ready else b""
        if not chunk:
            return b""
        line += chunk
    return line
