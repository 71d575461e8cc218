"""Files and jobs against their own OpenAPI description: schemathesis makes requests, valid and not, and judges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from server.app import create_app
from server.auth import Keys
from server.settings import ServerSettings
from server.work import DurableWork
from tests.plain_backend import PlainBackend

# schemathesis draws from the module `random` for paths and forms, which is between it and hypothesis.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")

EXAMPLES = 10
OPERATIONS = [
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{job_id}"),
    ("GET", "/v1/jobs/{job_id}/events"),
    ("POST", "/v1/jobs/{job_id}/cancel"),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BaseSchema, str]]:
    service = ServerSettings(state=str(tmp_path_factory.mktemp("state") / "service"))
    work = DurableWork(service)
    _, key = work.keys.create("schema", ["rewrite"])
    # Ids are unknown and no file has the one that a job names, so no job ever runs and none needs to be run.
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(PlainBackend(), service, Keys(), work)), key
    assert not list(Path(service.state_folder, "files", "incoming").iterdir())


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_files_and_jobs_answer_as_described_and_never_fail(
    api: tuple[BaseSchema, str], method: str, path: str, mode: GenerationMode
) -> None:
    """Every answer must have a described status, media type and body, and be no 5xx."""
    schema, key = api

    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def judge(case: Case[Any]) -> None:
        if mode == GenerationMode.NEGATIVE:
            # The key is always sent, so a request that is wrong by its lack alone is not wrong when it arrives.
            assume("Authorization" in (case.headers or {}))
        case.call_and_validate(
            headers={"Authorization": f"Bearer {key}"},
            # What is in a file is beyond the description, and ids that are well formed need not be there.
            excluded_checks=[positive_data_acceptance],
        )

    judge()
