"""A job of 2,000 rows while its service and its database are killed at random moments: every row once, in order.

The engine is scripted and fast; `REWRIGHT_FAULTS` sets the number of faults, `REWRIGHT_FAULTS_SEED` their moments.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.postgres import postgres
from tests.scripted_process import PATIENCE_S, ScriptedProcess
from tests.waiting import wait_until

ROWS = 2000
FAULTS = int(os.environ.get("REWRIGHT_FAULTS", "20"))
LEFT_ALONE = 200  # rows at the end that no fault waits for


class Service(ScriptedProcess):
    """Over one database, with shards of twenty rows."""

    def __init__(self, state: Path, database: str | None) -> None:
        super().__init__(state, "--shard-rows", "20", *(["--database", database] if database else []))

    def submit(self, rows: bytes) -> str:
        file = self.http.post("/v1/files", content=rows, headers={"Content-Type": "application/x-ndjson"})
        assert file.status_code in (200, 201), file.text
        job = self.http.post("/v1/jobs", json={"kind": "rewrite", "input_file": file.json()["id"]})
        assert job.status_code in (200, 201, 202), job.text
        return str(job.json()["id"])

    def done(self, job: str) -> int:
        """Rows finished, by the word of the service; patient with one that has lost its database."""
        answers: list[int] = []

        def answered() -> bool:
            answer = self.http.get(f"/v1/jobs/{job}")
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200:
                body = answer.json()
                assert body["status"] not in ("failed", "cancelled"), body
                answers.append(body["request_counts"]["completed"] + body["request_counts"]["failed"])
            return bool(answers)

        wait_until(answered, PATIENCE_S)
        return answers[0]

    def result(self, job: str) -> bytes:
        def ended() -> bool:
            answer = self.http.get(f"/v1/jobs/{job}")
            return answer.status_code == 200 and answer.json()["status"] in ("completed", "failed")

        wait_until(ended, PATIENCE_S)
        body = self.http.get(f"/v1/jobs/{job}").json()
        assert body["status"] == "completed", body
        return self.http.get(f"/v1/files/{body['output_file']}/content").content


def _rows() -> bytes:
    lines = [json.dumps({"question": f"{n}?", "answer": f"it is {n}"}) if n % 97 else "{broken" for n in range(ROWS)]
    return "\n".join(lines).encode()


def _undisturbed(folder: Path) -> bytes:
    service = Service(folder, None)
    service.start(pause_s=0.0)
    try:
        return service.result(service.submit(_rows()))
    finally:
        service.kill()
        service.http.close()


def _disturbed(service: Service, faults: dict[str, Callable[[], object]]) -> bytes:
    seed = int(os.environ.get("REWRIGHT_FAULTS_SEED", random.randrange(10**6)))
    chance, made = random.Random(seed), Counter[str]()
    print(f"\nseed {seed}")
    service.start(pause_s=0.05)
    job = service.submit(_rows())
    for number in range(FAULTS):
        wanted = chance.uniform(0.5, 1.0) * (number + 1) * (ROWS - LEFT_ALONE) / FAULTS
        wait_until(lambda: service.done(job) >= wanted, PATIENCE_S)  # noqa: B023
        time.sleep(chance.uniform(0.0, 0.2))
        before = service.done(job)
        name = chance.choice(sorted(faults))
        faults[name]()
        made[name] += 1
        assert service.done(job) >= before, f"after {name}: what was done is not done any more"
    assert service.done(job) < ROWS, "the job ended before the last fault"
    result = service.result(job)
    print(f"{FAULTS} faults in a job of {ROWS} rows: {dict(made)}")
    return result


def _kill_and_start(service: Service) -> None:
    service.kill()
    service.start(pause_s=0.05)


def test_kills_of_the_service_on_sqlite_lose_and_repeat_nothing(tmp_path: Path) -> None:
    service = Service(tmp_path / "state", None)
    try:
        made = _disturbed(service, {"the service is killed": lambda: _kill_and_start(service)})
    finally:
        service.kill()
        service.http.close()
    rows = [json.loads(line) for line in made.splitlines()]
    assert [row["id"] for row in rows] == [f"row-{n + 1}" for n in range(ROWS)]
    assert made == _undisturbed(tmp_path / "undisturbed")


def test_kills_of_the_service_and_of_postgresql_lose_and_repeat_nothing(tmp_path: Path) -> None:
    with postgres() as database:
        service = Service(tmp_path / "state", database.url)
        faults: dict[str, Callable[[], object]] = {
            "the service is killed": lambda: _kill_and_start(service),
            "connections are cut": database.drop_connections,
            "PostgreSQL is killed": database.restart,
        }
        try:
            made = _disturbed(service, faults)
        finally:
            service.kill()
            service.http.close()
    assert made == _undisturbed(tmp_path / "undisturbed")
