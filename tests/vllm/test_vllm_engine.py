"""What the vLLM engine promises beyond the contract: nothing that a request or an adapter holds may kill it.

Needs an environment with vLLM: `make test-vllm`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agent.adapters import CONFIG, WEIGHTS
from agent.assembly import load_adapter, open_chat, open_engine
from agent.chat import ChatFormat
from agent.demonstrations import Message
from agent.engine import LocalEngine, Sampling
from agent.exceptions import AdapterError, EngineClosedError
from agent.models import ModelFiles
from agent.settings import EngineSettings
from tests.killing import vllm_cores

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")
pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = EngineSettings.model_validate(
    {
        "kind": "vllm",
        "dtype": "float32",
        "max_length": 512,
        "vllm": {"max_lora_rank": 16, "max_cpu_loras": 2},
    }
)
GREEDY = Sampling(temperature=0, max_tokens=16)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_files: ModelFiles) -> AsyncIterator[LocalEngine]:
    opened = await open_engine(model_files, SETTINGS)
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def chat(model_files: ModelFiles) -> ChatFormat:
    return open_chat(model_files)


@pytest.fixture(scope="module")
def prompt(chat: ChatFormat) -> list[int]:
    return chat.prompt_ids([Message("user", "Tell me about the sea. " * 20)])


@pytest.fixture(scope="module")
def save_adapter(model_files: ModelFiles) -> Callable[[Path, int, int], Path]:
    """Saves a random LoRA: folder, rank, seed."""
    model = AutoModelForCausalLM.from_pretrained(model_files.path, dtype=torch.float32)

    def save(folder: Path, rank: int = 8, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        lora = get_peft_model(model, config)
        lora.save_pretrained(str(folder))
        lora.unload()
        return folder

    return save


@pytest.fixture(scope="module")
def good(save_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapters") / "good")


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def remove_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickle_inside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def state_a_rank_that_is_too_large(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"r": 32}))


def state_a_rank_that_is_not_the_weights(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"r": 4}))


def rename_a_layer(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name.replace("layers.3.", "layers.333."): value for name, value in weights.items()}, folder / WEIGHTS)


def take_weights_of_a_wider_model(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name: torch.cat((value, value)) for name, value in weights.items()}, folder / WEIGHTS)


def aim_at_a_norm(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file(
        {name.replace("self_attn.q_proj", "input_layernorm"): value for name, value in weights.items()},
        folder / WEIGHTS,
    )


def aim_at_the_head(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    head = {"lm_head.lora_A": torch.ones(8, 576), "lm_head.lora_B": torch.ones(49152, 8)}
    save_file(weights | {f"base_model.model.{name}.weight": value for name, value in head.items()}, folder / WEIGHTS)


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        remove_weights,
        pickle_inside,
        state_a_rank_that_is_too_large,
        state_a_rank_that_is_not_the_weights,
        rename_a_layer,
        take_weights_of_a_wider_model,
        aim_at_a_norm,
        aim_at_the_head,
    ],
)
async def test_a_poisoned_adapter_is_refused_and_the_engine_lives(
    engine: LocalEngine,
    model_files: ModelFiles,
    prompt: list[int],
    good: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
):
    folder = tmp_path / "poisoned"
    shutil.copytree(good, folder)
    spoil(folder)
    with pytest.raises(AdapterError, match="poisoned"):
        await load_adapter(engine, folder, model_files)
    with pytest.raises(AdapterError, match="not loaded"):
        await engine.generate(prompt, GREEDY, adapter="poisoned")
    assert (await engine.generate(prompt, GREEDY))[0].ids


async def test_an_adapter_that_slips_by_our_checks_is_refused_by_vllm_and_can_be_loaded_again_when_mended(
    engine: LocalEngine, prompt: list[int], good: Path, tmp_path: Path
):
    folder = tmp_path / "untied"
    shutil.copytree(good, folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"modules_to_save": ["lm_head"]}))
    with pytest.raises(AdapterError, match="modules_to_save"):
        await engine.load_adapter("untied", folder)
    (folder / CONFIG).write_text(json.dumps(config))
    await engine.load_adapter("untied", folder)
    assert (await engine.generate(prompt, GREEDY, adapter="untied"))[0].ids
    await engine.unload_adapter("untied")


async def test_an_adapter_that_comes_back_under_its_name_with_other_weights_is_not_served_from_the_cache(
    engine: LocalEngine, prompt: list[int], save_adapter: Callable[..., Path], tmp_path: Path
):
    outputs = []
    for seed in (1, 2):
        await engine.load_adapter("math@1", save_adapter(tmp_path / "math", seed=seed))
        outputs.append([(await engine.generate(prompt, GREEDY, adapter="math@1"))[0] for _ in range(2)])
        await engine.unload_adapter("math@1")
    first, second = outputs
    assert first[0].ids == first[1].ids
    assert second[0].ids == second[1].ids
    assert first[0].ids != second[0].ids
    await engine.load_adapter("fresh", tmp_path / "math")
    fresh = (await engine.generate(prompt, GREEDY, adapter="fresh"))[0]
    await engine.unload_adapter("fresh")
    assert second[1].logprobs == pytest.approx(fresh.logprobs, abs=1e-4)


async def test_with_every_place_for_adapters_taken_each_request_gets_its_own_weights(
    engine: LocalEngine, prompt: list[int], save_adapter: Callable[..., Path], tmp_path: Path
):
    completion = list(range(100, 110))
    base, score = (await engine.generate(prompt, GREEDY))[0].ids, await engine.score(prompt, completion)
    for number in (1, 2):
        await engine.load_adapter(f"a@{number}", save_adapter(tmp_path / f"a{number}", seed=number))
    names = [None, "a@1", "a@2"]
    alone = [(await engine.generate(prompt, GREEDY, adapter=name))[0].ids for name in names]
    with pytest.raises(AdapterError, match="max_cpu_loras"):
        await engine.load_adapter("a@3", save_adapter(tmp_path / "a3"))
    for number in (1, 2, 3):
        shutil.rmtree(tmp_path / f"a{number}")
    groups, scores = await asyncio.gather(
        asyncio.gather(*(engine.generate(prompt, GREEDY, adapter=name) for name in names * 2)),
        asyncio.gather(*(engine.score(prompt, completion) for _ in names)),
    )
    await asyncio.gather(engine.unload_adapter("a@1"), engine.unload_adapter("a@2"))
    assert alone[0] == base
    assert len({tuple(ids) for ids in alone}) == 3
    assert [group[0].ids for group in groups] == alone * 2
    assert all(s == pytest.approx(score, abs=1e-4) for s in scores)


@pytest.mark.parametrize("ids", [[5, -1], [5, 10**6]])
async def test_ids_outside_the_vocabulary_are_refused_and_the_engine_lives(
    engine: LocalEngine, prompt: list[int], ids: list[int]
):
    with pytest.raises(ValueError, match="token ids"):
        await engine.generate(ids, GREEDY)
    with pytest.raises(ValueError, match="token ids"):
        await engine.score(prompt, ids)
    assert (await engine.generate(prompt, GREEDY))[0].ids


async def test_seeded_requests_whose_prompts_fill_more_than_a_step_are_answered(engine: LocalEngine, chat: ChatFormat):
    prompts = [chat.prompt_ids([Message("user", f"{number} fish in the sea. " * 60)]) for number in range(40)]
    assert sum(map(len, prompts)) > 4 * 4096
    sampling = Sampling(temperature=1.0, max_tokens=4, seed=7)
    groups = await asyncio.gather(*(engine.generate(ids, sampling) for ids in prompts))
    assert {completion.finish_reason for (completion,) in groups} <= {"stop", "length"}


async def test_a_cancelled_request_stops_using_the_engine(engine: LocalEngine, prompt: list[int]):
    long = asyncio.create_task(engine.generate(prompt, Sampling(temperature=1.5, max_tokens=300), n=8))
    await asyncio.sleep(0.5)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    await engine.generate(prompt, GREEDY)
    assert engine._llm.output_processor.get_num_unfinished_requests() == 0  # type: ignore[attr-defined]


async def test_the_death_of_vllm_fails_every_waiting_request_and_the_check(model_files: ModelFiles, prompt: list[int]):
    before = vllm_cores([psutil.Process()])
    engine = await open_engine(model_files, SETTINGS)
    core = [process for process in vllm_cores([psutil.Process()]) if process not in before]
    await engine.check()
    waiting = [
        asyncio.create_task(engine.generate(prompt, Sampling(temperature=1.5, max_tokens=300))) for _ in range(32)
    ]
    await asyncio.sleep(1)
    assert len(core) == 1
    core[0].kill()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EngineClosedError}
    with pytest.raises(EngineClosedError, match="died"):
        await engine.check()
    with pytest.raises(EngineClosedError, match="died"):
        await engine.generate(prompt, GREEDY)
    await engine.close()
