"""Every error this package raises on purpose. Each is also the standard-library error that fits."""

from __future__ import annotations

# Exit codes of commands and jobs that an error ends: the same would end so again, or may do better another time.
GAVE_UP, STOPPED = 2, 3


class RewrightError(Exception):
    """Root of the errors that carry a message for the user: what, where, what to do.

    Attributes:
        may_pass: whether the same input and settings may do better another time.
    """

    may_pass = False

    @property
    def exit_code(self) -> int:
        """Of a command or a job that this error ends."""
        return STOPPED if self.may_pass else GAVE_UP


class RowError(RewrightError, ValueError):
    """One input row cannot be used; the other rows are unaffected.

    Attributes:
        line: 1-based line (JSONL) or row number of the input, None when there is no file.
        field: the offending field, None when the row as a whole is at fault.
    """

    def __init__(self, message: str, *, line: int | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.field = field


class InputFileError(RewrightError, ValueError):
    """The input as a whole cannot be read (missing, not a known format, truncated Parquet)."""


class OutputFileError(RewrightError, OSError):
    """The output cannot be written, or exists already and was not asked to be replaced."""


class OutputFailedError(OutputFileError):
    """The disk of the output is full or failing; what was written before can be resumed."""

    may_pass = True


class ResumeError(RewrightError, ValueError):
    """The output on disk does not belong to the input that is to be resumed."""


class ModelError(RewrightError, ValueError):
    """A base model cannot be found, is not allowed (pickled weights, remote code) or not supported."""


class ModelFetchError(ModelError):
    """The hub did not give a base model; it may when it is asked again."""

    may_pass = True


class AdapterError(RewrightError, ValueError):
    """An adapter is missing, malformed, or made for another base model."""


class ChatError(RewrightError, ValueError):
    """The model's chat template refuses the turns (no system turn, roles must alternate); only this row fails."""


class PromptTooLongError(RewrightError, ValueError):
    """Prompt plus completion do not fit the model's context; only this row fails."""


class EngineMemoryError(RewrightError, MemoryError):
    """The engine ran out of memory on this request; other requests go on."""


class EngineClosedError(RewrightError, RuntimeError):
    """The engine is shutting down or has been closed."""

    may_pass = True


class EngineCrashError(RewrightError, RuntimeError):
    """The engine's process died of this very request, the last time with nothing beside it; other requests go on."""


class MismatchError(RewrightError, ValueError):
    """The base model's score of a target is no finite number; only this row fails."""


class GateError(RewrightError, ValueError):
    """The gate cannot decide: unknown task, or the task lacks what its checks need."""


class SettingsError(RewrightError, ValueError):
    """A setting has a value that makes no sense; names the setting and where it came from."""
