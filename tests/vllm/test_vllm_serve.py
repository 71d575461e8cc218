"""The service on the vLLM engine, as it is run: the command line, local Ray, Ray Serve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from agent.models import ModelFiles
from server.ports import free_port
from server.schemas import RewritesResponse
from tests.killing import REQUESTS, kill_under_requests, vllm_cores
from tests.waiting import PATIENCE_S, wait_until

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

APPLES = {"id": "apples", "question": "Mira has 3 apples and buys 4. How many?", "answer": "3+4=<<3+4=7>>7\n#### 7"}


@dataclass(frozen=True)
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    http: httpx.Client

    def rewrite(self, number: int) -> dict[str, Any]:
        body = {
            "demonstrations": [APPLES | {"id": f"row {number}"}],
            "strategy": "rewrite",
            "sampling": {"temperature": 1.0, "samples": 1, "max_tokens": 48, "seed": number},
        }
        answer = self.http.post("/v1/rewrites", json=body)
        assert answer.status_code == 200, answer.text
        (record,) = answer.json()["data"]
        return dict(record)

    def vllm_processes(self) -> list[psutil.Process]:
        (raylet,) = (child for child in psutil.Process(self.process.pid).children() if child.name() == "raylet")
        return vllm_cores(raylet.children())


@pytest.fixture(scope="module")
def service(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    model = AutoModelForCausalLM.from_pretrained(model_files.path, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"])).save_pretrained(str(folder / "still"))
    port = free_port()
    settings = {
        "REWRIGHT_ENGINE__KIND": "vllm",
        "REWRIGHT_ENGINE__MAX_LENGTH": "2048",
        "REWRIGHT_ENGINE__VLLM__MAX_LORA_RANK": "8",
        "REWRIGHT_ENGINE__VLLM__MAX_CPU_LORAS": "1",
        "REWRIGHT_REWRITE__ADAPTER": str(folder / "still"),
        "REWRIGHT_SERVER__RAY__HEALTH_PERIOD_S": "1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--port", str(port)],
            env=os.environ | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: b"ready at" in (folder / "log").read_bytes() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        limits = httpx.Limits(max_connections=2 * REQUESTS)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False, limits=limits
        ) as http:
            yield Service(process, http)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        print((folder / "log").read_text())  # seen when a test fails


@pytest.mark.parametrize("strategy", ["solve", "rewrite"])
def test_demonstrations_are_rewritten_with_the_base_model_and_with_the_adapter(service: Service, strategy: str):
    body = {
        "demonstrations": [APPLES | {"id": name} for name in ("one", "two", "three")],
        "strategy": strategy,
        "sampling": {"temperature": 0.7, "samples": 2, "max_tokens": 48, "seed": 0},
    }
    answer = service.http.post("/v1/rewrites", json=body)
    assert answer.status_code == 200, answer.text
    RewritesResponse.model_validate(answer.json(), strict=True)
    records = answer.json()["data"]
    assert [record["id"] for record in records] == ["one", "two", "three"]
    assert {record["status"] for record in records} <= {"rewritten", "self_solved", "fallback"}
    assert {record["adapter"] for record in records if record["proposer"] == "rewrite"} <= {"still"}
    assert all(record["mismatch"]["expert"]["tokens"] > 5 for record in records)


def test_the_service_says_that_it_is_ready(service: Service):
    assert service.http.get("/readyz").json()["model"] == "smollm2-135m"


def test_vllm_killed_under_32_requests_is_replaced_and_every_request_is_answered_once(service: Service):
    kill_under_requests(service.http, service.vllm_processes, service.rewrite)
