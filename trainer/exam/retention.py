"""Retention: public benchmarks asked through lm-eval, with the engine as its model.

lm-eval builds the prompts, and turns what the model says into metrics of a row; the figures of the whole and their
standard errors are ours (`trainer.exam.statistics`). Rows of local files reach it as a JSON file of their own, so that
a limit is a fixed subset and a row that cannot be read stops nothing.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.exam import ifeval
from trainer.exam.accuracy import subset
from trainer.exam.benchmarks import BENCHMARKS, Aggregation, LocalRows, load_local
from trainer.exam.results import Measure
from trainer.exam.settings import EvaluateSettings
from trainer.exam.statistics import Term, bits, perplexity, ratio
from trainer.exceptions import EvaluationError

_AGGREGATE: dict[Aggregation, Callable[[Sequence[Term]], Measure]] = {
    "mean": ratio,
    "perplexity": perplexity,
    "bits": bits,
}


@dataclass(frozen=True, slots=True)
class Retained:
    """What one benchmark found.

    Attributes:
        metrics: lm-eval's metrics of the rows, put together by us.
        records: one a row.
        left_out: how many rows were not measured, by reason.
    """

    metrics: dict[str, Measure]
    records: list[dict[str, Any]]
    left_out: Counter[str]


def check_installed() -> None:
    """Raises EvaluationError when lm-eval is not there."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise EvaluationError("benchmarks need lm-eval: install this package with its extra `eval`") from None


def load_rows(name: str, folder: Path, *, limit: int | None, seed: int) -> LocalRows:
    """The rows of a local benchmark that will be asked: at most `limit`, drawn by `seed`.

    Raises:
        EvaluationError, InputFileError: as `load_local`; also when all rows need a resource that is not installed.
    """
    found = load_local(name, folder)
    rows, left_out = found.rows, found.left_out
    if name == "ifeval":
        kept, refused = usable(rows)
        rows, left_out = [rows[i] for i in kept], left_out + refused
        if not rows:
            raise EvaluationError(f"benchmark {name}: no row can be checked: {dict(left_out)}")
    return LocalRows([rows[i] for i in subset(len(rows), limit, f"{seed}/{name}")], left_out, found.identity)


def why_not_asked(doc: dict[str, Any]) -> str | None:
    """Why a row of IFEval is left out, None when it is not."""
    if ifeval.unknown_instructions(doc):
        return "lm-eval does not know its instructions"
    if ifeval.needs_punkt(doc) and not ifeval.punkt_is_installed():
        return ifeval.MISSING
    return ifeval.why_not_checked(doc)


def usable(docs: Sequence[dict[str, Any]]) -> tuple[list[int], Counter[str]]:
    """Indices of the rows of IFEval that can be asked, and how many cannot, by reason."""
    reasons = [why_not_asked(doc) for doc in docs]
    return [i for i, reason in enumerate(reasons) if reason is None], Counter(filter(None, reasons))


def measure_local(name: str, rows: LocalRows, lm: Any, settings: EvaluateSettings) -> Retained:
    """Ask the rows of a local file."""
    with tempfile.TemporaryDirectory(prefix="rewright-") as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows.rows), encoding="utf-8")
        config = {
            "task": name,
            **BENCHMARKS[name].config,
            **_functions(name, settings),
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": folder},
            "test_split": "test",
        }
        return _measure(name, config, lm, None, settings)


def measure_from_hub(name: str, lm: Any, settings: EvaluateSettings, *, limit: int | None) -> Retained:
    """Ask lm-eval's own task of this name, its data fetched from the hub.

    Raises:
        EvaluationError: the data cannot be fetched.
    """
    import lm_eval.tasks

    definition = Path(lm_eval.tasks.__file__).parent / BENCHMARKS[name].hub
    if name == "ifeval":
        ifeval.metrics()  # imported before lm-eval imports it, and downloads
    return _measure(name, str(definition), lm, limit, settings)


