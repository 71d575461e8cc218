"""`samples.md`: rewrites of chosen steps beside what the expert wrote, so that a person sees reward hacking.

Not here: which groups are shown, and when (`trainer.train`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from agent.disk import write_whole
from agent.mismatch import summarise
from agent.records import Mismatch, Verdict
from trainer.rollout import RolloutGroup

_TITLE = "# Rewrites during training\n"
_STEP = re.compile(r"## Step (\d+)\n")


@dataclass(frozen=True, slots=True)
class SampledRewrite:
    """One rewrite of a group with its reward, the reward's terms, and what the gate said."""

    text: str
    reward: float
    distance: float
    diversity: float
    verdict: Verdict | None
    mismatch: Mismatch | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A demonstration, and the rewrites of its group with the highest and the lowest reward."""

    id: str
    question: str
    expert: str
    expert_mismatch: Mismatch | None
    best: SampledRewrite
    worst: SampledRewrite


def sample_of(group: RolloutGroup) -> Sample:
    """What `samples.md` shows of a rewarded group."""
    rewards = group.reward.reward
    places = range(len(rewards))

    def rewrite(place: int) -> SampledRewrite:
        drawn = group.rewrites[place]
        distance, diversity = group.reward.distance[place], group.reward.diversity[place]
        return SampledRewrite(drawn.text, rewards[place], distance, diversity, drawn.verdict, drawn.mismatch)

    demonstration = group.demonstration
    return Sample(
        id=demonstration.id,
        question=demonstration.question,
        expert=demonstration.expert,
        expert_mismatch=summarise(group.expert) if group.expert else None,
        best=rewrite(max(places, key=rewards.__getitem__)),
        worst=rewrite(min(reversed(places), key=rewards.__getitem__)),
    )


class SamplesFile:
    """A Markdown file that grows by one section a chosen step.

    Texts of data and model are shown as quoted code, whose lines all begin with `>`: none can end the quotation, be
    taken for a heading, or hold markup.

    Raises:
        OSError: the file cannot be read or written, in every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, samples: Sequence[Sample]) -> None:
        """Add the section of a step; one of the same or a later step, left by an interrupted run, is replaced."""
        self.rewind(step - 1)
        entries = (_entry(sample) for sample in samples)
        with self.path.open("ab", buffering=0) as file:
            file.write("\n".join([f"\n## Step {step}\n", *entries]).encode())

    def rewind(self, step: int) -> None:
        """Drop every section beyond `step`; the file is there afterwards."""
        lines = self.path.read_text("utf-8").splitlines(keepends=True) if self.path.exists() else [_TITLE]
        kept = "".join(takewhile(lambda line: not ((at := _STEP.fullmatch(line)) and int(at[1]) > step), lines))
        write_whole(self.path, f"{kept.rstrip()}\n")


def _entry(sample: Sample) -> str:
    parts = [
        f"### {_code(sample.id)}",
        "**Question**",
        _quoted(sample.question),
        f"**Expert**{_nats(sample.expert_mismatch)}",
        _quoted(sample.expert),
        f"**Highest reward** {_facts(sample.best)}",
        _quoted(sample.best.text),
    ]
    if sample.worst != sample.best:
        parts += [f"**Lowest reward** {_facts(sample.worst)}", _quoted(sample.worst.text)]
    return "\n\n".join(parts) + "\n"


def _facts(rewrite: SampledRewrite) -> str:
    terms = f"{rewrite.reward:.3f} (r_dist {rewrite.distance:.3f}, r_div {rewrite.diversity:.3f})"
    return f"{terms}{_nats(rewrite.mismatch)}, {_outcome(rewrite.verdict)}"


def _outcome(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged"
    refusal = verdict.failed_check
    return f"refused by {_code(refusal.name)}: {_code(refusal.detail)}" if refusal else "passed the gate"


def _nats(mismatch: Mismatch | None) -> str:
    return f", {mismatch.nll:.2f} nats/token (p95 {mismatch.p95:.1f})" if mismatch else ""


def _quoted(text: str) -> str:
    """A fenced block inside a quotation."""
    lines = _printable(text).split("\n")
    fence = "`" * max(3, _longest_run(text) + 1)
    return "\n".join(f"> {line}" for line in [f"{fence}text", *lines, fence])


def _code(text: str) -> str:
    """An inline code span on one line."""
    line = " ".join(_printable(text).split())
    fence = "`" * (_longest_run(line) + 1)
    return f"{fence} {line} {fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _printable(text: str) -> str:
    """`text` without what would begin another line or steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
