"""A PostgreSQL server of Debian's package, started on a socket of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Postgres:
    """A running server with an empty database.

    Attributes:
        url: of the database.
    """

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs, self._folder, self._user = programs, folder, user
        self.url = f"postgresql://rewright@/postgres?host={folder}"
        init = [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "rewright", "--no-sync"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)
        self._start()

    def _start(self) -> None:
        flags = ["-D", self._folder / "data", "-k", self._folder, "-c", "listen_addresses="]
        self._server = subprocess.Popen(
            [self._programs / "postgres", *flags], stderr=subprocess.PIPE, text=True, user=self._user, cwd=self._folder
        )
        assert self._server.stderr is not None
        for line in self._server.stderr:
            if "ready to accept connections" in line:
                return
        raise AssertionError("PostgreSQL did not start")

    def drop_connections(self) -> int:
        """End every connection of others, as a network does; returns how many, once they are gone."""
        others = "pg_stat_activity where usename = 'rewright' and pid <> pg_backend_pid()"
        cut = f"select count(pg_terminate_backend(pid, 60000)) from {others}"
        command = [self._programs / "psql", "-h", self._folder, "-U", "rewright", "-d", "postgres", "-Atc", cut]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def restart(self) -> None:
        """Kill the server in the middle of whatever it does, and start it again."""
        self._server.send_signal(3)  # SIGQUIT: PostgreSQL's "immediate" shutdown, which recovers from its log
        self._server.communicate()
        self._start()

    def stop(self) -> None:
        self._server.terminate()
        self._server.communicate()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Within: a server runs. Skips the test where the package `postgresql` is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs or not (programs[-1] / "initdb").exists():
        pytest.skip("PostgreSQL's server is not installed")
    # The server refuses to run as root, and its socket's path must be short.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="rewright-pg-", dir="/tmp"))
    if user:
        shutil.chown(folder, user)
    server = Postgres(programs[-1], folder, user)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
