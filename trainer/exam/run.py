"""An exam from request to result: data, engine, then one task after the other, each kept as soon as it is finished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from agent.adapters import open_adapter
from agent.assembly import load_adapter, open_chat, open_engine
from agent.chat import ChatFormat
from agent.engine import Engine, LocalEngine
from agent.gate.answer_checker import AnswerChecker
from agent.models import ModelFiles, resolve_model
from trainer.devices import with_dtype
from trainer.exam import accuracy, divergence, retention
from trainer.exam.accuracy import Questions, load_questions, measure_accuracy
from trainer.exam.benchmarks import BENCHMARKS, LocalRows
from trainer.exam.divergence import Drawn, check_same_tokens, draw_from_base, measure_divergence, that_fit
from trainer.exam.files import ResultFile, check_output
from trainer.exam.identity import identity_of, rounding_note
from trainer.exam.request import EvaluationRequest, read_tasks
from trainer.exam.results import DIVERGENCE, EvaluationResult, TaskResult
from trainer.exceptions import EvaluationError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is: rows done, of how many; completions where the divergence is measured."""

    task: str
    done: int
    total: int


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class _Room:
    """Where tasks are run: the loaded model, and the file that keeps what they find."""

    file: ResultFile
    runner: asyncio.Runner
    engine: Engine
    chat: ChatFormat
    adapter: str | None


def run_evaluation(
    request: EvaluationRequest, *, resume: bool = False, on_report: Report | None = None
) -> EvaluationResult:
    """Examine a model, and write `request.output` with its samples beside it.

    Blocks for as long as it takes, in a thread without a running event loop. Interrupted, it goes on with `resume`.

    Args:
        request: which model, and what is asked.
        resume: keep the tasks that are finished in the output, and run the others.
        on_report: called as a task goes on.

    Raises:
        EvaluationError: an unknown task, a missing benchmark file, no row to measure, or lm-eval is not installed.
        InputFileError, OutputFileError, ResumeError, ModelError, AdapterError: as reader, writer, model and adapter do.
    """
    check_output(request.output, resume=resume)
    exam = _Exam(request, on_report or (lambda _: None))
    file = ResultFile(request.output, exam.empty_result(), resume=resume)
    with asyncio.Runner() as runner, ExitStack() as stack:
        exam.run(file, runner, stack)
    return file.result


