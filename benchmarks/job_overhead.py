"""What durability costs: rows through the whole job path with an engine that takes no time, at growing sizes.

    python benchmarks/job_overhead.py --rows 1000 10000

A service of its own process takes each file in and does the job: upload and its check, cutting into shards, DBOS on
SQLite, one commit a shard, results put together. Memory is the process's peak, before the first row and after the last
job. Processor time is the service's, upload and job; unlike rows per second it says little of what else the machine
does. Prints one JSON line; a cost that grows with the number of rows alone is the same for a row at every size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from cli.jobs_client import JobsClient
from server.ports import free_port

REPOSITORY = Path(__file__).parents[1]


def peak_mib(pid: int) -> float:
    """Most memory that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say how much memory a process had: run it on Linux")


def processor_s(pid: int) -> float:
    """Processor time of a process so far, seconds."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def write_rows(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for number in range(rows):
            row = {"question": f"What is {number} + 1?", "answer": f"It is {number + 1}."}
            file.write(f"{json.dumps(row)}\n")


def measure(client: JobsClient, pid: int, path: Path, rows: int) -> dict[str, float]:
    """Seconds of the upload and of the job, for one file of `rows` rows sent to the service of process `pid`."""
    write_rows(path, rows)
    used, started = processor_s(pid), time.perf_counter()
    file = client.upload(path)
    uploaded = time.perf_counter()
    job = client.watch(client.submit(file["id"], {})["id"], lambda counts: None)
    done, used = time.perf_counter(), processor_s(pid) - used
    if job["status"] != "completed" or job["request_counts"]["completed"] != rows:
        raise RuntimeError(f"the job went wrong: {job}")
    lines = 0

    def count(chunk: bytes) -> None:
        nonlocal lines
        lines += chunk.count(b"\n")

    client.download(job["output_file"], count)
    if lines != rows:
        raise RuntimeError(f"{lines} rows came back of {rows}")
    return {
        "rows": rows,
        "upload_seconds": round(uploaded - started, 2),
        "job_seconds": round(done - uploaded, 2),
        "job_rows_per_second": round(rows / (done - uploaded), 1),
        "processor_ms_per_row": round(1000 * used / rows, 3),
    }


def run(sizes: list[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        command = [sys.executable, "-m", "tests.scripted_service", "--port", str(port), "--state", f"{folder}/state"]
        service = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        try:
            assert service.stdout is not None
            if not service.stdout.readline().startswith("ready"):
                raise RuntimeError("the service did not start")
            with JobsClient(f"http://127.0.0.1:{port}", None, patience_s=600) as client:
                measure(client, service.pid, Path(folder, "warm.jsonl"), 200)
                before = peak_mib(service.pid)
                sizes_measured = []
                for rows in sizes:
                    figures = measure(client, service.pid, Path(folder, "rows.jsonl"), rows)
                    figures["peak_mib_above_start"] = round(peak_mib(service.pid) - before, 1)
                    sizes_measured.append(figures)
        finally:
            service.terminate()
            service.wait()
    return {"benchmark": "job_overhead", "start_mib": round(before, 1), "sizes": sizes_measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000])
    print(json.dumps(run(parser.parse_args().rows)))


if __name__ == "__main__":
    main()
