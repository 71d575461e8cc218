"""Files that hold a JSON array, one object, or lines that begin as either: what a broken element costs."""

from __future__ import annotations

import gzip
import io
import json
import time
from functools import partial
from pathlib import Path

import pytest

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import InputFileError
from agent.intake import read_rows, read_stream
from tests.raw_rows import GOOD, Write, kinds, write_rows


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_rows, tmp_path)


def test_a_json_array_is_read_element_by_element(write: Write):
    data = b'\xef\xbb\xbf \n[\n  {"question": "a, [b] \\"{", "answer": "4"},\n\n ' + GOOD + b",\n]\n"
    rows = list(read_rows(write(data, "rows.json")))
    assert kinds(rows) == "gg"
    assert [row.line for row in rows] == [3, 5]
    assert isinstance(rows[0], Demonstration)
    assert rows[0].question == 'a, [b] "{'


def test_a_broken_element_does_not_stop_the_array(write: Write):
    data = b"[" + GOOD + b",\n{oops}, ,\n[1, 2]," + GOOD + b"] x"
    rows = list(read_rows(write(data, "rows.json")))
    assert kinds(rows) == "gbbbgb"
    bad = [(row.line, row.message.split(":")[0]) for row in rows if isinstance(row, BadRow)]
    assert bad == [
        (2, "not valid JSON"),
        (2, "nothing stands between two commas"),
        (3, "a row must be a JSON object, got a list"),
        (3, "text after the end of the JSON array"),
    ]


def test_an_array_that_is_cut_off_says_so(write: Write):
    rows = list(read_rows(write(b"[" + GOOD + b",\n" + GOOD[:-5], "rows.json")))
    assert kinds(rows) == "gb"
    assert isinstance(rows[1], BadRow)
    assert rows[1].line == 2
    assert rows[1].message == (
        "the file ends before its JSON array does: it is cut off, or this element lacks a quote or a bracket"
    )
    with pytest.raises(InputFileError, match="the file ends before its JSON array does: it looks cut off"):
        list(read_rows(write(b"[\n", "rows.json")))


@pytest.mark.parametrize(
    "broken",
    [
        b'{"question": "2+2?, "answer": "4"}',
        b'{"question": "2+2?", "answer": ["4"}',
        b'{"question": "2+2?", "answer": "4"]}',
        b'{"question": "2+2?", "answer": "4"}}',
        b'{"question": "2+2?", "answer": "4"]',
        b'{"question": "2+2?", "tags": [{"a": 1], "answer": "4"}',
        b'{"question": ' + b"[" * 70 + b"]" * 68 + b"}",
    ],
    ids=["quote", "no ]", "]", "}", "] for }", "no }", "deep"],
)
@pytest.mark.parametrize("indent", [b"", b"  "])
def test_an_element_of_one_line_that_lacks_a_quote_or_a_bracket_costs_itself_alone(
    write: Write, broken: bytes, indent: bytes
):
    data = b"[\n" + b",\n".join(indent + row for row in (GOOD, broken, GOOD, GOOD)) + b"\n]\n"
    rows = list(read_rows(write(data, "rows.json")))
    assert kinds(rows) == "gbgg"
    assert [row.line for row in rows] == [2, 3, 4, 5]


def test_a_line_break_in_a_string_costs_its_element_alone(write: Write):
    data = b'[{"question": "2 +\n2?", "answer": "4"},\n' + GOOD + b"\n]"
    assert kinds(list(read_rows(write(data, "rows.json")))) == "bg"


def test_the_time_to_read_an_array_grows_with_its_length_alone(write: Write):
    many = 10**5
    data = b'["' + b"\n" * many + b'",' + b"\n" * many + b"[" * many + b"}]" * many
    started = time.process_time()
    assert kinds(list(read_rows(write(b"[" + GOOD + b"," + data[1:], "rows.json"))))[:2] == "gb"
    assert time.process_time() - started < 10


