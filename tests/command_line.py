"""The command line, run in this process."""

from __future__ import annotations

import sys

import pytest

from cli.main import main


def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, standard output, and standard error without its line breaks, of `rewright` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["rewright", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, " ".join(err.split())
