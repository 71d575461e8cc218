"""From the files of finished units to results: values by hand, and what is missing or not asked any more."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.compared import (
    MASK_HIGH,
    MASK_LOW,
    RIGHT,
    SFT_HIGH,
    SFT_LOW,
    TASKS,
    compared,
    request,
    write_exam,
    write_unit,
)
from trainer.compare.collect import collect
from trainer.compare.finished import EXAM
from trainer.compare.folder import is_done
from trainer.compare.numbers import scores
from trainer.compare.plan import Inputs, make_plan
from trainer.compare.report import write_report
from trainer.compare.results import Comparison, Failure
from trainer.compare.rows import COSTS, ROWS
from trainer.compare.samples import pair, read_exam
from trainer.compare.tables import all_points, beside_reference, per_task, summary, trained_rows
from trainer.exam.files import samples_path
from trainer.exam.results import EvaluationResult, Measure, ModelIdentity, TaskResult


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return compared(tmp_path)


def test_gain_forgetting_and_front_are_those_of_the_samples(comparison: Comparison) -> None:
    found = {
        (point.method, point.learning_rate): (point.gain.value, point.forgetting.value, point.on_front)
        for point in comparison.points
    }
    approximately = {
        SFT_LOW: (20, 20, True),
        SFT_HIGH: (40, 40, True),
        MASK_LOW: (20, 0, True),
        MASK_HIGH: (50, 30, True),
    }
    assert list(found) == list(approximately)
    for key, expected in approximately.items():
        assert found[key] == pytest.approx(expected), key
    assert comparison.points[0].forgetting_relative.value == pytest.approx(0.25)
    assert [(task.name, task.metric, task.rows, task.base.value) for task in comparison.tasks] == [
        ("sums", "greedy/strict", 10, 0.2),
        ("lenient:sums", "greedy/lenient", 10, 0.4),
        ("piqa", "acc", 10, 0.8),
        ("kl:sums", "kl_per_token", 2, 0.0),
    ]


def test_gain_by_the_lenient_check_stands_beside_the_strict_one(comparison: Comparison) -> None:
    """Two more of ten are right by it, but for 7 + 2 and the base model's 2 + 2 of ten."""
    assert [point.gain_lenient.value for point in comparison.points] == pytest.approx([20, 40, 20, 50])
    by_name = {task.name: task for task in comparison.tasks}
    assert (by_name["sums"].no_answer, by_name["sums"].answer_tokens) == (0.4, 31.5)
    assert by_name["piqa"].no_answer is None
    assert "The base model states no answer in: sums 40.0%." in per_task(comparison).note
    table = summary(comparison)
    assert table.rows[1][table.columns.index("G lenient")].startswith("50.00 [")


def test_the_divergence_is_that_of_all_tokens_with_an_interval_over_questions(comparison: Comparison) -> None:
    """40 nats over 160 tokens; a resample may have the first question twice, 36 over 120, or the second, 4 over 40."""
    kl = comparison.points[0].kl
    assert (kl.value, kl.low, kl.high) == pytest.approx((0.25, 0.1, 0.3))
    table = summary(comparison)
    assert table.rows[0][table.columns.index("KL")] == "0.250 [0.100, 0.300]"
    assert per_task(comparison).rows[1][-1] == "+0.250 [0.100, 0.300]"


def test_the_initial_loss_has_an_interval_over_rows(comparison: Comparison) -> None:
    loss = comparison.points[0].initial_loss
    assert (loss.value, loss.low, loss.high) == pytest.approx((1.5, 1.0, 2.0))
    assert all(point.initial_loss == loss for point in comparison.points), "the rows are the same, and so the resamples"
    table = summary(comparison)
    assert table.rows[0][table.columns.index("initial loss")] == "1.500 [1.000, 2.000]"


def test_a_model_that_diverged_has_no_divergence_to_tell(tmp_path: Path) -> None:
    asked = request(tmp_path)
    units = make_plan(asked, Inputs("t", TASKS, {}))
    for unit in units:
        write_unit(tmp_path, unit)
    exam = tmp_path / next(u for u in units if u.kind == "exam" and u.setup).folder / EXAM
    write_exam(exam.parent, (4, 6), kl=math.nan)
    found = collect(asked, units, [])
    assert [point.kl.value for point in found.points] == [None, *[pytest.approx(0.25)] * 3]
    write_report(tmp_path, found)
    assert Comparison.model_validate_json((tmp_path / "results.json").read_bytes()) == found


