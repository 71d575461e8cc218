"""One input row of any supported shape as a demonstration.

The first shape of this list whose fields are all there decides; other fields stay as metadata in `source`,
and a field that is null counts as absent:

1. `messages`: chat turns, the last one the assistant's.
2. `conversations`: the same as `from` (system, human, gpt) and `value`.
3. `prompt` and `completion`: each a string or chat turns.
4. `instruction`, perhaps `input`, and `output`.
5. `problem` or `question`, and `solution` or `answer`. With a solution, the answer is the reference answer.
6. `Body`, `Question` and `Answer`, as in SVAMP: the number is the reference answer, and with the row's `Equation`,
   if it has one, the expert text.

Optional everywhere: `id`, `reference_answer`, `task`. GSM8K's `#### 42` on the last line is the reference
answer unless the row states one, and its calculator annotations `<<3*2=6>>` are left out of the expert text.
Not here: files and duplicate ids (`agent.intake`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from agent.demonstrations import Demonstration, Message
from agent.exceptions import RowError

MAX_ID_LENGTH = 256
MAX_TASK_LENGTH = 64

_ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_SHAPES = (
    "messages; conversations; prompt and completion; instruction and output; "
    "problem or question, and solution or answer; Body, Question and Answer"
)
_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_CALCULATOR = re.compile(r"<<[-+*/()^%$.,:=\d\s]*>>")
_WHOLE_FLOAT = re.compile(r"(?<=\d)\.0+(?!\d)")
_SENTENCE_ENDS = (".", "!", "?", ",")
_GROUPED_NUMBER = re.compile(r"[-+]?\$?\d{1,3}(,\d{3})+(\.\d+)?")


def parse_row(row: object, *, line: int, number: int) -> Demonstration:
    """Read one row.

    Args:
        row: a parsed JSON value; `agent.strict_json` says what is allowed in it.
        line: 1-based line in its file.
        number: 1-based number of the row, for its id when it has none of its own.

    Raises:
        RowError: names the field that is missing, has the wrong type or contradicts another.
    """
    if not isinstance(row, dict):
        raise RowError(not_an_object(row), line=line)
    try:
        prompt, expert, reference = _read_shape(row)
        told = _CALCULATOR.sub("", expert)
        if not told.strip():
            raise RowError(
                "empty: the expert has written calculator notes alone; write an answer, or leave the row out"
            )
        explicit = _short_answer(row, "reference_answer")
        return Demonstration(
            id=own_id(row) or f"row-{number}",
            prompt=prompt,
            expert=told,
            reference_answer=explicit or reference or _final_answer(expert),
            task=_task(row),
            source=row,
            line=line,
        )
    except RowError as error:
        message = f"{error.field!r}: {error}" if error.field else str(error)
        raise RowError(message, line=line, field=error.field) from None


def not_an_object(row: object) -> str:
    """What is wrong with a row that is another JSON value."""
    return f"a row must be a JSON object, got {_kind(row)}"


def own_id(row: Mapping[str, Any]) -> str | None:
    """The id that the row states, as a string; None when it states none.

    Raises:
        RowError: it is neither a printable string of reasonable length nor an integer.
    """
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"must be a string or an integer, got {_kind(value)}", field="id")
    text = str(value)
    if not 0 < len(text) <= MAX_ID_LENGTH:
        raise RowError(f"must have 1 to {MAX_ID_LENGTH} characters, got {len(text)}", field="id")
    if not text.isprintable():
        raise RowError("must not contain control or other unprintable characters", field="id")
    return text


def _read_shape(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, str | None]:
    """Prompt, expert completion and the reference answer that belongs to the shape."""
    present = {name for name, value in row.items() if value is not None}
    if "messages" in present:
        return *_split(_turns(row, "messages"), "messages"), None
    if "conversations" in present:
        return *_split(_conversation(row["conversations"]), "conversations"), None
    if {"prompt", "completion"} <= present:
        return _prompt(row), _completion(row), None
    if {"instruction", "output"} <= present:
        return (Message("user", _instruction(row)),), _text(row, "output"), None
    if present & {"problem", "question"} and present & {"solution", "answer"}:
        return _problem(row)
    if {"Body", "Question", "Answer"} <= present:
        return _body(row)
    raise _missing(present)


def _missing(present: set[str]) -> RowError:
    """What to say of a row that has no complete shape: the missing half of the first shape it begins."""
    for first, second in (("prompt", "completion"), ("instruction", "output")):
        if first in present or second in present:
            absent = second if first in present else first
            return RowError(f"missing: a row with {first!r} needs {second!r} too", field=absent)
    if present & {"problem", "question"}:
        return RowError("missing: the row has a question but neither 'solution' nor 'answer'", field="answer")
    if present & {"solution", "answer"}:
        return RowError("missing: the row has a solution but neither 'problem' nor 'question'", field="question")
    return RowError(f"no known shape: a row needs {_SHAPES}")


def _problem(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, str | None]:
    if row.get("problem") is not None and row.get("question") is not None and row["problem"] != row["question"]:
        raise RowError("differs from 'question': keep one of them", field="problem")
    question = _text(row, "problem" if row.get("problem") is not None else "question")
    prompt = (Message("user", question),)
    if row.get("solution") is None:
        return prompt, _text(row, "answer"), None
    return prompt, _text(row, "solution"), _short_answer(row, "answer")


def _body(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, str | None]:
    """A row of SVAMP: its body may lack the full stop, its numbers are floats."""
    body, question = _text(row, "Body").strip(), _text(row, "Question").strip()
    answer = _short_answer(row, "Answer")
    if answer is None:
        raise RowError("empty: write the answer, or leave the row out", field="Answer")
    answer = _WHOLE_FLOAT.sub("", answer)
    prompt = (Message("user", f"{body if body.endswith(_SENTENCE_ENDS) else f'{body}.'} {question}"),)
    if row.get("Equation") is None:
        return prompt, f"The answer is {answer}.", answer
    equation = _WHOLE_FLOAT.sub("", _text(row, "Equation").strip())
    return prompt, f"{equation} = {answer}\nThe answer is {answer}.", answer


def _instruction(row: Mapping[str, Any]) -> str:
    instruction = _text(row, "instruction")
    further = row.get("input")
    if further is None:
        return instruction
    if not isinstance(further, str):
        raise RowError(f"must be a string, got {_kind(further)}", field="input")
    return f"{instruction}\n\n{further}" if further.strip() else instruction


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if isinstance(row["prompt"], str):
        return (Message("user", _text(row, "prompt")),)
    return _checked_prompt(_turns(row, "prompt"), "prompt")


def _completion(row: Mapping[str, Any]) -> str:
    if isinstance(row["completion"], str):
        return _text(row, "completion")
    turns = _turns(row, "completion")
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowError("must be one assistant turn, or a string", field="completion")
    return _expert(turns[0], "completion[0]")


def _turns(row: Mapping[str, Any], field: str) -> list[Message]:
    turns = row[field]
    if not isinstance(turns, list):
        raise RowError(f"must be a list of chat turns, got {_kind(turns)}", field=field)
    return [_turn(turn, f"{field}[{index}]") for index, turn in enumerate(turns)]


def _turn(turn: object, field: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"must be an object with 'role' and 'content', got {_kind(turn)}", field=field)
    if turn.get("role") not in _ROLES:
        raise RowError(f"must be one of {', '.join(_ROLES)}, got {_shown(turn.get('role'))}", field=f"{field}.role")
    if turn.get("tool_calls"):
        raise RowError("tool calls are not supported: only text can be rewritten", field=f"{field}.tool_calls")
    return Message(turn["role"], _content(turn.get("content"), f"{field}.content"))


def _content(content: object, field: str) -> str:
    if isinstance(content, list):
        return "".join(_part(part, f"{field}[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise RowError(f"must be a string, got {_kind(content)}", field=field)
    return content


def _part(part: object, field: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise RowError("must be a text part: images and other media are not supported", field=field)
    return str(part["text"])


def _conversation(turns: object) -> list[Message]:
    if not isinstance(turns, list):
        raise RowError(f"must be a list of turns, got {_kind(turns)}", field="conversations")
    messages = []
    for index, turn in enumerate(turns):
        field = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise RowError(f"must be an object with 'from' and 'value', got {_kind(turn)}", field=field)
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            raise RowError(f"must be one of {', '.join(_SPEAKERS)}, got {_shown(speaker)}", field=f"{field}.from")
        messages.append(Message(_SPEAKERS[speaker], _content(turn.get("value"), f"{field}.value")))
    return messages


def _split(turns: list[Message], field: str) -> tuple[tuple[Message, ...], str]:
    """The turns before the last one, and the last one's text."""
    if len(turns) < 2:
        raise RowError(f"must have a user turn and an assistant turn at least, has {len(turns)}", field=field)
    last = f"{field}[{len(turns) - 1}]"
    if turns[-1].role != "assistant":
        raise RowError(f"the last turn must be the assistant's, not the {turns[-1].role}'s", field=last)
    return _checked_prompt(turns[:-1], field), _expert(turns[-1], last)


