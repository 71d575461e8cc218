"""Reads demonstrations from a file, a folder, a pipe or a data set of the hub, one at a time.

Every row comes out, in order, as a demonstration or as a bad row that says what is wrong with it; only a
source that cannot be read as a whole raises. What a row means is in `agent.rows`; columnar files are opened
in `agent.tables`. Callers must not pass names chosen by a remote client.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedIOBase, BufferedReader, BytesIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, cast

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import InputFileError, RowError
from agent.pieces import BLANK, BYTE_ORDER_MARK, Piece, array_elements, lines, too_long
from agent.rows import not_an_object, own_id, parse_row
from agent.strict_json import JsonValueError, check_json_value, parse_json
from agent.tables import HUB_NAME, TABLE_SUFFIXES, Row, read_hub, read_table

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_ROW_BYTES = 16 * 2**20  # longest JSON text of one row; a longer one is skipped and reported
PROBE = 100  # rows without a JSON object among them are none

_LINE_SUFFIXES = (".jsonl", ".ndjson")
_SEPARATED_SUFFIXES = (".csv", ".tsv")
_SUFFIXES = (*_LINE_SUFFIXES, ".json", *TABLE_SUFFIXES)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json")  # what `datasets` writes beside the rows
_SIDE_FILES = (
    ".run.json",
    ".early.jsonl",
    ".failed.jsonl",
    ".parquet.journal.jsonl",
)  # what `rewrite` writes beside OUT
_GENERATED_ID = re.compile(r"row-([1-9]\d{0,8})", re.ASCII)
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_PEEK = 1 << 12
_PIPE = Path("standard input")


def read_rows(path: Path, *, limit: int | None = None) -> Iterator[Demonstration | BadRow]:
    """Read the rows of `path`, in order and with bounded memory (about 130 bytes a row for its own id).

    Args:
        path: JSON lines (`.jsonl`, `.ndjson`), JSON (`.json`: an array, one object, or lines), Parquet, an
            Arrow file of `datasets`, any JSON form with `.gz`; a folder of such files, read in the order of
            their names, without hidden ones and what `rewrite` writes beside OUT (a folder saved by `datasets`
            is one); or a data set of the hub (`on_hub`). Other files are told by their first bytes.
        limit: rows read at most.

    Raises:
        InputFileError: missing, unreadable, or not what it claims to be.
    """
    return itertools.islice(_Intake().rows(_read_path(path)), limit)


def read_stream(stream: BufferedIOBase, *, limit: int | None = None) -> Iterator[Demonstration | BadRow]:
    """As `read_rows`, for JSON lines or a JSON array from a pipe.

    Raises:
        InputFileError: Parquet, which needs a file.
    """
    return itertools.islice(_Intake().rows(_with_an_object(_read_pipe(stream), _PIPE)), limit)


def read_json_rows(rows: Iterable[object]) -> Iterator[Demonstration | BadRow]:
    """Read rows that are parsed already; `line` counts them from 1."""
    return _Intake().rows(Row(number, value) for number, value in enumerate(rows, 1))


def on_hub(path: Path) -> bool:
    """Whether `path` names a data set of the hub: it has the form `org/name[/config][:split]`, and does not exist."""
    return bool(HUB_NAME.fullmatch(str(path))) and path.suffix not in (*_SUFFIXES, ".gz") and not path.exists()


def input_identity(path: Path, *, whole: bool = False) -> str:
    """What tells one input from another: names, sizes and a SHA-256 over the first MiB of every file.

    Args:
        path: file, folder, or a name on the hub, which stands for itself.
        whole: over all bytes, for what is kept as long as the input is the same.

    Raises:
        InputFileError: the path cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in _files(path) if path.exists() else ():
            digest.update(f"{file.name if path.is_dir() else ''}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                while chunk := opened.read(2**20):
                    digest.update(chunk)
                    if not whole:
                        break
    except OSError as error:
        raise _unreadable(path, error) from None
    return f"sha256:{digest.hexdigest()}" if path.exists() else str(path)


def overlap(source: Path, output: Path) -> str | None:
    """Why `output` cannot be written while `source` is read, None when it can."""
    if not source.exists():
        return None
    if output.exists() and output.samefile(source):
        return "is the input itself"
    folder = output.absolute().parent
    if source.is_dir() and folder.is_dir() and folder.samefile(source):
        return "lies in the input folder, of which every file is read"
    return None


class _Intake:
    """Numbers the rows of one input and keeps their ids apart.

    Ids are kept as 64-bit hashes; a false duplicate among a million rows has a chance of one in ten million.
    """

    def __init__(self) -> None:
        self._first_line: dict[int, int] = {}
        self._generated = bytearray()

    def rows(self, raw: Iterable[Row]) -> Iterator[Demonstration | BadRow]:
        for number, row in enumerate(raw, 1):
            self._generated.append(0)
            yield self._read(row, number)

    def _read(self, row: Row, number: int) -> Demonstration | BadRow:
        if row.problem is not None:
            return self._bad(row, number, row.problem)
        try:
            check_json_value(row.value)
            demonstration = parse_row(row.value, line=row.line, number=number)
        except JsonValueError as error:
            message = f"{error.field!r}: {error}" if error.field else str(error)
            return self._bad(row, number, message, error.field, whole=False)
        except RowError as error:
            return self._bad(row, number, str(error), error.field)
        if demonstration.source.get("id") is None:
            return dataclasses.replace(demonstration, id=self._generate(row, number))
        holder = self._claim(demonstration.id, row.line)
        if holder is None:
            return demonstration
        message = f"'id': duplicate id {demonstration.id!r}, {holder}; make it unique or leave it out"
        return BadRow(self._generate(row, number), row.line, message, "id", demonstration.source, duplicate=True)

    def _bad(self, row: Row, number: int, message: str, field: str | None = None, *, whole: bool = True) -> BadRow:
        """A bad row, under its own id if that is usable; `whole` is False when its value must not be kept."""
        source = row.value if isinstance(row.value, dict) else None
        try:
            stated = own_id(source) if source else None
        except RowError:
            stated = None
        if stated is None or self._claim(stated, row.line) is not None:
            stated = self._generate(row, number)
        return BadRow(stated, row.line, message, field, source if whole else None)

    def _claim(self, stated: str, line: int) -> str | None:
        """Take an id for the row on `line`; returns who holds it already, None when it was free."""
        form = _GENERATED_ID.fullmatch(stated)
        if form and int(form[1]) <= len(self._generated) and self._generated[int(form[1]) - 1]:
            return f"given to row {form[1]} for want of its own"
        first_line = self._first_line.get(hash(stated))
        if first_line is not None:
            return f"first used on line {first_line}"
        self._first_line[hash(stated)] = line
        return None

    def _generate(self, row: Row, number: int) -> str:
        self._generated[number - 1] = True
        generated = f"row-{number}"
        while hash(generated) in self._first_line:  # an earlier row states it
            generated += "'"
        if generated.endswith("'"):  # a later row may state this one
            self._first_line[hash(generated)] = row.line
        return generated


def _with_an_object(rows: Iterator[Row], path: Path) -> Iterator[Row]:
    """`rows` as they are; the first ones are held until one is a JSON object.

    Raises:
        InputFileError: none of the first `PROBE` is, so this is some other file.
    """
    held: list[Row] = []
    for row in rows:
        if isinstance(row.value, dict):
            yield from held
            yield row
            yield from rows
            return
        # The value is not held: what is said of it is the same.
        held.append(row if row.problem else Row(row.line, problem=not_an_object(row.value)))
        if len(held) == PROBE:
            break
    if held:
        raise InputFileError(
            f"{path}: neither JSON lines, one object a line, nor a JSON array of objects, nor Parquet: "
            f"line {held[0].line}: {held[0].problem}"
        )


def _read_path(path: Path) -> Iterator[Row]:
    try:
        if _format_suffix(path) in _SEPARATED_SUFFIXES and not path.is_dir():
            raise InputFileError(f"{path}: tables of text are not read: save it as JSON lines or Parquet")
        if on_hub(path):
            yield from read_hub(str(path))
            return
        files = _files(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    for file in files:
        rows = read_table(file) if file.suffix in TABLE_SUFFIXES else _read_json_file(file)
        if not path.is_dir() and file.suffix not in TABLE_SUFFIXES:  # a file of bad rows stops no other of its folder
            rows = _with_an_object(rows, file)
        try:
            for row in rows:
                named = path.is_dir() and row.problem is not None
                yield dataclasses.replace(row, problem=f"{file.name}: {row.problem}") if named else row
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(file, error) from None


def _read_pipe(stream: BufferedIOBase) -> Iterator[Row]:
    try:
        yield from _read_bytes(_buffered(stream), _PIPE)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(_PIPE, error) from None


def _files(path: Path) -> list[Path]:
    """The file itself, or the readable files of a folder in the order of their names.

    Raises:
        InputFileError: there is no such path, it is a device, or the folder has nothing to read.
    """
    if not path.exists():
        raise InputFileError(f"{path}: no such file or folder")
    if path.is_char_device() or path.is_block_device():
        raise InputFileError(f"{path}: a device, which may never end; give a file or a pipe")
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.iterdir() if f.is_file() and _holds_rows(f))
    if not files:
        inside = ", ".join(sorted(f.name for f in path.iterdir() if f.is_dir()))
        hint = f"; name one of its folders: {inside}" if inside else ""
        raise InputFileError(f"{path}: no {', '.join(_SUFFIXES)} file in this folder{hint}")
    return files


def _holds_rows(file: Path) -> bool:
    """Whether the name of a file in a folder is one of data: neither hidden nor of notes on other files."""
    notes = file.name.startswith(".") or file.name in _NOTES or file.name.endswith(_SIDE_FILES)
    return not notes and _format_suffix(file) in _SUFFIXES


def _format_suffix(file: Path) -> str:
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def _read_json_file(file: Path) -> Iterator[Row]:
    with file.open("rb") as opened:
        stream = _buffered(opened)
        if _format_suffix(file) == ".json" and _begins_an_object(stream):
            yield from _read_one_object(stream)
        else:
            yield from _read_bytes(stream, file)


def _read_bytes(stream: BufferedReader, file: Path) -> Iterator[Row]:
    """Rows of JSON lines or, where the name allows it and the first bytes say so, of a JSON array."""
    start = stream.peek(_PEEK)
    if start.startswith(b"PAR1"):
        raise InputFileError(f"{file}: this is Parquet: give it as a file whose name ends in .parquet")
    if start.startswith(_UTF16_MARKS):
        raise InputFileError(f"{file}: this is UTF-16: save it as UTF-8")
    may_be_array = _format_suffix(file) not in _LINE_SUFFIXES and _first_mark(start) == b"["
    pieces = _array_or_lines(stream) if may_be_array else lines(stream, MAX_ROW_BYTES)
    return map(_parse_piece, pieces)


def _array_or_lines(stream: BufferedReader) -> Iterator[Piece]:
    """The pieces of what begins with `[`: of an array, unless its first line is one row among lines, and broken.

    No string of JSON spans two lines, and no value begins a line where the one before left no bracket, comma or
    colon. A first line that is too long is no row, so it may be an array.
    """
    first = _through_next_line(stream)
    if not first.endswith(b"\n") or (not _in_string(first) and first.rstrip(BLANK).endswith((b"[", b",", b":"))):
        return array_elements(_rejoined(first, stream), MAX_ROW_BYTES)
    second = _through_next_line(stream)
    cut = lines if second.lstrip(BLANK).startswith((b"{", b"[")) else array_elements
    return cut(_rejoined(first + second, stream), MAX_ROW_BYTES)


def _through_next_line(stream: BufferedReader) -> bytes:
    """What there is up to the end of the next line that is not blank."""
    read = bytearray()
    while len(read) <= MAX_ROW_BYTES and (line := stream.readline(MAX_ROW_BYTES + 1)):
        read += line
        if line.removeprefix(BYTE_ORDER_MARK).strip(BLANK):
            break
    return bytes(read)


def _in_string(json_line: bytes) -> bool:
    """Whether the line ends inside a string."""
    return _ESCAPED.sub(b"", json_line).count(b'"') % 2 == 1


class _Rejoined(RawIOBase):
    """What was read already, before the rest of its stream."""

    def __init__(self, read: bytes, rest: BufferedReader) -> None:
        self._read = BytesIO(read)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._read.readinto(buffer) or self._rest.readinto1(buffer)


def _rejoined(read: bytes, rest: BufferedReader) -> BufferedReader:
    return BufferedReader(_Rejoined(read, rest))


def _read_one_object(stream: BufferedReader) -> Iterator[Row]:
    """The only row of a `.json` file that is neither an array nor lines."""
    text = stream.read(MAX_ROW_BYTES + 1)
    problem = too_long(MAX_ROW_BYTES) if len(text) > MAX_ROW_BYTES else None
    yield _parse_piece(Piece(None if problem else text.removeprefix(BYTE_ORDER_MARK), 1, problem))


def _begins_an_object(stream: BufferedReader) -> bool:
    """Whether the first line is the beginning of an object: neither a whole one nor a line that is broken.

    A line that is cut after a comma or a colon looks like a beginning. But a whole object on the second line is part of
    one that began before only where a comma or a closing bracket follows.
    """
    if _first_mark(stream.peek(_PEEK)) != b"{":
        return False
    pieces = lines(stream, MAX_ROW_BYTES)
    first, second, third = (next(pieces, None) for _ in range(3))
    stream.seek(0)
    if not _is_beginning(first):
        return False
    is_part = third is not None and (third.text or b"").startswith((b",", b"]", b"}"))
    return is_part or second is None or not isinstance(_parse_piece(second).value, dict)


def _is_beginning(piece: Piece | None) -> bool:
    """Whether a line is right as far as it goes, but ends before its value does."""
    try:
        parse_json(piece.text.decode() if piece and piece.text else "null")
    except UnicodeDecodeError:
        return False
    except JsonValueError as error:
        return error.unfinished
    return False


def _parse_piece(piece: Piece) -> Row:
    if piece.text is None:
        return Row(piece.line, problem=piece.problem)
    try:
        return Row(piece.line, parse_json(piece.text.decode()))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte 0x{piece.text[error.start]:02x} at position {error.start + 1}"
    except JsonValueError as error:
        problem = str(error)
    return Row(piece.line, problem=problem)


def _buffered(stream: BufferedIOBase) -> BufferedReader:
    """A reader that can look ahead, decompressing gzip."""
    reader = stream if isinstance(stream, BufferedReader) else BufferedReader(cast(RawIOBase, stream))
    if not reader.peek(2).startswith(b"\x1f\x8b"):
        return reader
    return BufferedReader(cast(RawIOBase, gzip.GzipFile(fileobj=reader)))


def _first_mark(start: bytes) -> bytes:
    return start.removeprefix(BYTE_ORDER_MARK).lstrip(BLANK)[:1]


def _unreadable(path: Path, error: Exception) -> InputFileError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputFileError(f"{path}: cannot be read: {reason}")
