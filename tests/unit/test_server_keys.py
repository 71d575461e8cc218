"""Stored keys, and that every route of the description asks for one with its scope."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import time
from pathlib import Path

import httpx
import pytest

from agent.exceptions import SettingsError
from server.app import create_app
from server.auth import Keys
from server.exceptions import StartError, UnknownNameError
from server.jobs import Job
from server.jobs_runtime import JobRuntime
from server.keys import SCOPES, KeyStore
from server.settings import ClusterSettings, ServerSettings
from server.state import Database
from server.work import DurableWork, needs_key
from server.work_schemas import RewriteJob
from tests.asgi import client_to
from tests.plain_backend import PlainBackend


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(state=str(tmp_path / "state"))


@pytest.fixture
def store(settings: ServerSettings) -> KeyStore:
    return KeyStore(Database(settings))


def test_a_key_is_found_with_its_scopes(store: KeyStore) -> None:
    key, text = store.create("mine", ["rewrite"])
    caller = store.find(text)
    assert caller is not None
    assert caller.id == key.id
    assert [scope for scope in SCOPES if caller.may(scope)] == ["rewrite"]
    admin = store.find(store.create("root", ["admin"])[1])
    assert admin is not None
    assert all(admin.may(scope) for scope in SCOPES)


def test_the_database_does_not_have_what_lets_anybody_in(settings: ServerSettings, store: KeyStore) -> None:
    _, text = store.create("mine", ["rewrite"])
    secret = text.split("_", 2)[2]
    for path in settings.state_folder.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()
    assert secret not in repr(store.all())


def test_an_altered_key_is_nobodys(store: KeyStore) -> None:
    _, text = store.create("mine", ["rewrite"])
    other = store.create("other", ["rewrite"])[1]
    head, secret = text[:16], text[16:]
    changed = ("A" if secret[0] != "A" else "B") + secret[1:]
    for wrong in (head + changed, head + other[16:], text[:-1], text + "A", text.upper(), head, "", "rw_' OR 1=1 --"):
        assert store.find(wrong) is None, wrong
    assert store.find(text) is not None


def test_a_revoked_and_an_expired_key_pass_no_more_and_do_not_open_the_service(
    settings: ServerSettings, store: KeyStore
) -> None:
    assert not needs_key(Keys(), settings)
    key, text = store.create("mine", ["rewrite"])
    expired = store.create("old", ["rewrite"], expires_at=int(time.time()) - 1)[1]
    assert store.find(expired) is None
    store.revoke(key.id)
    store.revoke(key.id)
    assert store.find(text) is None
    assert {k.name: k.state for k in store.all()} == {"mine": "revoked", "old": "expired"}
    assert needs_key(Keys(), settings)
    assert Keys().with_store(store).find(None) is None
    with pytest.raises(UnknownNameError, match="no key"):
        store.revoke("x")


def test_keys_of_the_environment_go_on_beside_stored_ones(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", "a-key-of-enough-characters")
    _, text = store.create("mine", ["train"])
    keys = Keys.from_environment().with_store(store)
    everything, stored = keys.find("Bearer a-key-of-enough-characters"), keys.find(f"bearer {text}")
    assert everything is not None
    assert all(everything.may(scope) for scope in SCOPES)
    assert stored is not None
    assert not stored.may("rewrite")
    assert keys.find(f"Basic {text}") is None


async def test_every_route_of_the_description_asks_for_a_key_with_its_scope(settings: ServerSettings) -> None:
    work = DurableWork(settings)
    app = create_app(PlainBackend(), settings, Keys(), work)
    lacking = {scope: work.keys.create(scope, [scope])[1] for scope in ("train", "metrics")}
    _, known = work.keys.create("writer", ["rewrite", "admin"])
    wrong = known[:-4] + ("AAAA" if known[-4:] != "AAAA" else "BBBB")
    walked = 0
    async with client_to(app) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        for path, operations in paths.items():
            if not path.startswith("/v1/"):
                continue
            url = re.sub(r"{\w+}", "x", path)
            for method in operations:
                for header in (None, f"Bearer {wrong}", f"Basic {known}", "Bearer", f"Bearer {known} {known}"):
                    sent = {"Authorization": header} if header else {}
                    refused = await client.request(method, url, headers=sent, content=b"not json")
                    assert refused.status_code == 401, (method, path, header)
                    assert refused.json()["error"]["code"] == "invalid_api_key"
                for scope, key in lacking.items():
                    if scope == "train" and path.startswith(("/v1/files", "/v1/jobs")):
                        continue
                    answer = await client.request(method, url, headers={"Authorization": f"Bearer {key}"})
                    assert answer.status_code == 403, (method, path, scope)
                    assert answer.json()["error"]["type"] == "permission_error"
                allowed = await client.request(method, url, headers={"Authorization": f"Bearer {known}"})
                assert allowed.status_code not in (401, 403), (method, path)
                walked += 1
    assert walked >= 12


async def test_activating_an_adapter_takes_a_key_of_an_administrator(settings: ServerSettings) -> None:
    work = DurableWork(settings)
    _, writer = work.keys.create("writer", ["rewrite"])
    transport = httpx.ASGITransport(create_app(PlainBackend(), settings, Keys(), work))
    headers = {"Authorization": f"Bearer {writer}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        assert (await client.get("/v1/adapters")).status_code == 200
        refused = await client.post("/v1/adapters/math/activate", json={"version": 1})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "insufficient_scope"


async def test_a_kind_of_job_needs_its_own_scope(settings: ServerSettings) -> None:
    work = DurableWork(settings)
    app = create_app(PlainBackend(), settings, Keys(), work)
    headers = {"Authorization": f"Bearer {work.keys.create('writer', ['rewrite'])[1]}"}
    body = {"kind": "train", "input_file": "file_" + "0" * 24, "params": {"name": "math"}}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.post("/v1/jobs", json=body, headers=headers)).status_code == 403


async def test_a_key_made_while_the_service_runs_counts_at_once(settings: ServerSettings, store: KeyStore) -> None:
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/v1/files")).status_code == 200
        key, text = store.create("mine", ["rewrite"])
        headers = {"Authorization": f"Bearer {text}"}
        assert (await client.get("/v1/files")).status_code == 401
        assert (await client.get("/v1/files", headers=headers)).status_code == 200
        store.revoke(key.id)
        assert (await client.get("/v1/files", headers=headers)).status_code == 401


def test_a_database_of_a_newer_release_is_left_alone(settings: ServerSettings) -> None:
    Database(settings).close()
    with sqlite3.connect(settings.state_folder / "service.sqlite") as connection:
        connection.execute("UPDATE rewright_schema SET version = 99")
    with pytest.raises(StartError, match="schema 99"):
        Database(settings)


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/d", "postgresql"])
def test_a_database_url_that_is_none_is_said_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"server\.database") as raised:
        Database(ServerSettings(state=str(tmp_path), database=url))
    assert "secret" not in str(raised.value)
    assert "secret" not in ServerSettings(database=url).model_dump_json()


def test_the_state_folder_is_for_its_owner_only(settings: ServerSettings, store: KeyStore) -> None:
    assert settings.state_folder.stat().st_mode & 0o077 == 0


async def test_keys_of_the_environment_have_idempotency_keys_of_their_own_and_those_of_earlier_releases(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", "first-of-the-environment, second-of-the-environment")
    work = DurableWork(settings)

    async def submit(self: JobRuntime, job: Job) -> None:
        """Nothing runs it."""

    monkeypatch.setattr(JobRuntime, "submit", submit)
    first, second = ({"Authorization": f"Bearer {name}-of-the-environment"} for name in ("first", "second"))
    async with client_to(create_app(PlainBackend(), settings, Keys.from_environment(), work)) as client:
        raw = {"Content-Type": "text/plain"} | first
        file = await client.post("/v1/files", content=b'{"question": "1", "answer": "1"}', headers=raw)
        body = {"kind": "rewrite", "input_file": file.json()["id"]}
        old = work._jobs.create(RewriteJob(**body), "", "old")
        ids = {}
        for key in ("old", "new"):
            for headers in (first, second, first):
                answer = await client.post("/v1/jobs", json=body, headers=headers | {"Idempotency-Key": key})
                ids.setdefault(key, []).append(answer.json()["id"])
    assert ids["old"] == [old.id] * 3
    assert ids["new"][0] == ids["new"][2] != ids["new"][1]
    digest = hashlib.sha256(b"first-of-the-environment").hexdigest()
    assert work._jobs.get(ids["new"][0]).owner == f"env_{digest[:12]}"


async def test_a_key_that_may_only_train_gets_at_files_and_at_jobs_that_train(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = ClusterSettings(dashboard="http://127.0.0.1:9")
    settings = settings.model_copy(update={"cluster": cluster, "adapters": settings.state_folder / "adapters"})
    work = DurableWork(settings)

    async def submit(self: JobRuntime, job: Job) -> None:
        """Nothing runs it."""

    monkeypatch.setattr(JobRuntime, "submit", submit)
    train, rewrite = ({"Authorization": f"Bearer {work.keys.create(s, [s])[1]}"} for s in ("train", "rewrite"))
    async with client_to(create_app(PlainBackend(), settings, Keys(), work)) as client:
        raw = {"Content-Type": "text/plain"} | train
        file_id = (await client.post("/v1/files", content=b'{"question": "1", "answer": "1"}', headers=raw)).json()[
            "id"
        ]
        assert (await client.get(f"/v1/files/{file_id}/content", headers=train)).status_code == 200
        bodies = {
            "train": {"kind": "train", "input_file": file_id, "params": {"name": "math"}},
            "rewrite": {"kind": "rewrite", "input_file": file_id},
        }
        for mine, own, others in (("train", train, rewrite), ("rewrite", rewrite, train)):
            refused = await client.post("/v1/jobs", json=bodies[mine], headers=others)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
            job = (await client.post("/v1/jobs", json=bodies[mine], headers=own)).json()
            assert (await client.get(f"/v1/jobs/{job['id']}", headers=others)).json()["status"] == "validating"
            refused = await client.post(f"/v1/jobs/{job['id']}/cancel", headers=others)
            assert (refused.status_code, refused.json()["error"]["message"]) == (403, f"this key has no scope {mine!r}")
            cancelled = await client.post(f"/v1/jobs/{job['id']}/cancel", headers=own)
            assert cancelled.json()["status"] == "cancelled"