def _checked_prompt(turns: list[Message], field: str) -> tuple[Message, ...]:
    if not any(turn.role == "user" and turn.content.strip() for turn in turns):
        raise RowError("has no user turn with text: there is nothing to answer", field=field)
    if turns[-1].role not in ("user", "tool"):
        raise RowError(f"the turn before the completion must be the user's, not the {turns[-1].role}'s", field=field)
    return tuple(turns)


def _expert(turn: Message, field: str) -> str:
    if not turn.content.strip():
        raise RowError("empty: the expert must have written something", field=field)
    return turn.content


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise RowError(f"must be a string, got {_kind(value)}", field=field)
    if not value.strip():
        raise RowError("empty: write a text, or leave the row out", field=field)
    return value


def _short_answer(row: Mapping[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"must be a string or a number, got {_kind(value)}", field=field)
    # Written out, since no checker reads 5e-05 as 0.00005.
    text = format(Decimal(repr(float(value))), "f") if isinstance(value, float) else str(value)
    return text.strip() or None


def _task(row: Mapping[str, Any]) -> str | None:
    task = row.get("task")
    if task is None:
        return None
    if not isinstance(task, str) or not 0 < len(task) <= MAX_TASK_LENGTH or not task.isprintable():
        raise RowError(f"must be the name of a task, got {_shown(task)}", field="task")
    return task


def _final_answer(expert: str) -> str | None:
    """GSM8K's answer after `####` on the last line, thousands separators removed."""
    last_line = expert.rstrip().rpartition("\n")[2].strip()
    answer = last_line.removeprefix("####").strip()
    if not last_line.startswith("####") or answer.startswith("#") or not any(map(str.isdigit, answer)):
        return None
    return answer.replace(",", "") if _GROUPED_NUMBER.fullmatch(answer) else answer


def _kind(value: object) -> str:
    """JSON's own word for the type of a value."""
    return _KINDS.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else _kind(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
