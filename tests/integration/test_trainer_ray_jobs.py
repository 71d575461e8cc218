"""Trainings as jobs of a real local Ray cluster with token authentication; clients are processes of their own.

What a job trains is scripted: a real training takes minutes and is tested in `test_trainer_ray_training`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from server.ports import free_port
from tests.relay import Relay
from tests.waiting import wait_until
from trainer.request import TrainingRequest

PATIENCE_S = 600.0

# Loaded by every process of the cluster. The source of a request is the script of its training.
SCRIPTED_TRAINER = '''
import json, os, sys, tempfile, time, types
from agent.exceptions import InputFileError

def run_training(request, *, resume, on_report=None, on_note=None):
    if not request.source.exists():
        raise InputFileError(f"{request.source}: no such file")
    script = json.loads(request.source.read_text())
    print("resume", resume, "threads", request.engine.threads, flush=True)
    try:
        for line in range(script["lines"]):
            print("line", line, "of ü", flush=True)
            time.sleep(script["pause_s"])
            while line in script["holds"] and not os.path.exists(f"{request.source}-{line}"):
                time.sleep(0.05)
    finally:
        print("cleaned up", flush=True)
    if "world" in script:
        return request.output / str(averaged(script["world"]))
    if "crash" in script:
        raise ZeroDivisionError(script["crash"])
    return request.output / "1"

def averaged(samples):
    """A weight after a step of the Hugging Face trainer on as many samples, shared among the processes."""
    import torch
    from transformers import Trainer, TrainingArguments
    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x, labels):
            return {"loss": ((self.weight * x - labels) ** 2).mean()}
    share = samples // int(os.environ.get("WORLD_SIZE", "1"))
    rows = [{"x": float(i), "labels": 3.0 * i} for i in range(samples)]
    with tempfile.TemporaryDirectory() as folder:  # made, though nothing is saved in it
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=share, max_steps=1, learning_rate=0.01, optim="sgd",
            lr_scheduler_type="constant", max_grad_norm=0.0, report_to="none", save_strategy="no", use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model=Line(), args=arguments, train_dataset=rows)
        trainer.train()
    print("world size", trainer.accelerator.num_processes, flush=True)
    return round(trainer.accelerator.unwrap_model(trainer.model).weight.item(), 4)

module = types.ModuleType("trainer.train")
module.run_training = run_training
sys.modules["trainer.train"] = module
'''

# Without arguments, answers every line of standard input: a list of arguments by a list of code, output and errors.
CLIENT = """
import contextlib, io, json, sys
from trainer import ray_jobs
from trainer.exceptions import JobError
from trainer.request import TrainingRequest, WorkerResources

def answer(write, action, address, job_id, *rest):
    try:
        if action == "submit":
            request = TrainingRequest.model_validate_json(rest[0])
            cores = WorkerResources(cpus=int(rest[2]), memory_mb=64)
            write(ray_jobs.submit(address, request, resume=True, workers=int(rest[1]), resources=cores, job_id=job_id))
        elif action == "follow":
            write("ended " + ray_jobs.follow(address, job_id, write).status)
        elif action == "status":
            write(ray_jobs.status(address, job_id).status)
        else:
            write(str(ray_jobs.stop(address, job_id)))
    except JobError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    write(chr(10))
    return 0

if sys.argv[1:]:
    sys.exit(answer(lambda text: print(text, end="", flush=True), *sys.argv[1:]))
