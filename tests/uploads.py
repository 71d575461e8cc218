"""Files of demonstrations for a service."""

from __future__ import annotations

from typing import Any

import httpx

from server.work_schemas import FileBody

ROW = b'{"question": "1 + 1?", "answer": "2"}\n'
RAW = {"Content-Type": "application/x-ndjson"}


async def upload(client: httpx.AsyncClient, content: bytes, name: str = "rows.jsonl") -> dict[str, Any]:
    """What the service says of a file that it took."""
    response = await client.post("/v1/files", params={"filename": name}, content=content, headers=RAW)
    assert response.status_code == 200, response.text
    FileBody.model_validate(response.json(), strict=True)
    return dict(response.json())
