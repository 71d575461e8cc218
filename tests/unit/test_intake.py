from __future__ import annotations

import gzip
import io
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import InputFileError
from agent.intake import input_identity, read_json_rows, read_rows, read_stream

GOOD = b'{"question": "2+2?", "answer": "4"}'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_bytes(data: bytes, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write_bytes


def only_bad(path: Path, **options: Any) -> BadRow:
    (row,) = read_rows(path, **options)
    assert isinstance(row, BadRow)
    return row


def kinds(rows: list[Demonstration | BadRow]) -> str:
    return "".join("b" if isinstance(row, BadRow) else "g" for row in rows)


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
