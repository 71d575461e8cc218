from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import OutputFailedError, OutputFileError, ResumeError
from agent.intake import read_rows
from agent.output import RecordWriter
from agent.records import Check, Mismatch, Record, Verdict, error_row
from tests.disk_log import disk_log

SETTINGS = {"strategy": "default", "model": "m", "adapter": None}
FORMATS = pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])


def output_row(row: Demonstration | BadRow, **changes: Any) -> dict[str, Any]:
    if isinstance(row, BadRow):
        return error_row(row, "m")
    figures = Mismatch(1.5, 6.2, 83)
    verdict = Verdict(True, (Check("math_answer", True, "42 = 42"),))
    return Record(row, "rewritten", "rewrite", "better", 2, verdict, figures, figures, None, "m").as_dict() | changes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(20)))
    return path


def write(path: Path, source: Path, stop: int | None = None, **options: Any) -> list[str]:
    """Write the rows of `source` and return the ids written; with `stop`, the run dies after as many rows."""
    ids = []
    with RecordWriter(path, source=source, **({"settings": SETTINGS} | options)) as writer:
        for row in writer.remaining(read_rows(source)):
            if stop is not None and len(ids) == stop:
                raise KeyboardInterrupt
            writer.write(output_row(row))
            ids.append(row.id)
    return ids