def test_the_match_is_at_the_largest_gain_of_both(comparison: Comparison) -> None:
    """sft reaches 40 and forgets 40 there; mask is at 40 two thirds of the way from (20, 0) to (50, 30)."""
    by_steps, by_tokens, by_compute = comparison.matches
    for match in (by_steps, by_tokens):
        assert match.gain is not None
        assert match.saved is not None
        assert match.gain.value == pytest.approx(40)
        assert match.saved.value == pytest.approx(1 - 20 / 40)
    # Weighing costs mask 200 passes before 3 x 80 of training: of sft's 240 a sixth of its training is left to it.
    assert by_compute.budget == 240
    assert by_compute.gain is not None
    assert by_compute.saved is not None
    # It gains 50 / 6 there and forgets 5; sft at that gain is between the base model and its first learning rate.
    assert by_compute.gain.value == pytest.approx(50 / 6)
    assert by_compute.saved.value == pytest.approx(1 - 5 / (50 / 6))


def test_each_point_stands_beside_plain_fine_tuning_at_its_learning_rate(comparison: Comparison) -> None:
    """mask answers 4 and 7 of ten as sft answers 4 and 6, and keeps 8 and 5 of PIQA's ten as sft keeps 6 and 4."""
    low, high = comparison.points[2:]
    assert [point.forgets_more for point in comparison.points[:2]] == [None, None]
    for point, forgotten, gained in ((low, -20, 0), (high, -10, 10)):
        assert point.forgets_more is not None
        assert point.forgets_more.value == pytest.approx(forgotten)
        assert point.changes_more["sums"].value == pytest.approx(gained)
        assert point.changes_more["piqa"].value == pytest.approx(-forgotten)
    table = beside_reference(comparison)
    assert table.columns == ("method", "lr", "F - F of sft", "sums", "lenient:sums", "piqa", "kl:sums")
    assert [row[:2] for row in table.rows] == [("mask", "0.0001"), ("mask", "0.001")]
    assert table.rows[0][3] == "+0.00 [0.00, 0.00]", "both have the same questions right: the resamples are paired"


def test_an_exam_on_other_questions_than_now_is_missing(tmp_path: Path) -> None:
    asked = request(tmp_path)
    for unit in make_plan(asked, Inputs("t", TASKS, {})):
        write_unit(tmp_path, unit)
    changed = make_plan(asked, Inputs("t", {**TASKS, "sums": "other questions"}, {}))
    assert collect(asked, changed, []).points == []


def test_units_that_are_missing_leave_the_others(tmp_path: Path) -> None:
    asked = request(tmp_path)
    units = make_plan(asked, Inputs("t", TASKS, {}))
    for unit in units[:-1]:
        write_unit(tmp_path, unit)
    found = collect(asked, units, [Failure(unit=str(units[-1].folder), error="OSError: full")])
    assert len(found.points) == 3
    write_report(tmp_path, found)
    assert "OSError: full" in (tmp_path / "report.html").read_text()
    empty = request(tmp_path / "empty")
    nothing = collect(empty, units, [])
    write_report(tmp_path, nothing)
    assert nothing.points == nothing.tasks == []


def test_a_task_that_came_later_and_could_not_be_asked_leaves_the_others(tmp_path: Path) -> None:
    asked = request(tmp_path)
    units = make_plan(asked, Inputs("t", TASKS, {}))
    for unit in units:
        write_unit(tmp_path, unit)
    later = make_plan(asked, Inputs("t", {**TASKS, "arc_easy": "a"}, {}))
    assert [is_done(tmp_path, unit) for unit in later] == [unit.kind != "exam" for unit in later]
    assert collect(asked, later, []) == collect(asked, units, [])


