"""What every engine promises, with the real embedded model in float32.

`REWRIGHT_TEST_ENGINE` names the engine, `transformers` unless set; `make test-vllm` runs the same tests with `vllm`.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from agent.assembly import load_adapter, open_chat, open_engine
from agent.chat import ChatFormat
from agent.demonstrations import Message
from agent.engine import LocalEngine, Sampling
from agent.engine.urgency import bulk_work
from agent.exceptions import AdapterError, EngineClosedError, PromptTooLongError
from agent.models import ModelFiles
from agent.settings import EngineSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTIONS = [
    "What is 3 + 4?",
    "Name a color.",
    "Ann has 12 pears and eats 5 of them. Then she buys 3 bags with 4 pears each. How many pears does she have now?",
]
LONG_SYSTEM = "You are a careful assistant. " * 12
GREEDY = Sampling(temperature=0, max_tokens=24)
SETTINGS = EngineSettings.model_validate(
    {
        "kind": os.environ.get("REWRIGHT_TEST_ENGINE", "transformers"),
        "dtype": "float32",
        "max_sequences": 12,
        "max_length": 512,
        "vllm": {"max_lora_rank": 8, "max_cpu_loras": 1},
    }
)


@pytest.fixture(scope="module")
def chat(model_files: ModelFiles) -> ChatFormat:
    return open_chat(model_files)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_files: ModelFiles) -> AsyncIterator[LocalEngine]:
    opened = await open_engine(model_files, SETTINGS)
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def plain(model_files: ModelFiles) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model_files.path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapted(model_files: ModelFiles) -> torch.nn.Module:
    """A LoRA whose weights are all random, so that it changes every output."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_files.path, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, config).eval()


@pytest.fixture(scope="module")
def adapter_folder(adapted: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "noise"
    adapted.save_pretrained(str(folder))
    return folder


def prompts(chat: ChatFormat, system: str | None = None) -> list[list[int]]:
    before = [Message("system", system)] if system else []
    return [chat.prompt_ids([*before, Message("user", question)]) for question in QUESTIONS]


def plain_greedy(plain: torch.nn.Module, prompt: list[int], stop_ids: frozenset[int]) -> list[int]:
    return list(_plain_greedy(plain, tuple(prompt), stop_ids))


@functools.cache
def _plain_greedy(plain: torch.nn.Module, prompt: tuple[int, ...], stop_ids: frozenset[int]) -> tuple[int, ...]:
    output = plain.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=GREEDY.max_tokens,
        eos_token_id=sorted(stop_ids),
        pad_token_id=0,
    )
    return tuple(output[0, len(prompt) :].tolist())


def plain_logprobs(plain: torch.nn.Module, prompt: list[int], completion: list[int]) -> list[float]:
    with torch.no_grad():
        logits = plain(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)].tolist()


async def test_greedy_completions_equal_those_of_transformers(
    engine: LocalEngine, chat: ChatFormat, plain: torch.nn.Module
):
    ids = prompts(chat)
    groups = await asyncio.gather(*(engine.generate(prompt, GREEDY) for prompt in ids))
    assert [group[0].ids for group in groups] == [plain_greedy(plain, prompt, chat.stop_ids) for prompt in ids]


async def test_a_shared_opening_changes_no_completion(engine: LocalEngine, chat: ChatFormat, plain: torch.nn.Module):
    ids = prompts(chat, LONG_SYSTEM)
    groups = await asyncio.gather(*(engine.generate(prompt, GREEDY, n=2) for prompt in ids))
    again = await engine.generate(ids[2], GREEDY)
    expected = [plain_greedy(plain, prompt, chat.stop_ids) for prompt in ids]
    assert [[c.ids for c in group] for group in groups] == [[e, e] for e in expected]
    assert again[0].ids == expected[2]


async def test_more_samples_than_fit_at_once_are_all_drawn(engine: LocalEngine, chat: ChatFormat):
    sampling = Sampling(temperature=0.8, max_tokens=12, seed=3)
    groups = await asyncio.gather(*(engine.generate(prompt, sampling, n=11) for prompt in prompts(chat)))
    assert [len(group) for group in groups] == [11, 11, 11]
    assert len({tuple(c.ids) for c in groups[2]}) > 5


async def test_a_call_that_somebody_waits_for_goes_before_bulk_work_that_waits(engine: LocalEngine, chat: ChatFormat):
    ended: list[str] = []

    async def draw(name: str) -> None:
        with bulk_work(name != "urgent"):
            await engine.generate(prompts(chat)[2], Sampling(temperature=0.4, max_tokens=6, seed=1), n=12)
        ended.append(name)

    await asyncio.gather(*(draw(name) for name in ("bulk 1", "bulk 2", "bulk 3", "urgent")))
    assert ended.index("urgent") < ended.index("bulk 3")


