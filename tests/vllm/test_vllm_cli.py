"""The command line on the vLLM engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

ROWS = [
    {"id": "pears", "problem": "Ann has 12 pears and eats 5. How many are left?", "solution": "12 - 5 = 7\n#### 7"},
    {"id": "sum", "problem": "What is 3 + 4?", "solution": "3 + 4 = 7\n#### 7"},
]


def test_rewrite_with_a_config_that_asks_for_vllm_prints_records_and_nothing_else(tmp_path: Path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "rewright.toml").write_text('[engine]\nkind = "vllm"\nmax_length = 2048\n')
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("rewright")),
            "rewrite",
            str(tmp_path / "in.jsonl"),
            "--config",
            str(tmp_path / "rewright.toml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["id"] for record in records] == ["pears", "sum"]
    assert {record["status"] for record in records} <= {"rewritten", "self_solved", "fallback"}
    assert all(record["mismatch"]["expert"]["tokens"] > 5 for record in records)
