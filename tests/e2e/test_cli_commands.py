"""`rewright mismatch`, `check` and `demo` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.usefixtures("model_files")
def test_mismatch_is_printed_written_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"id": "plain", "question": "What is 2 + 2?", "answer": "2 + 2 equals 4."}\n'
        '{"id": "odd", "question": "What is 2 + 2?", "answer": "Zebra quartz, umbrella: vier."}\n'
    )
    code, out, err = run(tmp_path, "mismatch", "in.jsonl", "--plot", "p.png", "-o", "rows.jsonl", "--json")
    assert code == 0, err
    plain, odd = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (plain["id"], odd["id"]) == ("plain", "odd")
    assert plain["mismatch"]["nll"] < odd["mismatch"]["nll"]
    assert plain["tokens"][-1] == "<|im_end|>"
    assert len(plain["tokens"]) == len(plain["nats"]) == plain["mismatch"]["tokens"]
    figures = json.loads(out)
    assert figures["nll"] == pytest.approx((plain["mismatch"]["nll"] + odd["mismatch"]["nll"]) / 2, abs=1e-3)
    assert figures["tokens"] == len(plain["tokens"]) + len(odd["tokens"])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_check_tells_what_the_gate_thinks_of_candidates(tmp_path: Path) -> None:
    row = {"question": "What is 3 + 4?", "answer": "3 + 4 = 7\n#### 7"}
    rows = [
        row | {"candidate": "3 + 4 = 7, so the answer is 7.", "label": "accept"},
        row | {"candidate": "3 + 4 = 8, so the answer is 8.", "label": "reject"},
        row | {"candidate": "", "label": "reject"},
        row,
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, err = run(tmp_path, "check", "in.jsonl", "-o", "verdicts.jsonl", "--json")
    assert code == 1, err
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [v["status"] for v in verdicts] == ["passed", "failed", "failed", "error"]
    summary = json.loads(out)
    assert summary["failed_checks"] == {"math_answer": 1, "hygiene": 1}
    assert (summary["false_accepts"], summary["false_rejects"]) == ([], [])


def test_results_on_standard_output_are_utf8_whatever_the_terminal(tmp_path: Path) -> None:
    row = {"id": "ключ", "question": "Сколько?", "answer": "6*7=42\n#### 42", "candidate": "6*7=42. Ответ: 42"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    command = [sys.executable, "-m", "cli.main", "check", "in.jsonl", "-o", "-"]
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout.decode())["id"] == "ключ"
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_check_takes_the_task_from_the_flag(tmp_path: Path) -> None:
    row = {"question": "What is 3 + 4?", "answer": "seven", "candidate": "It is seven, of course."}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    code, out, _ = run(tmp_path, "check", "in.jsonl", "--task", "math")
    assert code == 1
    assert "task 'math' needs a reference answer" in json.loads(out)["error"]["message"]


@pytest.mark.usefixtures("model_files")
def test_check_calibrates_the_reasoning_judge(tmp_path: Path) -> None:
    row = {"question": "What is 3 + 4?", "answer": "3 + 4 = 7\n#### 7"}
    rows = [row | {"candidate": f"The answer is {n}.", "label": "accept" if n == 7 else "reject"} for n in (5, 7, 8)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, err = run(tmp_path, "check", "in.jsonl", "--calibrate", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["accepts"], found["rejects"]) == (1, 2)
    assert found["thresholds"][-1]["false_accept_rate"] == 0.0


@pytest.mark.usefixtures("model_files")
def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    quick = {"quick": [{"proposer": "rewrite", "temperatures": [0.4], "samples": 1}]}
    code, _, err = run(
        tmp_path,
        "demo",
        REWRIGHT_REWRITE__STRATEGIES=json.dumps(quick),
        REWRIGHT_REWRITE__STRATEGY="quick",
        REWRIGHT_REWRITE__MAX_TOKENS="64",
        REWRIGHT_SFT__STEPS="1",
        REWRIGHT_EVALUATE__MAX_TOKENS="8",
        REWRIGHT_EVALUATE__KL_ROWS="2",
        REWRIGHT_EVALUATE__KL_MAX_TOKENS="8",
    )
    assert code == 0, err
    given = (PROJECT / "examples" / "demonstrations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in (tmp_path / "out" / "demo.jsonl").read_text().splitlines()]
    assert len(rows) == len([line for line in given if line.strip()])
    assert any(row["status"] == "rewritten" for row in rows)
    assert "Summary" in err
    assert err.count("nats/token: ") >= 2
    assert {row["adapter"] for row in rows if row["status"] == "rewritten"} == {"math@1"}
    tuned = [line.split() for line in err.splitlines() if line.strip(" │").startswith("tuned on")]
    assert [words[3] for words in tuned] == ["experts", "rewritten"]
    losses = [float(words[5]) for words in tuned]
    assert losses[1] < losses[0]
