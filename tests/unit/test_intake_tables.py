from __future__ import annotations

import datetime
import decimal
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import InputFileError
from agent.intake import read_rows
from agent.tables import read_hub
from tests.data_sets import write_data_set

ROWS = [{"question": f"{n}+1?", "answer": f"It is {n + 1}."} for n in range(600)]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    return path


def test_parquet_rows_come_in_order_with_their_numbers(tmp_path: Path):
    rows = list(read_rows(parquet(tmp_path / "rows.parquet", ROWS)))
    assert [row.source for row in rows] == ROWS
    assert (rows[599].line, rows[599].id) == (600, "row-600")


def test_a_table_of_mixed_shapes_has_nulls_for_the_fields_of_the_others(tmp_path: Path):
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    mixed = [{"messages": turns, "question": None, "answer": None}, {"messages": None, **ROWS[0]}]
    rows = list(read_rows(parquet(tmp_path / "rows.parquet", mixed)))
    assert [row.expert for row in rows if isinstance(row, Demonstration)] == ["4", "It is 1."]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, suffix: str):
    table = pa.Table.from_arrays(
        [pa.array(["1+1?"]), pa.array(["2"]), pa.array(["2+2?"])], ["question", "answer", "question"]
    )
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(InputFileError) as refused:
        list(read_rows(path))
    assert str(refused.value) == f"{path}: 2 columns are named 'question'; keep one of them"


def test_cells_that_json_does_not_know_become_text_or_null(tmp_path: Path):
    cells = {
        "when": datetime.datetime(2024, 1, 2, 3, 4),
        "price": decimal.Decimal("1.50"),
        "score": float("nan"),
        "raw": b"bytes",
        "tags": {"a": [1, 2]},
    }
    (row,) = read_rows(parquet(tmp_path / "rows.parquet", [{**ROWS[0], **cells}]))
    assert isinstance(row, Demonstration)
    assert row.source == {
        **ROWS[0],
        "when": "2024-01-02 03:04:00",
        "price": "1.50",
        "score": None,
        "raw": "bytes",
        "tags": {"a": [1, 2]},
    }


def test_text_that_is_not_utf8_is_an_error_of_its_row(tmp_path: Path):
    broken = pa.array([b"good", b"\xff", b"good"]).cast(pa.string(), safe=False)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": broken, "answer": ["a", "b", "c"]}), path)
    rows = list(read_rows(path))
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False]


def test_a_binary_cell_is_an_error_of_its_row(tmp_path: Path):
    (row,) = read_rows(parquet(tmp_path / "rows.parquet", [{**ROWS[0], "image": b"\x89PNG"}]))
    assert isinstance(row, BadRow)
    assert row.message.startswith("a cell cannot be read: 'utf-8' codec can't decode")


def test_a_truncated_parquet_file_is_an_error_of_the_file(tmp_path: Path):
    path = parquet(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputFileError, match="not a readable parquet file"):
        list(read_rows(path))


def test_a_folder_saved_by_datasets_is_read(tmp_path: Path):
    datasets.Dataset.from_list(ROWS).select(range(10, 30)).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    assert [row.source for row in read_rows(tmp_path / "saved")] == ROWS[10:30]


def test_a_folder_of_splits_asks_for_one(tmp_path: Path):
    split = datasets.Dataset.from_list(ROWS[:2])
    datasets.DatasetDict({"test": split, "train": split}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputFileError, match="name one of its folders: test, train"):
        list(read_rows(tmp_path / "saved"))
    assert len(list(read_rows(tmp_path / "saved" / "train"))) == 2


def test_a_data_set_that_the_hub_does_not_give_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputFileError, match="nobody/nothing:test: no such file or folder, and no data set of the hub"):
        list(read_rows(Path("nobody/nothing:test")))


def test_a_data_set_of_several_configurations_is_named_with_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_data_set(tmp_path / "org" / "name", {"main": {"train": ["m"], "test": ["t"]}, "other": {"train": ["o"]}})
    monkeypatch.chdir(tmp_path)
    named = {name: [row.id for row in read_rows(Path(name))] for name in ("org/name/main:test", "org/name/other")}
    assert named == {"org/name/main:test": ["t"], "org/name/other": ["o"]}


def test_a_missing_configuration_is_answered_with_those_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_data_set(tmp_path / "org" / "name", {"main": {"train": ["m"]}, "other": {"train": ["o"]}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputFileError, match=r"pick one among the available configs: \['main', 'other'\]"):
        list(read_hub("org/name"))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_tables_give_rows_or_an_error_of_the_file(tmp_path_factory: pytest.TempPathFactory, data: Any):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        parquet(tmp_path_factory.getbasetemp() / "rows.parquet", ROWS[:50])
        datasets.Dataset.from_list(ROWS[:50]).save_to_disk(str(folder))
    whole = data.draw(st.sampled_from([tmp_path_factory.getbasetemp() / "rows.parquet", *folder.glob("*.arrow")]))
    damaged = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"any{whole.suffix}"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        rows = list(read_rows(path))
    except InputFileError:
        return
    for row in rows:
        json.dumps(row.source, allow_nan=False)


READ_FIRST = """
import sys
from pathlib import Path

import pyarrow as pa

from agent.tables import read_table

next(read_table(Path(sys.argv[1])))
print(pa.default_memory_pool().max_memory())
"""


def test_a_small_file_that_repeats_one_long_text_does_not_fill_the_memory(tmp_path: Path):
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 256), pa.array(["x" * 2**21]))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": repeated, "answer": ["2"] * 256}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    command = [sys.executable, "-c", READ_FIRST, str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150 * 2**20
