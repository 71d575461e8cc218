"""What each proposer is asked. Only the answer is kept: the target is always paired with the plain question.

Mathematics is asked with worked examples: a small model learns the form from them, and the engine computes their
keys and values once. They end in plain words: a `\\boxed{}` after prose costs the embedded model some 20 nats, a fifth
of all the surprise of a solution. `ChatFormat` breaks control tokens in data, so that a demonstration cannot open or
close turns; nor can it close the block of notes that it stands in.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from agent.demonstrations import Demonstration, Message
from agent.settings import ProposerName

_CHOICE_FORM = "Explain in a few sentences, then end with one line: The answer is (letter)."
_EXPLAIN = "Explain this step by step."
# The answer stands in the prompt on its own; left in the notes, its mark-up is copied into the candidate.
_ANSWER_LINE = re.compile(r"\n?####.*")
# What opens or closes the block that an expert's text stands in, however it is written.
_NOTES_TAG = re.compile(r"<(?=\s*/?\s*notes\b)", re.IGNORECASE)


class _Example(NamedTuple):
    question: str
    notes: str
    answer: str
    solution: str


_EXAMPLES = (
    _Example(
        "Lena bakes 4 trays of muffins with 6 muffins on each tray. She gives 9 muffins to her neighbors. "
        "How many muffins does she have left?",
        "4*6=24 muffins\n24-9=15 left",
        "15",
        "To find out how many muffins Lena has left, we need to find out how many she bakes. She bakes 4 trays with "
        "6 muffins on each tray, so she bakes 4 * 6 = 24 muffins. She gives 9 muffins to her neighbors, so she has "
        "24 - 9 = 15 muffins left.\n\nThe answer is 15.",
    ),
    _Example(
        "A notebook costs $3 and a pen costs half as much. How much do 2 notebooks and 4 pens cost?",
        "A pen is 3/2=$1.50.\n2 notebooks: 2*3=$6. 4 pens: 4*1.5=$6.\nTotal 6+6=$12",
        "12",
        "To solve this problem, first, we find the cost of one pen. A notebook costs $3 and a pen costs half as much, "
        "so a pen costs $3 / 2 = $1.50. Two notebooks cost 2 * $3 = $6, and four pens cost 4 * $1.50 = $6. "
        "So the total cost is $6 + $6 = $12.\n\nThe answer is 12.",
    ),
    _Example(
        "Tom reads 20 pages a day. His book has 300 pages, and he has already read 120 pages. "
        "How many more days does he need to finish the book?",
        "300-120=180 pages\n180/20=9",
        "9",
        "To solve this problem, we need to find out how many pages are left. The book has 300 pages, and Tom has "
        "already read 120 pages, so he has 300 - 120 = 180 pages left to read. He reads 20 pages a day, so he needs "
        "180 / 20 = 9 more days to finish the book.\n\nThe answer is 9.",
    ),
)


def proposal_prompt(
    proposer: ProposerName, demonstration: Demonstration, task: str, *, with_examples: bool = True
) -> tuple[Message, ...] | None:
    """The chat that asks for a candidate, or None when this proposer lacks what it needs.

    Args:
        proposer: `solve` sees the question, `hint` also the reference answer, `rewrite` the expert solution.
        demonstration: the row.
        task: which gate will judge; decides how the final answer is to be written.
        with_examples: whether worked examples may come first; they take some 600 tokens of the context.
    """
    answer = demonstration.reference_answer
    if proposer == "hint" and answer is None:
        return None
    if task == "math":
        notes = _ANSWER_LINE.sub("", demonstration.expert).strip()
        request = _math_request(proposer, demonstration.question, answer, notes)
        examples = [
            turn
            for example in (_EXAMPLES if with_examples else ())
            for turn in (
                Message("user", _math_request(proposer, example.question, answer and example.answer, example.notes)),
                Message("assistant", example.solution),
            )
        ]
    else:
        request, examples = _plain_request(proposer, demonstration, task), []
    turns = demonstration.prompt
    last_user = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=len(turns))
    system = [turn for turn in turns[:last_user] if turn.role == "system"]
    earlier = [turn for turn in turns[:last_user] if turn.role != "system"]
    return (*system, *examples, *earlier, Message("user", request))


def _math_request(proposer: ProposerName, question: str, answer: str | None, notes: str) -> str:
    match proposer:
        case "solve":
            return question
        case "hint":
            return f"{question}\n\nThe answer is {answer}. {_EXPLAIN}"
        case "rewrite" if answer is None:
            return f"{question}\n\nNotes:\n{notes}\n\n{_EXPLAIN}"
        case "rewrite":
            return f"{question}\n\nThe answer is {answer}, because:\n{notes}\n\n{_EXPLAIN}"


def _plain_request(proposer: ProposerName, demonstration: Demonstration, task: str) -> str:
    form = f"\n\n{_CHOICE_FORM}" if task == "choice" else ""
    match proposer:
        case "solve":
            return f"{demonstration.question}{form}"
        case "hint":
            told = f"The answer is {demonstration.reference_answer}."
            return f"{demonstration.question}\n\n{told}{form or ' Explain why.'}"
        case "rewrite":
            question, notes = (_NOTES_TAG.sub("< ", text) for text in (demonstration.question, demonstration.expert))
            return (
                f"{question}\n\nNotes for the answer:\n<notes>\n{notes}\n</notes>\n\n"
                f"Answer in your own words, with everything that the notes say.{form}"
            )