@pytest.mark.parametrize("pad", range(65_525, 65_545))
def test_an_escape_across_two_chunks_is_one_escape(write: Write, pad: int):
    row = {"question": "x" * (pad - 20) + '\\"],[{"', "answer": "4"}
    (read,) = read_rows(write(f"[{json.dumps(row)}]".encode(), "rows.json"))
    assert read.source == row


def test_a_json_file_may_hold_one_object_over_several_lines(write: Write):
    (row,) = read_rows(write(json.dumps(json.loads(GOOD), indent=2).encode(), "row.json"))
    assert kinds([row]) == "g"


@pytest.mark.parametrize("tags", ["\n{}\n", "[\n{}\n]", "[{},\n{}\n,{}]", '\n{}\n,"x": 1'])
def test_one_object_is_one_though_an_object_in_it_has_a_line_of_its_own(write: Write, tags: str):
    data = f'{{"question": "2+2?", "answer": "4", "tags": {tags}}}'.encode()
    assert kinds(list(read_rows(write(data, "row.json")))) == "g"


def test_a_json_file_may_hold_lines(write: Write):
    assert kinds(list(read_rows(write(GOOD + b"\n{\n" + GOOD, "rows.json")))) == "gbg"


@pytest.mark.parametrize(
    "broken",
    [
        GOOD[:-2],
        GOOD[:20],
        GOOD[:12],
        GOOD[:-1] + b",}",
        b'{"a": nul}',
        b'{"a": "\xff"}',
        b"{" * 99,
        b'{"a": "' + b"x" * 999,
    ],
    ids=["cut", "cut after a comma", "cut after a colon", "comma", "word", "bytes", "deep", "long"],
)
def test_a_broken_first_line_of_a_json_file_hides_no_other(
    write: Write, monkeypatch: pytest.MonkeyPatch, broken: bytes
):
    monkeypatch.setattr("agent.intake.MAX_ROW_BYTES", 500)
    rows = list(read_rows(write(broken + b"\n" + GOOD + b"\n" + GOOD, "rows.json")))
    assert kinds(rows) == "bgg"
    assert rows[0].line == 1


@pytest.mark.parametrize("name", ["rows.json", "rows.txt", "rows.json.gz"])
@pytest.mark.parametrize(
    ("broken", "bad"),
    [
        (b'["half', 1),
        (b'["half,', 1),
        (b'["half\n["half', 2),
        (b"[1]", 1),
        (b"[1, 2", 1),
        (b"[" + GOOD, 1),
        (b"\xef\xbb\xbf[1]\r", 1),
        (b"\n[1]\n\n ", 1),
    ],
)
def test_a_broken_first_line_that_begins_as_an_array_hides_no_other(write: Write, broken: bytes, bad: int, name: str):
    data = broken + b"\n" + GOOD + b"\n" + GOOD
    rows = list(read_rows(write(gzip.compress(data) if name.endswith("gz") else data, name)))
    assert kinds(rows) == "b" * bad + "gg"
    assert [row.line for row in rows[-2:]] == [data.count(b"\n"), data.count(b"\n") + 1]


@pytest.mark.parametrize(
    "shape", ["[%s,%s]", "[%s\n,%s\n]", "[%s,\n%s]\n", "[\n%s,\n%s]", "\n[\n\n%s\n\n,\n%s]", "[%s,%s]\n\n"]
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_one_however_its_lines_are_cut(shape: str, indent: int | None):
    text = json.dumps({**json.loads(GOOD), "tags": [{"a": {}}, [1]]}, indent=indent)
    assert kinds(list(read_stream(io.BytesIO((shape % (text, text)).encode())))) == "gg"


def test_an_array_of_one_line_may_be_longer_than_a_row(write: Write, monkeypatch: pytest.MonkeyPatch):
    text = b"[" + b",".join([GOOD] * 1000) + b"]"
    for limit in (40, 200, 201, 202, 203, 10**6):
        monkeypatch.setattr("agent.intake.MAX_ROW_BYTES", limit)
        assert kinds(list(read_rows(write(text, "rows.json")))) == "g" * 1000
