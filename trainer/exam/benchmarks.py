"""The retention benchmarks: their files on disk, what a row must hold, and how lm-eval asks them.

Prompts, targets and metrics are those of lm-eval's own tasks of these names. Rows of local files are checked here and
handed to lm-eval as JSON; without local files lm-eval fetches its own data sets from the hub.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent.exceptions import InputFileError
from agent.strict_json import JsonValueError, check_json_value, parse_json
from trainer.exceptions import EvaluationError

Row = dict[str, Any]
# How a row's metric becomes a figure: see `trainer.exam.statistics`.
Aggregation = Literal["mean", "perplexity", "bits"]

_TITLE = re.compile(r"^ = [^=\n].*[^=\n] = $", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    Attributes:
        pattern: where its file is in the folder of benchmarks; the first that matches, by name.
        read: the fields that lm-eval needs of a row; raises KeyError, TypeError or ValueError for a row without them.
        hub: lm-eval's definition, below its folder of tasks.
        metrics: what lm-eval reports, and how it is averaged.
        primary: the metric that stands for the benchmark.
        config: of the local task, but for its data.
        greedy: whether a metric asks if greedy decoding gives the target.
        chat: whether prompts are put into the chat format.
    """

    pattern: str
    read: Callable[[Row], Row]
    hub: str
    metrics: dict[str, Aggregation]
    primary: str
    config: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True
    greedy: bool = False
    chat: bool = False


@dataclass(frozen=True, slots=True)
class LocalRows:
    """The rows of one local file.

    Attributes:
        rows: usable ones, each with its place in the file as `row`: a line, or the page of a text, from 1.
        left_out: how many are not usable, by reason.
        identity: what tells the file from others.
    """

    rows: list[Row]
    left_out: Counter[str]
    identity: str


def load_local(name: str, folder: Path) -> LocalRows:
    """Read a benchmark's file in `folder`.

    Raises:
        EvaluationError: it is missing, or no row is usable.
        InputFileError: it cannot be read.
    """
    benchmark = BENCHMARKS[name]
    files = sorted(folder.glob(benchmark.pattern))
    if not files:
        raise EvaluationError(f"benchmark {name}: there is no file {folder / benchmark.pattern}")
    try:
        text = files[0].read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{files[0]}: cannot be read: {error}") from None
    left_out: Counter[str] = Counter()
    rows: list[Row] = []
    for number, value in _pages(text) if files[0].suffix == ".txt" else _lines(text):
        try:
            rows.append({"row": number, **benchmark.read(value)})
        except (KeyError, TypeError, ValueError):
            left_out["cannot be read"] += 1
    if not rows:
        raise EvaluationError(f"benchmark {name}: {files[0]} has no row that can be used")
    return LocalRows(rows, left_out, f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = parse_json(line)
                check_json_value(value)
            except JsonValueError:
                value = None
            yield number, value


def _pages(text: str) -> Iterator[tuple[int, Row]]:
    """The articles of a WikiText file, each from its title line to the next one; without a title, the whole text."""
    starts = [match.start() for match in _TITLE.finditer(text)] or [0]
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True), 1):
        yield number, {"page": text[start:stop]}


def _text(row: Row, field_name: str) -> str:
    value = row[field_name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(field_name)
    return value


def _texts(row: Row, field_name: str) -> list[str]:
    values = row[field_name]
    if not isinstance(values, list) or len(values) < 2 or not all(isinstance(v, str) and v.strip() for v in values):
        raise ValueError(field_name)
    return values


def _choice(row: Row, field_name: str, choices: list[str]) -> int:
    """The index of the right choice."""
    if isinstance(row[field_name], bool | float) or not 0 <= int(row[field_name]) < len(choices):
        raise ValueError(field_name)
    return int(row[field_name])


def _read_hellaswag(row: Row) -> Row:
    endings = _texts(row, "endings")
    texts = {name: _text(row, name) for name in ("activity_label", "ctx_a")}
    if not isinstance(row["ctx_b"], str):
        raise TypeError("ctx_b")
    return {**texts, "ctx_b": row["ctx_b"], "endings": endings, "label": str(_choice(row, "label", endings))}


def _read_choices(row: Row) -> Row:
    choices = _texts(row, "choices")
    return {"query": _text(row, "query").strip(), "choices": choices, "gold": _choice(row, "gold", choices)}


def _read_lambada(row: Row) -> Row:
    return {"context": _text(row, "context"), "continuation": _text(row, "continuation").strip()}


def _read_page(row: Row) -> Row:
    return {"page": _text(row, "page")}


def _read_ifeval(row: Row) -> Row:
    instructions, kwargs = row["instruction_id_list"], row["kwargs"]
    if not isinstance(instructions, list) or not instructions or not all(isinstance(i, str) for i in instructions):
        raise ValueError("instruction_id_list")
    if not isinstance(kwargs, list) or len(kwargs) != len(instructions) or not all(isinstance(k, dict) for k in kwargs):
        raise ValueError("kwargs")
    # As text: each instruction has arguments of its own, and a column has one type.
    return {
        "key": int(row["key"]),
        "prompt": _text(row, "prompt"),
        "instruction_id_list": instructions,
        "kwargs": json.dumps(kwargs),
    }


_ACCURACIES: dict[str, Aggregation] = {"acc": "mean", "acc_norm": "mean"}
_MULTIPLE_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}

BENCHMARKS: dict[str, Benchmark] = {
    "hellaswag": Benchmark(
        pattern="hellaswag/validation*.jsonl",
        read=_read_hellaswag,
        hub="hellaswag/hellaswag.yaml",
        metrics=_ACCURACIES,
        primary="acc_norm",
        config={**_MULTIPLE_CHOICE, "doc_to_text": "query"},
    ),
    "arc_easy": Benchmark(
        pattern="arc_easy/test*.jsonl",
        read=_read_choices,
        hub="arc/arc_easy.yaml",
        metrics=_ACCURACIES,
        primary="acc",
        config=_MULTIPLE_CHOICE,
    ),
    "piqa": Benchmark(
        pattern="piqa/validation*.jsonl",
        read=_read_choices,
        hub="piqa/piqa.yaml",
        metrics=_ACCURACIES,
        primary="acc",
        config=_MULTIPLE_CHOICE,
    ),
    "lambada": Benchmark(
        pattern="lambada/test*.jsonl",
        read=_read_lambada,
        hub="lambada/lambada_openai.yaml",
        metrics={"acc": "mean", "perplexity": "perplexity"},
        primary="acc",
        config={
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{' ' + continuation}}",
            "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        },
        greedy=True,
    ),
    "wikitext": Benchmark(
        pattern="wikitext2/test*.txt",
        read=_read_page,
        hub="wikitext/wikitext.yaml",
        metrics={"word_perplexity": "perplexity", "byte_perplexity": "perplexity", "bits_per_byte": "bits"},
        primary="word_perplexity",
        config={
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
        higher_is_better=False,
    ),
    "ifeval": Benchmark(
        pattern="ifeval/input_data*.jsonl",
        read=_read_ifeval,
        hub="ifeval/ifeval.yaml",
        metrics={
            "prompt_level_strict_acc": "mean",
            "inst_level_strict_acc": "mean",
            "prompt_level_loose_acc": "mean",
            "inst_level_loose_acc": "mean",
        },
        primary="prompt_level_strict_acc",
        config={"output_type": "generate_until", "doc_to_text": "prompt", "doc_to_target": 0},
        chat=True,
    ),
}
