"""The metrics of a training: `history.jsonl`, one record a line, and the same as TensorBoard events beside it.

Not here: what the metrics are (`trainer.metrics`, `trainer.evaluation`), and drawing them (`trainer.curves`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from agent.disk import write_whole
from trainer.exceptions import CheckpointError
from trainer.report import Kind


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What was measured at one step: of the step itself (`train`), or on the held-out rows (`eval`)."""

    step: int
    kind: Kind
    metrics: dict[str, float]


class History:
    """The history of one training, as a context manager that closes its files.

    Nothing is opened before the first `append` or `rewind`, which only one process may call.

    Args:
        path: of `history.jsonl`, in a folder that exists; what is there is gone on with.

    Raises:
        CheckpointError: the file that is there is broken; in every method.
        OSError: it cannot be read or written; in every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: FileIO | None = None
        self._events: SummaryWriter | None = None

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, step: int, kind: Kind, metrics: Mapping[str, float]) -> None:
        """Add one record, written when this returns; values that are not finite are left out."""
        if self._lines is None or self._events is None:
            self._lines, self._events = self._open(self.records(), purge_step=None)
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._lines.write(_line(StepMetrics(step, kind, finite)))
        for name, value in finite.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()

    def rewind(self, step: int) -> None:
        """Forget every record beyond `step`, so that what is trained again is not there twice."""
        self.close()
        kept = [record for record in self.records() if record.step <= step]
        self._lines, self._events = self._open(kept, purge_step=step + 1)

    def records(self) -> list[StepMetrics]:
        """All records so far, in order."""
        return read_history(self._path) if self._path.exists() else []

    def close(self) -> None:
        """Close both files; a later `append` opens them again."""
        if self._lines is not None:
            self._lines.close()
        if self._events is not None:
            self._events.close()
        self._lines = self._events = None

    def _open(self, records: list[StepMetrics], purge_step: int | None) -> tuple[FileIO, SummaryWriter]:
        """Start from `records`; TensorBoard is told to hide events from `purge_step` on."""
        write_whole(self._path, b"".join(_line(record) for record in records))
        events = SummaryWriter(str(self._path.with_name("tensorboard")), purge_step=purge_step)
        events.flush()
        return self._path.open("ab", buffering=0), events


def read_history(path: Path) -> list[StepMetrics]:
    """The records in a `history.jsonl`; a last line without its end, left by a killed process, is none.

    Raises:
        CheckpointError: another line is broken.
        OSError: the file cannot be read.
    """
    *lines, _ = path.read_bytes().split(b"\n")
    return [_parse(line, path, number) for number, line in enumerate(lines, 1)]


def _line(record: StepMetrics) -> bytes:
    return f"{json.dumps(asdict(record), allow_nan=False)}\n".encode()


def _parse(line: bytes, path: Path, number: int) -> StepMetrics:
    try:
        match json.loads(line):
            case {"step": int(step), "kind": "train" | "eval" as kind, "metrics": dict(metrics)}:
                return StepMetrics(step, kind, {str(name): float(value) for name, value in metrics.items()})
    except (ValueError, TypeError):
        pass
    raise CheckpointError(f"{path}: line {number} is not a record of a training; restore the file, or train anew")
