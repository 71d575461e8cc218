"""IFEval's checks of instructions, which are lm-eval's, without their download of resources.

Two kinds of instructions cut text into sentences or words with nltk's `punkt_tab`. Where it is not installed their rows
are left out and counted; nothing is downloaded and no verdict is made up.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MISSING = "its instructions need nltk's punkt_tab, which is not installed"
_REFUSED = "lm-eval's checks do not take the arguments of its instructions"
_DRAWN = "lm-eval would draw an argument of its instructions at random"

_NEED_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


def punkt_is_installed() -> bool:
    """Whether nltk finds `punkt_tab`; `NLTK_DATA` names a folder to look in."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def needs_punkt(doc: dict[str, Any]) -> bool:
    """Whether a row has an instruction that cannot be checked without `punkt_tab`."""
    return not _NEED_PUNKT.isdisjoint(doc["instruction_id_list"])


def unknown_instructions(doc: dict[str, Any]) -> bool:
    """Whether lm-eval has no check for one of the row's instructions."""
    with _without_download():
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    return not set(doc["instruction_id_list"]) <= set(INSTRUCTION_DICT)


def why_not_checked(doc: dict[str, Any]) -> str | None:
    """Why lm-eval's checks of a row's instructions would fail or decide at random, None when they do neither."""
    process, _ = metrics()
    before = random.getstate()
    try:
        process(doc, ["a"])
    except Exception:  # whatever lm-eval makes of arguments of the wrong name, type or range
        return _REFUSED
    if random.getstate() != before:
        random.setstate(before)
        return _DRAWN
    return None


def metrics() -> tuple[Callable[[dict[str, Any], list[str]], dict[str, Any]], list[dict[str, Any]]]:
    """lm-eval's `process_results`, which also takes `kwargs` as JSON text, and its list of metrics."""
    with _without_download():
        from lm_eval.tasks.ifeval import utils
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # else the language of a short text changes from call to call

    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        kwargs = doc["kwargs"]
        read = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
        found: dict[str, Any] = utils.process_results({**doc, "kwargs": read}, results)
        return found

    aggregations = {
        "prompt_level_strict_acc": "mean",
        "inst_level_strict_acc": utils.agg_inst_level_acc,
        "prompt_level_loose_acc": "mean",
        "inst_level_loose_acc": utils.agg_inst_level_acc,
    }
    listed = [
        {"metric": name, "aggregation": function, "higher_is_better": True} for name, function in aggregations.items()
    ]
    return process_results, listed


@contextmanager
def _without_download() -> Iterator[None]:
    """lm-eval fetches `punkt_tab` on import, in the process of rank 0 only."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
