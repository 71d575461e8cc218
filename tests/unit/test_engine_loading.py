"""Which models the transformers engine loads, and what it says of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.engine.loading import load_model
from agent.exceptions import ModelError
from agent.settings import EngineSettings
from tests.tiny_chat import write_tiny_model

SETTINGS = EngineSettings(dtype="float32", device="cpu")
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.0, 1.0],
    "long_factor": [2.0, 2.0, 2.0],
}
# A process of its own, since this is for good. Prints pages that fault in per block of 64 MiB, in a thread.
ALLOCATING = """
import resource, threading, torch
from agent.engine.loading import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

def allocate():
    before = faults()
    for _ in range(16):
        torch.zeros(1 << 24)
    print((faults() - before) // 16)

keep_freed_memory()
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path)


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_weights_that_are_cut_off_are_an_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded: "):
        load_model(folder, SETTINGS)


def test_weights_of_another_shape_are_an_error(folder: Path) -> None:
    configure(folder, intermediate_size=32)
    with pytest.raises(ModelError, match="cannot be loaded: "):
        load_model(folder, SETTINGS)


def test_logits_that_are_multiplied_are_refused(folder: Path) -> None:
    configure(folder, model_type="hyperclovax", logits_scaling=0.5)
    with pytest.raises(ModelError, match="the logits of hyperclovax are not supported here; serve it with vLLM"):
        load_model(folder, SETTINGS)


def test_a_long_rope_is_refused_beyond_the_length_where_it_changes(folder: Path) -> None:
    configure(folder, rope_parameters=LONG_ROPE)
    with pytest.raises(ModelError, match=r"changes beyond 32 tokens; set engine\.max_length to 32 or less"):
        load_model(folder, SETTINGS)
    load_model(folder, SETTINGS.model_copy(update={"max_length": 32}))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_blocks_that_a_thread_has_freed_are_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", ALLOCATING], capture_output=True, text=True, check=True)
    # All 16384 pages of each block, were it given back to the system every time.
    assert int(done.stdout) < 4096
