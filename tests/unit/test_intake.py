from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import InputFileError
from agent.intake import input_identity, read_json_rows, read_rows, read_stream
from tests.raw_rows import GOOD, Write, kinds, write_rows


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_rows, tmp_path)


def only_bad(path: Path, **options: Any) -> BadRow:
    (row,) = read_rows(path, **options)
    assert isinstance(row, BadRow)
    return row


def test_blank_lines_are_skipped_and_line_numbers_stay_right(write: Write):
    rows = list(read_rows(write(b"\n" + GOOD + b"\n  \t\r\n\r\n" + GOOD + b"\n\n")))
    assert [(row.id, row.line) for row in rows] == [("row-1", 2), ("row-2", 5)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_the_byte_order_mark_are_not_content(write: Write, end: bytes, mark: bytes, last: bool):
    data = mark + GOOD + end + GOOD + (end if last else b"")
    assert kinds(list(read_rows(write(data)))) == "gg"


def test_an_empty_file_has_no_rows(write: Write):
    assert list(read_rows(write(b""))) == []


def test_a_limit_counts_bad_rows_too(write: Write):
    assert kinds(list(read_rows(write(b"{\n" + GOOD + b"\n" + GOOD), limit=2))) == "bg"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not valid JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"question": "2+2?", "ans', "not valid JSON: Unterminated string starting at column 22"),
        (GOOD + GOOD, "not valid JSON: Extra data at column 36"),
        (b'{"question": "caf\xe9"}', "not UTF-8: byte 0xe9 at position 18"),
        (b"[" * 1000 + b"]" * 1000, "nested deeper than 64 levels"),
        (b'{"a":' * 100_000, "nested deeper than 64 levels"),
        (b"NaN", "NaN and infinities are not JSON: use null"),
        (b"[]", "a row must be a JSON object, got a list"),
    ],
    ids=["brace", "cut", "two", "latin1", "arrays", "objects", "nan", "list"],
)
def test_a_line_that_is_no_row_says_why(write: Write, line: bytes, message: str):
    path = write(GOOD + b"\n" + line + b"\n" + GOOD)
    first, bad, last = read_rows(path)
    assert isinstance(bad, BadRow)
    assert (bad.message, bad.line, bad.id, bad.source) == (message, 2, "row-2", None)
    assert kinds([first, last]) == "gg"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "'meta': NaN and infinities are not JSON: use null"),
        ("[-Infinity]", "'meta': NaN and infinities are not JSON: use null"),
        ("1e999", "'meta': NaN and infinities are not JSON: use null"),
        ("9223372036854775808", "'meta': an integer does not fit 64 bits: write it as a string"),
        ("-1" + "0" * 100_000, "'meta': an integer does not fit 64 bits: write it as a string"),
        (r'{"a": "x\ud800"}', r"'meta': half a character, the lone surrogate \ud800: the text was cut or mis-encoded"),
        (r'{"\udc01": 1}', r"'meta': half a character, the lone surrogate \udc01: the text was cut or mis-encoded"),
    ],
)
def test_a_value_that_no_reader_can_take_back_names_its_field(write: Write, value: str, message: str):
    bad = only_bad(write(f'{{"id": "a", "question": "q", "answer": "a", "meta": {value}}}'.encode()))
    assert (bad.message, bad.field, bad.id, bad.source) == (message, "meta", "a", None)


def test_brackets_in_a_string_are_not_nesting(write: Write):
    row = {"question": "[" * 500 + '\\"{{' * 200, "answer": "4"}
    (read,) = read_rows(write(json.dumps(row).encode()))
    assert read.source == row


def test_nesting_of_64_levels_is_allowed(write: Write):
    def row(levels: int) -> bytes:
        return b'{"question": "q", "answer": "a", "meta": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert kinds(list(read_rows(write(row(64) + b"\n" + row(65))))) == "gb"


def test_of_a_key_given_twice_the_last_counts(write: Write):
    (row,) = read_rows(write(b'{"question": "a", "question": "b", "answer": "4"}'))
    assert isinstance(row, Demonstration)
    assert row.question == "b"


