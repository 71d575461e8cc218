"""Cuts a byte stream into one piece of JSON text per row, lines or elements of an array, in bounded memory.

What is in a piece is not looked at here (`agent.intake` parses it): a broken row must not hide the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from agent.strict_json import MAX_DEPTH

BLANK = b" \t\r\n"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_CHUNK = 1 << 16
_TOKEN = re.compile(rb'\\.?|["\[\]{},\n]', re.DOTALL)
_AFTER = "text after the end of the JSON array: put every row inside of it, or take out the ']' that ends it too early"
_OPENING = {b"]": b"[", b"}": b"{"}


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


def count_lines(file: Path) -> int:
    """How many lines a file has. Raises OSError."""
    with file.open("rb") as opened:
        return sum(1 for _ in opened)


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

    Elements are found by quotes, brackets and commas alone. A broken element mostly costs itself: a closing bracket
    closes the innermost of its kind, and an element of one line that lacks a quote ends where that line does, in `},`.
    What lacks its last bracket, or a quote elsewhere, may take the elements after it along. An array that ends early,
    nothing between two commas, and text after the array are pieces with a problem; a comma before the closing bracket
    is forgiven.
    """
    element = _Element(max_bytes, _skip_opening_bracket(stream))
    brackets, in_string, escaped = _Brackets(), False, 0
    while chunk := stream.read(_CHUNK):
        begin = 0
        mark = b""
        for found in _TOKEN.finditer(chunk, escaped):
            mark = found[0]
            ends_array = False
            if mark == b"\n":
                element.add(chunk[begin : found.end()])
                begin = found.end()
                if in_string and element.was_one_line:
                    yield element.take()
                    brackets, in_string = _Brackets(), False
            elif mark == b'"':
                in_string = not in_string
            elif in_string or mark.startswith(b"\\"):
                continue
            elif mark in _OPENING.values():
                brackets.open(mark)
            elif mark in _OPENING:
                ends_array = mark == b"]" and not brackets
                brackets.close(mark)
            if ends_array or (mark == b"," and not brackets):
                element.add(chunk[begin : found.start()])
                begin = found.end()
                if not ends_array or element.started:
                    yield element.take()
            if ends_array:
                yield from _text_after(chunk[begin:] or stream.read(_CHUNK), stream, element.line)
                return
        escaped = 1 if mark == b"\\" else 0  # a backslash at the end of a chunk takes the next byte with it
        element.add(chunk[begin:])
    yield element.unfinished()


class _Brackets:
    """The brackets that an element has open, the outermost first; of those nested too deep for a row, their number."""

    def __init__(self) -> None:
        self._kinds = bytearray()
        self._deeper = 0

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def open(self, mark: bytes) -> None:
        if len(self._kinds) < MAX_DEPTH:
            self._kinds += mark
        else:
            self._deeper += 1

    def close(self, mark: bytes) -> None:
        """Close the innermost of this kind and what is open in it; where there is none, the innermost of all."""
        if self._deeper:
            self._deeper -= 1
        else:
            place = self._kinds.rfind(_OPENING[mark])
            del self._kinds[place if place >= 0 else -1 :]


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

    @property
    def was_one_line(self) -> bool:
        """Whether the line before this one held it from its beginning to `},`."""
        return self.started and self._first_line == self.line - 1 and self._text.rstrip(BLANK).endswith(b"},")

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

    def unfinished(self) -> Piece:
        """What to say where the file ends in it."""
        if not self.started:
            return Piece(None, self.line, "the file ends before its JSON array does: it looks cut off")
        problem = "the file ends before its JSON array does: it is cut off, or this element lacks a quote or a bracket"
        return Piece(None, self._first_line, problem)


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
            yield Piece(None, line, _AFTER)
            return
        line += chunk.count(b"\n")
        chunk = stream.read(_CHUNK)