def killed_after(path: Path, source: Path, rows: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(path, source, stop=rows, **options)


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_disk_refuses_loses_no_earlier_row(
    tmp_path: Path, source: Path, limit_files: Callable[[int], None]
):
    path = tmp_path / "out.jsonl"
    killed_after(path, source, rows=1)
    limit_files(path.stat().st_size + 10)
    with pytest.raises(OutputFailedError, match="resume when it can"):
        write(path, source, resume=True)
    limit_files(resource.RLIM_INFINITY)
    assert write(path, source, resume=True) == [f"row-{n}" for n in range(2, 21)]
    assert [row["id"] for row in read_output(path)] == [f"row-{n}" for n in range(1, 21)]


def read_output(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text().splitlines()]


@FORMATS
def test_rows_are_written_in_order_with_their_sources(tmp_path: Path, source: Path, name: str):
    assert write(tmp_path / name, source) == [f"row-{n}" for n in range(1, 21)]
    rows = read_output(tmp_path / name)
    sources = [row["source"] if name.endswith(".jsonl") else json.loads(row["source"]) for row in rows]
    assert [source["answer"] for source in sources] == [str(n + 1) for n in range(20)]
    assert rows[0]["mismatch"]["target"] == {"nll": 1.5, "p95": 6.2, "tokens": 83}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", name, f"{name}.run.json"]


@FORMATS
def test_a_killed_run_goes_on_exactly_where_it_stopped(tmp_path: Path, source: Path, name: str):
    killed_after(tmp_path / name, source, 7)
    assert write(tmp_path / name, source, resume=True)[0] == "row-8"
    write(tmp_path / f"whole-{name}", source)
    assert read_output(tmp_path / name) == read_output(tmp_path / f"whole-{name}")


@FORMATS
def test_resuming_a_finished_run_computes_nothing(tmp_path: Path, source: Path, name: str):
    write(tmp_path / name, source)
    before = read_output(tmp_path / name)
    assert write(tmp_path / name, source, resume=True) == []
    assert read_output(tmp_path / name) == before


def test_resuming_nothing_begins(tmp_path: Path, source: Path):
    assert len(write(tmp_path / "out.jsonl", source, resume=True)) == 20


@FORMATS
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_is_no_output(tmp_path: Path, source: Path, name: str, options: dict[str, bool]):
    (tmp_path / name).mkdir()
    with pytest.raises(OutputFileError, match=f"{name}: is a folder: name a file"):
        write(tmp_path / name, source, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", name}


@pytest.mark.parametrize("cut", [1, 50, 300])
def test_a_partial_last_line_is_cut_off_and_done_again(tmp_path: Path, source: Path, cut: int):
    out = tmp_path / "out.jsonl"
    killed_after(out, source, 7)
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    assert write(out, source, resume=True)[0] == "row-7"
    assert out.read_bytes().startswith(whole)


def test_a_partial_line_longer_than_a_chunk_is_cut_off(tmp_path: Path, source: Path):
    out = tmp_path / "out.jsonl"
    killed_after(out, source, 2)
    out.write_bytes(out.read_bytes() + b'{"id": "' + b"x" * 200_000)
    assert write(out, source, resume=True)[0] == "row-3"


def _write_slowly(path: Path, source: Path) -> None:
    with RecordWriter(path, source=source, settings=SETTINGS) as writer:
        for row in writer.remaining(read_rows(source)):
            writer.write(output_row(row))
            time.sleep(0.05)


@FORMATS
def test_sigkill_loses_no_row_that_was_written(tmp_path: Path, source: Path, name: str):
    path = tmp_path / name
    journal = path if name == "out.jsonl" else tmp_path / "out.parquet.journal.jsonl"
    process = multiprocessing.get_context("fork").Process(target=_write_slowly, args=(path, source))
    process.start()
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = journal.read_bytes().count(b"\n")
    assert write(path, source, resume=True) == [f"row-{n}" for n in range(done + 1, 21)]
    assert [row["id"] for row in read_output(path)] == [f"row-{n}" for n in range(1, 21)]


@FORMATS
def test_an_existing_output_is_refused(tmp_path: Path, source: Path, name: str):
    write(tmp_path / name, source)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OutputFileError, match="exists already: resume it, overwrite it, or choose another"):
        write(tmp_path / name, source)
    assert (tmp_path / name).read_bytes() == before


@FORMATS
def test_an_existing_output_is_replaced_on_request(tmp_path: Path, source: Path, name: str):
    killed_after(tmp_path / name, source, 7)
    assert len(write(tmp_path / name, source, overwrite=True)) == 20
    assert len(read_output(tmp_path / name)) == 20


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@FORMATS
@pytest.mark.parametrize("finished", [True, False])
def test_rows_stay_where_the_run_that_would_replace_them_writes_none(
    tmp_path: Path, source: Path, name: str, finished: bool
):
    if finished:
        write(tmp_path / name, source)
    else:
        killed_after(tmp_path / name, source, 7)
        (tmp_path / f"{name}.early.jsonl").write_bytes(b"rows that wait")
    before = contents(tmp_path)
    writer = RecordWriter(tmp_path / name, source=source, settings={}, overwrite=True).__enter__()
    assert list(writer.written_rows()) == []
    assert next(iter(writer.remaining(read_rows(source)))).id == "row-1"
    assert contents(tmp_path).items() >= before.items(), "a kill would have lost rows"
    writer.__exit__(KeyError, KeyError(), None)
    assert contents(tmp_path) == before


@FORMATS
@pytest.mark.parametrize("early", [True, False])
def test_the_first_row_replaces_all_that_was_there(tmp_path: Path, source: Path, name: str, early: bool):
    out = tmp_path / name
    killed_after(out, source, 7)
    (tmp_path / f"{name}.early.jsonl").write_bytes(b"rows that wait\n")
    row = output_row(next(iter(read_rows(source))))
    writer = RecordWriter(out, source=source, settings={"seed": 1}, overwrite=True).__enter__()
    (writer.early.keep if early else writer.write)(row)
    writer.__exit__(KeyError, KeyError(), None)
    assert json.loads((tmp_path / f"{name}.run.json").read_text())["seed"] == 1
    with RecordWriter(out, source=source, settings={"seed": 1}, resume=True) as writer:
        assert len(list(writer.written_rows())) == (0 if early else 1)
        assert bool(writer.early.find(next(iter(read_rows(source))))) is early
        assert b"wait" not in b"".join(contents(tmp_path).values())


def test_a_finished_parquet_file_outlives_a_kill_of_the_run_that_would_replace_it(tmp_path: Path, source: Path):
    out = tmp_path / "out.parquet"
    write(out, source)
    before = read_output(out)
    (tmp_path / "out.parquet.journal.jsonl").touch()  # of a run killed before it had its first row
    with pytest.raises(ResumeError, match="seed was None and is now 1"):
        write(out, source, resume=True, settings=SETTINGS | {"seed": 1})
    assert write(out, source, resume=True) == []
    assert read_output(out) == before


def test_a_finished_parquet_file_goes_with_the_first_row_that_replaces_its_own(tmp_path: Path, source: Path):
    out, other = tmp_path / "out.parquet", SETTINGS | {"seed": 1}
    write(out, source)
    writer = RecordWriter(out, source=source, settings=other, overwrite=True).__enter__()
    writer.early.keep(output_row(next(iter(read_rows(source)))))
    writer.__exit__(KeyError, KeyError(), None)
    assert not out.exists(), "its rows would stand under the settings of the run that replaces them"
    assert len(write(out, source, resume=True, settings=other)) == 20


def test_a_parquet_file_has_its_name_on_the_disk_before_its_journal_goes(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
):
    killed_after(tmp_path / "out.parquet", source, 7)
    log = disk_log(monkeypatch, tmp_path)
    write(tmp_path / "out.parquet", source, resume=True)
    renamed, removed = log.index(("rename", "out.parquet")), log.index(("unlink", "out.parquet.journal.jsonl"))
    assert log[renamed - 1 : removed] == [("sync", ".out.parquet.unfinished"), ("rename", "out.parquet"), ("sync", ".")]


def test_a_resumed_run_leaves_the_journal_of_a_living_one(tmp_path: Path, source: Path):
    out = tmp_path / "out.parquet"
    write(out, source)
    with RecordWriter(out, source=source, settings={"seed": 1}, overwrite=True) as living:
        with pytest.raises(OutputFileError, match="another process is writing it"):
            write(out, source, resume=True)
        for row in read_rows(source):
            living.write(output_row(row))
    assert len(read_output(out)) == 20


@FORMATS
def test_an_input_without_rows_replaces_what_was_there(tmp_path: Path, source: Path, name: str):
    write(tmp_path / name, source)
    source.write_text("")
    assert write(tmp_path / name, source, overwrite=True) == []
    assert read_output(tmp_path / name) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "solve"}, "strategy was 'default' and is now 'solve'"),
        ({"adapter": "math@3"}, "adapter was None and is now 'math@3'"),
        ({"seed": 1}, "seed was None and is now 1"),
    ],
)
def test_other_settings_do_not_resume(tmp_path: Path, source: Path, change: dict[str, Any], message: str):
    killed_after(tmp_path / "out.jsonl", source, 7)
    with pytest.raises(ResumeError, match=message):
        write(tmp_path / "out.jsonl", source, resume=True, settings=SETTINGS | change)


