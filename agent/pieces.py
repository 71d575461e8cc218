"""Cuts a byte stream into one piece of JSON text per row, lines or elements of an array, in bounded memory.

What is in a piece is not looked at here (`agent.intake` parses it): a broken row must not hide the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase

BLANK = b" \t\r\n"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_CHUNK = 1 << 16
_TOKEN = re.compile(rb'\\.?|["\[\]{},]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one row.

    Attributes:
        text: its bytes, without surrounding blanks; None when there is a `problem`.
        line: 1-based line on which it starts.
        problem: why it cannot be a row, None when its text decides.
    """

    text: bytes | None
    line: int
    problem: str | None = None


def too_long(max_bytes: int) -> str:
    """The problem of a row beyond the limit."""
    return f"longer than {max_bytes} bytes and not read: split the row or drop its large fields"


def lines(stream: BufferedIOBase, max_bytes: int) -> Iterator[Piece]:
    """Every line that is not blank; of a line beyond `max_bytes` only a chunk at a time is in memory."""
    number = 0
    while raw := stream.readline(max_bytes + 1):
        number += 1
        if len(raw) > max_bytes and not raw.endswith(b"\n"):
            _skip_line(stream)
            yield Piece(None, number, too_long(max_bytes))
            continue
        text = (raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw).strip(BLANK)
        if text:
            yield Piece(text, number)


def array_elements(stream: BufferedIOBase, max_bytes: int) -> Iterator[Piece]:
    """Every element of the JSON array in `stream`.

    Elements are found by quotes, brackets and commas alone. An array that ends early, nothing between two
    commas, and text after the array are pieces with a problem; a comma before the closing bracket is forgiven.
    """
    element = _Element(max_bytes, _skip_opening_bracket(stream))
    depth, in_string, escaped = 0, False, 0
    while chunk := stream.read(_CHUNK):
        begin = 0
        mark = b""
        for found in _TOKEN.finditer(chunk, escaped):
            mark = found[0]
            if mark == b'"':
                in_string = not in_string
            elif in_string or mark.startswith(b"\\"):
                continue
            elif mark in b"[{":
                depth += 1
            elif mark in b"]}":
                depth -= 1
            if depth < 0 or (depth == 0 and mark == b","):
                element.add(chunk[begin : found.start()])
                begin = found.end()
                if depth == 0 or element.started:
                    yield element.take()
            if depth < 0:
                yield from _text_after(chunk[begin:] or stream.read(_CHUNK), stream, element.line)
                return
        escaped = 1 if mark == b"\\" else 0  # a backslash at the end of a chunk takes the next byte with it
        element.add(chunk[begin:])
    yield Piece(None, element.line, "the file ends before its JSON array does: it looks cut off")


class _Element:
    """The element of an array that is being read; `line` is the line that reading has come to."""

    def __init__(self, max_bytes: int, line: int) -> None:
        self._max_bytes = max_bytes
        self._text = bytearray()
        self._size = 0
        self._first_line = line
        self.line = line

    @property
    def started(self) -> bool:
        return self._size > 0

    def add(self, data: bytes) -> None:
        text = data if self.started else data.lstrip(BLANK)
        if not self.started:
            self._first_line = self.line + data.count(b"\n", 0, len(data) - len(text))
        self.line += data.count(b"\n")
        self._size += len(text)
        if self._size <= self._max_bytes:
            self._text += text
        else:
            self._text.clear()

    def take(self) -> Piece:
        if self._size > self._max_bytes:
            piece = Piece(None, self._first_line, too_long(self._max_bytes))
        elif self.started:
            piece = Piece(bytes(self._text).rstrip(BLANK), self._first_line)
        else:
            piece = Piece(None, self.line, "nothing stands between two commas")
        self._text.clear()
        self._size = 0
        return piece


def _skip_line(stream: BufferedIOBase) -> None:
    while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
        pass


def _skip_opening_bracket(stream: BufferedIOBase) -> int:
    """Read up to the first bracket; returns the line it stands on."""
    line = 1
    while (byte := stream.read(1)) not in (b"[", b""):
        line += byte == b"\n"
    return line


def _text_after(chunk: bytes, stream: BufferedIOBase, line: int) -> Iterator[Piece]:
    while chunk:
        if text := chunk.lstrip(BLANK):
            line += chunk.count(b"\n", 0, len(chunk) - len(text))
            yield Piece(None, line, "text after the end of the JSON array: put every row inside of it")
            return
        line += chunk.count(b"\n")
        chunk = stream.read(_CHUNK)
