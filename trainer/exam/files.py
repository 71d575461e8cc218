"""The result of an exam on disk: `OUT.json`, and beside it `OUT.samples.jsonl` with every row that was measured.

A task is in the result once all its samples are on the disk, so a killed exam goes on with the tasks that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.disk import replacing, sync, write_whole
from agent.exceptions import OutputFileError, ResumeError
from trainer.exam.results import EvaluationResult, TaskResult


class ResultFile:
    """One exam's files.

    Args:
        path: of the result.
        empty: what this exam would begin with: model, base and settings, no task.
        resume: go on with the tasks that are not there.

    Raises:
        OutputFileError: there is a result already and it is not to be resumed, or its folder is missing.
        ResumeError: what is there was made of other weights or with other settings.
    """

    def __init__(self, path: Path, empty: EvaluationResult, *, resume: bool) -> None:
        self.path = path
        self.samples = samples_path(path)
        self.result = empty
        if path.exists():
            self.result = self._read(empty)
        if resume and self.samples.exists():
            self._drop_unfinished()
        elif not resume:
            self.samples.write_text("")

    def finished(self, task: str, data: str) -> bool:
        """Whether a task needs not be run again.

        Raises:
            ResumeError: it was measured on other rows.
        """
        found = self.result.tasks.get(task)
        if found is None or found.not_run is not None:
            return False
        if found.data != data:
            raise ResumeError(f"{self.path}: task {task} was measured on other data; write another output")
        return True

    def add(self, task: str, result: TaskResult, records: Sequence[dict[str, Any]]) -> None:
        """Keep a task's samples, then its result."""
        with self.samples.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(f"{json.dumps({'task': task, **record}, ensure_ascii=False, allow_nan=False)}\n")
        sync(self.samples)
        self.result = self.result.model_copy(update={"tasks": {**self.result.tasks, task: result}})
        write_whole(self.path, f"{self.result.model_dump_json(indent=2)}\n")

    def _read(self, empty: EvaluationResult) -> EvaluationResult:
        try:
            found = EvaluationResult.model_validate_json(self.path.read_bytes())
        except (OSError, ValidationError):
            raise ResumeError(f"{self.path}: is no result of an evaluation; write another output") from None
        for part in ("model", "base", "settings"):
            before, now = found.model_dump(mode="json")[part], empty.model_dump(mode="json")[part]
            if part != "settings" and before and now and before["tokenizer_sha256"] is None:
                before["tokenizer_sha256"] = now["tokenizer_sha256"]  # not written down by an earlier version
            if before != now:
                raise ResumeError(f"{self.path}: cannot be resumed: {_difference(part, before, now)}")
        # What an earlier version did not write down.
        return found.model_copy(update={"model": empty.model, "base": empty.base, "notes": empty.notes})

    def _drop_unfinished(self) -> None:
        """Leave out the samples of tasks that were running when the exam was killed."""
        finished = {task for task, result in self.result.tasks.items() if result.not_run is None}
        with replacing(self.samples) as unfinished, self.samples.open("rb") as before, unfinished.open("wb") as after:
            for line in before:
                try:
                    task = json.loads(line)["task"]
                except (ValueError, KeyError, TypeError):
                    continue
                if task in finished:
                    after.write(line)


def samples_path(path: Path) -> Path:
    """Where the samples of a result lie: beside `a.json` in `a.samples.jsonl`; other names are kept whole."""
    return path.with_name(f"{path.name.removesuffix('.json')}.samples.jsonl")


def check_output(path: Path, *, resume: bool) -> None:
    """What can be refused before anything is loaded. Raises OutputFileError."""
    if not path.absolute().parent.is_dir():
        raise OutputFileError(f"{path}: there is no folder {path.absolute().parent}")
    if path.is_dir():
        raise OutputFileError(f"{path}: is a folder; name a file, as in {path / 'result.json'}")
    if path.exists() and not resume:
        raise OutputFileError(f"{path}: exists already: resume it, or choose another output")
    samples = samples_path(path)
    if samples.exists() and samples.stat().st_size and not resume:
        raise OutputFileError(f"{samples}: holds samples already: resume their result, or choose another output")


def _difference(part: str, before: Any, now: Any) -> str:
    if not isinstance(before, dict) or not isinstance(now, dict):
        return f"{part} was {before} and is now {now}"
    name = next(name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
    return f"{part}.{name} was {before.get(name)!r} and is now {now.get(name)!r}"
