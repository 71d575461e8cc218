"""The service on the vLLM engine, as it is run: the command line, local Ray, Ray Serve."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from agent.models import ModelFiles
from server.ports import free_port
from server.schemas import RewritesResponse

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

APPLES = {"id": "apples", "question": "Mira has 3 apples and buys 4. How many?", "answer": "3+4=<<3+4=7>>7\n#### 7"}
PATIENCE_S = 1200.0


@pytest.fixture(scope="module")
def service(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
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
        deadline = time.monotonic() + PATIENCE_S
        while b"ready at" not in (folder / "log").read_bytes():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False) as http:
            yield http
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.mark.parametrize("strategy", ["solve", "rewrite"])
def test_demonstrations_are_rewritten_with_the_base_model_and_with_the_adapter(service: httpx.Client, strategy: str):
    body = {
        "demonstrations": [APPLES] * 3,
        "strategy": strategy,
        "sampling": {"temperature": 0.7, "samples": 2, "max_tokens": 48, "seed": 0},
    }
    answer = service.post("/v1/rewrites", json=body)
    assert answer.status_code == 200, answer.text
    RewritesResponse.model_validate(answer.json(), strict=True)
    records = answer.json()["data"]
    assert [record["id"] for record in records] == ["apples"] * 3
    assert {record["status"] for record in records} <= {"rewritten", "self_solved", "fallback"}
    assert {record["adapter"] for record in records if record["proposer"] == "rewrite"} <= {"still"}
    assert all(record["mismatch"]["expert"]["tokens"] > 5 for record in records)


def test_the_service_says_that_it_is_ready(service: httpx.Client):
    assert service.get("/readyz").json()["model"] == "smollm2-135m"
