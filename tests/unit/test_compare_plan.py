"""The plan of a comparison: methods as data, what is shared, what a change redoes, and whose the folder is."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.exceptions import AdapterError, InputFileError, SettingsError
from cli.compare import compare, request_of
from cli.settings import Settings, load_settings
from trainer.compare.folder import CLAIM, claimed, is_done, mark_done
from trainer.compare.inputs import read_inputs, trained_and_asked
from trainer.compare.methods import METHODS, sft_settings
from trainer.compare.plan import Inputs, Unit, described, make_plan
from trainer.compare.run import run_comparison
from trainer.compare.settings import CompareRequest, CompareSettings
from trainer.exceptions import CheckpointError, EvaluationError, TrainingSettingsError
from trainer.sft.settings import SftSettings

EXAMPLE = Path(__file__).parents[2] / "examples" / "compare.toml"
INPUTS = Inputs("train", {"sums": "questions", "piqa": "rows"}, {"rewright": "weights", "paper": "others"})


def compare_settings(**further: Any) -> dict[str, Any]:
    return {
        "train": "train.jsonl",
        "accuracy": {"sums": "questions.jsonl"},
        "retention": ["piqa"],
        "methods": ["sft"],
        "learning_rates": [1e-4],
        "steps": [10],
        **further,
    }


def request(output: Path = Path("out"), **further: Any) -> CompareRequest:
    return CompareRequest(output=output, compare=CompareSettings(**compare_settings(**further)))


def plan(**further: Any) -> list[Unit]:
    return make_plan(request(**further), INPUTS)


def kinds(units: list[Unit]) -> list[str]:
    return [unit.kind for unit in units]


def test_each_setup_is_trained_and_examined_and_the_base_model_once() -> None:
    units = plan(methods=["base", "sft", "dft"], learning_rates=[1e-5, 1e-4], seeds=[0, 1])
    assert kinds(units) == ["exam"] + ["train", "exam"] * 8
    assert len({unit.folder for unit in units}) == len(units)
    assert [unit.setup.told for unit in units[1:4:2] if unit.setup] == [
        "sft_lora_lr1e-05_steps10_seed0",
        "dft_lora_lr1e-05_steps10_seed0",
    ]


def test_rows_are_made_once_for_all_learning_rates_seeds_and_methods_that_share_them() -> None:
    methods = ["rewright", "rewright_masked", "rewright_success_only", "sdft"]
    units = plan(methods=methods, adapters={"rewright": "a"}, learning_rates=[1e-5, 1e-4], seeds=[0, 1])
    made = [unit for unit in units if unit.kind == "data"]
    assert [unit.name for unit in made] == ["rewrite-rewright", "rewrite-rewright-success-only", "rewrite"]
    assert made[1].needs == (made[0].folder,)
    trained = [unit for unit in units if unit.kind == "train"]
    assert {unit.needs for unit in trained} == {(unit.folder,) for unit in made}


def test_every_unit_comes_after_what_it_needs() -> None:
    methods = [name for name, method in METHODS.items() if method.adapter != "gate_only"]
    units = plan(methods=methods, adapters={"rewright": "a", "paper": "b"})
    seen: set[Path] = set()
    for unit in units:
        assert seen.issuperset(unit.needs)
        seen.add(unit.folder)


def test_another_learning_rate_adds_units_and_changes_none() -> None:
    before, after = ({unit.folder for unit in plan(learning_rates=rates)} for rates in ([1e-4], [1e-5, 1e-4]))
    assert before < after


@pytest.mark.parametrize("part", ["train", "adapters"])
def test_other_content_makes_other_units(part: str) -> None:
    asked = request(methods=["rewright"], adapters={"rewright": "a"})
    changed = {
        "train": Inputs("other", INPUTS.tasks, INPUTS.adapters),
        "adapters": Inputs(INPUTS.train, INPUTS.tasks, {"rewright": "other"}),
    }[part]
    before, after = ({unit.folder for unit in make_plan(asked, inputs)} for inputs in (INPUTS, changed))
    kept = {folder.parts[0] for folder in before & after}
    assert kept == {"train": {"exam"}, "adapters": {"exam"}}[part]


def test_an_exam_is_done_when_it_asked_every_task(tmp_path: Path) -> None:
    def exam(tasks: dict[str, str]) -> Unit:
        return make_plan(request(), Inputs(INPUTS.train, tasks, {}))[0]

    unit = exam({"sums": "questions"})
    (tmp_path / unit.folder).mkdir(parents=True)
    mark_done(tmp_path, unit)
    assert is_done(tmp_path, unit)
    more, fewer, other = exam({"sums": "questions", "piqa": "rows"}), exam({}), exam({"sums": "others"})
    assert more.folder == fewer.folder == other.folder == unit.folder
    assert not is_done(tmp_path, more)
    assert is_done(tmp_path, fewer)
    assert not is_done(tmp_path, other)


def test_own_solutions_may_go_another_way_than_the_experts() -> None:
    gates = {unit.name: unit.gate for unit in plan(methods=["mind_the_gap", "rft", "sdft"]) if unit.rewrite}
    assert {name: gate and gate.steps for name, gate in gates.items()} == {
        "solve-hint": False,
        "solve": False,
        "rewrite": True,
    }


def test_questions_that_are_trained_on_are_told(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)]
    for name, kept in (("train", rows[:3]), ("own", rows[1:]), ("others", rows[3:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    files = {name: tmp_path / f"{name}.jsonl" for name in ("own", "others")}
    asked = request(train=tmp_path / "train.jsonl", train_limit=2, accuracy=files)
    assert trained_and_asked(asked) == ["1 of the 3 questions of own are trained on, too: its gain is partly memory."]


def test_a_strategy_of_the_users_own_is_what_a_method_uses() -> None:
    asked = request(methods=["sdft", "mind_the_gap"])
    own = {"strategies": {"rewrite": [{"proposer": "rewrite", "temperatures": [0.9], "samples": 1}]}}
    changed = CompareRequest.model_validate({**asked.model_dump(), "rewrite": own})
    before, after = (
        {unit.name: unit for unit in make_plan(r, INPUTS) if unit.kind == "data"} for r in (asked, changed)
    )
    assert after["rewrite"].key != before["rewrite"].key
    assert after["solve-hint"].key == before["solve-hint"].key
    rewrite = after["solve-hint"].rewrite
    assert rewrite is not None
    assert [step.proposer for step in rewrite.strategies[rewrite.strategy]] == ["solve", "hint"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sft", ("nll", "none", "all", 0.0)),
        ("mask", ("nll", "mask", "all", 0.0)),
        ("entropy", ("nll", "entropy", "all", 0.0)),
        ("prob", ("nll", "prob", "all", 0.0)),
        ("dft", ("dft", "none", "all", 0.0)),
        ("kl", ("nll", "none", "all", 0.3)),
        ("rewright_masked", ("nll", "mask", "fallback", 0.0)),
    ],
)
def test_a_method_decides_loss_weights_and_anchor_and_nothing_else(name: str, expected: tuple[object, ...]) -> None:
    common = SftSettings(batch_rows=8, loss="dft", kl_weight=9)
    shape = {"method": "full"}
    found = sft_settings(METHODS[name], common, shape, learning_rate=1e-3, steps=5, seed=2, kl_weight=0.3)
    assert (found.loss, found.weights.kind, found.weights.apply_to, found.kl_weight) == expected
    assert (found.method, found.learning_rate, found.steps, found.seed) == ("full", 1e-3, 5, 2)
    assert found.batch_rows == 8


def test_the_table_says_which_methods_need_a_rewriter_and_drop_fallbacks() -> None:
    assert {name for name, m in METHODS.items() if not m.is_cheap} == {
        "gate_only",
        "paper",
        "rewright",
        "rewright_masked",
        "gate_only_success_only",
        "paper_success_only",
        "rewright_success_only",
    }
    dropped = {name for name, method in METHODS.items() if method.success_only}
    assert dropped == {"rft"} | {name for name in METHODS if name.endswith("_success_only")}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("methods = ['sft', 'magic']", "unknown 'magic'; known are base, sft, mask"),
        ("methods = ['base']", "name a method besides base"),
        ("methods = ['rewright']", "give its folder as compare.adapters.rewright"),
        ("methods = ['paper_success_only']", "compare.adapters.paper"),
        ("methods = ['sft', 'sft']", "sft is given twice"),
        ("learning_rates = []", "compare.learning_rates"),
        ("learning_rates = [0.0]", "must be greater than 0"),
        ("steps = []", "compare.steps"),
        ("learning_rate = 1", "there is no such setting"),
        ("shapes = {'../up' = {method = 'full'}}", "is no name of a shape"),
        ("adapters = {magic = 'a'}", "adapters.magic is of no method"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: str, said: str, tmp_path: Path) -> None:
    lines = {
        "train": "'t'",
        "accuracy": "{a = 'a'}",
        "retention": "['piqa']",
        "methods": "['sft']",
        "learning_rates": "[1e-4]",
        "steps": "[1]",
    }
    name, _, value = wrong.partition(" = ")
    text = "\n".join(f"{key} = {told}" for key, told in {**lines, name: value}.items())
    (tmp_path / "c.toml").write_text(f"[compare]\n{text.replace(chr(39), chr(34))}\n")
    with pytest.raises(SettingsError) as error:
        load_settings(tmp_path / "c.toml", {})
    assert said in str(error.value)


def test_missing_files_are_named_with_their_setting(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    with pytest.raises(InputFileError, match=r"compare\.train: .*no such file"):
        read_inputs(request(train=tmp_path / "none"))
    questions.write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    with pytest.raises(InputFileError, match=r"compare\.accuracy\.sums"):
        read_inputs(request(train=questions, accuracy={"sums": tmp_path / "none"}))
    with pytest.raises(EvaluationError, match="benchmark piqa: there is no file"):
        read_inputs(request(train=questions, accuracy={"sums": questions}, benchmarks=tmp_path))
    with pytest.raises(EvaluationError, match="unknown task 'chess'"):
        read_inputs(request(train=questions, accuracy={"sums": questions}, retention=["chess"]))
    with pytest.raises(AdapterError, match=r"compare\.adapters\.paper.*no such folder"):
        read_inputs(
            request(
                train=questions,
                accuracy={"sums": questions},
                methods=["paper"],
                adapters={"paper": tmp_path / "none"},
            )
        )


def test_a_folder_belongs_to_one_comparison(tmp_path: Path) -> None:
    first = described(request(), INPUTS, "base")
    with claimed(tmp_path / "out", first):
        pass
    with claimed(tmp_path / "out", described(request(learning_rates=[1e-3], methods=["dft"]), INPUTS, "base")):
        pass  # further methods and learning rates may come later
    with (
        pytest.raises(CheckpointError, match="made with other training data and limit"),
        claimed(tmp_path / "out", described(request(limit=5), Inputs("other", {}, {}), "base")),
    ):
        pass


def test_a_folder_takes_further_tasks(tmp_path: Path) -> None:
    claims = []
    for tasks in ({"sums": "questions"}, {"sums": "questions", "piqa": "rows"}):
        with claimed(tmp_path / "out", described(request(), Inputs("train", tasks, {}), "base")):
            claims.append(json.loads((tmp_path / "out" / CLAIM).read_text()))
    assert claims[0]["training data"] == ["train", None]
    assert claims[1] == claims[0]


def test_a_folder_is_of_one_base_model_one_engine_and_one_type(tmp_path: Path) -> None:
    engine = {"kind": "vllm", "dtype": "bfloat16"}
    other = CompareRequest.model_validate(request().model_dump() | {"engine": engine})
    with claimed(tmp_path / "out", described(request(), INPUTS, "base")):
        pass
    with (
        pytest.raises(CheckpointError, match="other weights of the base model and dtype and engine;"),
        claimed(tmp_path / "out", described(other, INPUTS, "other weights of the same name")),
    ):
        pass


def test_another_context_makes_all_units_anew_and_more_threads_none() -> None:
    asked = request(methods=["sft", "sdft"])
    before, longer, faster = (
        {unit.folder for unit in make_plan(CompareRequest.model_validate(asked.model_dump() | {"engine": e}), INPUTS)}
        for e in ({}, {"max_length": 512}, {"threads": 7})
    )
    assert faster == before
    assert not longer & before
    assert len(longer) == len(before)


def test_a_folder_is_of_one_quantization_and_of_one_version_of_what_decides_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimed(tmp_path / "out", described(request(), INPUTS, "base")):
        pass
    quantized = CompareRequest.model_validate(request().model_dump() | {"engine": {"vllm": {"quantization": "fp8"}}})
    with (
        pytest.raises(CheckpointError, match="made with other engine;"),
        claimed(tmp_path / "out", described(quantized, INPUTS, "base")),
    ):
        pass
    for package in ("rewright", "torch", "transformers", "trl", "peft", "lm-eval"):
        with monkeypatch.context() as patch:
            patch.setattr("trainer.publish.version", lambda name, p=package: "9" if name == p else version(name))
            other = described(request(), INPUTS, "base")
        with (
            pytest.raises(CheckpointError, match=f"made with other version of {package};"),
            claimed(tmp_path / "out", other),
        ):
            pass


@pytest.mark.parametrize("given", [{"kind": "none"}, {"kind": "mask"}, {"apply_to": "fallback"}])
def test_what_each_method_decides_for_itself_is_refused_where_it_is_given(given: dict[str, Any]) -> None:
    tree = {"compare": compare_settings(), "sft": {"weights": given}}
    (name,) = given
    with pytest.raises(SettingsError, match=rf"setting sft\.weights\.{name}: in a comparison each method decides"):
        request_of(Settings.model_validate(tree), Path("out"))
    tree["sft"] = {"weights": {"mask_perplexity": 3.0}}
    assert request_of(Settings.model_validate(tree), Path("out")).sft.weights.mask_perplexity == 3.0


def test_a_folder_does_not_depend_on_what_methods_decide() -> None:
    def shared(weights: dict[str, Any]) -> dict[str, Any]:
        return described(
            CompareRequest.model_validate(request().model_dump() | {"sft": {"weights": weights}}), INPUTS, "b"
        )

    assert shared({"kind": "mask", "apply_to": "all"}) == shared({})
    assert shared({"mask_perplexity": 3.0}) != shared({})


def test_a_comparison_and_its_plan_name_the_type_that_auto_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[CompareRequest] = []

    def stop(request: CompareRequest) -> None:
        asked.append(request)
        raise InputFileError("far enough")

    monkeypatch.setattr("trainer.compare.run.read_inputs", stop)
    monkeypatch.setattr("trainer.devices.pick_dtype", lambda *_: torch.bfloat16)
    with pytest.raises(InputFileError):
        run_comparison(request(tmp_path))
    assert asked[0].engine.dtype == "bfloat16"


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "out", {}),
        pytest.raises(TrainingSettingsError, match="another process works in it"),
        claimed(tmp_path / "out", {}),
    ):
        pass


def test_a_folder_of_other_things_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(TrainingSettingsError, match="holds other files"), claimed(tmp_path, {}):
        pass
    with pytest.raises(TrainingSettingsError, match="is a file"), claimed(tmp_path / "thesis.tex", {}):
        pass


def test_a_unit_is_done_by_its_marker_alone(tmp_path: Path) -> None:
    unit = Unit("data", "rows", "0123456789abcdef")
    (tmp_path / unit.folder).mkdir(parents=True)
    assert not is_done(tmp_path, unit)
    mark_done(tmp_path, unit)
    assert is_done(tmp_path, unit)
    assert not is_done(tmp_path, Unit("data", "rows", "fedcba9876543210"))


def test_the_example_is_a_comparison_with_every_kind_of_method() -> None:
    compare = load_settings(EXAMPLE, {}).compare
    assert compare is not None
    assert {"sft", "mask", "rft", "sdft", "mind_the_gap", "rewright"} <= set(compare.methods)
    assert len(compare.learning_rates) >= 4
    assert {name: shape.lora.rank for name, shape in compare.shapes.items()} == {"small": 8, "large": 64}


def test_a_dry_run_prints_the_plan_and_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    Path("c.toml").write_text(
        '[compare]\ntrain = "rows.jsonl"\nretention = ["piqa"]\nmethods = ["sdft"]\nlearning_rates = [1e-4]\n'
        'steps = [3]\n[compare.accuracy]\nsums = "rows.jsonl"\n'
    )
    compare(output=Path("out"), config=Path("c.toml"), dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("-")[0] for line in lines] == [
        "open  exam/base",
        "open  data/rewrite",
        "open  train/sdft_lora_lr0.0001_steps3_seed0",
        "open  exam/sdft_lora_lr0.0001_steps3_seed0",
    ]
    assert not Path("out").exists()
