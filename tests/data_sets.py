"""Data sets as the hub has them, in a folder: the library takes `org/name` below the current one for one of the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_data_set(folder: Path, configurations: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Write a data set of rows with these ids, by configuration and split."""
    folder.mkdir(parents=True)
    configs = []
    for name, splits in configurations.items():
        data_files = []
        for split, ids in splits.items():
            file = folder / f"{name}-{split}.jsonl"  # no folder of that name, which would be a path
            rows = ({"id": row_id, "question": "2+2?", "answer": "4"} for row_id in ids)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            data_files.append({"split": split, "path": file.name})
        configs.append({"config_name": name, "data_files": data_files})
    folder.joinpath("README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
