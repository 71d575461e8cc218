"""The engine protocol on vLLM: one AsyncLLM that generates with LoRA requests and scores without.

Prompts are token ids and text is decoded here, so vLLM gets no tokenizer. It schedules, batches and shares prefixes.
Not here: how vLLM is started (`agent.engine.vllm_start`), which adapters it can serve (`agent.engine.vllm_adapters`).

What kills vLLM kills every request in it, so whatever could is refused before: ids outside the vocabulary, prompts
that leave no room, adapters that are not loaded.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import PreTrainedTokenizerBase
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from agent.chat import completion_text
from agent.engine import Completion, EngineInfo, FinishReason, Sampling
from agent.engine.limits import check_score, room_for_new_tokens
from agent.engine.urgency import due_time
from agent.engine.vllm_adapters import BaseWeights
from agent.exceptions import AdapterError, EngineClosedError

_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class Users:
    """Counts who is inside its `with` block; `gone` is set while nobody is."""

    def __init__(self) -> None:
        self._count = 0
        self.gone = asyncio.Event()
        self.gone.set()

    def __enter__(self) -> None:
        self._count += 1
        self.gone.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._count -= 1
        if self._count == 0:
            self.gone.set()


@dataclass(slots=True)
class Adapter:
    """A loaded adapter: what vLLM knows it by, who uses it, and whether it is about to be unloaded."""

    lora: LoRARequest
    users: Users = field(default_factory=Users)
    leaving: bool = False


class VllmEngine:
    """See `LocalEngine`. All calls must come from one event loop.

    A temperature above 2 is refused by vLLM (ValueError). On a GPU a seed costs speed: vLLM then draws row by row.

    Args:
        info: the model's name in records and its context length.
        llm: started with LoRA and prefix caching, and without a tokenizer.
        tokenizer: of the same model.
        stop_ids: tokens that end a completion.
        base: the layers of the base model that adapters may change.
        max_adapters: adapters loaded at the same time at most; vLLM must have room for as many.
    """

    def __init__(
        self,
        info: EngineInfo,
        llm: AsyncLLM,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        base: BaseWeights,
        max_adapters: int,
    ) -> None:
        self.info = info
        self._llm, self._tokenizer, self._stop_ids, self._base = llm, tokenizer, sorted(stop_ids), base
        self._vocabulary: int = llm.model_config.get_vocab_size()
        self._adapters: dict[str, Adapter] = {}
        self._max_adapters = max_adapters
        self._adapter_numbers, self._request_numbers = itertools.count(1), itertools.count()
        self._requests = Users()
        self._closing = False

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        room = room_for_new_tokens(self.info, prompt_ids)
        greedy = sampling.temperature == 0
        params = SamplingParams(
            n=1 if greedy else n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            max_tokens=min(sampling.max_tokens, room),
            stop_token_ids=self._stop_ids,
            ignore_eos=True,
            logprobs=0,
        )
        output = await self._run_with(adapter, prompt_ids, params)
        # vLLM refuses several greedy samples of a prompt; they are the same.
        samples = output.outputs * n if greedy else output.outputs
        return [self._completion(sample) for sample in samples]

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        """See `Engine.score`. One token is scored on the cached prompt, several compute the prompt again."""
        check_score(self.info, prompt_ids, completion_ids)
        if not completion_ids:
            return []
        # vLLM always generates, so a prompt that fills the context is refused: the last token is asked for as a
        # candidate for the one that is generated.
        *before, last = completion_ids
        self._check_ids([last])
        params = SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0 if before else None, logprob_token_ids=[last]
        )
        output = await self._run_with(adapter, [*prompt_ids, *before], params)
        # The first token of the prompt has no log-probability; the token generated comes before the one asked for.
        known = output.prompt_logprobs.logprobs[len(prompt_ids) - 1 :] if before else []
        return [*known, output.outputs[0].logprobs.logprobs[1]]

    async def load_adapter(self, name: str, path: Path) -> None:
        """See `LocalEngine.load_adapter`."""
        self._refuse_when_closing()
        if name in self._adapters:
            raise AdapterError(f"adapter {name} is already loaded; a new version needs a new name")
        if len(self._adapters) >= self._max_adapters:
            # vLLM would drop the oldest, read its folder again for the next request, and die if that is gone.
            raise AdapterError(
                f"adapter {name}: the engine holds {self._max_adapters} adapters at most; unload one, or raise "
                "engine.vllm.max_cpu_loras"
            )
        number = next(self._adapter_numbers)
        # The prefix cache tells adapters apart by name: one that comes back under an old name must not share its pages.
        adapter = Adapter(LoRARequest(f"{name}#{number}", number, str(path.absolute())), leaving=True)
        self._adapters[name] = adapter
        try:
            with self._requests:
                await asyncio.to_thread(self._base.check_fits, name, path)
                await self._add_lora(name, adapter.lora)
        except BaseException:
            del self._adapters[name]
            raise
        adapter.leaving = False

    async def _add_lora(self, name: str, lora: LoRARequest) -> None:
        try:
            await self._llm.add_lora(lora)
        except EngineDeadError as error:
            raise _died() from error
        except Exception as error:
            # Half of it may have been kept; vLLM says what was wrong only in words.
            await self._llm.remove_lora(lora.lora_int_id)
            raise AdapterError(f"adapter {name} in {lora.lora_path} does not fit the model: {error}") from error

    async def unload_adapter(self, name: str) -> None:
        """See `LocalEngine.unload_adapter`."""
        adapter = self._loaded(name)
        adapter.leaving = True
        try:
            await adapter.users.gone.wait()
            with self._requests:
                await self._llm.remove_lora(adapter.lora.lora_int_id)
        except EngineDeadError as error:
            raise _died() from error
        except asyncio.CancelledError:
            adapter.leaving = False
            raise
        del self._adapters[name]

    async def check(self) -> None:
        """See `Engine.check`."""
        self._refuse_when_closing()
        if self._llm.errored:
            raise _died()

    async def close(self) -> None:
        """See `LocalEngine.close`."""
        self._closing = True
        await self._requests.gone.wait()
        await asyncio.to_thread(self._llm.shutdown)

    async def _run_with(self, adapter: str | None, prompt_ids: Sequence[int], params: SamplingParams) -> Any:
        """As `_run`, under a loaded adapter, which stays while the request runs."""
        if adapter is None:
            return await self._run(prompt_ids, params)
        loaded = self._loaded(adapter)
        with loaded.users:
            return await self._run(prompt_ids, params, loaded.lora)

    async def _run(self, prompt_ids: Sequence[int], params: SamplingParams, lora: LoRARequest | None = None) -> Any:
        """The final RequestOutput. Cancelling it makes vLLM drop the request."""
        self._refuse_when_closing()
        self._check_ids(prompt_ids)
        params.detokenize, params.flat_logprobs = False, True
        params.output_kind = RequestOutputKind.FINAL_ONLY
        number = str(next(self._request_numbers))
        with self._requests:
            try:
                # Of those that wait vLLM takes the lowest first; it wants a whole number.
                outputs = self._llm.generate(
                    tokens_input(list(prompt_ids)), params, number, lora_request=lora, priority=int(due_time())
                )
                return [output async for output in outputs][-1]
            except EngineDeadError as error:
                raise _died() from error

    def _completion(self, sample: Any) -> Completion:
        """From vLLM's CompletionOutput."""
        reason = _FINISH_REASONS.get(sample.finish_reason)
        if reason is None:
            raise EngineClosedError(f"vLLM gave up on the request ({sample.finish_reason}); see its log")
        ids = list(sample.token_ids)
        text = completion_text(self._tokenizer, ids)
        return Completion(ids, text, list(sample.logprobs.logprobs), reason)

    def _loaded(self, name: str) -> Adapter:
        """Raises AdapterError when requests may not name it: not loaded, not yet, or no longer."""
        adapter = self._adapters.get(name)
        if adapter is None or adapter.leaving:
            raise AdapterError(f"adapter {name!r} is not loaded")
        return adapter

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise ValueError(f"token ids must be in [0, {self._vocabulary}), got {min(ids)} to {max(ids)}")

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise EngineClosedError("the engine is closed; start a new one")


def _died() -> EngineClosedError:
    return EngineClosedError("the vLLM engine has died; its log says why; start a new one")