def test_other_input_does_not_resume(tmp_path: Path, source: Path):
    killed_after(tmp_path / "out.jsonl", source, 7)
    source.write_text(source.read_text().replace("0+1", "0+2"))
    with pytest.raises(ResumeError, match="input was 'sha256:"):
        write(tmp_path / "out.jsonl", source, resume=True)


@FORMATS
@pytest.mark.parametrize("field", ["question", "answer"])
def test_a_row_of_other_input_does_not_resume(
    tmp_path: Path, source: Path, name: str, field: str, monkeypatch: pytest.MonkeyPatch
):
    """As from a pipe, which has no identity, or behind the first MiB of a file, where only its size is looked at."""
    monkeypatch.setattr("agent.output.input_identity", lambda _: "the same")
    killed_after(tmp_path / name, source, 7)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    rows[4][field] += "0"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ResumeError, match="row 5 was made from another row than the input's 'row-5'"):
        write(tmp_path / name, source, resume=True)


@FORMATS
def test_rows_of_every_shape_are_known_again(tmp_path: Path, name: str):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in MIXED) + '{"question": 1e999}\nbroken\n"a text"\n')
    assert len(write(tmp_path / name, source)) == len(MIXED) + 3
    assert write(tmp_path / name, source, resume=True) == []


def test_an_output_without_its_run_file_does_not_resume(tmp_path: Path, source: Path):
    killed_after(tmp_path / "out.jsonl", source, 7)
    (tmp_path / "out.jsonl.run.json").unlink()
    with pytest.raises(ResumeError, match=r"out\.jsonl\.run\.json is not readable"):
        write(tmp_path / "out.jsonl", source, resume=True)


