"""The best adapter so far: kept as long as a checkpoint that is there names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.disk_log import assert_durable, disk_log
from trainer.best import BestAdapter
from trainer.checkpoints import STATE, checkpoints, remove_old_checkpoints, remove_unfinished_checkpoints
from trainer.exceptions import DivergedError


class Model:
    """Is saved as a folder with one file."""

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "weights").touch()


@pytest.fixture
def best(tmp_path: Path) -> BestAdapter:
    return BestAdapter(tmp_path)


def consider(best: BestAdapter, step: int, score: float) -> None:
    model: Any = Model()
    best.consider(step, {"score": score}, model)


def save(best: BestAdapter, folder: Path, step: int) -> Path:
    """A checkpoint as the training makes it."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / STATE).write_text(json.dumps({"best": best.metrics}))
    best.forget_others()
    return checkpoint


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("best-*")}


def test_training_can_go_on_from_every_checkpoint_that_is_kept(best: BestAdapter, tmp_path: Path) -> None:
    consider(best, 0, 0.1)
    older = save(best, tmp_path, 4)
    consider(best, 8, 0.3)
    save(best, tmp_path, 8)
    assert kept(tmp_path) == {"best-0", "best-8"}
    resumed = BestAdapter(tmp_path)
    resumed.metrics = json.loads((older / STATE).read_text())["best"]
    assert resumed.path.is_dir()


def test_what_no_checkpoint_needs_any_more_is_deleted(best: BestAdapter, tmp_path: Path) -> None:
    consider(best, 0, 0.1)
    oldest = save(best, tmp_path, 4)
    consider(best, 8, 0.3)
    save(best, tmp_path, 8)
    shutil.rmtree(oldest)
    save(best, tmp_path, 12)
    assert kept(tmp_path) == {"best-8"}


def test_only_a_higher_score_takes_the_place_of_the_best(best: BestAdapter, tmp_path: Path) -> None:
    for step, score in ((0, 0.2), (4, 0.2), (8, 0.1)):
        consider(best, step, score)
    assert (best.step, kept(tmp_path)) == (0, {"best-0"})
    consider(best, 12, 0.3)
    assert (best.step, best.path.is_dir()) == (12, True)


def test_the_best_is_on_the_disk_before_a_checkpoint_can_name_it(
    best: BestAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = disk_log(monkeypatch, tmp_path)
    consider(best, 4, 0.1)
    assert_durable(log, "best-4", ".best-unfinished/weights", ".best-unfinished")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_not_compared(score: float, best: BestAdapter, tmp_path: Path) -> None:
    consider(best, 0, 0.1)
    with pytest.raises(DivergedError, match=f"step 4: the score on the held-out rows is {score}, no finite number"):
        consider(best, 4, score)
    assert (best.step, kept(tmp_path)) == (0, {"best-0"})


class KilledError(BaseException):
    """The process is killed."""


@pytest.fixture
def _killed_while_deleting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a folder that is there is gone when the process is killed."""

    def kill(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            next(path.iterdir()).unlink()
            raise KilledError

    monkeypatch.setattr("trainer.checkpoints.shutil.rmtree", kill)


@pytest.mark.usefixtures("_killed_while_deleting")
def test_a_kill_in_the_deletion_of_a_checkpoint_leaves_none_that_is_not_whole(
    best: BestAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consider(best, 0, 0.1)
    older, newer = save(best, tmp_path, 4), save(best, tmp_path, 8)
    with pytest.raises(KilledError):
        remove_old_checkpoints(tmp_path, 1)
    assert checkpoints(tmp_path) == [newer]
    save(best, tmp_path, 12)  # which reads the states of all that are there
    monkeypatch.undo()
    remove_unfinished_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-8", "checkpoint-12", "best-0"}
    assert not older.exists()


@pytest.mark.usefixtures("_killed_while_deleting")
def test_a_kill_in_the_deletion_of_what_was_the_best_leaves_nothing_of_its_name(
    best: BestAdapter, tmp_path: Path
) -> None:
    consider(best, 0, 0.1)
    (tmp_path / "best-0" / "adapter_model.safetensors").touch()
    consider(best, 4, 0.2)
    with pytest.raises(KilledError):
        best.forget_others()
    assert kept(tmp_path) == {"best-4"}
