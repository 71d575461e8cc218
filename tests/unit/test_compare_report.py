"""From the files of finished units to results and report: values by hand, nothing unescaped, nothing from elsewhere."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from trainer.compare.collect import collect
from trainer.compare.figures import spent_on_longest
from trainer.compare.finished import EXAM
from trainer.compare.folder import is_done, mark_done
from trainer.compare.headline import headline
from trainer.compare.numbers import scores
from trainer.compare.plan import Inputs, Unit, make_plan
from trainer.compare.report import page, write_report
from trainer.compare.results import Comparison, Failure
from trainer.compare.rows import COSTS, ROWS
from trainer.compare.samples import pair, read_exam
from trainer.compare.settings import CompareRequest, CompareSettings
from trainer.compare.tables import all_points, beside_reference, matchings, per_task, summary, trained_rows
from trainer.compare.text import markdown
from trainer.exam.files import samples_path
from trainer.exam.results import EvaluationResult, Measure, ModelIdentity, TaskResult
from trainer.sft.losses import INITIAL, RowLoss, write_losses

BASE, SFT_LOW, SFT_HIGH, MASK_LOW, MASK_HIGH = "base", ("sft", 1e-4), ("sft", 1e-3), ("mask", 1e-4), ("mask", 1e-3)
TASKS = {"sums": "q", "piqa": "p"}
# Of ten questions and ten rows of a benchmark: how many are right.
RIGHT = {BASE: (2, 8), SFT_LOW: (4, 6), SFT_HIGH: (6, 4), MASK_LOW: (4, 8), MASK_HIGH: (7, 5)}


def request(output: Path) -> CompareRequest:
    compare = {
        "train": "train.jsonl",
        "accuracy": {"sums": "questions.jsonl"},
        "retention": ["piqa"],
        "methods": ["sft", "mask"],
        "learning_rates": [1e-4, 1e-3],
        "steps": [2],
        "draws": 200,
    }
    return CompareRequest(output=output, compare=CompareSettings.model_validate(compare))


def write_exam(folder: Path, right: tuple[int, int], *, kl: float | None) -> None:
    """As `rewright evaluate` writes it: ten questions with a greedy and a sampled answer, ten rows of PIQA."""
    samples: list[dict[str, Any]] = []
    for row in range(10):
        strict, lenient = row < right[0], row < right[0] + 2
        samples.append({"task": "sums", "row": f"q{row}", "draw": "greedy", "strict": strict, "lenient": lenient})
        samples.append({"task": "sums", "row": f"q{row}", "draw": 0, "strict": row % 2 == 0, "lenient": True})
        samples.append({"task": "piqa", "row": row, "metrics": {"acc": [float(row < right[1]), 1.0]}})
    figures = {"greedy/strict": right[0] / 10, "greedy/tokens": 31.5, "greedy/no_answer": 0.4, "greedy/cut_off": 0.3}
    shares = {name: Measure(value=value, stderr=None) for name, value in figures.items()}
    tasks = {
        "sums": TaskResult(
            kind="accuracy", data="q", rows=10, metrics=shares, primary="greedy/strict", chat_template=True
        ),
        "piqa": TaskResult(
            kind="retention",
            data="p",
            rows=10,
            metrics={"acc": Measure(value=right[1] / 10, stderr=0.1)},
            primary="acc",
            chat_template=False,
        ),
    }
    if kl is not None:
        tasks["kl:sums"] = TaskResult(
            kind="divergence",
            data="q",
            rows=2,
            metrics={"kl_per_token": Measure(value=kl, stderr=None)},
            primary="kl_per_token",
            higher_is_better=False,
            chat_template=True,
        )
        # Two completions of the first question and one of the second: 40 nats over 160 tokens for a `kl` of 0.25.
        for name, nats, tokens in (("q0", 70 * kl, 50), ("q0", 74 * kl, 70), ("q1", 16 * kl, 40)):
            samples.append({"task": "kl:sums", "row": name, "kl": nats, "tokens": tokens})
    result = EvaluationResult(model=ModelIdentity(name="m", weights_sha256="0"), settings={}, tasks=tasks)
    (folder / EXAM).write_text(result.model_dump_json())
    samples_path(folder / EXAM).write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))


def write_training(folder: Path, weights: str, statuses: dict[str, int]) -> None:
    card = {
        "tokens": {"prompt": 100, "completion": 100, "without_weight": 0},
        "trained_tokens": 40,
        "seconds": 1.5,
        "statuses": statuses,
        "left_out": {"longer than 512 tokens": 2},
        "initial_loss": 1.5,
        "final_loss": 1.0,
        "settings": {"sft": {"weights": {"kind": weights, "apply_to": "all"}, "kl_weight": 0.0}},
    }
    (folder / "sft.json").write_text(json.dumps(card))
    (folder / "training").mkdir()
    history = [{"step": step, "kind": "train", "metrics": {"nll": 1.5 / step}} for step in (1, 2)]
    (folder / "training" / "history.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in history))
    # 1.5 nats a token over both rows; a resample may have the first twice, 1.0, or the second, 2.0.
    losses = [RowLoss("row-1", 20.0, 20), RowLoss("row-2", 40.0, 20)]
    write_losses(folder / "training" / INITIAL, losses[:1] if "rewritten" in statuses else losses)


def write_unit(output: Path, unit: Unit) -> None:
    folder = output / unit.folder
    folder.mkdir(parents=True)
    setup = unit.setup
    if unit.kind == "train":
        assert setup is not None
        statuses = {"rewritten": 1, "self_solved": 2} if setup.method == "rft" else {"expert": 6}
        write_training(folder, "mask" if setup.method == "mask" else "none", statuses)
    else:
        write_exam(folder, RIGHT[(setup.method, setup.learning_rate) if setup else BASE], kl=0.25 if setup else None)
    mark_done(output, unit)


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    asked = request(tmp_path)
    units = make_plan(asked, Inputs("t", TASKS, {}))
    for unit in units:
        write_unit(tmp_path, unit)
    return collect(asked, units, [])


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


def test_the_headline_is_that_of_the_match(comparison: Comparison) -> None:
    start = "With shape lora, at equal gain after the same 2 steps, mask (1 - F/F_sft = 0.50"
    assert comparison.headline.startswith(start)


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


def test_answers_that_the_limit_ended_are_told(comparison: Comparison) -> None:
    table = all_points(comparison)
    assert {row[table.columns.index("cut off, %")] for row in table.rows} == {"30.0"}


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


def test_results_go_through_json_unchanged(comparison: Comparison, tmp_path: Path) -> None:
    write_report(tmp_path, comparison)
    assert Comparison.model_validate_json((tmp_path / "results.json").read_bytes()) == comparison
    for name in ("gain_forgetting", "initial_loss", "loss_curves", "compute"):
        assert imread(tmp_path / f"{name}.png").std() > 0.01, name


class Elements(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_needs_nothing_from_elsewhere_and_escapes_everything(comparison: Comparison) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    poisoned = comparison.model_copy(
        update={
            "model": evil,
            "headline": evil,
            "methods": {"sft": evil},
            "settings": {evil: evil},
            "failures": [Failure(unit=evil, error=evil)],
        }
    )
    elements = Elements(page(poisoned, {evil: b"\x89PNG"})).found
    assert not [tag for tag, _ in elements if tag in ("script", "link", "iframe")]
    assert [attributes["src"] for tag, attributes in elements if tag == "img"] == ["data:image/png;base64,iVBORw=="]
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]


def test_markdown_cells_cannot_break_the_table(comparison: Comparison) -> None:
    lines = markdown(summary(comparison)).splitlines()
    assert len(lines) == 2 + 2
    assert {line.count("|") for line in lines} == {11}
    assert lines[3].startswith("| mask | 0.001 | 1.500 [1.000, 2.000] | 30.00 [")
    assert lines[3].endswith("| 40.00, 2 steps |")
    poisoned = comparison.points[0].model_copy(update={"shape": "a|b\nc"})
    points = [poisoned, *comparison.points[2:]]
    first, *_ = markdown(summary(comparison.model_copy(update={"points": points}))).splitlines()[2:]
    assert first.startswith("| sft | a\\|b c |")


def test_the_first_table_says_where_a_figure_is_not_defined(comparison: Comparison) -> None:
    saved = comparison.matches[0].saved
    assert saved is not None

    def cell(**changed: float | None) -> str:
        match = comparison.matches[0].model_copy(update={"saved": saved.model_copy(update=changed)})
        return summary(comparison.model_copy(update={"matches": [match]})).rows[1][-2]

    assert cell(low=0.25, high=0.75, undefined=0.123) == "0.50 [0.25, 0.75] (not defined in 12.3% of the resamples)"
    assert cell(low=0.25, high=0.75, undefined=0.0) == "0.50 [0.25, 0.75]"
    assert cell(value=None) == "sft forgets nothing at that gain"


def test_tables_tell_scores_changes_and_why_nothing_matched(comparison: Comparison) -> None:
    table = per_task(comparison)
    assert table.columns[2:4] == ("sums, greedy/strict", "lenient:sums, greedy/lenient")
    assert table.rows[0][2].startswith("20.00 [")
    assert table.rows[1][4].startswith("-20.00 [")
    unmatched = comparison.matches[0].model_copy(update={"saved": None, "reason": "one learning rate"})
    assert matchings(comparison.model_copy(update={"matches": [unmatched]})).rows[0][-1] == "one learning rate"


def test_what_all_rows_share_is_said_once(comparison: Comparison) -> None:
    table = all_points(comparison)
    assert table.note.startswith("All rows: shape lora, steps 2, seeds 1.")
    assert table.columns[:3] == ("method", "lr", "initial loss")
    assert table.rows[0][0] == "base"
    assert {"31.5", "40.0"} <= set(table.rows[0])
    assert matchings(comparison).note.endswith("less than all of it is read on the line to the base model.")
    longer = comparison.points[0].model_copy(update={"steps": 4})
    several = comparison.model_copy(update={"points": [longer, *comparison.points]})
    assert all_points(several).columns[:3] == ("method", "steps", "lr")
    assert matchings(several).note.endswith("with the base model as length 0.")


def near_the_floor(comparison: Comparison) -> Comparison:
    tasks = [
        task.model_copy(update={"base": task.base.model_copy(update={"value": 0.02})}) if task.name == "sums" else task
        for task in comparison.tasks
    ]
    points = [
        point.model_copy(update={"gain": point.gain.model_copy(update={"value": 3.0})}) for point in comparison.points
    ]
    return comparison.model_copy(update={"tasks": tasks, "points": points})


def test_near_the_floor_chance_picks_no_learning_rate_and_losses_come_first(comparison: Comparison) -> None:
    floor = near_the_floor(comparison)
    assert [row[:2] for row in summary(comparison).rows] == [("sft", "0.001"), ("mask", "0.001")]
    assert "flattering" in summary(comparison).note
    rows = [("sft", "0.0001"), ("sft", "0.001"), ("mask", "0.0001"), ("mask", "0.001")]
    assert [row[:2] for row in summary(floor).rows] == rows
    assert "flattering" not in summary(floor).note
    said = headline([], floor.points, floor.tasks, failures=0)
    assert "the base model answers 2.0% of sums (leniently 40.0%, without an answer 40.0%): gains are small" in said
    assert said.index("near the floor") < said.index("Loss before training") < said.index("could be matched")
    said = headline([], comparison.points, comparison.tasks, failures=0)
    assert "near the floor" not in said
    assert "near the floor" not in headline([], comparison.points, floor.tasks, failures=0), "some model answers 52 %"
    assert said.index("could be matched") < said.index("Loss before training")


def test_what_a_training_spent_is_shown_for_every_shape(comparison: Comparison) -> None:
    spent = {name: round(one.training_passes) for name, one in spent_on_longest(comparison.points).items()}
    assert spent == {"sft, lora": 240, "mask, lora": 240}
    dear = comparison.points[0].spent.model_copy(update={"training_passes": 900.0})
    large = comparison.points[0].model_copy(update={"shape": "large", "spent": dear})
    short = large.model_copy(update={"method": "dft", "steps": 1})
    of_both = spent_on_longest([*comparison.points, large, short])
    found = {name: round(one.training_passes) for name, one in of_both.items()}
    assert found == {"sft, lora": 240, "mask, lora": 240, "sft, large": 900}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_every_picture_is_drawn_in_a_browser(comparison: Comparison, tmp_path: Path) -> None:
    write_report(tmp_path, comparison)
    report = (tmp_path / "report.html").read_text()
    probe = "<script>onload = () => document.title = [...document.images].map(i => i.naturalWidth).join()</script>"
    (tmp_path / "probe.html").write_text(report.replace("</body>", f"{probe}</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [*command, profile, (tmp_path / "probe.html").as_uri()], capture_output=True, text=True, check=True
    )
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    assert len(widths := title.split(",")) == 4
    assert all(int(width) > 0 for width in widths)
