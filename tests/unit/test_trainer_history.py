"""The history of a training, whatever happened to the process that wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.exceptions import CheckpointError
from trainer.history import History, StepMetrics, read_history


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with History(path) as opened:
        yield opened


def shown(path: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values that TensorBoard shows."""
    events = EventAccumulator(str(path.with_name("tensorboard")))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_records_come_back_as_they_were_appended(history: History) -> None:
    history.append(0, "eval", {"pass_rate": 0.25})
    history.append(1, "train", {"reward": 1.5, "failed/math_answer": 0.5})
    assert history.records() == [
        StepMetrics(0, "eval", {"pass_rate": 0.25}),
        StepMetrics(1, "train", {"reward": 1.5, "failed/math_answer": 0.5}),
    ]


def test_a_record_is_one_json_line_that_is_there_at_once(history: History, path: Path) -> None:
    history.append(12, "train", {"reward": 1.5})
    assert path.read_text() == '{"step": 12, "kind": "train", "metrics": {"reward": 1.5}}\n'


def test_values_that_are_not_finite_are_left_out(history: History, path: Path) -> None:
    history.append(1, "train", {"r_dist": math.nan, "kl": math.inf, "loss": -math.inf, "reward": 0.0})
    assert json.loads(path.read_text())["metrics"] == {"reward": 0.0}


def test_a_history_that_is_only_read_leaves_nothing_behind(history: History, tmp_path: Path) -> None:
    assert history.records() == []
    assert list(tmp_path.iterdir()) == []


def test_rewinding_forgets_later_records_and_keeps_the_step_itself(history: History) -> None:
    for step in range(1, 6):
        history.append(step, "train", {"reward": float(step)})
    history.append(3, "eval", {"pass_rate": 0.5})
    history.rewind(3)
    history.append(4, "train", {"reward": 40.0})
    assert [(r.step, r.kind, *r.metrics.values()) for r in history.records()] == [
        (1, "train", 1.0),
        (2, "train", 2.0),
        (3, "train", 3.0),
        (3, "eval", 0.5),
        (4, "train", 40.0),
    ]


def test_rewinding_before_anything_was_recorded_is_no_error(history: History) -> None:
    history.rewind(0)
    assert history.records() == []


def test_a_line_that_a_killed_process_left_unfinished_is_dropped(path: Path) -> None:
    path.write_text('{"step": 1, "kind": "train", "metrics": {}}\n{"step": 2, "kind": "tr')
    assert [r.step for r in read_history(path)] == [1]


def test_going_on_after_a_kill_does_not_glue_two_records_together(history: History, path: Path) -> None:
    path.write_text('{"step": 1, "kind": "train", "metrics": {}}\n{"step": 2, "kind": "tr')
    history.append(2, "train", {"reward": 1.0})
    assert [r.step for r in history.records()] == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "kind": "tr',
        "",
        "[]",
        '{"step": 2, "kind": "train"}',
        '{"step": "2", "kind": "train", "metrics": {}}',
        '{"step": 2, "kind": "test", "metrics": {}}',
        '{"step": 2, "kind": "train", "metrics": {"reward": "high"}}',
        '{"step": 2, "kind": "train", "metrics": {"reward": null}}',
    ],
)
def test_a_broken_line_in_the_middle_is_named(path: Path, line: str) -> None:
    good = '{"step": 1, "kind": "train", "metrics": {}}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(CheckpointError, match=r"history\.jsonl: line 2 is not a record"):
        read_history(path)


def test_tensorboard_shows_every_value_under_its_kind(history: History, path: Path) -> None:
    history.append(1, "train", {"reward": 0.5, "failed/math_answer": 0.25})
    history.append(1, "eval", {"pass_rate": 0.75})
    assert shown(path, "train/reward") == [(1, 0.5)]
    assert shown(path, "train/failed/math_answer") == [(1, 0.25)]
    assert shown(path, "eval/pass_rate") == [(1, 0.75)]


def test_tensorboard_shows_no_step_twice_after_a_resume(path: Path) -> None:
    with History(path) as killed:
        for step in (1, 2, 3):
            killed.append(step, "train", {"reward": float(step)})
    with History(path) as resumed:
        resumed.rewind(1)
        resumed.append(2, "train", {"reward": 20.0})
    assert shown(path, "train/reward") == [(1, 1.0), (2, 20.0)]
