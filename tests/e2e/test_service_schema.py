"""The service against its own OpenAPI description: schemathesis makes requests, valid and not, and judges answers.

Real application, chat format and gate, in this process; the engine is scripted.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import APIOperation, BaseSchema, Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from agent.assembly import build_gate, open_chat
from agent.models import ModelFiles
from agent.settings import GateSettings, RewriteSettings
from server.adapters import AdapterStore
from server.app import create_app
from server.auth import Keys
from server.backend import AgentBackend
from server.settings import LimitSettings, ServerSettings
from server.work import DurableWork
from tests.scripted_engine import ScriptedEngine

# schemathesis draws from the module `random` where a description has forms, which is between it and hypothesis.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")

KEY = "key-of-the-schema-test"
EXAMPLES = 50


@pytest.fixture(scope="module")
def api(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> BaseSchema:
    chat = open_chat(model_files)
    engine = ScriptedEngine(chat, "The answer is \\boxed{7}.")
    store = tmp_path_factory.mktemp("adapters")
    (store / "math" / "1").mkdir(parents=True)
    adapters = AdapterStore(store, "math")
    backend = AgentBackend(engine, chat, build_gate(engine, chat, GateSettings()), RewriteSettings(), adapters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWRIGHT_API_KEYS", KEY)
        service = ServerSettings(limits=LimitSettings(rows=16), state=str(tmp_path_factory.mktemp("state")))
        app = create_app(backend, service, Keys.from_environment(), DurableWork(service))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
@pytest.mark.parametrize("path", ["/v1/rewrites", "/v1/mismatch"])
def test_work_answers_as_described_and_never_fails(api: BaseSchema, path: str, mode: GenerationMode) -> None:
    _drive(api[path]["POST"], mode)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/adapters"])
def test_status_answers_as_described(api: BaseSchema, path: str) -> None:
    _drive(api[path]["GET"], GenerationMode.POSITIVE)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
def test_adapters_answer_as_described_and_never_fail(api: BaseSchema, mode: GenerationMode) -> None:
    _drive(api["/v1/adapters/{name}/activate"]["POST"], mode)


def _drive(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> None:
    """Send many generated requests; every answer must have a described status, media type and body, and be no 5xx."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def judge(case: Case[Any]) -> None:
        if mode == GenerationMode.NEGATIVE:
            # The key is always sent, so a request that is wrong by its lack alone is not wrong when it arrives.
            assume("Authorization" in (case.headers or {}))
        case.call_and_validate(
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=600,  # the first text row loads the embedding model
            # What a row may be is decided row by row; integers beyond 64 bits are valid JSON and still refused.
            excluded_checks=[positive_data_acceptance],
        )

    judge()