def _functions(name: str, settings: EvaluateSettings) -> dict[str, Any]:
    """The parts of a local task that are lm-eval's own code."""
    if name == "hellaswag":
        from lm_eval.tasks.hellaswag.utils import process_docs

        return {"process_docs": process_docs}
    if name == "wikitext":
        from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

        return {"doc_to_target": wikitext_detokenizer, "process_results": process_results}
    if name == "ifeval":
        process, metric_list = ifeval.metrics()
        return {
            "process_results": process,
            "metric_list": metric_list,
            "generation_kwargs": {
                "until": [],
                "do_sample": False,
                "temperature": 0.0,
                "max_gen_toks": settings.ifeval_max_tokens,
            },
        }
    return {}


def _measure(
    name: str,
    task: dict[str, Any] | str,
    lm: Any,
    limit: int | None,
    settings: EvaluateSettings,
) -> Retained:
    import datasets
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    benchmark = BENCHMARKS[name]
    with _quietly(datasets):
        try:
            loaded = TaskManager(include_defaults=False).load([task])
        except (OSError, ConnectionError, ValueError) as error:
            raise EvaluationError(f"benchmark {name}: lm-eval cannot load it: {error}; give --data FOLDER") from error
        ((label, asked),) = loaded["tasks"].items()
        samples, left_out = None, Counter[str]()
        if isinstance(task, str):
            samples, left_out = _choose(name, label, asked, limit, settings)
        # Counted only: lm-eval's perplexity overflows for a model that diverged, and its figures are not needed.
        asked.aggregation = lambda: dict.fromkeys(benchmark.metrics, len)
        # `simple_evaluate` is this and a description of the machine, which takes seconds and is not ours to publish.
        found = evaluator.evaluate(
            lm, loaded, samples=samples, bootstrap_iters=0, apply_chat_template=benchmark.chat, log_samples=True
        )
    rows = found["samples"][label]
    metrics = {
        metric: _AGGREGATE[aggregation]([_term(row[metric]) for row in rows])
        for metric, aggregation in benchmark.metrics.items()
    }
    return Retained(metrics, [_record(row, benchmark.metrics) for row in rows], left_out)


def _choose(
    name: str, label: str, task: Any, limit: int | None, settings: EvaluateSettings
) -> tuple[dict[str, list[int]], Counter[str]]:
    """Which rows of a task of the hub are asked."""
    docs = task.eval_docs
    kept, left_out = list(range(len(docs))), Counter[str]()
    if name == "ifeval":
        kept, left_out = usable(docs)
        options = {"max_gen_toks": settings.ifeval_max_tokens}
        task.set_config("generation_kwargs", options, update=True)
    chosen = [kept[i] for i in subset(len(kept), limit, f"{settings.seed}/{name}")]
    return {label: chosen}, left_out


def _term(value: Any) -> Term:
    """A row's metric as value and weight."""
    if isinstance(value, tuple):
        return float(value[0]), float(value[1])
    if isinstance(value, list):  # one verdict an instruction
        return float(sum(value)), float(len(value))
    return float(value), 1.0


def _record(row: dict[str, Any], metrics: dict[str, Aggregation]) -> dict[str, Any]:
    """What is kept of a row: what was asked, what came back, and every metric as value and weight."""
    responses = [responses[0] for responses in row["resps"]]
    texts = isinstance(responses[0], str)
    return {
        "row": row["doc"].get("row", row["doc_id"]),
        "asked": [list(map(_plain, arguments)) for arguments in row["arguments"]],
        "target": _plain(row["target"]),
        "responses": responses if texts else [r[0] if isinstance(r, tuple | list) else r for r in responses],
        "metrics": {name: _term(row[name]) for name in metrics},
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | dict) else str(value)


@contextmanager
def _quietly(datasets: Any) -> Iterator[None]:
    """Without the bars of lm-eval and of `datasets`, and lm-eval's remarks on its own definitions.

    Progress is told in one place, the command line.
    """
    from lm_eval.api import task

    log = logging.getLogger("lm_eval")
    bar, level, shown = task.tqdm, log.level, datasets.utils.logging.is_progress_bar_enabled()
    task.tqdm = partial(bar, disable=True)
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        task.tqdm = bar
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