def test_rows_of_another_order_name_the_row_and_both_ids(tmp_path: Path, source: Path):
    out = tmp_path / "out.jsonl"
    killed_after(out, source, 7)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(ResumeError, match="row 2 has id 'row-3', in the input it is 'row-2'"):
        write(out, source, resume=True)


def test_more_rows_than_the_input_do_not_resume(tmp_path: Path, source: Path):
    write(tmp_path / "out.jsonl", source)
    writer = RecordWriter(tmp_path / "out.jsonl", source=source, settings=SETTINGS, resume=True)
    with writer, pytest.raises(ResumeError, match="has row 6, the input has 5"):
        writer.remaining(read_rows(source, limit=5))


def test_a_line_that_is_no_row_does_not_resume(tmp_path: Path, source: Path):
    killed_after(tmp_path / "out.jsonl", source, 2)
    with (tmp_path / "out.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n")
    with pytest.raises(ResumeError, match="line 3 is not an output row"):
        write(tmp_path / "out.jsonl", source, resume=True)


@pytest.mark.parametrize("line", ['{"id": "row-1"}', "[" * 100_000], ids=["a part of a row", "deep nesting"])
def test_a_line_that_is_no_whole_row_does_not_resume(tmp_path: Path, source: Path, line: str):
    killed_after(tmp_path / "out.jsonl", source, 0)
    (tmp_path / "out.jsonl").write_text(f"{line}\n")
    with pytest.raises(ResumeError, match="line 1 is not an output row"):
        write(tmp_path / "out.jsonl", source, resume=True)


@pytest.mark.parametrize("change", [{"mismatch": {}}, {"status": "banana"}, {"proposer": 5}, {"error": {}}], ids=str)
def test_an_edited_row_does_not_resume(tmp_path: Path, source: Path, change: dict[str, Any]):
    out = tmp_path / "out.jsonl"
    write(out, source)
    first, *others = out.read_text().splitlines()
    out.write_text("\n".join([json.dumps(json.loads(first) | change), *others, ""]))
    with pytest.raises(ResumeError, match="line 1 is not an output row"):
        write(out, source, resume=True)


def test_a_run_file_that_is_no_object_does_not_resume(tmp_path: Path, source: Path):
    killed_after(tmp_path / "out.jsonl", source, 3)
    for text in ("[1]", "7", "[" * 100_000):
        (tmp_path / "out.jsonl.run.json").write_text(text)
        with pytest.raises(ResumeError, match=r"out\.jsonl\.run\.json is not readable"):
            write(tmp_path / "out.jsonl", source, resume=True)


@pytest.mark.parametrize("content", [b"PAR1 not at all", None], ids=["not Parquet", "of other columns"])
def test_a_parquet_file_that_is_no_output_does_not_resume(tmp_path: Path, source: Path, content: bytes | None):
    out = tmp_path / "out.parquet"
    write(out, source)
    if content is None:
        pq.write_table(pa.table({"id": ["row-1"]}), out)
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    with pytest.raises(ResumeError, match="it is no Parquet output of ours"):
        write(out, source, resume=True)
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.parquet", "out.parquet.run.json"}


