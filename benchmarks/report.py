"""The one line that a benchmark prints."""

from __future__ import annotations

import json
from collections.abc import Mapping


def print_report(report: Mapping[str, object]) -> None:
    """Print a report as one line of JSON, its fractions to three places."""
    print(json.dumps(json.loads(json.dumps(report), parse_float=lambda text: round(float(text), 3))))
