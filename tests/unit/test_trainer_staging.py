"""Checkpoints appear whole, with what every process adds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.disk_log import assert_durable, disk_log
from trainer.checkpoints import UNFINISHED
from trainer.staging import StagedCheckpoints


class Saves(StagedCheckpoints):
    """What Hugging Face's trainer saves with, in process `rank`."""

    def __init__(self, folder: Path, rank: int, wait: Callable[[], None]) -> None:
        self.rank = rank
        self.args = SimpleNamespace(output_dir=str(folder), should_save=rank == 0)
        self.state = SimpleNamespace(global_step=5)
        self.accelerator = SimpleNamespace(wait_for_everyone=wait)
        self.checkpoint_state, self.checkpoints_kept = lambda: {"step": 5}, 1


@pytest.fixture(autouse=True)
def _random_states(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(trainer: Saves, _: Any, trial: Any) -> None:
        folder = Path(trainer._get_output_dir(trial)) / "checkpoint-5"
        folder.mkdir(exist_ok=True)
        (folder / f"rng_state_{trainer.rank}.pth").write_text("random")

    monkeypatch.setattr("trainer.staging.Trainer._save_checkpoint", save)


def test_a_checkpoint_holds_the_random_state_of_every_process(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    other = Saves(folder, 1, lambda: None)
    Saves(folder, 0, lambda: other._save_checkpoint(None, None))._save_checkpoint(None, None)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-5"]
    saved = {path.name for path in (folder / "checkpoint-5").iterdir()}
    assert saved == {"rng_state_0.pth", "rng_state_1.pth", "rewright_state.json"}
    assert json.loads((folder / "checkpoint-5" / "rewright_state.json").read_text()) == {"step": 5}


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = disk_log(monkeypatch, tmp_path)
    Saves(tmp_path, 0, lambda: None)._save_checkpoint(None, None)
    staged = f"{UNFINISHED}checkpoint-5/checkpoint-5"
    assert_durable(log, "checkpoint-5", f"{staged}/rng_state_0.pth", f"{staged}/rewright_state.json", staged)


def test_the_checkpoint_of_before_is_whole_or_gone_when_the_process_is_killed_while_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Saves(tmp_path, 0, lambda: None)._save_checkpoint(None, None)

    def kill(path: Path, ignore_errors: bool = False) -> None:
        if "removed" in path.name and path.exists():
            next(path.iterdir()).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("trainer.checkpoints.shutil.rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        Saves(tmp_path, 0, lambda: None)._save_checkpoint(None, None)
    assert not (tmp_path / "checkpoint-5").exists()


def test_a_checkpoint_that_fails_leaves_nothing_that_bears_its_name(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        Saves(tmp_path, 0, fail)._save_checkpoint(None, None)
    assert list(tmp_path.iterdir()) == []
