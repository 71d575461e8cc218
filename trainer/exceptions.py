"""Every error the trainers raise on purpose; see `agent.exceptions` for those of the parts they use."""

from __future__ import annotations

from collections.abc import Sequence

from agent.exceptions import RewrightError

_NAMED_ROWS = 16


class TrainingDataError(RewrightError, ValueError):
    """The demonstrations cannot be trained on: too few are left, or the gate lacks what it needs."""


class TrainingSettingsError(RewrightError, ValueError):
    """Settings of a training contradict each other or the data."""


class FolderInUseError(TrainingSettingsError):
    """Another process works in the folder, perhaps one that is about to end: of a job that the cluster lost."""

    may_pass = True


class CheckpointError(RewrightError, ValueError):
    """A checkpoint is missing, or belongs to another training."""


class PublishError(RewrightError, OSError):
    """An adapter version or a model cannot be written, or exists already."""

    may_pass = True


class DivergedError(RewrightError, ArithmeticError):
    """A loss, a gradient or a score is not a finite number."""

    @classmethod
    def of_rows(cls, what: str, rows: Sequence[str]) -> DivergedError:
        """Names the rows that it came from."""
        more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        named = ", ".join(rows[:_NAMED_ROWS])
        return cls(
            f"{what} in the batch of rows {named}{more}; look at these rows, or start again in another output with a "
            "lower learning rate"
        )


class RolloutError(RewrightError, MemoryError):
    """The engine has not the memory to draw or score a row of a training, which can be resumed."""

    may_pass = True


class JobError(RewrightError, RuntimeError):
    """A Ray job cannot be submitted, followed or stopped as it was asked, or ended as it would end again."""


class JobFailedError(JobError):
    """A Ray job failed: a crash, a full disk, a machine that is gone."""

    may_pass = True


class JobStoppedError(JobError):
    """A Ray job was stopped before its end, by whoever asked the cluster to."""

    may_pass = True


class UnreachableError(JobError):
    """The cluster does not answer. A job that it runs is not affected."""

    may_pass = True


class EvaluationError(RewrightError, ValueError):
    """An exam cannot be held: an unknown task, a benchmark file that is missing, no row to measure."""
