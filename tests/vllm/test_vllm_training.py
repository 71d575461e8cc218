"""Training whose roll-outs vLLM draws: every version of the adapter reaches the engine, and the old ones leave it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from agent.assembly import open_chat
from agent.demonstrations import Message
from agent.engine import Completion, Sampling
from agent.exceptions import AdapterError
from agent.models import ModelFiles
from agent.settings import EngineSettings
from tests.sums import sum_rows
from trainer.history import read_history
from trainer.packing import completion_logprobs
from trainer.policy import Policy, open_policy
from trainer.request import TrainingRequest
from trainer.settings import TrainSettings

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")
pytestmark = pytest.mark.usefixtures("model_files")

ROOT = Path(__file__).parents[2]
ENGINE = EngineSettings(kind="vllm", dtype="float32", max_length=1024)
LORA = {"rank": 4, "target_modules": ["q_proj", "v_proj"]}
# A nucleus of 1: what engine and trainer then differ by is rounding.
SETTINGS = """
[engine]
kind = "vllm"
dtype = "float32"
max_length = 1024
[rewrite]
top_p = 1.0
[train]
steps = 2
groups = 4
samples = 4
eval_rows = 2
eval_samples = 2
eval_every = 2
save_every = 1
refills = 0
[train.lora]
rank = 4
target_modules = ["q_proj", "v_proj"]
[train.optimizer]
groups_per_pass = 2
learning_rate = 3e-3
warmup_steps = 0
"""


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training") / "policy"


@pytest.fixture(scope="module")
def policy(runner: asyncio.Runner, model_files: ModelFiles, versions: Path) -> Iterator[Policy]:
    request = TrainingRequest(
        source=Path("rows.jsonl"),
        output=versions.parent,
        engine=ENGINE,
        train=TrainSettings.model_validate({"lora": LORA}),
    )
    with open_policy(runner, model_files, open_chat(model_files), request, versions.parent) as opened:
        yield opened
    assert not versions.exists()


@pytest.fixture(scope="module")
def prompt(model_files: ModelFiles) -> list[int]:
    return open_chat(model_files).prompt_ids([Message("user", "Tell me about the sea.")])


def update(model: PeftModel, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)


def distance(model: PeftModel, prompt: list[int], drawn: list[Completion], temperature: float) -> float:
    """Mean distance of the log-probabilities that tokens were drawn with from those in `model`, nats."""
    distances = []
    for completion in drawn:
        ids = [torch.tensor([part]) for part in (prompt, completion.ids)]
        with torch.no_grad():
            trained, _ = completion_logprobs(
                model, ids[0], torch.ones_like(ids[0]), ids[1], torch.ones_like(ids[1]), temperature
            )
        distances.append((trained[0] - torch.tensor(completion.logprobs)).abs())
    return float(torch.cat(distances).mean())


def test_each_version_is_what_vllm_draws_from_and_the_one_before_is_gone(
    runner: asyncio.Runner, policy: Policy, prompt: list[int], versions: Path
) -> None:
    sampling = Sampling(temperature=0.7, max_tokens=24, seed=0)
    base = runner.run(policy.engine.score(prompt, prompt[:8]))
    for step in (1, 2):
        update(policy.model, step)
        version = runner.run(policy.publish(step))
        drawn = runner.run(policy.engine.generate(prompt, sampling, 4, version.adapter))
        assert distance(policy.model, prompt, drawn, 0.7) < 1e-3
        assert [path.name for path in versions.iterdir()] == [str(step)]
        assert len(runner.run(policy.engine._llm.list_loras())) == 1  # type: ignore[attr-defined]
        if step == 2:
            with pytest.raises(AdapterError, match="not loaded"):
                runner.run(policy.engine.generate(prompt, sampling, adapter="policy@1"))
            update(policy.model, 1)
            assert distance(policy.model, prompt, drawn, 0.7) > 0.05, "samples of a stale adapter would show"
    assert runner.run(policy.engine.score(prompt, prompt[:8])) == pytest.approx(base, abs=1e-4)


def test_with_a_nucleus_a_token_was_drawn_with_more_than_its_probability(
    runner: asyncio.Runner, policy: Policy, prompt: list[int]
) -> None:
    version = runner.run(policy.publish(9))
    sampling = Sampling(temperature=0.7, top_p=0.5, max_tokens=24, seed=0)
    [drawn] = runner.run(policy.engine.generate(prompt, sampling, adapter=version.adapter))
    ids = [torch.tensor([part]) for part in (prompt, drawn.ids)]
    with torch.no_grad():
        trained, _ = completion_logprobs(
            policy.model, ids[0], torch.ones_like(ids[0]), ids[1], torch.ones_like(ids[1]), 0.7
        )
    over = torch.tensor(drawn.logprobs) - trained[0]
    assert over.min() > -1e-3
    assert 0.1 < over.max() < 0.7, "at most by what a nucleus of one half leaves out"


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sum_rows(6)))
    (folder / "train.toml").write_text(SETTINGS)
    rewright(folder, "train", "rows.jsonl", "-o", "math", "--config", "train.toml")
    return folder


def rewright(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_step_is_drawn_from_the_adapter_that_it_updates(training: Path) -> None:
    history = read_history(training / "math" / "training" / "history.jsonl")
    steps = [record.metrics for record in history if record.kind == "train"]
    assert [step["staleness"] for step in steps] == [0, 0]
    differences = [step["engine/difference"] for step in steps if "engine/difference" in step]
    print(f"log-probabilities of engine and trainer differ by {differences} nats")
    assert "engine/difference" in steps[1], "some group must have a signal after the first update"
    assert max(differences) < 1e-3
    assert all(step["engine/weight"] == pytest.approx(1, abs=1e-2) for step in steps if "engine/weight" in step)


def test_the_adapter_is_trained_and_its_versions_for_the_engine_are_gone(training: Path) -> None:
    folder = training / "math" / "training"
    weights = [load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (1, 2)]
    assert all(torch.isfinite(tensor).all() for tensor in weights[1].values())
    assert any((weights[1][name] != weights[0][name]).any() for name in weights[0])
    assert not (folder / "policy").exists()


def test_what_was_trained_is_published_and_rewrites(training: Path) -> None:
    assert (training / "math" / "1" / "adapter_model.safetensors").is_file()
    arguments = ("rewrite", "rows.jsonl", "-o", "out.jsonl", "--adapter", "math", "--strategy", "rewrite", "--limit")
    rewright(training, *arguments, "2")
    rows = [json.loads(line) for line in (training / "out.jsonl").read_text().splitlines()]
    assert [row["status"] in {"rewritten", "fallback"} for row in rows] == [True, True]
    assert {row["adapter"] for row in rows if row["status"] == "rewritten"} <= {"math@1"}