for line in sys.stdin:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = answer(output.write, *json.loads(line))
    print(json.dumps([code, output.getvalue(), errors.getvalue()]), flush=True)
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and clients of it."""

    address: str
    token: str
    folder: Path
    clients: dict[tuple[tuple[str, str], ...], subprocess.Popen[str]] = field(default_factory=dict)

    def environment(self, **changes: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # An address in the environment must not win over the one that is asked for.
        stray = {"RAY_ADDRESS": "http://127.0.0.1:9", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
        return inherited | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} | stray | changes

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, *arguments],
            env=self.environment(**environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def follow(self, job_id: str, address: str = "") -> subprocess.Popen[str]:
        """A client of its own that follows a job."""
        return self.start("follow", address or self.address, job_id)

    def ask(self, action: str, job_id: str, *rest: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, output and error output of a client; one process answers for all of an environment."""
        changes = tuple(environment.items())
        if changes not in self.clients:
            self.clients[changes] = self.start(**environment)
        client = self.clients[changes]
        assert client.stdin
        assert client.stdout
        print(json.dumps([action, self.address, job_id, *rest]), file=client.stdin, flush=True)
        answer = client.stdout.readline()
        assert answer, client.communicate()[1]
        code, output, errors = json.loads(answer)
        return code, output, errors

    def source(self, job_id: str) -> Path:
        return self.folder / f"{job_id} it's $(script) ${{HOME}}.json"

    def submit(self, job_id: str, script: dict[str, object] | None, *, workers: int = 1, cpus: int = 1) -> None:
        """Script None: a source that does not exist. After a line in its `holds` a job waits for `release`."""
        source = self.source(job_id)
        if script is not None:
            source.write_text(json.dumps({"lines": 1, "pause_s": 0, "holds": []} | script))
        request = TrainingRequest(source=source, output=self.folder / "adapters")
        code, output, errors = self.ask("submit", job_id, request.model_dump_json(), str(workers), str(cpus))
        assert (code, output) == (0, f"{job_id}\n"), errors

    def release(self, job_id: str, line: int) -> None:
        self.source(job_id).with_name(f"{self.source(job_id).name}-{line}").touch()

    def log(self, job_id: str) -> str:
        """Empty until the job's driver has begun: the file is made after submission has returned."""
        file = self.folder / f"ray/session_latest/logs/job-driver-{job_id}.log"
        return file.read_text() if file.exists() else ""

    def processes(self, part: str) -> list[psutil.Process]:
        """Processes of this cluster that have `part` in their command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get("RAY_AUTH_TOKEN") == self.token
                if ours and part in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="rw-ray-"))  # Ray's sockets lie in it, and their paths must be short
    (folder / "sitecustomize.py").write_text(SCRIPTED_TRAINER)
    dashboard = free_port()
    running = Cluster(f"http://127.0.0.1:{dashboard}", secrets.token_hex(32), folder)
    ports = {"port": free_port(), "dashboard-port": dashboard, "ray-client-server-port": free_port()}
    ports |= {"dashboard-agent-listen-port": free_port(), "metrics-export-port": free_port()}
    environment = running.environment(
        PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])), PYTHONPATH=str(folder)
    )
    for stray in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        del environment[stray]
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats", f"--temp-dir={folder}/ray"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command[1:], *(f"--{n}={p}" for n, p in ports.items())],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: process.poll() is not None or running.ask("status", "none")[2].endswith("does not exist\n"),
            PATIENCE_S,
        )
        assert process.poll() is None, (folder / "log").read_text()
        # The agent that starts jobs comes up after the dashboard.
        request = TrainingRequest(source=folder / "none", output=folder / "adapters").model_dump_json()
        wait_until(lambda: running.ask("submit", "first", request, "1", "1")[0] == 0, PATIENCE_S)
        yield running
    finally:
        for client in running.clients.values():
            client.communicate(timeout=PATIENCE_S)  # which ends its input, and it
        left = running.processes("")
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
        for survivor in psutil.wait_procs(left, timeout=30)[1]:
            survivor.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_is_submitted_and_followed_to_its_end(cluster: Cluster) -> None:
    cluster.submit("succeeds", {"lines": 30})
    code, output, errors = cluster.ask("follow", "succeeds")
    assert code == 0, errors
    # The path went through Ray's environment and shell as it was.
    assert "resume True threads 1\n" in output
    assert [line for line in output.splitlines() if line.startswith("line")] == [f"line {n} of ü" for n in range(30)]
    assert output.endswith(f"adapter published: {cluster.folder / 'adapters' / '1'}\nended SUCCEEDED\n")
    assert cluster.ask("status", "succeeds")[:2] == (0, "SUCCEEDED\n")


def test_an_id_is_taken_only_once(cluster: Cluster) -> None:
    cluster.submit("once", {})
    request = TrainingRequest(source=cluster.folder / "x", output=cluster.folder / "y")
    code, _, errors = cluster.ask("submit", "once", request.model_dump_json(), "1", "1")
    assert code == 1
    assert "JobError" in errors
    assert "already exists" in errors


def test_a_crashing_job_is_reported_as_failed_with_its_last_lines(cluster: Cluster) -> None:
    cluster.submit("crashes", {"lines": 40, "crash": "the seventh seal"})
    code, _, errors = cluster.ask("follow", "crashes")
    assert code == 1
    first, *last = errors.splitlines()
    assert first == "JobFailedError: job crashes FAILED: Job entrypoint command failed with exit code 1"
    assert len(last) == 20
    assert last[-1] == "  ZeroDivisionError: the seventh seal"
    assert "  line 39 of ü" in last
    assert cluster.ask("status", "crashes")[:2] == (0, "FAILED\n")


def test_wrong_use_is_one_line_of_the_log(cluster: Cluster) -> None:
    cluster.submit("misused", None)
    code, output, errors = cluster.ask("follow", "misused")
    assert code == 1
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith(f"error: {cluster.folder}/misused it's $(script) ${{HOME}}.json: no such")
    first, *last = errors.splitlines()
    assert first == "JobError: job misused FAILED: Job entrypoint command failed with exit code 2"
    assert last[-1].endswith(": no such file")


def test_a_job_can_be_stopped_and_cleans_up(cluster: Cluster) -> None:
    cluster.submit("stopped", {"lines": 100_000, "pause_s": 0.05})
    follower = cluster.follow("stopped")
    wait_until(lambda: "line 5" in cluster.log("stopped"), PATIENCE_S)
    assert cluster.ask("stop", "stopped")[:2] == (0, "True\n")
    output, errors = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 0, errors
    assert [line.split(";")[0] for line in output.splitlines()[-3:]] == ["cleaned up", "stopped", "ended STOPPED"]
    assert cluster.ask("stop", "stopped")[:2] == (0, "False\n")
    assert cluster.processes("trainer.ray_entry") == []


def test_a_job_outlives_its_client_and_can_be_followed_again(cluster: Cluster) -> None:
    cluster.submit("outlives", {"lines": 60, "holds": [3]})
    follower = cluster.follow("outlives")
    assert follower.stdout
    while follower.stdout.readline() != "line 3 of ü\n":
        assert follower.poll() is None
    follower.kill()
    follower.communicate()
    assert cluster.ask("status", "outlives")[1] == "RUNNING\n"
    cluster.release("outlives", 3)
    code, output, _ = cluster.ask("follow", "outlives")
    assert code == 0
    assert output == cluster.log("outlives") + "ended SUCCEEDED\n"


def test_a_lost_connection_is_taken_up_again_without_a_line_twice(cluster: Cluster) -> None:
    cluster.submit("cut-off", {"lines": 100, "holds": [10, 40]})
    with Relay(cluster.address) as relay:
        follower = cluster.follow("cut-off", relay.address)
        assert follower.stdout
        head = ""
        for line in (10, 40):
            while not head.endswith(f"line {line} of ü\n"):
                assert follower.poll() is None
                head += follower.stdout.readline()
            assert relay.cut() > 0
            cluster.release("cut-off", line)
        rest = follower.stdout.read()  # communicate() would lose what is buffered
    assert follower.wait(PATIENCE_S) == 0
    assert head + rest == cluster.log("cut-off") + "ended SUCCEEDED\n"


SERVICE = """
import json, sys, time
from server.cluster import ClusterAwayError, RayCluster
from server.settings import ClusterSettings

