"""Files of demonstrations for a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from server.settings import FileSettings, LimitSettings, ServerSettings
from server.work_schemas import FileBody

ROW = b'{"question": "1 + 1?", "answer": "2"}\n'
RAW = {"Content-Type": "application/x-ndjson"}


def small_files(folder: Path, body_timeout_s: float = 60.0) -> ServerSettings:
    """Settings of a service in `folder` that takes small files, one at a time."""
    files = FileSettings(upload_bytes=200_000, upload_timeout_s=60, uploads=1, parquet_bytes=100_000)
    return ServerSettings(state=str(folder / "state"), files=files, limits=LimitSettings(body_timeout_s=body_timeout_s))


async def upload(client: httpx.AsyncClient, content: bytes, name: str = "rows.jsonl") -> dict[str, Any]:
    """What the service says of a file that it took."""
    response = await client.post("/v1/files", params={"filename": name}, content=content, headers=RAW)
    assert response.status_code == 200, response.text
    FileBody.model_validate(response.json(), strict=True)
    return dict(response.json())
