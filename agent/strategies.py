"""Named strategies: ordered steps, each a proposer with its temperature ladder; the expert is what is left."""

from __future__ import annotations

from agent.exceptions import SettingsError
from agent.settings import RewriteSettings, Step

Strategy = tuple[Step, ...]

# Low temperatures: under the embedded model a rewrite passes the gate several times as often at 0.4 as at 0.8. A second
# attempt adds few rows for more than half as many tokens again.
_SOLVE = Step(proposer="solve", temperatures=(0.4,), samples=4)
_HINT = Step(proposer="hint", temperatures=(0.4,), samples=4)
_REWRITE = Step(proposer="rewrite", temperatures=(0.4,), samples=4)
_REWRITE_AGAIN = Step(proposer="rewrite", temperatures=(0.4, 0.6, 0.8), samples=4)
# Warmer, so that there is something to choose from; the gate's word on every sentence keeps the text on its way.
_SEARCH = Step(proposer="rewrite", temperatures=(0.7,), samples=2, choices=8)

NAMED: dict[str, Strategy] = {
    "solve": (_SOLVE,),
    "hint": (_HINT,),
    "rewrite": (_REWRITE,),
    "search": (_SEARCH,),
    "default": (_REWRITE,),
    "all": (_SOLVE, _HINT, _REWRITE_AGAIN),
}


def find_strategy(name: str, settings: RewriteSettings) -> Strategy:
    """The steps of a named strategy; the user's own come first.

    Raises:
        SettingsError: no such strategy; names the known ones.
    """
    known = NAMED | settings.strategies
    if name not in known:
        raise SettingsError(f"unknown strategy {name!r}; known are {', '.join(sorted(known))}")
    return known[name]