def test_an_output_among_the_files_of_the_input_folder_is_refused(tmp_path: Path, source: Path):
    with pytest.raises(OutputFileError, match="lies in the input folder"):
        write(tmp_path / "out.jsonl", tmp_path)
    assert list(tmp_path.iterdir()) == [source]
    (tmp_path / "below").mkdir()
    assert len(write(tmp_path / "below" / "out.jsonl", tmp_path)) == 20


def test_two_processes_do_not_write_one_output(tmp_path: Path, source: Path):
    out = tmp_path / "out.jsonl"
    with (
        RecordWriter(out, source=source, settings=SETTINGS),
        pytest.raises(OutputFileError, match="another process is writing it"),
    ):
        write(out, source)


def test_the_input_is_not_its_own_output(source: Path):
    before = source.read_bytes()
    with pytest.raises(OutputFileError, match="is the input itself"):
        write(source, source, overwrite=True)
    assert source.read_bytes() == before


def test_an_output_folder_that_is_missing_is_named(tmp_path: Path, source: Path):
    with pytest.raises(OutputFileError, match=r"nowhere/out\.jsonl: cannot be written: No such file or directory"):
        write(tmp_path / "nowhere" / "out.jsonl", source)


MIXED: list[dict[str, Any]] = [
    {"prompt": "2+2?", "completion": "4", "meta": 1, "date": "2024-01-01"},
    {"prompt": [{"role": "user", "content": "2+2?"}], "completion": "4", "meta": "x", "date": "unknown"},
    {"question": "2+2?", "answer": "4", "meta": {"deep": [1, "a", None]}, "n": 2**62},
    {"messages": "hello"},
    {"instruction": "Add 2 and 2.", "output": "4", "meta": 1.5, "empty": {}},
]


def late(source: Path, out: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` after more than 10 MB of regular ones: by then readers have settled every column's type."""
    first = [{"question": "x" * 3000, "answer": "4", "meta": 1, "date": "2024-01-01"}] * 2000
    source.write_text("".join(json.dumps(row) + "\n" for row in [*first, *rows]))
    with RecordWriter(out, source=source, settings=SETTINGS) as writer:
        for number, row in enumerate(read_rows(source)):
            writer.write(output_row(row, adapter="math@1") if number > 2000 else output_row(row))


def loaded(out: Path, cache: Path) -> datasets.Dataset:
    builder = {".jsonl": "json", ".parquet": "parquet"}[out.suffix]
    return datasets.load_dataset(builder, data_files=str(out), split="train", cache_dir=str(cache))


def test_datasets_loads_parquet_with_late_surprises_in_the_input(tmp_path: Path):
    late(tmp_path / "in.jsonl", tmp_path / "out.parquet", MIXED)
    rows = loaded(tmp_path / "out.parquet", tmp_path / "cache").select(range(2000, 2005))
    assert [json.loads(row["source"]) for row in rows] == MIXED
    assert [row["status"] for row in rows] == ["rewritten"] * 3 + ["error", "rewritten"]


def test_datasets_loads_json_lines_whose_first_error_and_adapter_come_late(tmp_path: Path):
    regular = {"question": "2+2?", "answer": "4", "meta": 2, "date": "2024-01-02"}
    late(tmp_path / "in.jsonl", tmp_path / "out.jsonl", [regular, regular, {**regular, "question": ""}])
    rows = loaded(tmp_path / "out.jsonl", tmp_path / "cache").select(range(2000, 2003))
    assert [row["adapter"] for row in rows] == ["", "math@1", ""]
    assert rows[2]["error"]["line"] == 2003
    assert rows[2]["error"]["field"] == "question"


def test_datasets_loads_json_lines_of_mixed_shapes(tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in MIXED))
    with RecordWriter(tmp_path / "out.jsonl", source=source, settings=SETTINGS) as writer:
        for row in read_rows(source):
            writer.write(output_row(row))
    rows = loaded(tmp_path / "out.jsonl", tmp_path / "cache")
    assert [row["status"] for row in rows] == ["rewritten"] * 3 + ["error", "rewritten"]