cluster = RayCluster(ClusterSettings(dashboard=sys.argv[1]))

def after(name, condition):
    while not condition(cluster.state(name)):
        time.sleep(0.1)
    return cluster.state(name)

told = {"unknown": cluster.state("rewright-none")}
for _ in range(2):  # a submission that is repeated is one job
    cluster.submit("rewright-a-1", "echo begun && exec sleep 1000")
while "begun" not in cluster.log("rewright-a-1"):
    time.sleep(0.1)
told["running"] = cluster.state("rewright-a-1").status
told["log"] = "begun" in cluster.log("rewright-a-1").splitlines()
cluster.stop("rewright-a-1")
told["stopped"] = after("rewright-a-1", lambda state: state.ended).status
cluster.submit("rewright-b-1", "exit 2")
failed = after("rewright-b-1", lambda state: state.ended)
told["failed"] = [failed.status, failed.exit_code]
try:
    RayCluster(ClusterSettings(dashboard="http://127.0.0.1:1")).state("x")
except ClusterAwayError as error:
    told["away"] = str(error)
print(json.dumps(told))
"""


def test_the_service_finds_its_commands_by_the_ids_that_it_gave_them(cluster: Cluster) -> None:
    asked = subprocess.run(
        [sys.executable, "-c", SERVICE, cluster.address],
        env=cluster.environment(PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout.splitlines()[-1]) == {
        "unknown": None,
        "running": "RUNNING",
        "log": True,
        "stopped": "STOPPED",
        "failed": ["FAILED", 2],
        "away": "no Ray dashboard answers at http://127.0.0.1:1",
    }


def test_a_wrong_token_is_refused_with_what_to_set(cluster: Cluster) -> None:
    for action in ("status", "stop", "follow"):
        code, _, errors = cluster.ask(action, "any", RAY_AUTH_TOKEN="wrong" * 8)
        assert code == 1
        assert f"JobError: {cluster.address} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in errors


def test_a_client_without_authentication_is_refused_with_what_to_set(cluster: Cluster) -> None:
    code, _, errors = cluster.ask("status", "any", RAY_AUTH_MODE="disabled")
    assert code == 1
    assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in errors


def test_a_job_that_does_not_exist_is_an_error(cluster: Cluster) -> None:
    for action in ("status", "stop", "follow"):
        code, _, errors = cluster.ask(action, "nobody")
        assert code == 1
        assert errors.strip() == f"JobError: {cluster.address}: Job nobody does not exist"


def test_two_workers_average_their_gradients(cluster: Cluster) -> None:
    cluster.submit("alone", {"world": 8})
    cluster.submit("together", {"world": 8}, workers=2)
    alone, together = (cluster.ask("follow", job_id)[1] for job_id in ("alone", "together"))
    assert "world size 1\n" in alone
    assert "world size 2\n" in together
    published = [output.splitlines()[-2] for output in (alone, together)]
    # One step down the gradient: 0.01 * mean(2 * 3 * x * x) for x in 0..7.
    assert published == [f"adapter published: {cluster.folder}/adapters/1.05"] * 2


def test_wrong_use_in_a_worker_is_one_line_of_the_log(cluster: Cluster) -> None:
    cluster.submit("misused-together", None, workers=2)
    code, output, _ = cluster.ask("follow", "misused-together")
    assert code == 1
    assert output.splitlines()[-1].startswith("error: ")
    assert output.splitlines()[-1].endswith(": no such file")


def test_stopping_ends_the_workers_too(cluster: Cluster) -> None:
    cluster.submit("stopped-together", {"lines": 100_000, "pause_s": 0.05}, workers=2)
    wait_until(lambda: "line 5" in cluster.log("stopped-together"), PATIENCE_S)
    assert len(cluster.processes("RayTrainWorker")) == 2
    assert cluster.ask("stop", "stopped-together")[:2] == (0, "True\n")
    _, output, _ = cluster.ask("follow", "stopped-together")
    assert output.splitlines()[-1] == "ended STOPPED"
    wait_until(lambda: not cluster.processes("RayTrainWorker"), PATIENCE_S)
