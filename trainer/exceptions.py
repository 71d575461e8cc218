"""Every error the trainers raise on purpose; see `agent.exceptions` for those of the parts they use."""

from __future__ import annotations

from agent.exceptions import RewrightError


class TrainingDataError(RewrightError, ValueError):
    """The demonstrations cannot be trained on: too few are left, or the gate lacks what it needs."""


class TrainingSettingsError(RewrightError, ValueError):
    """Settings of a training contradict each other or the data."""


class CheckpointError(RewrightError, ValueError):
    """A checkpoint is missing, or belongs to another training."""


class PublishError(RewrightError, OSError):
    """An adapter version cannot be written, or exists already."""


class JobError(RewrightError, RuntimeError):
    """A Ray job could not be submitted, followed or stopped, or it failed."""


class EvaluationError(RewrightError, ValueError):
    """An exam cannot be held: an unknown task, a benchmark file that is missing, no row to measure."""
