"""An engine that loads adapters when they are asked for, and keeps a bounded number of them.

Used by every copy of the engine, on Ray or not. Since a request names `name@version`, and any copy can load it, a
request finishes on the version with which it began even where its first engine died.
Not here: which adapters there are and which are active (`server.adapters`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.adapters import open_adapter
from agent.assembly import open_engine
from agent.engine import Completion, Engine, EngineInfo, LocalEngine, Sampling
from agent.engine.urgency import bulk_work
from agent.exceptions import AdapterError, EngineClosedError, EngineMemoryError, RewrightError
from agent.models import ModelFiles
from agent.settings import EngineSettings
from server.adapters import AdapterStore
from server.metrics import EngineCount

_log = logging.getLogger("rewright.server")

_PROVED_S = 1.0  # how long an answer of an idle engine counts as the next one


class ServedEngine(Engine, Protocol):
    """An engine, or all copies of one, with adapters that come and go.

    A request may name an adapter that is not loaded: it is loaded then.
    """

    async def load(self, adapter: str) -> None:
        """Have an adapter loaded on every copy, from wherever the engine finds it. Raises AdapterError."""
        ...

    async def loaded(self) -> frozenset[str]:
        """The adapters that every copy has loaded. Raises EngineClosedError."""
        ...

    async def count(self) -> EngineCount:
        """How many copies answer, and how many ever did. Raises EngineClosedError."""
        ...


@dataclass(slots=True)
class _Resident:
    """An adapter that is loaded, or about to be: `ready` ends when it is."""

    ready: asyncio.Task[None]
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)


class HostedEngine:
    """See `ServedEngine`. All calls must come from one event loop.

    Args:
        engine: belongs to this object from now on.
        base: the files of its model.
        path_of: folder of an adapter, by the name that requests use; raises AdapterError.
        capacity: adapters loaded at the same time at most. What was used longest ago makes room for a new one.
    """

    def __init__(self, engine: LocalEngine, base: ModelFiles, path_of: Callable[[str], Path], capacity: int) -> None:
        self._engine, self._base, self._path_of, self._capacity = engine, base, path_of, capacity
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # used longest ago first
        self._changing = asyncio.Lock()
        self._calls = 0  # under way
        self._answered_at = 0.0
        self._doubted = False  # the last call ended as no call should
        self._proof: asyncio.Task[list[float]] | None = None

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        """See `Engine.generate`. Raises AdapterError also when `adapter` cannot be loaded."""
        if adapter is None:
            async with self._call():
                return await self._engine.generate(prompt_ids, sampling, n)
        async with self._using(adapter), self._call():
            return await self._engine.generate(prompt_ids, sampling, n, adapter)

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        """See `Engine.score`. Raises AdapterError also when `adapter` cannot be loaded."""
        if adapter is None:
            async with self._call():
                return await self._engine.score(prompt_ids, completion_ids)
        async with self._using(adapter), self._call():
            return await self._engine.score(prompt_ids, completion_ids, adapter)

    async def load(self, adapter: str) -> None:
        """See `ServedEngine.load`."""
        async with self._using(adapter):
            pass

    async def loaded(self) -> frozenset[str]:
        """See `ServedEngine.loaded`."""
        return frozenset(name for name, resident in self._residents.items() if resident.ready.done())

    async def check(self) -> None:
        """Raises EngineClosedError when the engine no longer runs, or fails on the least that can be asked.

        It is asked while it is idle, and when its last call failed for no reason that it knows. Of one at work the
        answers tell: a question would wait behind that work, and be late where nothing is wrong.
        """
        await self._engine.check()
        idle = not self._calls and time.monotonic() > self._answered_at + _PROVED_S
        if idle or self._doubted:
            await self._prove()

    async def count(self) -> EngineCount:
        """See `ServedEngine.count`."""
        await self.check()
        return EngineCount(answering=1, started=1)

    async def close(self) -> None:
        """See `LocalEngine.close`."""
        await self._engine.close()

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """Around a call. One that fails for no reason that the engine knows may be the first of many that do.

        Raises:
            EngineClosedError: it is: the engine fails on everything, as with a broken accelerator.
        """
        self._calls += 1
        try:
            yield
        except RewrightError:
            raise
        except Exception:
            self._doubted = True
            await self._prove()
            raise
        else:
            self._answered()
        finally:
            self._calls -= 1

    async def _prove(self) -> None:
        """Have it score one token now; whoever asks meanwhile waits for the same. Raises EngineClosedError."""
        if self._proof is None or self._proof.done():
            with bulk_work(False):  # it may be a call of a job that is in doubt
                self._proof = asyncio.create_task(self._engine.score([0], [0]))
            self._proof.add_done_callback(_mark_retrieved)
        try:
            await asyncio.shield(self._proof)
        except EngineClosedError:
            raise
        except EngineMemoryError:
            return  # it works, and is short of memory: what else it does goes on
        except Exception as error:
            self._doubted = True
            _log.error("the engine fails on whatever it is asked", exc_info=error)
            raise EngineClosedError(
                f"the engine fails on whatever it is asked ({type(error).__name__}); see the log, start a new one"
            ) from error
        self._answered()

    def _answered(self) -> None:
        self._answered_at, self._doubted = time.monotonic(), False

    @asynccontextmanager
    async def _using(self, name: str) -> AsyncIterator[None]:
        """Within: `name` is loaded and stays so."""
        resident = self._residents.get(name)
        if resident is None:
            resident = self._residents[name] = _Resident(asyncio.create_task(self._load(name)))
            resident.ready.add_done_callback(_mark_retrieved)
        self._residents.move_to_end(name)
        resident.users += 1
        resident.unused.clear()
        try:
            # Whoever waits may be cancelled, the loading may not: it would leave half an adapter behind.
            await asyncio.shield(resident.ready)
            yield
        finally:
            resident.users -= 1
            if not resident.users:
                resident.unused.set()

    async def _load(self, name: str) -> None:
        try:
            files = await asyncio.to_thread(open_adapter, self._path_of(name), self._base.name, base=self._base.path)
            if files.name != name:
                raise AdapterError(f"adapter {files.path} says that it is {files.name!r}, not {name!r}")
            async with self._changing:
                loaded = await self.loaded()
                if len(loaded) >= self._capacity > 0:
                    idle = [n for n, r in self._residents.items() if n in loaded and not r.users]
                    await self._unload(next(iter(idle), None) or next(n for n in self._residents if n in loaded))
                async with self._call():
                    await self._engine.load_adapter(name, files.path)
        except BaseException:
            del self._residents[name]
            raise

    async def _unload(self, name: str) -> None:
        """Forget a loaded adapter once nobody uses it; who asks for it meanwhile waits until it is loaded again."""
        resident = self._residents.pop(name)
        if resident.users:
            await resident.unused.wait()
        await self._engine.unload_adapter(name)


async def host_engine(files: ModelFiles, settings: EngineSettings, store: AdapterStore, kept: int) -> HostedEngine:
    """Start an engine and load what the store wants loaded.

    Args:
        files: the base model.
        settings: of the engine.
        store: where adapters come from.
        kept: adapters to keep loaded at most.

    Raises:
        ModelError: see `open_engine`.
        AdapterError: the default adapter cannot be loaded; any other that cannot is only logged.
    """
    capacity = min(kept, settings.vllm.max_cpu_loras) if settings.kind == "vllm" else kept
    default, wanted = store.resolve(None), store.wanted()[: max(1, capacity)]
    engine = HostedEngine(await open_engine(files, settings), files, store.path_of, capacity)
    for name in wanted:
        try:
            await engine.load(name)
        except AdapterError as error:
            if name == default:
                await engine.close()
                raise
            _log.warning("adapter %s is active and cannot be loaded: %s", name, error)
    return engine


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    """Whoever waited has got the error, or has gone; asyncio need not complain."""
    if not task.cancelled():
        task.exception()
