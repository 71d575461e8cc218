"""The command line starts without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, cli.main; print(sorted({'torch', 'ray', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
