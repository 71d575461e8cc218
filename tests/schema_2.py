"""A state folder as the release with schema 2 left it: a job under way, of which one shard of seven rows is done."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from tests import schema_1
from tests.schema_1 import JOB_ID, ROWS

SHARD = 7
KEPT = "made by the release before"

_CHANGES = """
CREATE INDEX ix_rewright_files_created_at ON rewright_files (created_at);
CREATE INDEX ix_rewright_jobs_finished_at ON rewright_jobs (finished_at);
CREATE TABLE rewright_runs (
    job VARCHAR(28) NOT NULL PRIMARY KEY REFERENCES rewright_jobs (id),
    adapter VARCHAR(128), model VARCHAR(128), attempt INTEGER NOT NULL, told INTEGER NOT NULL
);
UPDATE rewright_schema SET version = 2;
"""


def make_state(folder: Path) -> None:
    """Fill a state folder."""
    schema_1.make_state(folder)
    connection = sqlite3.connect(folder / "service.sqlite")
    connection.executescript(_CHANGES)
    connection.execute("INSERT INTO rewright_runs VALUES (?, 'math@3', NULL, 0, 0)", (JOB_ID,))
    connection.execute("UPDATE rewright_jobs SET status = 'in_progress', completed = ?, events = 3", (SHARD,))
    connection.execute("INSERT INTO rewright_shards VALUES (?, 0)", (JOB_ID,))
    progress = json.dumps({"total": 30, "completed": SHARD, "failed": 0})
    for number, kind, data in ((2, "status", '{"status": "in_progress"}'), (3, "progress", progress)):
        connection.execute("INSERT INTO rewright_events VALUES (?, ?, ?, ?)", (JOB_ID, number, kind, data))
    connection.commit()
    connection.close()
    work = folder / "jobs" / JOB_ID
    for name in ("input", "output", "failed"):
        (work / name).mkdir(parents=True)
    lines = [
        json.dumps({"id": f"row-{number}", "line": number, "number": number, "row": json.loads(row)})
        for number, row in enumerate(ROWS.splitlines(), 1)
    ]
    cut = [lines[first : first + SHARD] for first in range(0, len(lines), SHARD)]
    for shard, part in enumerate(cut):
        (work / "input" / f"{shard:06}.jsonl").write_text("".join(f"{line}\n" for line in part))
    done = [json.dumps({"id": f"row-{number}", "status": "rewritten", "model": KEPT}) for number in range(1, SHARD + 1)]
    (work / "output" / "000000.jsonl").write_text("".join(f"{line}\n" for line in done))
    (work / "plan.json").write_text(json.dumps({"shards": len(cut), "rows": len(lines)}))
