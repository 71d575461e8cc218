"""Whether a solution goes through the expert's steps: every number that the expert works out must come up in it.

Equations that hold and start from known numbers may still tell another story than the problem's. One that arrives at
all of the expert's intermediate results rarely does. Another way to the same answer is refused too, which costs a
rewrite but lets nothing false through. Not here: whether the equations hold (`agent.gate.arithmetic`).
"""

from __future__ import annotations

from agent.gate.arithmetic import equations
from agent.gate.grounding import numbers
from agent.gate.readable import readable
from agent.records import Check


def check_steps(candidate: str, expert: str) -> Check:
    """Every result of the expert's equations must be among the numbers of `candidate`, or a result of its own."""
    results = list(dict.fromkeys(equation.result for equation in equations(expert) if equation.holds))
    known = numbers(readable(candidate)) | {equation.result for equation in equations(candidate) if equation.holds}
    missing = [result for result in results if result not in known]
    if missing:
        return Check("steps", False, f"the expert works out {float(missing[0]):g}, the candidate never mentions it")
    return Check("steps", True, f"all {len(results)} results of the expert come up")