def test_a_line_beyond_the_limit_is_skipped_and_the_next_one_read(write: Write, monkeypatch: pytest.MonkeyPatch):
    path = write(b'{"question": "' + b"x" * 300_000 + b'", "answer": "4"}\n' + GOOD)
    monkeypatch.setattr("agent.intake.MAX_ROW_BYTES", 1000)
    bad, good = read_rows(path)
    assert isinstance(bad, BadRow)
    assert bad.message.startswith("longer than 1000 bytes and not read")
    assert isinstance(good, Demonstration)
    assert good.line == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_200_megabyte_row_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    path = tmp_path / name
    array = name == "rows.json"
    with path.open("wb") as file:
        file.write(b"[" if array else b"")
        file.write(b'{"question": "')
        for _ in range(200):
            file.write(b"x" * 2**20)
        file.write(b'", "answer": "4"}' + (b",\n" if array else b"\n") + GOOD + (b"]" if array else b""))
    monkeypatch.setattr("agent.intake.MAX_ROW_BYTES", 2**20)
    tracemalloc.start()
    rows = list(read_rows(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kinds(rows) == "bg"
    assert peak < 8 * 2**20


def test_a_duplicate_id_names_the_line_that_has_it(write: Write):
    row = b'{"id": "x", "question": "2+2?", "answer": "4"}'
    first, _, bad, other = read_rows(write(row + b"\n" + GOOD + b"\n\n" + row + b"\n" + row.replace(b'"x"', b'"y"')))
    assert isinstance(bad, BadRow)
    assert bad.message == "'id': duplicate id 'x', first used on line 1; make it unique or leave it out"
    assert (bad.id, bad.field, bad.line, bad.source) == ("row-3", "id", 4, first.source)
    assert kinds([first, other]) == "gg"


def test_the_id_of_a_bad_row_is_taken_too(write: Write):
    path = write(b'{"id": 5, "question": "q"}\n{"id": "5", "question": "q", "answer": "a"}')
    assert [(row.id, kinds([row])) for row in read_rows(path)] == [("5", "b"), ("row-2", "b")]


def test_generated_and_stated_ids_never_meet(write: Write):
    stated = [b'{"id": "row-%d", "question": "q", "answer": "a"}' % n for n in (2, 1, 3)]
    rows = list(read_rows(write(b"\n".join([stated[0], GOOD, GOOD, *stated[1:]]))))
    assert [row.id for row in rows] == ["row-2", "row-2'", "row-3", "row-1", "row-5"]
    assert isinstance(rows[4], BadRow)
    assert "'row-3', given to row 3 for want of its own" in rows[4].message


def test_an_id_made_up_beside_a_stated_one_is_kept_from_later_rows(write: Write):
    stated = [{"id": "row-3"}, {}, {}, {"id": "row-3'"}]
    data = "\n".join(json.dumps({**json.loads(GOOD), **row}) for row in stated)
    rows = list(read_rows(write(data.encode())))
    assert [row.id for row in rows] == ["row-3", "row-2", "row-3'", "row-4"]
    assert isinstance(rows[3], BadRow)
    assert rows[3].message.startswith("'id': duplicate id \"row-3'\", first used on line 3")


def test_gzip_is_decompressed_and_its_rows_bounded(write: Write, monkeypatch: pytest.MonkeyPatch):
    data = gzip.compress(GOOD + b"\n" + b" " * 100 + b"x" * 10**7 + b"\n" + GOOD)
    monkeypatch.setattr("agent.intake.MAX_ROW_BYTES", 10**5)
    assert kinds(list(read_rows(write(data, "rows.jsonl.gz")))) == "gbg"


def test_a_damaged_gzip_file_is_an_error_of_the_file(write: Write):
    data = gzip.compress(GOOD * 1000)
    with pytest.raises(InputFileError, match=r"rows\.jsonl\.gz: cannot be read"):
        list(read_rows(write(data[: len(data) // 2], "rows.jsonl.gz")))


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [(b"PAR1....", "rows.txt", "this is Parquet"), ("a\n".encode("utf-16"), "rows.jsonl", "this is UTF-16")],
)
def test_a_file_of_another_format_says_what_it_is(write: Write, data: bytes, name: str, message: str):
    with pytest.raises(InputFileError, match=message):
        list(read_rows(write(data, name)))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputFileError, match=r"nothing\.jsonl: no such file or folder"):
        list(read_rows(tmp_path / "nothing.jsonl"))


def test_a_device_is_refused_instead_of_read_for_ever():
    with pytest.raises(InputFileError, match="/dev/zero: a device, which may never end; give a file or a pipe"):
        list(read_rows(Path("/dev/zero")))


def test_a_missing_relative_file_is_not_looked_for_on_the_hub():
    with pytest.raises(InputFileError, match=r"data/train\.jsonl: no such file or folder$"):
        list(read_rows(Path("data/train.jsonl")))


def test_a_folder_is_read_in_the_order_of_its_names(write: Write):
    write(b'{"id": "2", "question": "q", "answer": "a"}\n{', "in/b.jsonl")
    write(b'[{"id": "1", "question": "q", "answer": "a"}]', "in/a.json")
    folder = write(b"not rows", "in/README.md").parent
    rows = list(read_rows(folder))
    assert [row.id for row in rows] == ["1", "2", "row-3"]
    assert isinstance(rows[2], BadRow)
    assert rows[2].message.startswith("b.jsonl: not valid JSON")


def test_a_folder_is_read_without_hidden_files_and_what_lies_beside_an_output(write: Write):
    folder = write(GOOD, "in/out.jsonl").parent
    write(GOOD, "in/journal.jsonl")
    for name in ("out.jsonl.run.json", "out.jsonl.early.jsonl", "out.failed.jsonl", "out.parquet.journal.jsonl"):
        write(GOOD, f"in/{name}")
    write(GOOD, "in/.out.jsonl")
    assert [row.id for row in read_rows(folder)] == ["row-1", "row-2"]


def test_a_folder_without_rows_names_its_folders(write: Write):
    folder = write(GOOD, "in/train/rows.jsonl").parent.parent
    with pytest.raises(InputFileError, match="name one of its folders: train"):
        list(read_rows(folder))


def test_a_pipe_is_read_as_lines_or_as_an_array():
    assert kinds(list(read_stream(io.BytesIO(GOOD + b"\n" + GOOD)))) == "gg"
    assert kinds(list(read_stream(io.BytesIO(b"[" + GOOD + b"]")))) == "g"
    assert kinds(list(read_stream(io.BytesIO(gzip.compress(GOOD)), limit=1))) == "g"


def test_parsed_rows_are_checked_as_files_are():
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    values = [json.loads(GOOD), {"question": "q", "answer": "a", "x": float("nan")}, deep, {"x": 2**63}, {"a": {1}}, 3]
    rows = list(read_json_rows(values))
    assert kinds(rows) == "gbbbbb"
    assert [row.line for row in rows] == [1, 2, 3, 4, 5, 6]


def test_the_identity_of_an_input_follows_its_bytes(write: Write):
    path = write(GOOD)
    before = input_identity(path)
    assert before == input_identity(write(GOOD, "copy.jsonl"))
    assert before != input_identity(write(GOOD + b"\n"))


def test_the_whole_identity_sees_a_change_behind_the_first_mebibyte(write: Write):
    one, other = (write(GOOD + b" " * 2**20 + end, name) for end, name in ((b"1\n", "a.jsonl"), (b"2\n", "b.jsonl")))
    assert input_identity(one) == input_identity(other)
    assert input_identity(one, whole=True) != input_identity(other, whole=True)


row_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "messages", "prompt", "completion", "question", "answer", "solution", "task", "role", "content"]
            )
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(rows=st.lists(row_values, max_size=8), data=st.data())
def test_any_json_value_gives_one_row_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], data: st.DataObject
):
    rows = [{}, *rows]  # without an object among them they are no rows
    blanks = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    text, expected, line = "", [], 0
    for row, blank in zip(rows, blanks, strict=True):
        text += "\n" * blank + json.dumps(row) + "\n"
        line += blank + 1
        expected.append(line)
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(text)
    read = list(read_rows(path))
    assert [row.line for row in read] == expected
    assert len({row.id for row in read}) == len(read)
    as_array = tmp_path_factory.getbasetemp() / "any.json"
    as_array.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    assert [kinds([row]) for row in read_rows(as_array)] == [kinds([row]) for row in read]
    assert kinds(list(read_json_rows(rows))) == kinds(read)
    for row in read:
        json.dumps(row.source, allow_nan=False).encode()