@pytest.fixture
def filtered(tmp_path: Path) -> Comparison:
    """Of the method rft, with five rows made, of which three passed the gate."""
    asked = request(tmp_path)
    asked = asked.model_copy(update={"compare": asked.compare.model_copy(update={"methods": ("sft", "rft")})})
    RIGHT[("rft", 1e-4)] = RIGHT[("rft", 1e-3)] = (3, 7)
    units = make_plan(asked, Inputs("t", TASKS, {}))
    for unit in units:
        if unit.kind == "data":
            folder = tmp_path / unit.folder
            folder.mkdir(parents=True)
            (folder / ROWS).write_text("{}\n" * (5 if unit.rewrite else 3))
            cost = {"prompt_tokens": 5, "completion_tokens": 6, "scored_tokens": 7, "seconds": 1.0}
            if unit.rewrite:
                (folder / COSTS).write_text(json.dumps({"row": "a", **cost}))
        else:
            write_unit(tmp_path, unit)
    return collect(asked, units, [])


def test_rows_of_a_method_are_charged_to_it(filtered: Comparison) -> None:
    spent = next(point.spent for point in filtered.points if point.method == "rft")
    assert (spent.rewriting_passes, spent.scoring_passes, spent.training_passes) == (11, 7, 240)


def test_the_rows_of_each_method_are_told_with_those_left_out(filtered: Comparison) -> None:
    table = trained_rows(filtered)
    assert table.columns[:6] == ("method", "trained on", "rewritten", "self-solved", "fallback", "expert")
    too_long = "2 longer than 512 tokens"
    assert table.rows == [
        ("sft", "6", "0", "0", "0", "6 (100.0%)", "2 (25.0%)", too_long),
        ("rft", "3", "1 (33.3%)", "2 (66.7%)", "0", "0", "4 (57.1%)", f"{too_long}; 2 no accepted rewrite"),
    ]


def test_losses_on_the_rows_alone_that_passed_the_gate_are_marked(filtered: Comparison) -> None:
    assert "Loss before training, nats a token: sft 1.500. On the questions alone" in filtered.headline
    assert filtered.headline.endswith("which are easier ones: rft 1.000.")
    losses = {row[0]: row[2] for row in summary(filtered).rows}
    assert losses == {"sft": "1.500 [1.000, 2.000]", "rft": "1.000 [1.000, 1.000]*"}
    assert "* On the questions alone whose rewrite passed the gate" in summary(filtered).note
    assert [row[2] for row in all_points(filtered).rows if row[0] == "rft"] == ["1.000 [1.000, 1.000]*"] * 2


def test_tasks_that_are_not_asked_any_more_do_not_count(tmp_path: Path) -> None:
    write_exam(tmp_path, (3, 5), kl=0.25)
    exam = read_exam(tmp_path / EXAM, {"sums"})
    assert list(exam.result.tasks) == ["sums", "kl:sums"]
    assert list(exam.rows) == ["sums", "lenient:sums", "kl:sums"]


def test_a_sampled_answer_is_not_the_score(tmp_path: Path) -> None:
    write_exam(tmp_path, (3, 5), kl=None)
    rows = read_exam(tmp_path / EXAM, {"sums"}).rows
    assert [value for value, _ in rows["sums"].values()] == [1.0] * 3 + [0.0] * 7


def test_perplexity_is_that_of_all_words_of_the_rows_that_every_model_has(tmp_path: Path) -> None:
    task = TaskResult(
        kind="retention",
        data="w",
        rows=2,
        metrics={"word_perplexity": Measure(value=math.exp(2.5), stderr=None)},
        primary="word_perplexity",
        higher_is_better=False,
        chat_template=False,
    )
    result = EvaluationResult(model=ModelIdentity(name="m", weights_sha256="0"), settings={}, tasks={"wikitext": task})
    exams = []
    for name, pages in (("one", [1, 2]), ("two", [1, 2, 3])):
        (tmp_path / name).mkdir()
        (tmp_path / name / EXAM).write_text(result.model_dump_json())
        samples = [
            {"task": "wikitext", "row": page, "metrics": {"word_perplexity": [-10.0 * page, 5.0 + page]}}
            for page in pages
        ]
        samples_path(tmp_path / name / EXAM).write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))
        exams.append(read_exam(tmp_path / name / EXAM, {"wikitext"}))
    (rows,) = pair(exams)
    assert not rows.in_points
    assert scores(rows, 1, 0)[0] == pytest.approx([math.exp(30 / 13)] * 2)
