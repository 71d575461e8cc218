"""What a user without vLLM is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.engine.vllm_start import start_vllm
from agent.exceptions import ModelError
from agent.settings import EngineSettings


def test_without_vllm_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    settings = EngineSettings(kind="vllm")
    with pytest.raises(ModelError, match="install this package with its extra `vllm`"):
        start_vllm("m", Path("m"), None, frozenset(), settings)  # type: ignore[arg-type]
