"""What can be refused before anything is loaded: files that are missing, and what tells those that are there apart."""

from __future__ import annotations

from pathlib import Path

from agent.adapters import adapter_sha256, find_adapter, open_adapter
from agent.demonstrations import Demonstration
from agent.exceptions import AdapterError, InputFileError
from agent.intake import input_identity, read_rows
from agent.models import resolve_model
from agent.weights import weights_sha256
from trainer.agreement import check_batches
from trainer.compare.methods import BASE, METHODS
from trainer.compare.plan import Inputs
from trainer.compare.settings import CompareRequest
from trainer.data import Asked, asked
from trainer.exam.benchmarks import BENCHMARKS, load_local
from trainer.exam.request import read_tasks
from trainer.exam.retention import check_installed
from trainer.folder import process_count


def read_inputs(request: CompareRequest) -> Inputs:
    """Look at every file that the comparison needs.

    Raises:
        InputFileError, EvaluationError: demonstrations, questions or a benchmark are missing or cannot be read.
        AdapterError: a rewriter is missing.
        TrainingSettingsError: the settings do not fit together.
    """
    compare = request.compare
    check_batches(request.sft, process_count())
    return Inputs(
        train=_identity("train", compare.train),
        tasks=_tasks(request),
        adapters=_adapters(request),
    )


def check_models(request: CompareRequest) -> str:
    """Have the base model on this machine, and each rewriter checked against it.

    Returns:
        SHA-256 of the base model's weights.

    Raises:
        ModelError: the base model cannot be had.
        AdapterError: a rewriter is malformed, or was trained on another base model.
    """
    files = resolve_model(request.model)
    for name in _rewriters(request):
        open_adapter(request.compare.adapters[name], files.name, base=files.path)
    return weights_sha256(files.path)


def exam_tasks(request: CompareRequest) -> tuple[str, ...]:
    """The tasks of every exam, as `trainer.exam.request.read_tasks` reads them."""
    return (*(f"{name}={path}" for name, path in request.compare.accuracy.items()), *request.compare.retention)


def trained_and_asked(request: CompareRequest) -> list[str]:
    """A sentence on each file of questions some of which are trained on, too.

    Raises:
        InputFileError: a file cannot be read.
    """
    trained = _prompts(request.compare.train, request.compare.train_limit)
    told = []
    for name, path in request.compare.accuracy.items():
        questions = _prompts(path, None)
        if both := len(questions & trained):
            told.append(
                f"{both} of the {len(questions)} questions of {name} are trained on, too: its gain is partly memory."
            )
    return told


def _prompts(path: Path, limit: int | None) -> set[Asked]:
    return {asked(row) for row in read_rows(path, limit=limit) if isinstance(row, Demonstration)}


def _identity(setting: str, path: Path) -> str:
    if not path.exists():
        raise InputFileError(f"compare.{setting}: {path}: no such file or folder")
    return input_identity(path, whole=True)


def _tasks(request: CompareRequest) -> dict[str, str]:
    check_installed()
    tasks = read_tasks(exam_tasks(request))
    found = {name: _identity(f"accuracy.{name}", path) for name, path in tasks.accuracy.items()}
    for name in tasks.retention:
        folder = request.compare.benchmarks
        found[name] = load_local(name, folder).identity if folder else f"hub:{BENCHMARKS[name].hub}"
    return found


def _adapters(request: CompareRequest) -> dict[str, str]:
    found = {}
    for name in _rewriters(request):
        try:
            found[name] = adapter_sha256(find_adapter(request.compare.adapters[name]))
        except (OSError, ValueError) as error:
            raise AdapterError(f"compare.adapters.{name}: {error}") from error
    return found


def _rewriters(request: CompareRequest) -> list[str]:
    """Names of the adapters that the methods need."""
    return sorted({a for name in request.compare.methods if name != BASE and (a := METHODS[name].adapter)})