class _Exam:
    """One exam: what is asked is read before anything is loaded."""

    def __init__(self, request: EvaluationRequest, on_report: Report) -> None:
        self._request = request.model_copy(update={"engine": with_dtype(request.engine)})
        self._settings, self._on_report = request.evaluate, on_report
        tasks = read_tasks(request.tasks)
        if tasks.retention:
            retention.check_installed()
        seed = request.evaluate.seed
        self._questions: dict[str, Questions] = {
            name: load_questions(name, path, limit=request.limit, seed=seed) for name, path in tasks.accuracy.items()
        }
        self._local: dict[str, LocalRows] = {}
        if request.data is not None:
            for name in tasks.retention:
                self._local[name] = retention.load_rows(name, request.data, limit=request.limit, seed=seed)
        self._benchmarks = tasks.retention
        self._files = resolve_model(request.model)
        self._adapter = (
            open_adapter(request.adapter, self._files.name, base=self._files.path) if request.adapter else None
        )
        self._base = resolve_model(request.base) if request.base else None

    def empty_result(self) -> EvaluationResult:
        """Who is examined and how, without a task."""
        base = self._base or (self._files if self._adapter else None)
        # What an adapter changes is computed beside the weights, not rounded with them.
        note = None if self._adapter else rounding_note(self._files.path, self._request.engine.dtype)
        return EvaluationResult(
            model=identity_of(self._files, self._adapter),
            base=identity_of(base) if base else None,
            notes=[note] if note else [],
            settings={
                "limit": self._request.limit,
                "dtype": self._request.engine.dtype,
                "engine": self._request.engine.kind,
                "max_length": self._request.engine.max_length,
                "quantization": self._request.engine.vllm.quantization,
                "math_timeout_s": self._request.gate.math_timeout_s,
                **self._settings.model_dump(mode="json", exclude={"concurrency"}),
            },
        )

    def run(self, file: ResultFile, runner: asyncio.Runner, stack: ExitStack) -> None:
        """Run the tasks that `file` does not have."""
        asked = {name: q for name, q in self._questions.items() if not file.finished(name, q.identity)}
        measured_from_base = self._questions if self._base or self._adapter else {}
        moved = {n: q for n, q in measured_from_base.items() if not file.finished(f"{DIVERGENCE}{n}", q.identity)}
        kept = [name for name in self._benchmarks if not file.finished(name, self._identity(name))]
        if not (asked or moved or kept):
            return
        chat = open_chat(self._files)
        draws = self._draw_elsewhere(runner, chat, moved) if self._base and moved else {}
        engine = stack.enter_context(_opened(runner, self._files, self._request))
        adapter = runner.run(load_adapter(engine, self._adapter.path, self._files)) if self._adapter else None
        room = _Room(file, runner, engine, chat, adapter)
        if asked:
            answers = AnswerChecker(self._request.gate.math_timeout_s, self._request.gate.math_workers)
            stack.callback(answers.close)
            for name, questions in asked.items():
                self._ask(room, answers, name, questions)
        for name, questions in moved.items():
            self._compare(room, name, questions, draws.get(name))
        for name in kept:
            self._retain(room, name)

    def _identity(self, benchmark: str) -> str:
        local = self._local.get(benchmark)
        return local.identity if local else f"hub:{BENCHMARKS[benchmark].hub}"

    def _draw_elsewhere(
        self, runner: asyncio.Runner, chat: ChatFormat, tasks: dict[str, Questions]
    ) -> dict[str, Drawn]:
        """Draw from a base model that is no part of the examined one, and let go of it."""
        assert self._base is not None
        base_chat = open_chat(self._base)
        for questions in tasks.values():
            check_same_tokens(chat, base_chat, questions.asked[: self._settings.kl_rows])
        with _opened(runner, self._base, self._request) as engine:
            return {
                name: runner.run(draw_from_base(engine, base_chat, questions.asked, self._settings))
                for name, questions in tasks.items()
            }

    def _ask(self, room: _Room, answers: AnswerChecker, name: str, questions: Questions) -> None:
        started = time.monotonic()
        total, timeouts = len(questions.asked), answers.timeouts
        self._on_report(Progress(name, 0, total))
        records, refused = room.runner.run(
            measure_accuracy(
                room.engine,
                room.chat,
                questions.asked,
                answers,
                self._settings,
                adapter=room.adapter,
                on_row=lambda done: self._on_report(Progress(name, done, total)),
            )
        )
        about: dict[str, Any] = {
            "kind": "accuracy",
            "data": questions.identity,
            "left_out": {**questions.left_out, **refused},
            "primary": accuracy.PRIMARY,
            "chat_template": True,
        }
        if not records:
            room.file.add(name, TaskResult(**about, not_run="no question can be asked"), [])
            return
        result = TaskResult(
            **about,
            rows=total - refused.total(),
            timeouts=answers.timeouts - timeouts,
            metrics=accuracy.accuracy_metrics(records, self._settings.samples),
            seconds=_since(started),
        )
        room.file.add(name, result, records)

    def _compare(self, room: _Room, name: str, questions: Questions, drawn: Drawn | None) -> None:
        """`drawn` is that of a base model of its own; None draws from the examined one without its adapter."""
        started = time.monotonic()
        task = f"{DIVERGENCE}{name}"
        if drawn is None:
            drawn = room.runner.run(draw_from_base(room.engine, room.chat, questions.asked, self._settings))
        drawn = that_fit(drawn, room.engine.info.max_length)
        about: dict[str, Any] = {
            "kind": "divergence",
            "data": questions.identity,
            "left_out": dict(drawn.left_out),
            "primary": divergence.PRIMARY,
            "higher_is_better": False,
            "chat_template": True,
        }
        if not drawn.draws:
            room.file.add(task, TaskResult(**about, not_run="no question is left to measure it on"), [])
            return
        total = len(drawn.draws)
        self._on_report(Progress(task, 0, total))
        try:
            records = room.runner.run(
                measure_divergence(
                    room.engine,
                    drawn.draws,
                    self._settings,
                    adapter=room.adapter,
                    on_row=lambda done: self._on_report(Progress(task, done, total)),
                )
            )
        except EvaluationError as error:  # it diverged: the other tasks go on
            room.file.add(task, TaskResult(**about, not_run=str(error)), [])
            return
        result = TaskResult(
            **about,
            rows=len({record["row"] for record in records}),
            metrics=divergence.divergence_metrics(records),
            seconds=_since(started),
        )
        room.file.add(task, result, records)

    def _retain(self, room: _Room, name: str) -> None:
        from trainer.exam.lm import EngineLM

        started = time.monotonic()
        benchmark, local = BENCHMARKS[name], self._local.get(name)
        lm = EngineLM(
            room.runner,
            room.engine,
            room.chat,
            room.adapter,
            self._settings,
            needs_greedy=benchmark.greedy,
            on_rows=lambda done, total: self._on_report(Progress(name, done, total)),
        )
        about: dict[str, Any] = {
            "kind": "retention",
            "data": self._identity(name),
            "primary": benchmark.primary,
            "higher_is_better": benchmark.higher_is_better,
            "chat_template": benchmark.chat,
        }
        try:
            if local:
                found = retention.measure_local(name, local, lm, self._settings)
            else:
                found = retention.measure_from_hub(name, lm, self._settings, limit=self._request.limit)
        except EvaluationError as error:  # no network, a row that does not fit: the other tasks go on
            room.file.add(name, TaskResult(**about, not_run=str(error)), [])
            return
        left_out = local.left_out if local else found.left_out
        result = TaskResult(
            **about,
            rows=len(found.records),
            left_out=dict(left_out),
            cut=len(lm.cut),
            metrics=found.metrics,
            seconds=_since(started),
        )
        room.file.add(name, result, found.records)


@contextmanager
def _opened(runner: asyncio.Runner, files: ModelFiles, request: EvaluationRequest) -> Iterator[LocalEngine]:
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights being loaded
    engine = runner.run(open_engine(files, request.engine))
    try:
        yield engine
    finally:
        runner.run(engine.close())


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