async def test_a_seed_repeats_its_draw(engine: LocalEngine, chat: ChatFormat):
    sampling = Sampling(temperature=1.0, top_p=0.9, max_tokens=12, seed=11)
    first = await engine.generate(prompts(chat)[0], sampling, n=3)
    second = await engine.generate(prompts(chat)[0], sampling, n=3)
    assert [c.ids for c in first] == [c.ids for c in second]


async def test_reported_log_probabilities_equal_a_later_score(engine: LocalEngine, chat: ChatFormat):
    prompt = prompts(chat)[2]
    (drawn,) = await engine.generate(prompt, Sampling(temperature=0.7, top_p=0.9, max_tokens=20, seed=1))
    assert drawn.logprobs == pytest.approx(await engine.score(prompt, drawn.ids), abs=1e-3)


async def test_scores_equal_full_logits_for_one_and_for_several_completions_of_a_prompt(
    engine: LocalEngine, chat: ChatFormat, plain: torch.nn.Module
):
    ids = prompts(chat)
    pairs = [(ids[0], "7"), (ids[2], "She has 7 + 12 = 19."), (ids[2], "It is 19, I think."), (ids[2], "")]
    completions = [(prompt, chat.completion_ids(text)) for prompt, text in pairs]
    scores = await asyncio.gather(*(engine.score(*pair) for pair in completions))
    for score, pair in zip(scores, completions, strict=True):
        assert score == pytest.approx(plain_logprobs(plain, *pair), abs=1e-3)


async def test_a_completion_ends_with_its_stop_token_or_at_its_limit(engine: LocalEngine, chat: ChatFormat):
    groups = await asyncio.gather(*(engine.generate(p, Sampling(temperature=0, max_tokens=60)) for p in prompts(chat)))
    for (completion,) in groups:
        stopped = completion.ids[-1] in chat.stop_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(completion.ids) == 60
        assert "<|im_end|>" not in completion.text
    assert "stop" in {completion.finish_reason for (completion,) in groups}


async def test_a_prompt_without_room_fails_alone(engine: LocalEngine, chat: ChatFormat):
    good, bad = await asyncio.gather(
        engine.generate(prompts(chat)[0], GREEDY), engine.generate([5] * 512, GREEDY), return_exceptions=True
    )
    assert isinstance(bad, PromptTooLongError)
    assert "512 tokens" in str(bad)
    assert not isinstance(good, BaseException)
    assert good[0].finish_reason in {"stop", "length"}


async def test_the_limit_is_cut_to_the_context(engine: LocalEngine):
    (completion,) = await engine.generate([5] * 508, Sampling(temperature=0, max_tokens=50))
    assert len(completion.ids) <= 4


async def test_a_score_that_exceeds_the_context_is_refused(engine: LocalEngine):
    with pytest.raises(PromptTooLongError, match="513 tokens"):
        await engine.score([5] * 500, [5] * 13)


async def test_a_score_may_fill_the_context(engine: LocalEngine, plain: torch.nn.Module):
    score = await engine.score([5] * 500, [7] * 12)
    assert score == pytest.approx(plain_logprobs(plain, [5] * 500, [7] * 12), abs=1e-3)


async def test_many_requests_of_all_kinds_at_once_get_what_each_gets_alone(
    engine: LocalEngine, model_files: ModelFiles, chat: ChatFormat, plain: torch.nn.Module, adapter_folder: Path
):
    ids = prompts(chat) * 3
    completion = chat.completion_ids("It is 19.")
    name = await load_adapter(engine, adapter_folder, model_files)
    alone = [(await engine.generate(prompt, GREEDY, adapter=name))[0].ids for prompt in prompts(chat)]
    base, adapted, scores = await asyncio.gather(
        asyncio.gather(*(engine.generate(prompt, GREEDY) for prompt in ids)),
        asyncio.gather(*(engine.generate(prompt, GREEDY, adapter=name) for prompt in ids)),
        asyncio.gather(*(engine.score(prompt, completion) for prompt in ids)),
    )
    await engine.unload_adapter(name)
    assert [g[0].ids for g in base] == [plain_greedy(plain, prompt, chat.stop_ids) for prompt in prompts(chat)] * 3
    assert [g[0].ids for g in adapted] == alone * 3
    for prompt, score in zip(ids, scores, strict=True):
        assert score == pytest.approx(plain_logprobs(plain, prompt, completion), abs=1e-3)


async def test_a_cancelled_request_leaves_the_others_alone(engine: LocalEngine, chat: ChatFormat):
    long = asyncio.create_task(engine.generate(prompts(chat)[2], Sampling(temperature=1.5, max_tokens=400), n=8))
    await asyncio.sleep(0.3)
    long.cancel()
    completions = await asyncio.gather(*(engine.generate(p, GREEDY) for p in prompts(chat)))
    assert all(group[0].ids for group in completions)
    with pytest.raises(asyncio.CancelledError):
        await long


