"""An adapter under training that an engine with a copy of its own draws from: published, replaced, dropped."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from peft import LoraConfig, PeftModel

from agent.assembly import open_chat, open_engine
from agent.engine import LocalEngine, Sampling
from agent.engine.loading import load_model
from agent.engine.lora import LoraHost
from agent.engine.transformers_engine import TransformersEngine
from agent.exceptions import AdapterError
from agent.models import ModelFiles, resolve_model
from agent.settings import EngineSettings, ModelSettings
from tests.tiny_chat import write_tiny_model
from trainer.exceptions import TrainingSettingsError
from trainer.folder import check_output
from trainer.packing import completion_logprobs
from trainer.policy import PublishedPolicy, SharedPolicy, Version, engine_beside_trainer
from trainer.request import TrainingRequest
from trainer.settings import TrainSettings

SETTINGS = EngineSettings(dtype="float32", device="cpu", threads=1)
PROMPT, COMPLETION = [4, 5, 6, 7], [8, 9, 10, 11, 12]


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return resolve_model(ModelSettings(name=str(write_tiny_model(tmp_path / "model"))))


@pytest_asyncio.fixture
async def engine(files: ModelFiles) -> AsyncIterator[LocalEngine]:
    opened = await open_engine(files, SETTINGS)
    yield opened
    await opened.close()


@pytest.fixture
def model(files: ModelFiles) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return LoraHost(load_model(files.path, SETTINGS)).add_trainable("policy", config)


def update(model: PeftModel) -> None:
    """A stride that no rounding could pass for."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def trained(model: PeftModel) -> list[float]:
    """Log-probabilities of the completion in the trainer's model."""
    rows = [torch.tensor([ids]) for ids in (PROMPT, COMPLETION)]
    with torch.no_grad():
        logprobs, _ = completion_logprobs(
            model, rows[0], torch.ones_like(rows[0]), rows[1], torch.ones_like(rows[1]), temperature=1.0
        )
    return [float(value) for value in logprobs[0]]


async def test_the_engine_draws_from_the_weights_of_the_last_update_and_from_no_others(
    engine: LocalEngine, model: PeftModel, tmp_path: Path
) -> None:
    policy, versions = PublishedPolicy(engine, model, tmp_path / "versions"), tmp_path / "versions"
    base = await engine.score(PROMPT, COMPLETION)
    seen = [base]
    for step in range(3):
        version = await policy.publish(step)
        assert version == Version(f"policy@{step}", step)
        drawn_from = await engine.score(PROMPT, COMPLETION, version.adapter)
        assert drawn_from == pytest.approx(trained(model), abs=1e-4)
        assert all(step == 0 or drawn_from != pytest.approx(before, abs=1e-2) for before in seen)
        seen.append(drawn_from)
        assert [path.name for path in versions.iterdir()] == [str(step)]
        if step:
            with pytest.raises(AdapterError, match="not loaded"):
                await engine.generate(PROMPT, Sampling(max_tokens=1), adapter=f"policy@{step - 1}")
        update(model)
    assert await engine.score(PROMPT, COMPLETION) == base


async def test_a_version_is_published_once_however_often_it_is_asked_for(
    engine: LocalEngine, model: PeftModel, tmp_path: Path
) -> None:
    policy = PublishedPolicy(engine, model, tmp_path / "versions")
    first = await policy.publish(4)
    written = (tmp_path / "versions" / "4" / "adapter_model.safetensors").stat().st_mtime_ns
    assert await policy.publish(4) == first
    assert (tmp_path / "versions" / "4" / "adapter_model.safetensors").stat().st_mtime_ns == written


async def test_a_shared_model_computes_activations_anew_for_the_trainer_alone(files: ModelFiles) -> None:
    chat = open_chat(files)
    engine = TransformersEngine(files.name, files.path, chat.tokenizer, chat.stop_ids, SETTINGS)
    policy = SharedPolicy(engine, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    policy.model.gradient_checkpointing_enable()
    anew = []
    for layer in policy.model.get_decoder().layers:
        layer._gradient_checkpointing_func = lambda run, *given: anew.append(run) or run(*given)
    policy.hand_over()
    trained(policy.model)
    layers = len(anew)
    version = await policy.publish(1)
    await engine.generate(PROMPT, Sampling(max_tokens=2), adapter=version.adapter)
    await engine.close()
    assert layers == len(anew) == policy.model.config.num_hidden_layers


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., TrainingRequest]:
    def make(**train: object) -> TrainingRequest:
        return TrainingRequest(
            source=Path(__file__).parents[2] / "examples" / "demonstrations.jsonl",
            output=tmp_path / "math",
            engine=EngineSettings(kind="vllm"),
            train=TrainSettings.model_validate(train),
        )

    return make


def test_several_workers_with_vllm_are_refused_before_anything_is_opened(
    request_of: Callable[..., TrainingRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingSettingsError, match="not in 2 workers"):
        check_output(request_of(), tmp_path / "math" / "training", resume=False)
    assert not (tmp_path / "math").exists()


def test_a_temperature_that_vllm_does_not_draw_at_is_refused(
    request_of: Callable[..., TrainingRequest], tmp_path: Path
) -> None:
    with pytest.raises(TrainingSettingsError, match=r"train\.temperature is 2\.5"):
        check_output(request_of(temperature=2.5), tmp_path / "math" / "training", resume=False)
    check_output(request_of(temperature=2.0), tmp_path / "math" / "training", resume=False)


@pytest.mark.parametrize(("rank", "room"), [(4, 8), (16, 16), (200, 256), (512, 512)])
def test_the_engine_has_room_for_the_one_adapter_and_leaves_memory_to_the_trainer(rank: int, room: int) -> None:
    train = TrainSettings.model_validate({"engine_memory": 0.3, "lora": {"rank": rank}})
    options = engine_beside_trainer(EngineSettings(kind="vllm"), train).vllm
    assert (options.max_lora_rank, options.max_loras, options.max_cpu_loras) == (room, 1, 1)
    assert options.gpu_memory_utilization == 0.3
