"""Which tasks are asked for, and what their files hold."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from trainer.exam import retention
from trainer.exam.benchmarks import load_local
from trainer.exam.request import read_tasks
from trainer.exam.settings import EvaluateSettings
from trainer.exceptions import EvaluationError

CHOICES = {"query": "Question: What is wet?\n", "choices": ["water", "sand"], "gold": 0}


def write(folder: Path, name: str, *rows: Any) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(row if isinstance(row, str) else f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_files_of_questions_have_names_of_their_own() -> None:
    tasks = read_tasks(["piqa", " sums=a=b.jsonl", "ifeval"])
    assert tasks.accuracy == {"sums": Path("a=b.jsonl")}
    assert tasks.retention == ("piqa", "ifeval")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hellaswg"], "unknown task 'hellaswg': known are hellaswag, arc_easy, piqa, lambada, wikitext, ifeval"),
        ([""], "unknown task ''"),
        (["piqa", "piqa"], "'piqa' is given twice"),
        (["a=x", "a=y"], "'a' is given twice"),
        (["piqa=x.jsonl"], "with a name of its own"),
        (["a="], "NAME=PATH"),
        (["a b=x"], "NAME=PATH"),
        ([], "no task is given"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_tasks(names)


def test_rows_keep_their_lines_and_bad_ones_are_counted(tmp_path: Path) -> None:
    bad = [
        "no json\n",
        "\n",
        "[1]\n",
        {**CHOICES, "gold": 2},
        {**CHOICES, "gold": True},
        {**CHOICES, "gold": None},
        {**CHOICES, "choices": ["water", " "]},
        {**CHOICES, "choices": ["water"]},
        {**CHOICES, "query": 3},
        {"query": "x"},
    ]
    found = load_local("piqa", write(tmp_path, "piqa/validation.jsonl", *bad, CHOICES))
    assert found.rows == [{"row": 11, "query": "Question: What is wet?", "choices": ["water", "sand"], "gold": 0}]
    assert found.left_out == {"cannot be read": 9}


@pytest.mark.parametrize(
    ("name", "file", "row"),
    [
        (
            "hellaswag",
            "hellaswag/validation_9.jsonl",
            {"activity_label": "a", "ctx_a": "b", "ctx_b": "", "endings": ["c", "d"], "label": "4"},
        ),
        ("lambada", "lambada/test.jsonl", {"context": "a", "continuation": " "}),
        ("ifeval", "ifeval/input_data.jsonl", {"key": 1, "prompt": "a", "instruction_id_list": ["b"], "kwargs": []}),
        ("wikitext", "wikitext2/test.txt", " \n"),
    ],
)
def test_a_file_without_a_usable_row_is_refused(tmp_path: Path, name: str, file: str, row: Any) -> None:
    with pytest.raises(EvaluationError, match="has no row that can be used"):
        load_local(name, write(tmp_path, file, row))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"benchmark lambada: there is no file .*lambada/test\*\.jsonl"):
        load_local("lambada", tmp_path)


def test_a_text_is_cut_at_the_titles_of_its_articles(tmp_path: Path) -> None:
    first = " = Robert = \n \n Robert is an actor . \n \n = = Career = = \n \n He acts . \n \n"
    second = " = Du Fu = \n \n A poet of 712 = 770 . \n"
    found = load_local("wikitext", write(tmp_path, "wikitext2/test.txt", f" \n{first}", second))
    assert [(row["row"], row["page"]) for row in found.rows] == [(1, first), (2, second)]
    whole = load_local("wikitext", write(tmp_path, "wikitext2/test.txt", "no title \n"))
    assert [row["page"] for row in whole.rows] == ["no title \n"]


def test_each_row_of_ifeval_is_judged_once_and_counted_by_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []

    def why(row: dict[str, str]) -> str | None:
        judged.append(row["row"])
        return row.get("why")

    monkeypatch.setattr(retention, "why_not_asked", why)
    rows = [{"row": "1"}, {"row": "2", "why": "no punkt"}, {"row": "3"}, {"row": "4", "why": "no punkt"}]
    assert retention.usable(rows) == ([0, 2], {"no punkt": 2})
    assert judged == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"relation": "at least", "num_words": 40}, None),
        ({"relation": "at least", "num_words": 40, "language": None}, None),
        ({"relation": "at least", "words": 40}, "do not take the arguments"),
        ({"relation": "at leat", "num_words": 40}, "do not take the arguments"),
        ({"relation": "at least", "num_words": "forty"}, "do not take the arguments"),
        ({"relation": "at least"}, "at random"),
        ({"relation": "at least", "num_words": 0}, "at random"),
    ],
)
def test_a_row_of_ifeval_whose_checks_fail_or_are_drawn_is_not_asked(kwargs: dict[str, Any], why: str | None) -> None:
    doc = {"key": 1, "prompt": "Write.", "instruction_id_list": ["length_constraints:number_words"]}
    for given in ([kwargs], json.dumps([kwargs])):  # as on the hub, and as in a local file
        found = retention.why_not_asked({**doc, "kwargs": given})
        assert found is None if why is None else found is not None and why in found


class Diverged(LM):  # type: ignore[misc]  # lm-eval is not typed
    """A model that finds every text so unlikely that its perplexity is no number of a computer."""

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        return [(-1000.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        return [-1e6] * len(requests)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "file", "row", "figures"),
    [
        ("lambada", "lambada/test.jsonl", {"context": "a", "continuation": "b"}, {"acc": 0, "perplexity": math.inf}),
        (
            "wikitext",
            "wikitext2/test.txt",
            " = One two = \n",
            {"word_perplexity": math.inf, "byte_perplexity": math.inf, "bits_per_byte": 1e6 / 14 / math.log(2)},
        ),
    ],
)
def test_a_model_that_diverged_has_an_infinite_perplexity_and_loses_no_figure(
    tmp_path: Path, name: str, file: str, row: Any, figures: dict[str, float]
) -> None:
    found = retention.measure_local(name, load_local(name, write(tmp_path, file, row)), Diverged(), EvaluateSettings())
    assert {metric: measure.value for metric, measure in found.metrics.items()} == pytest.approx(figures)
    assert len(found.records) == 1
