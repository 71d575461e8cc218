"""Values that make no sense for fields of requests, as the JSON that a client would send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

# For every field: of the wrong type, or not to be had as a number of 64 bits.
_HUGE = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", str(2**63), "9" * 25, "9" * 3000)
_NEVER = (*_HUGE, "true", "[1]", '{"a": 1}')
_NUMBERS = ("-1", "-0.5", "-1e300", "1e300", "1e19", '"1"', '"NaN"', '""', "[]", "{}")
_INTEGERS = ("0.5", "1.5", "1e-9")
_TEXTS = ("1", "0", "1.5")


def absurd_bodies(model: type[BaseModel], others: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each field that has no fields of its own with each senseless value beside `others`: its name, and the object."""
    for name in model.model_fields:
        described = json.dumps(model.model_json_schema()["properties"][name])
        if "$ref" in described:
            continue
        values = _NEVER
        if '"number"' in described or '"integer"' in described:
            values += _NUMBERS
        if '"integer"' in described:
            values += _INTEGERS
        if '"string"' in described:
            values += _TEXTS
        assert len(values) > len(_NEVER), f"{name} is of no known kind"
        before = json.dumps({key: value for key, value in others.items() if key != name})[1:-1]
        for value in values:
            yield name, f'{{{before}{", " if before else ""}"{name}": {value}}}'
