"""One process at a time works in a folder, whatever became of the one before."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from agent.exceptions import STOPPED
from trainer.exceptions import FolderInUseError, TrainingSettingsError
from trainer.folder import only_training
from trainer.lock import alone_in

HOLDS = """
import sys
from pathlib import Path
from trainer.lock import alone_in
with alone_in(Path(sys.argv[1]), Path("out")):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_second_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with alone_in(tmp_path, Path("out")):
        with pytest.raises(TrainingSettingsError, match="out: another process works in it; wait for its end") as caught:
            alone_in(tmp_path, Path("out")).__enter__()
        assert caught.value.exit_code == STOPPED, "a job that the cluster lost is started again"
    with alone_in(tmp_path, Path("out")):
        pass


def test_a_killed_process_keeps_nobody_off(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(FolderInUseError):
            alone_in(tmp_path, Path("out")).__enter__()
        other.send_signal(signal.SIGKILL)
        other.wait()
    with alone_in(tmp_path, Path("out")):
        pass


def test_of_several_workers_the_first_keeps_others_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_training(Path("out"), tmp_path):
        monkeypatch.setenv("RANK", "1")
        with only_training(Path("out"), tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(FolderInUseError):
            only_training(Path("out"), tmp_path).__enter__()


@pytest.mark.parametrize(("number", "refused"), [(errno.ENOLCK, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_storage_without_locks_refuses_nobody(
    number: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("trainer.lock.fcntl.flock", fail)
    if refused:
        with pytest.raises(OSError, match="error"):
            alone_in(tmp_path, Path("out")).__enter__()
    else:
        with alone_in(tmp_path, Path("out")):
            pass
