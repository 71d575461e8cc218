"""What jobs of the kinds `train`, `sft` and `evaluate` become: a command line of `rewright`, and what it made.

The cluster starts commands through a shell, so nothing that a client chose is in the line but numbers: names are those
of versions that are there, and params travel in a settings file. Not here: starting the command (`server.cluster`).
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.adapters import CARD, adapter_versions
from agent.disk import write_whole
from agent.settings import GateSettings, ModelSettings, RewriteSettings
from server.adapters import AdapterStore
from server.exceptions import BadRequestError, InvalidFieldError
from server.jobs import Job
from server.published import publish, require_version, version_folder
from server.schemas import RewriteOptions
from server.settings import ServerSettings
from server.work_schemas import ClusterJob, EvaluateJob, TrainJob

_SETTINGS, _ADAPTER, _MODEL, _RESULT = "settings.toml", "adapter", "model", "result.json"
_SAMPLES = "result.samples.jsonl"
_MODEL_CARD = "sft.json"
_QUESTIONS = "questions"

# The setting of the command line that a param is.
_SETTING_OF = {
    "train": {
        "reward": "train.reward.preset",
        "rank": "train.lora.rank",
        "learning_rate": "train.optimizer.learning_rate",
        **{
            name: f"train.{name}"
            for name in (
                *("steps", "groups", "samples", "temperature", "eval_rows", "eval_samples", "eval_every"),
                *("save_every", "seed"),
            )
        },
    },
    "sft": {
        "rank": "sft.lora.rank",
        "weights": "sft.weights.kind",
        **{
            name: f"sft.{name}"
            for name in (
                *("method", "loss", "kl_weight", "learning_rate", "epochs", "steps", "batch_rows", "max_length"),
                *("save_every", "seed"),
            )
        },
    },
    "evaluate": {name: f"evaluate.{name}" for name in ("samples", "temperature", "top_p", "max_tokens", "seed")},
}


@dataclass(frozen=True, slots=True)
class Served:
    """What the service runs: what its jobs rewrite with, and its adapters are trained for."""

    model: ModelSettings = field(default_factory=ModelSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    rewrite: RewriteSettings = field(default_factory=RewriteSettings)

    def decides(self, options: RewriteOptions) -> str:
        """A hash of the settings that decide the rows of a job, its adapter apart.

        What is left at its default is not in it, so that a setting that a release adds changes none.
        """
        rewrite = self.rewrite.model_copy(update={"strategy": options.strategy or self.rewrite.strategy})
        undecided = {"adapter", "concurrency", "strategies"}
        decisive = {
            "model": self.model.model_dump(mode="json", exclude_defaults=True),
            "gate": self.gate.model_dump(mode="json", exclude_defaults=True, exclude={"math_workers"}),
            "rewrite": rewrite.model_dump(mode="json", exclude_defaults=True, exclude=undecided),
            "steps": [step.model_dump(mode="json") for step in rewrite.strategies.get(rewrite.strategy, ())],
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Made:
    """What a job made: versions by name, its report, and the samples of an exam."""

    report: Path
    samples: Path | None = None
    adapter: str | None = None
    model: str | None = None


class ClusterJobs:
    """Jobs that are commands on a cluster.

    Args:
        settings: where such jobs run, and where what they make is kept.
        served: base model, gate and sampling of the service.
    """

    def __init__(self, settings: ServerSettings, served: Served) -> None:
        self._settings, self._cluster = settings, settings.cluster
        name = served.model.name
        if Path(name).expanduser().is_dir():  # the command runs in another folder
            name = str(Path(name).expanduser().absolute())
        self._model = served.model.model_copy(update={"name": name})
        self._gate, self._rewrite = served.gate, served.rewrite
        self._adapters = settings.adapters.absolute() if settings.adapters else None
        self._models = settings.models_folder

    def accept(self, body: ClusterJob) -> tuple[str | None, str | None]:
        """The adapter and the fine-tuned model that a new job is about, as `name@version`; None for none.

        Raises:
            BadRequestError: the service has no such jobs.
            InvalidFieldError, UnknownNameError: the params name what is not there, or nothing to measure.
        """
        if self._cluster.dashboard is None:
            raise _unavailable(body.kind, "server.cluster.dashboard")
        if isinstance(body, TrainJob) and self._adapters is None:
            raise _unavailable(body.kind, "server.adapters")
        if not isinstance(body, EvaluateJob):
            return None, None
        params = body.params
        if unknown := [task for task in params.tasks if task not in self._cluster.benchmarks]:
            offered = ", ".join(self._cluster.benchmarks) or "none"
            raise _invalid("tasks", f"there is no benchmark {unknown[0]!r}; there are {offered}", "unknown_task")
        if len(set(params.tasks)) < len(params.tasks):
            raise _invalid("tasks", "a benchmark is there twice", "duplicate_task")
        if body.input_file is None and not params.tasks:
            raise _invalid("tasks", "there is nothing to measure: name an input_file or benchmarks", "nothing_to_do")
        if params.adapter is not None and params.model is not None:
            raise _invalid("model", "adapter and model exclude each other: adapters are the base model's", "exclusive")
        adapter = model = None
        if params.adapter is not None:
            adapter = AdapterStore(self._adapters).resolve(params.adapter)
        if params.model is not None:
            model = require_version(self._models, params.model, "model")
        return adapter, model

    def prepare(self, job: Job, folder: Path) -> None:
        """Make the working folder of a job, with its settings file. What is there already stays."""
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{line}\n" for line in self._settings_of(job))
        write_whole(folder / _SETTINGS, text)

    def command(self, job: Job, folder: Path, source: Path | None) -> str:
        """The line for the shell that does a job, or goes on with it.

        Args:
            job: what is to be done.
            folder: as `prepare` made it.
            source: the input file.
        """
        words = ["python", "-P", "-m", "cli.main", job.kind]
        if job.kind == "evaluate":
            words += self._exam(job, folder, source)
            resume = (folder / _RESULT).exists()
        else:
            made = folder / (_ADAPTER if job.kind == "train" else _MODEL)
            words += [str(source), "--output", str(made)]
            resume = any((made / "training").glob("checkpoint-*"))
        if "limit" in job.params:
            words += ["--limit", str(int(job.params["limit"]))]
        words += ["--config", str(folder / _SETTINGS), *(["--resume"] if resume else [])]
        # A shell without the folder would end as a command that gave up does: the node's mount may come back.
        return f"cd {shlex.quote(str(folder))} || exit 3; exec {shlex.join(words)}"

    def collect(self, job: Job, folder: Path) -> Made:
        """Publish what a job has made, once however often it is called.

        Raises:
            OSError: it cannot be written.
            FileNotFoundError, ValueError: the command made nothing, or something else.
        """
        if job.kind == "evaluate":
            return Made(folder / _RESULT, folder / _SAMPLES)
        name = str(job.params["name"])
        if job.kind == "sft":
            version = f"{name}@{publish(folder / _MODEL, self._models, name, _MODEL_CARD, job.id)}"
            return Made(version_folder(self._models, version) / _MODEL_CARD, model=version)
        assert self._adapters is not None
        versions = adapter_versions(folder / _ADAPTER)
        if not versions:
            raise FileNotFoundError("the training published no adapter")
        made = folder / _ADAPTER / str(versions[-1])
        version = f"{name}@{publish(made, self._adapters, name, CARD, job.id)}"
        return Made(version_folder(self._adapters, version) / CARD, adapter=version)

    def not_run(self, job: Job, folder: Path) -> str | None:
        """Why tasks of an exam that came to its end have no figures, a line each; None for any other work."""
        if job.kind != "evaluate":
            return None
        try:
            tasks = json.loads((folder / _RESULT).read_text())["tasks"]
            reasons = {name: task["not_run"] for name, task in tasks.items()}
        except (OSError, ValueError, KeyError):  # it made nothing
            return None
        if not reasons.keys() >= set(job.params.get("tasks", ())):  # broken off before it asked them all
            return None
        return "\n".join(f"{name}: not run: {reason}" for name, reason in reasons.items() if reason) or None

    def without_paths(self, text: str, folder: Path, source: Path | None, input_file: str | None) -> str:
        """What a command says, as clients may see it: where things lie is not their business."""
        if source is not None and input_file is not None:
            text = text.replace(str(source), input_file)
        for place in (folder, self._adapters, self._models, self._settings.state_folder, self._cluster.benchmark_data):
            if place is not None:
                text = text.replace(f"{place}/", "")
        return text.replace(f"{sys.prefix}/", "")

    def _exam(self, job: Job, folder: Path, source: Path | None) -> list[str]:
        tasks = list(job.params.get("tasks", ()))
        if source is not None:
            questions = folder / f"{_QUESTIONS}{source.suffix}"  # the list of tasks has commas between
            questions.unlink(missing_ok=True)
            questions.symlink_to(source)
            tasks.insert(0, f"{_QUESTIONS}={questions.name}")
        words: list[str] = []
        base = [self._model.name, *(["--revision", self._model.revision] if self._model.revision else [])]
        if job.model is None:
            words += base
        else:
            words += [str(version_folder(self._models, job.model)), "--base", self._model.name]
            words += ["--base-revision", self._model.revision] if self._model.revision else []
        if job.adapter is not None:
            assert self._adapters is not None
            words += ["--adapter", str(version_folder(self._adapters, job.adapter))]
        if self._cluster.benchmark_data is not None and len(tasks) > (source is not None):
            words += ["--data", str(self._cluster.benchmark_data.absolute())]
        return [*words, "--tasks", ",".join(tasks), "--output", _RESULT]

    def _settings_of(self, job: Job) -> Iterator[str]:
        """Lines of TOML."""
        rewrite = self._rewrite.model_dump(mode="json", exclude={"adapter"})
        if job.model is None:
            yield f"model = {_toml(self._model.model_dump(mode='json'))}"
        yield f"gate = {_toml(self._gate.model_dump(mode='json'))}"
        yield f"rewrite = {_toml(rewrite)}"
        yield f"engine.threads = {self._cluster.cpus}"
        if not self._cluster.gpus:
            yield 'engine.device = "cpu"'  # Ray may leave a machine's GPUs visible to a process that reserved none
        for name, setting in _SETTING_OF[job.kind].items():
            if name in job.params:
                yield f"{setting} = {_toml(job.params[name])}"


def remove_folder(folder: Path) -> None:
    """Remove the working folder of a job that is over."""
    shutil.rmtree(folder, ignore_errors=True)


def _toml(value: Any) -> str:
    """A value that came from JSON; what is null is left out of its table."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items() if v is not None)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _invalid(param: str, message: str, code: str) -> InvalidFieldError:
    return InvalidFieldError(f"params.{param}: {message}", code=code, param=f"params.{param}")


def _unavailable(kind: str, setting: str) -> BadRequestError:
    return BadRequestError(
        f"this service does not do jobs of kind {kind!r}: its setting {setting} is not set",
        code="kind_not_available",
        param="kind",
    )