async def test_greedy_completions_of_an_adapter_equal_those_of_peft(
    engine: LocalEngine, model_files: ModelFiles, chat: ChatFormat, adapted: torch.nn.Module, adapter_folder: Path
):
    name = await load_adapter(engine, adapter_folder, model_files)
    groups = await asyncio.gather(*(engine.generate(prompt, GREEDY, adapter=name) for prompt in prompts(chat)))
    await engine.unload_adapter(name)
    expected = [plain_greedy(adapted, prompt, chat.stop_ids) for prompt in prompts(chat)]
    assert [group[0].ids for group in groups] == expected


async def test_scores_are_of_the_base_model_or_of_the_adapter_that_is_named(
    engine: LocalEngine,
    model_files: ModelFiles,
    chat: ChatFormat,
    plain: torch.nn.Module,
    adapted: torch.nn.Module,
    adapter_folder: Path,
):
    name = await load_adapter(engine, adapter_folder, model_files)
    pairs = [(prompt, chat.completion_ids("She has 19 pears.")) for prompt in prompts(chat)]
    mixed = [(pair, adapter) for pair in pairs for adapter in (None, name)]
    scores = await asyncio.gather(*(engine.score(*pair, adapter=adapter) for pair, adapter in mixed))
    await engine.unload_adapter(name)
    for (pair, adapter), score in zip(mixed, scores, strict=True):
        assert score == pytest.approx(plain_logprobs(adapted if adapter else plain, *pair), abs=1e-3)
    with pytest.raises(AdapterError, match=name):
        await engine.score(*pairs[0], adapter=name)


async def test_an_adapter_changes_completions_and_not_the_scores_of_the_base_model(
    engine: LocalEngine, model_files: ModelFiles, chat: ChatFormat, adapter_folder: Path
):
    prompt = prompts(chat)[2]
    completion = chat.completion_ids("She has 19 pears.")
    before = await engine.generate(prompt, GREEDY), await engine.score(prompt, completion)
    name = await load_adapter(engine, adapter_folder, model_files)
    adapted, base, score = await asyncio.gather(
        engine.generate(prompt, GREEDY, adapter=name), engine.generate(prompt, GREEDY), engine.score(prompt, completion)
    )
    await engine.unload_adapter(name)
    after = await engine.generate(prompt, GREEDY)
    assert adapted[0].ids != base[0].ids
    assert before[0][0].ids == base[0].ids == after[0].ids
    assert score == pytest.approx(before[1], abs=1e-4)


async def test_unloading_waits_for_the_requests_that_use_the_adapter(
    engine: LocalEngine, model_files: ModelFiles, chat: ChatFormat, adapter_folder: Path
):
    prompt = prompts(chat)[2]
    name = await load_adapter(engine, adapter_folder, model_files)
    running = asyncio.create_task(engine.generate(prompt, GREEDY, adapter=name))
    await asyncio.sleep(0.05)
    unloading = asyncio.create_task(engine.unload_adapter(name))
    await asyncio.sleep(0.05)
    with pytest.raises(AdapterError, match=name):
        await engine.generate(prompt, GREEDY, adapter=name)
    await unloading
    assert running.done()
    assert len((await running)[0].ids) == GREEDY.max_tokens


async def test_an_adapter_that_is_not_loaded_is_refused(engine: LocalEngine, chat: ChatFormat):
    with pytest.raises(AdapterError, match="math@9"):
        await engine.generate(prompts(chat)[0], GREEDY, adapter="math@9")
    with pytest.raises(AdapterError, match="math@9"):
        await engine.unload_adapter("math@9")


async def test_an_adapter_of_other_shapes_is_refused_and_the_engine_lives(
    engine: LocalEngine, model_files: ModelFiles, chat: ChatFormat, adapter_folder: Path, tmp_path: Path
):
    broken = tmp_path / "broken"
    broken.mkdir()
    config = (adapter_folder / "adapter_config.json").read_text()
    (broken / "adapter_config.json").write_text(config.replace('"r": 4', '"r": 8'))
    (broken / "adapter_model.safetensors").write_bytes((adapter_folder / "adapter_model.safetensors").read_bytes())
    with pytest.raises(AdapterError, match="does not fit the model"):
        await load_adapter(engine, broken, model_files)
    assert (await engine.generate(prompts(chat)[0], GREEDY))[0].ids


async def test_closing_finishes_what_is_in_flight_and_refuses_the_rest(model_files: ModelFiles, chat: ChatFormat):
    engine = await open_engine(model_files, SETTINGS)
    running = asyncio.create_task(engine.generate(prompts(chat)[0], GREEDY))
    await asyncio.sleep(0.05)
    await engine.close()
    assert (await running)[0].ids
    with pytest.raises(EngineClosedError):
        await engine.generate(prompts(chat)[0], GREEDY)