pieces = st.sampled_from([*(bytes([c]) for c in b'[]{}"\\,:\n\r \xff'), b"\xef\xbb\xbf", GOOD])


@settings(deadline=None)
@given(data=st.binary(max_size=200) | st.lists(pieces, max_size=30).map(b"".join))
@example(b"\xff\xfe")
@example(b"\x1f\x8b")
@example(b"PAR1")
def test_any_bytes_give_rows_or_an_error_of_the_file(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    for name in ("any.jsonl", "any.json", "any.txt", "any.parquet", "any.arrow"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(data)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("agent.intake.MAX_ROW_BYTES", 64)
                rows = list(read_rows(path))
        except InputFileError:
            continue
        if name == "any.jsonl" and not data.startswith(b"\x1f\x8b"):
            lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            assert [row.line for row in rows] == [n for n, line in enumerate(lines, 1) if line.strip(b" \t\r")]


def test_a_file_without_an_object_among_its_first_hundred_lines_is_no_input(write: Write):
    text = b"question,answer\n" + b"2+2?,4\n" * 99
    with pytest.raises(InputFileError, match=r"rows\.txt: neither JSON lines, .*: line 1: "):
        list(read_rows(write(text + GOOD, "rows.txt")))
    with pytest.raises(InputFileError, match="line 1: a row must be a JSON object, got a number"):
        list(read_rows(write(b"4\n")))
    assert kinds(list(read_rows(write(text.removesuffix(b"2+2?,4\n") + GOOD)))) == "b" * 99 + "g"
    with pytest.raises(InputFileError, match="standard input: neither JSON lines"):
        list(read_stream(io.BytesIO(text)))


def test_the_first_row_of_a_pipe_does_not_wait_for_the_next():
    class Endless(io.RawIOBase):
        """Gives one line, and fails where more is asked for."""

        def __init__(self) -> None:
            self._rest = [GOOD + b"\n"]

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            line = self._rest.pop()
            buffer[: len(line)] = line
            return len(line)

    assert next(read_stream(io.BufferedReader(Endless()))).id == "row-1"


def test_a_file_of_bad_rows_stops_no_other_of_its_folder(write: Write):
    write(b"a\nb\n", "all/1.jsonl")
    assert kinds(list(read_rows(write(GOOD, "all/2.jsonl").parent))) == "bbg"


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz"])
def test_tables_of_text_are_refused_by_name(write: Write, name: str):
    with pytest.raises(InputFileError, match=f"{name}: tables of text are not read: save it as JSON lines or Parquet"):
        list(read_rows(write(b"question,answer\n", name)))
