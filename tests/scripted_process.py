"""The scripted service in a process of its own, started again as often as it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx

from server.ports import free_port
from tests.waiting import wait_until

PATIENCE_S = 600.0


class ScriptedProcess:
    """`tests.scripted_service` over one state folder.

    Attributes:
        url: the same for every start.
        http: a client of it.
        process: the last that was started.
    """

    def __init__(self, state: Path, *flags: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)
        self._command = [sys.executable, "-m", "tests.scripted_service", "--port", str(port), "--state", str(state)]
        self._command += flags

    def start(self, pause_s: float) -> None:
        """Start it, with a pause in every row, and return when it answers."""
        command = [*self._command, "--pause", str(pause_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("ready at"), said
        wait_until(self._answers, PATIENCE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self) -> None:
        """End it as a user does, where it runs."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(PATIENCE_S) == 0

    def _answers(self) -> bool:
        try:
            answer = self.http.get("/healthz")
        except httpx.TransportError:
            return False
        assert answer.status_code == 200
        return True
