"""Rows of columnar files (Parquet, the Arrow files of `datasets`) and of data sets of the hub, streamed.

Cells become JSON values: what JSON does not know is written as text (dates, decimals), a float that is not a
number is a missing value. Not here: what a row means (`agent.rows`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from agent.exceptions import InputFileError

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".parquet", ".arrow")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?", re.ASCII)

_BATCH_ROWS = 16  # few: each row becomes its own text, though a small file may store one of megabytes for all
_AS_TEXT = (date, time, timedelta, Decimal, UUID)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input before it is understood.

    Attributes:
        line: 1-based line, or row number where there are no lines.
        value: the JSON value, when there is no `problem`.
        problem: why there is no value.
    """

    line: int
    value: object = None
    problem: str | None = None


def read_table(file: Path) -> Iterator[Row]:
    """Rows of a `.parquet` or `.arrow` file, a batch in memory at a time.

    Raises:
        InputFileError: the file is damaged or of another format, or two of its columns have one name.
    """
    import pyarrow as pa

    batches = _parquet_batches(file) if file.suffix == ".parquet" else _arrow_batches(file)
    number = 0
    try:
        for batch in batches:
            for index in range(batch.num_rows):
                number += 1
                yield _row(batch, index, number)
    except InputFileError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # a damaged file may claim any size
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputFileError(f"{file}: not a readable {file.suffix[1:]} file, row {number + 1}: {reason}") from None


def read_hub(name: str) -> Iterator[Row]:
    """Rows of `org/name[/config][:split]` on the hub, streamed; `train` unless a split is named. Runs no code of it.

    Raises:
        InputFileError: there is no such data set, configuration or split, or it cannot be reached.
    """
    import datasets

    path, _, split = name.partition(":")
    owner, repository, *config = path.split("/")
    try:
        rows = datasets.load_dataset(f"{owner}/{repository}", *config, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield Row(number, _json_object(row))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).splitlines()[:2]) or type(error).__name__  # the second may list configurations
        which = "data set of the hub (org/name[/config][:split])"
        message = f"{name}: no such file or folder, and no {which} that could be read: {reason}"
        raise InputFileError(message) from None


def _parquet_batches(file: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        _refuse_repeated_columns(file, opened.schema_arrow.names)
        yield from opened.iter_batches(batch_size=_BATCH_ROWS)


def _arrow_batches(file: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with file.open("rb") as opened, pa.ipc.open_stream(opened) as stream:
        _refuse_repeated_columns(file, stream.schema.names)
        for batch in stream:
            batch.validate(full=True)  # offsets of an untrusted file may point anywhere
            yield batch


def _refuse_repeated_columns(file: Path, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputFileError(f"{file}: {names.count(name)} columns are named {name!r}; keep one of them")


def _row(batch: pa.RecordBatch, index: int, number: int) -> Row:
    try:
        cells = {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        return Row(number, _json_object(cells))
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date out of range, binary data
        return Row(number, problem=f"a cell cannot be read: {error}")


def _json_object(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _json_value(cell) for name, cell in cells.items()}


def _json_value(cell: Any) -> Any:
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    if isinstance(cell, _AS_TEXT):
        return str(cell)
    if isinstance(cell, bytes):
        return cell.decode()
    if isinstance(cell, dict):
        return _json_object(cell)
    if isinstance(cell, Iterable) and not isinstance(cell, str):
        return [_json_value(item) for item in cell]
    return cell
