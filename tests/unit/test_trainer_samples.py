"""`samples.md`: what it says, and that no text from data or model can change its structure."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from agent.demonstrations import Demonstration, Message
from agent.engine import Completion
from agent.records import Check, Mismatch, Verdict
from agent.reward import GroupReward
from trainer.rollout import Rewrite, RolloutGroup
from trainer.samples import Sample, SampledRewrite, SamplesFile, sample_of

PASSED = Verdict(True, (Check("hygiene", True, "clean"),))
REFUSED = Verdict(False, (Check("hygiene", True, "clean"), Check("math_answer", False, "41, expected 42")))

SAMPLE = Sample(
    id="gsm8k/7",
    question="What is 6 times 7?",
    expert="6 * 7 = <<6*7=42>>42\n#### 42",
    expert_mismatch=Mismatch(1.512, 6.24, 12),
    best=SampledRewrite("Six times seven is 42.", 1.4312, 0.7, 0.372, PASSED, Mismatch(0.744, 3.1, 9)),
    worst=SampledRewrite("It is 41.", 0.0, 0.0, 0.0, REFUSED, None),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.md"


def headings(text: str) -> list[str]:
    """The headings that a Markdown reader sees."""
    tokens = MarkdownIt().parse(text)
    return [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]


def blocks(text: str) -> list[str]:
    """The fenced blocks that a Markdown reader sees."""
    return [token.content for token in MarkdownIt().parse(text) if token.type == "fence"]


def test_a_section_shows_question_expert_and_both_rewrites(path: Path) -> None:
    SamplesFile(path).append(40, [SAMPLE])
    text = path.read_text()
    assert headings(text) == ["Rewrites during training", "Step 40", "` gsm8k/7 `"]
    assert blocks(text) == [f"{t}\n" for t in (SAMPLE.question, SAMPLE.expert, SAMPLE.best.text, SAMPLE.worst.text)]


def test_reward_terms_mismatch_and_verdict_stand_beside_the_rewrites(path: Path) -> None:
    SamplesFile(path).append(40, [SAMPLE])
    text = path.read_text()
    assert "**Expert**, 1.51 nats/token (p95 6.2)\n" in text
    assert "**Highest reward** 1.431 (r_dist 0.700, r_div 0.372), 0.74 nats/token (p95 3.1), passed the gate\n" in text
    assert (
        "**Lowest reward** 0.000 (r_dist 0.000, r_div 0.000), refused by ` math_answer `: ` 41, expected 42 `" in text
    )


HOSTILE = [
    "```\n## Step 99\n```",
    "## Step 99\n",
    "\n\n# Title\n\n<script>alert(1)</script>",
    "`````text\n## Step 99\n`````",
    "~~~\n## Step 99",
    "a\r## Step 99\rb",
    "a\u2028## Step 99\x0b## Step 99\x85## Step 99",
    "> ```\n## Step 99",
    "`" * 60,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_out_of_its_block(path: Path, text: str) -> None:
    rewrite = replace(SAMPLE.best, text=text)
    SamplesFile(path).append(1, [replace(SAMPLE, question=text, expert=text, best=rewrite)])
    written = path.read_text()
    assert headings(written) == ["Rewrites during training", "Step 1", "` gsm8k/7 `"]
    assert len(blocks(written)) == 4
    assert "html_block" not in {token.type for token in MarkdownIt().parse(written)}


@given(text=st.text(st.sampled_from("`~#>-* \n\r\t\\<a\u2028\x0c"), max_size=40))
def test_no_mixture_of_markup_breaks_out_of_its_block(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("samples") / "samples.md"
    SamplesFile(path).append(1, [replace(SAMPLE, id=text, question=text)])
    assert len(headings(path.read_text())) == 3
    assert [block.rstrip("\n") for block in blocks(path.read_text())[1:]] == [
        SAMPLE.expert,
        SAMPLE.best.text,
        SAMPLE.worst.text,
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_or_detail_breaks_out_of_its_line(path: Path, text: str) -> None:
    verdict = Verdict(False, (Check(text, False, text),))
    SamplesFile(path).append(1, [replace(SAMPLE, id=text, worst=replace(SAMPLE.worst, verdict=verdict))])
    assert len(headings(path.read_text())) == 3
    assert len(blocks(path.read_text())) == 4


@pytest.mark.parametrize("text", HOSTILE)
def test_rewinding_is_not_misled_by_headings_in_a_text(path: Path, text: str) -> None:
    file = SamplesFile(path)
    file.append(1, [replace(SAMPLE, expert=text)])
    before = path.read_bytes()
    file.rewind(1)
    assert path.read_bytes() == before


def test_terminal_control_codes_are_not_passed_on(path: Path) -> None:
    SamplesFile(path).append(1, [replace(SAMPLE, expert="\x1b[2Jgone\u202egnorw")])
    assert "\ufffd[2Jgone\ufffdgnorw" in path.read_text()


def test_sections_follow_each_other(path: Path) -> None:
    file = SamplesFile(path)
    for step in (10, 20, 30):
        file.append(step, [SAMPLE])
    assert re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE) == ["Step 10", "Step 20", "Step 30"]


def test_rewinding_drops_the_sections_beyond_a_step(path: Path) -> None:
    file = SamplesFile(path)
    file.append(10, [SAMPLE])
    kept = path.read_bytes()
    file.append(20, [SAMPLE])
    file.rewind(19)
    assert path.read_bytes() == kept


def test_a_step_that_is_rolled_out_again_is_shown_once(path: Path) -> None:
    file = SamplesFile(path)
    file.append(10, [replace(SAMPLE, expert="before the kill")])
    file.append(10, [replace(SAMPLE, expert="after it")])
    assert path.read_text().count("## Step 10") == 1
    assert "after it" in path.read_text()
    assert "before the kill" not in path.read_text()


def test_rewinding_a_file_that_is_not_there_makes_it(path: Path) -> None:
    SamplesFile(path).rewind(0)
    assert path.read_text() == "# Rewrites during training\n"


def group(rewards: list[float]) -> RolloutGroup:
    rewrites = [Rewrite(Completion([1], f"rewrite {place}", [-0.5], "stop"), PASSED, [0.5]) for place in range(3)]
    demonstration = Demonstration("d", (Message("user", "Why?"),), "Because.")
    return RolloutGroup(demonstration, [1], 1, rewrites, [2.0], GroupReward(rewards, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))


def test_a_group_is_shown_by_its_highest_and_lowest_reward() -> None:
    sample = sample_of(group([1.2, 0.0, 1.1]))
    assert (sample.id, sample.question, sample.expert) == ("d", "Why?", "Because.")
    assert sample.expert_mismatch == Mismatch(2.0, 2.0, 1)
    assert (sample.best.text, sample.best.reward, sample.best.distance, sample.best.diversity) == (
        "rewrite 0",
        1.2,
        0.1,
        0.4,
    )
    assert (sample.worst.text, sample.worst.reward) == ("rewrite 1", 0.0)


def test_of_equal_rewards_two_different_rewrites_are_shown() -> None:
    sample = sample_of(group([1.0, 1.0, 1.0]))
    assert (sample.best.text, sample.worst.text) == ("rewrite 0", "rewrite 2")
