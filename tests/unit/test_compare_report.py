"""From results to report: what tables, headline and page say, nothing unescaped, nothing from elsewhere."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.compared import (
    compared,
)
from trainer.compare.figures import spent_on_longest
from trainer.compare.headline import headline
from trainer.compare.report import page, write_report
from trainer.compare.results import Comparison, Failure
from trainer.compare.tables import all_points, matchings, per_task, summary
from trainer.compare.text import markdown


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return compared(tmp_path)


def test_the_headline_is_that_of_the_match(comparison: Comparison) -> None:
    start = "With shape lora, at equal gain after the same 2 steps, mask (1 - F/F_sft = 0.50"
    assert comparison.headline.startswith(start)


def test_answers_that_the_limit_ended_are_told(comparison: Comparison) -> None:
    table = all_points(comparison)
    assert {row[table.columns.index("cut off, %")] for row in table.rows} == {"30.0"}


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
