"""What an uploaded file is, decided while its bytes go by: JSON lines, Parquet, or neither.

A row that cannot be read does not make a bad file: it is counted, and becomes an error record when a job comes to it.
Refused is only what has no row at all. Not here: what the rows mean to a job (`agent.intake`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from agent.exceptions import RowError
from agent.intake import MAX_ROW_BYTES, PROBE
from agent.pieces import BLANK, BYTE_ORDER_MARK, too_long
from agent.rows import parse_row
from agent.strict_json import JsonValueError, check_json_value, parse_json
from server.exceptions import FileFormatError, TooLargeError

FileFormat = Literal["jsonl", "parquet", "json"]

_PARQUET = b"PAR1"
_OTHERS = {
    b"\x1f\x8b": "gzip: send it decompressed",
    b"PK\x03\x04": "a ZIP archive: send the file inside",
    b"\x28\xb5\x2f\xfd": "Zstandard: send it decompressed",
    b"BZh": "bzip2: send it decompressed",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
    b"ARROW1": "Arrow: save it as Parquet",
}
_HEAD = 8  # bytes that tell a format
_PROBLEMS = 10


@dataclass
class Finding:
    """What is known of a file's rows.

    Attributes:
        format: of the file.
        rows: how many there are.
        unreadable: how many of them cannot be read.
        problems: the first of those, `{"line", "message"}`.
    """

    format: FileFormat
    rows: int = 0
    unreadable: int = 0
    problems: list[dict[str, object]] = field(default_factory=list)


class FileCheck(Protocol):
    """Told the bytes of a file in their order, then that it is complete. Both raise FileFormatError."""

    def feed(self, chunk: bytes) -> None: ...

    def finish(self, path: Path) -> Finding: ...


class UploadCheck:
    """Tells the format by the first bytes, and has the rest checked as that.

    Args:
        parquet_bytes: bytes that a Parquet file may have decompressed.
    """

    def __init__(self, parquet_bytes: int) -> None:
        self._parquet_bytes = parquet_bytes
        self._head = b""
        self._check: FileCheck | None = None

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes.

        Raises:
            FileFormatError: this can be neither JSON lines nor Parquet.
        """
        if self._check is None:
            self._head += chunk
            if len(self._head) >= _HEAD:
                self._open().feed(self._head)
        else:
            self._check.feed(chunk)

    def finish(self, path: Path) -> Finding:
        """What the complete file is; `path` holds it.

        Raises:
            FileFormatError: neither JSON lines nor Parquet.
            TooLargeError: Parquet that is too large when decompressed.
        """
        if self._check is None:
            self._open().feed(self._head)
        assert self._check is not None
        return self._check.finish(path)

    def _open(self) -> FileCheck:
        for magic, name in _OTHERS.items():
            if self._head.startswith(magic):
                raise FileFormatError(f"the file is {name}", code="invalid_file", param="file", line=1)
        is_parquet = self._head.startswith(_PARQUET)
        self._check = _ParquetCheck(self._parquet_bytes) if is_parquet else _LinesCheck()
        return self._check


class _LinesCheck:
    """JSON lines. Holds the line that is arriving and nothing else."""

    def __init__(self) -> None:
        self._finding = Finding("jsonl")
        self._line = 0
        self._rest = b""
        self._too_long = False
        self._objects = 0

    def feed(self, chunk: bytes) -> None:
        if b"\0" in chunk:
            line = self._line + 1 + chunk[: chunk.index(0)].count(b"\n")
            raise FileFormatError(
                "the file is not text: it has a zero byte", code="invalid_file", param="file", line=line
            )
        first, *others = chunk.split(b"\n")
        self._add(first)
        for part in others:
            self._end_line()
            self._add(part)

    def finish(self, path: Path) -> Finding:
        if self._rest or self._too_long:
            self._end_line()
        if not self._finding.rows:
            raise FileFormatError("the file has no rows", code="empty_file", param="file")
        self._require_object()
        return self._finding

    def _add(self, part: bytes) -> None:
        if self._too_long:
            return
        self._rest += part
        if len(self._rest) > MAX_ROW_BYTES:
            self._rest, self._too_long = b"", True

    def _end_line(self) -> None:
        self._line += 1
        text = self._rest.removeprefix(BYTE_ORDER_MARK if self._line == 1 else b"").strip(BLANK)
        if text or self._too_long:
            self._finding.rows += 1
            problem = too_long(MAX_ROW_BYTES) if self._too_long else self._problem(text)
            if problem is not None:
                self._finding.unreadable += 1
                if len(self._finding.problems) < _PROBLEMS:
                    self._finding.problems.append({"line": self._line, "message": problem})
            if self._finding.rows == PROBE:
                self._require_object()
        self._rest, self._too_long = b"", False

    def _problem(self, text: bytes) -> str | None:
        try:
            value = parse_json(text.decode())
            self._objects += isinstance(value, dict)
            check_json_value(value)
            parse_row(value, line=self._line, number=self._finding.rows)
        except UnicodeDecodeError as error:
            return f"not UTF-8: byte 0x{text[error.start]:02x} at position {error.start + 1}"
        except (JsonValueError, RowError) as error:
            return str(error)
        return None

    def _require_object(self) -> None:
        if self._objects:
            return
        first = self._finding.problems[0]
        raise FileFormatError(
            f"the file is not JSON lines, one object a line, nor Parquet: line {first['line']}: {first['message']}",
            code="invalid_file",
            param="file",
            line=int(str(first["line"])),
        )


class _ParquetCheck:
    """Parquet: its description stands at the end, so it is looked at when the file is complete."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def feed(self, chunk: bytes) -> None:
        """Nothing to see yet."""

    def finish(self, path: Path) -> Finding:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as opened:
                metadata = opened.metadata
                size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
                rows = metadata.num_rows
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise FileFormatError(f"the file is damaged Parquet: {reason}", code="invalid_file", param="file") from None
        if size > self._max_bytes:
            raise TooLargeError(
                f"the file is {size} bytes decompressed, and may be {self._max_bytes}: send it in parts",
                code="file_too_large",
                param="file",
            )
        if rows < 1:
            raise FileFormatError("the file has no rows", code="empty_file", param="file")
        return Finding("parquet", rows)
