"""A whole exam of a model of a few hundred weights: what a resumed one refuses, and what a task tells of its checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from agent.exceptions import ResumeError
from agent.gate.answer_checker import AnswerChecker
from agent.settings import EngineSettings, GateSettings, ModelSettings
from cli.evaluate import _tell_not_run
from tests.tiny_chat import tiny_model, write_tiny_model
from trainer.exam.accuracy import Question, grade
from trainer.exam.request import EvaluationRequest
from trainer.exam.run import run_evaluation
from trainer.exam.settings import EvaluateSettings

QUICK = EvaluateSettings(max_tokens=4, kl_rows=1, kl_max_tokens=4)


@pytest.fixture
def request_(tmp_path: Path) -> EvaluationRequest:
    """Two questions for a model with an adapter."""
    write_tiny_model(tmp_path / "tiny")
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_model(), config).save_pretrained(str(tmp_path / "noise"))
    rows = [{"question": f"What is {a} + 2 ?", "answer": f"It is {a + 2}\n#### {a + 2}"} for a in (1, 2)]
    (tmp_path / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return EvaluationRequest(
        tasks=(f"sums={tmp_path / 'sums.jsonl'}",),
        output=tmp_path / "out.json",
        model=ModelSettings(name=str(tmp_path / "tiny")),
        adapter=tmp_path / "noise",
        engine=EngineSettings(dtype="float32", threads=1),
        evaluate=QUICK,
    )


def test_an_exam_goes_on_only_with_what_decided_its_figures(request_: EvaluationRequest) -> None:
    first = run_evaluation(request_)
    assert run_evaluation(request_, resume=True) == first
    changes: dict[str, dict[str, Any]] = {
        "settings.max_length was None and is now 32": {"engine": request_.engine.model_copy(update={"max_length": 32})},
        "settings.quantization was None and is now 'fp8'": {
            "engine": EngineSettings.model_validate({"dtype": "float32", "vllm": {"quantization": "fp8"}})
        },
        "settings.math_timeout_s was 5.0 and is now 1.0": {"gate": GateSettings(math_timeout_s=1)},
    }
    for said, change in changes.items():
        with pytest.raises(ResumeError, match=said):
            run_evaluation(request_.model_copy(update=change), resume=True)
    assert request_.adapter is not None
    config = request_.adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 8}))
    with pytest.raises(ResumeError, match=r"model\.adapter_sha256 was"):
        run_evaluation(request_, resume=True)


def test_an_exam_does_not_go_on_with_another_chat_template(request_: EvaluationRequest) -> None:
    run_evaluation(request_)
    template = Path(request_.model.name) / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|> assistant", "<|im_start|> assistant so"))
    with pytest.raises(ResumeError, match=r"model\.tokenizer_sha256 was"):
        run_evaluation(request_, resume=True)


def test_answer_comparisons_that_time_out_are_counted_and_said(
    request_: EvaluationRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def grade_late(answers: AnswerChecker, question: Question, text: str) -> Any:
        answers.timeouts += 1
        return await grade(answers, question, text)

    monkeypatch.setattr("trainer.exam.accuracy.grade", grade_late)
    found = run_evaluation(request_)
    assert {name: task.timeouts for name, task in found.tasks.items()} == {"sums": 2, "kl:sums": 0}
    assert not _tell_not_run(found, ("sums", "piqa"))
    assert "sums: 2 answer comparisons reached the time limit, and count as not equal" in capsys.readouterr().err


def shorter(folder: Path, context: int) -> ModelSettings:
    """The same model with a shorter context."""
    write_tiny_model(folder / "short")
    config = folder / "short" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": context}))
    return ModelSettings(name=str(folder / "short"))


def write_choices(folder: Path, *choices: str) -> None:
    rows = [{"query": "What is 1 ?", "choices": ["Plum", choice], "gold": 0} for choice in choices]
    (folder / "piqa").mkdir()
    (folder / "piqa" / "validation.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_row_that_does_not_fit_costs_its_benchmark_and_no_other_task(
    request_: EvaluationRequest, tmp_path: Path
) -> None:
    write_choices(tmp_path, "fruit", "so " * 70)
    found = run_evaluation(request_.model_copy(update={"tasks": ("piqa", *request_.tasks), "data": tmp_path}))
    assert {name: task.rows for name, task in found.tasks.items()} == {"sums": 2, "kl:sums": 1, "piqa": 0}
    assert str(found.tasks["piqa"].not_run).startswith("benchmark piqa: row 2: a continuation of 70 tokens")
    assert _tell_not_run(found, ("sums", "piqa"))


@pytest.mark.parametrize(("context", "asked"), [(14, 2), (8, 0)])
def test_a_context_shorter_than_the_bases_costs_the_questions_that_do_not_fit(
    request_: EvaluationRequest, tmp_path: Path, context: int, asked: int
) -> None:
    change = {"model": shorter(tmp_path, context), "base": request_.model, "adapter": None}
    found = run_evaluation(request_.model_copy(update=change)).tasks
    assert (found["sums"].rows, found["kl:sums"].rows) == (asked, 0)
    assert found["kl:sums"].left_out == {"longer than the model's context": 1}
    assert found["kl:sums"].not_run == "no question is left to measure it on"
    assert (found["sums"].not_run is None) == bool(asked)


def test_a_model_without_finite_log_probabilities_has_no_figures_made_of_them(
    request_: EvaluationRequest, tmp_path: Path
) -> None:
    model = tiny_model()
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    for file in (tmp_path / "tiny").glob("*.j*"):
        if "token" in file.name or file.suffix == ".jinja":
            (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    write_choices(tmp_path, "fruit")
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "test.txt").write_text(" = What is it = \n")
    change = {
        "tasks": ("piqa", "wikitext", *request_.tasks),
        "data": tmp_path,
        "model": ModelSettings(name=str(tmp_path / "broken")),
        "base": request_.model,
        "adapter": None,
    }
    found = run_evaluation(request_.model_copy(update=change)).tasks
    for name, row in (("piqa", "benchmark piqa: row 1"), ("wikitext", "benchmark wikitext: row 1")):
        assert found[name].not_run == f"{row}: the model gives no finite log-probabilities"
    assert found["kl:sums"].not_run == "question row-1: the model gives no finite log-probabilities"
    assert found["sums"].not_run is None
    assert "NaN" not in (tmp_path / "out.samples.jsonl").read_text()


def test_only_tasks_that_were_asked_now_fail_an_exam(request_: EvaluationRequest, tmp_path: Path) -> None:
    write_choices(tmp_path, "so " * 70)
    change = {"tasks": ("piqa",), "data": tmp_path}
    assert _tell_not_run(run_evaluation(request_.model_copy(update=change)), ("piqa",))
    found = run_evaluation(request_, resume=True)
    assert found.tasks["piqa"].not_run
    assert not _tell_not_run(found, request_.tasks)
    assert _tell_not_run(found, ("piqa", *request_.tasks))
    short = found.model_copy(update={"tasks": {"kl:sums": found.tasks["piqa"]}})
    assert _tell_not_run(short, request_.tasks)


def test_contexts_that_are_cut_are_said(
    request_: EvaluationRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_choices(tmp_path, "fruit")
    change = {"tasks": ("piqa",), "data": tmp_path, "model": shorter(tmp_path, 5), "adapter": None}
    found = run_evaluation(request_.model_copy(update=change))
    assert found.tasks["piqa"].cut == 1
    assert not _tell_not_run(found, ("sums", "piqa"))
    assert "piqa: the contexts of 1 rows were cut from the left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "adapted", "notes"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_the_type_of_numbers_is_in_the_result_with_what_it_costs(
    request_: EvaluationRequest, dtype: str, adapted: bool, notes: int
) -> None:
    engine = EngineSettings.model_validate({"dtype": dtype, "threads": 1})
    change = {"engine": engine, "adapter": request_.adapter if adapted else None}
    found = run_evaluation(request_.model_copy(update=change))
    assert found.settings["dtype"] == dtype
    assert len(found.notes) == notes
