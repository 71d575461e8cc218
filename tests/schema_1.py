"""A database as the release with schema 1 made it: its tables, a key, and a job that has not begun."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

FILE_ID, JOB_ID, KEY = "file_" + "a" * 24, "job_" + "b" * 24, f"rw_0123456789ab_{'k' * 43}"
ROWS = b"".join(b'{"question": "%d + 1?", "answer": "it is %d"}\n' % (n, n + 1) for n in range(30))

_TABLES = """
CREATE TABLE rewright_schema (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE rewright_files (
    id VARCHAR(29) NOT NULL, purpose VARCHAR(16) NOT NULL, filename VARCHAR(255) NOT NULL,
    format VARCHAR(16) NOT NULL, bytes BIGINT NOT NULL, sha256 VARCHAR(64) NOT NULL, rows BIGINT NOT NULL,
    unreadable_rows BIGINT NOT NULL, problems JSON NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (id)
);
CREATE TABLE rewright_jobs (
    id VARCHAR(28) NOT NULL, kind VARCHAR(16) NOT NULL, status VARCHAR(16) NOT NULL, input_file VARCHAR(29) NOT NULL,
    params JSON NOT NULL, owner VARCHAR(64) NOT NULL, idempotency_key VARCHAR(255), payload_hash VARCHAR(64) NOT NULL,
    total BIGINT NOT NULL, completed BIGINT NOT NULL, failed BIGINT NOT NULL, events BIGINT NOT NULL,
    output_file VARCHAR(29), error_file VARCHAR(29), error TEXT, created_at BIGINT NOT NULL, finished_at BIGINT,
    PRIMARY KEY (id), UNIQUE (owner, idempotency_key)
);
CREATE INDEX ix_rewright_jobs_status ON rewright_jobs (status);
CREATE INDEX ix_rewright_jobs_input_file ON rewright_jobs (input_file);
CREATE TABLE rewright_keys (
    id VARCHAR(16) NOT NULL, name VARCHAR(64) NOT NULL, digest BLOB NOT NULL, scopes JSON NOT NULL,
    created_at BIGINT NOT NULL, expires_at BIGINT, revoked_at BIGINT, PRIMARY KEY (id)
);
CREATE TABLE rewright_shards (
    job VARCHAR(28) NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (job, number),
    FOREIGN KEY(job) REFERENCES rewright_jobs (id)
);
CREATE TABLE rewright_events (
    job VARCHAR(28) NOT NULL, number BIGINT NOT NULL, type VARCHAR(16) NOT NULL, data JSON NOT NULL,
    PRIMARY KEY (job, number), FOREIGN KEY(job) REFERENCES rewright_jobs (id)
);
INSERT INTO rewright_schema VALUES (1);
"""


def make_state(folder: Path) -> None:
    """Fill a state folder as that release left it when it was stopped right after the job was submitted."""
    (folder / "files").mkdir(parents=True)
    (folder / "files" / f"{FILE_ID}.jsonl").write_bytes(ROWS)
    described = (FILE_ID, "input", "a.jsonl", "jsonl", len(ROWS), hashlib.sha256(ROWS).hexdigest(), 30, 0, "[]", 1000)
    job = (
        JOB_ID,
        "rewrite",
        "validating",
        FILE_ID,
        "{}",
        "",
        None,
        "0" * 64,
        30,
        0,
        0,
        1,
        None,
        None,
        None,
        1000,
        None,
    )
    digest = hashlib.sha256(b"k" * 43).digest()
    connection = sqlite3.connect(folder / "service.sqlite")
    connection.executescript(_TABLES)
    connection.execute(f"INSERT INTO rewright_files VALUES ({','.join('?' * 10)})", described)
    connection.execute(f"INSERT INTO rewright_jobs VALUES ({','.join('?' * 17)})", job)
    connection.execute("INSERT INTO rewright_events VALUES (?, 1, 'status', '{\"status\": \"validating\"}')", (JOB_ID,))
    connection.execute(
        "INSERT INTO rewright_keys VALUES ('0123456789ab', 'mine', ?, '[\"rewrite\"]', 1000, NULL, NULL)", (digest,)
    )
    connection.commit()
    connection.close()
