"""An exam of a real model: lm-eval's scores, accuracy and divergence against direct computations with transformers.

The model is a small random one of the embedded model's tokens, so that every benchmark takes a second; one test asks
the embedded model itself.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from agent.exceptions import AdapterError
from agent.models import ModelFiles
from agent.settings import EngineSettings, ModelSettings
from tests.lines import write_lines
from trainer.exam.ifeval import punkt_is_installed
from trainer.exam.request import EvaluationRequest
from trainer.exam.results import EvaluationResult
from trainer.exam.run import Progress, run_evaluation
from trainer.exam.settings import EvaluateSettings
from trainer.exceptions import EvaluationError

FLOAT32 = EngineSettings(dtype="float32", max_length=512)
QUICK = EvaluateSettings(
    samples=2, max_tokens=12, kl_rows=2, kl_samples=2, kl_max_tokens=8, ifeval_max_tokens=12, window=24
)
HELLASWAG = [
    {
        "activity_label": "Baking",
        "ctx_a": "A man puts flour into a bowl.",
        "ctx_b": "then he",
        "endings": ["adds two eggs [title] slowly.", "sings.", "flies to the moon.", "paints it."],
        "label": "0",
    },
    {
        "activity_label": "Rowing",
        "ctx_a": "Two women sit in a boat.",
        "ctx_b": "they",
        "endings": ["row across the lake.", "eat the oars.", "bark.", "are blue numbers."],
        "label": "0",
    },
]
CHOICES = [
    {"query": "Question: What is wet?\n", "choices": ["water", "dry sand", "an idea"], "gold": 0},
    {"query": "Question: What do cows eat?", "choices": ["iron", "grass"], "gold": 1},
    {"query": "Question: What shines?", "choices": ["the sun", "a shoe in the dark cellar"], "gold": 0},
]
LAMBADA = [
    {"context": "Ann took her dog for a walk. It rained, and soon she carried the", "continuation": "dog"},
    {"context": "Ben looked at the sea and said", "continuation": "nothing"},
]
WIKITEXT = (
    " = Robert = \n \n Robert is an English film , television and theatre actor . \n \n = Du Fu = \n \n A poet . \n"
)
IFEVAL = [
    {
        "key": 1,
        "prompt": "Say hello without any commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    {
        "key": 2,
        "prompt": "Write at least 400 words in English.",
        "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
        "kwargs": [{"relation": "at least", "num_words": 400}, {}],
    },
    {
        "key": 3,
        "prompt": "Write two sentences.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    },
]
QUESTIONS = [{"question": f"What is {a} + 4?", "answer": f"{a} + 4 = {a + 4}\n#### {a + 4}"} for a in (3, 5, 8)]


@pytest.fixture(scope="module")
def tokenizer(model_files: ModelFiles) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_files.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmark files in the layouts that are read, and a file of questions."""
    folder = tmp_path_factory.mktemp("exam")
    write_lines(folder / "hellaswag" / "validation.jsonl", HELLASWAG)
    write_lines(folder / "arc_easy" / "test.jsonl", CHOICES)
    write_lines(folder / "piqa" / "validation.jsonl", CHOICES)
    write_lines(folder / "lambada" / "test.jsonl", LAMBADA)
    write_lines(folder / "ifeval" / "input_data.jsonl", IFEVAL)
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2" / "test.txt").write_text(WIKITEXT)
    write_lines(folder / "sums.jsonl", QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def tiny(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="module")
def adapter(tiny: Path, folder: Path) -> Path:
    """A LoRA whose weights are all random, so that it changes every output."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(load(tiny), config).save_pretrained(str(folder / "noise"))
    return folder / "noise"


def load(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapted(tiny: Path, adapter: Path) -> torch.nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(load(tiny), str(adapter)).eval()


def request_for(model: Path | str, folder: Path, output: str, *tasks: str, **further: Any) -> EvaluationRequest:
    fields = {"engine": FLOAT32, "evaluate": QUICK, "data": folder} | further
    return EvaluationRequest(tasks=tasks, output=folder / output, model=ModelSettings(name=str(model)), **fields)


def samples(folder: Path, output: str, task: str) -> list[dict[str, Any]]:
    lines = (folder / output).with_name(f"{Path(output).stem}.samples.jsonl").read_text().splitlines()
    return [sample for line in lines if (sample := json.loads(line))["task"] == task]


def token_logprobs(model: torch.nn.Module, ids: list[int], first: int) -> tuple[list[float], bool]:
    """Log-probability of each token of `ids` from `first` on, and whether all are the most likely ones."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, first - 1 : -1]
    targets = torch.tensor(ids[first:])
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets].tolist(), bool(
        (logits.argmax(-1) == targets).all()
    )


def continuation(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, context: str, text: str
) -> tuple[float, bool]:
    before = tokenizer.encode(context)
    logprobs, greedy = token_logprobs(model, tokenizer.encode(context + text), len(before))
    return math.fsum(logprobs), greedy


def score_choices(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, rows: list[tuple[str, list[str], int]]
) -> tuple[list[list[float]], float, float]:
    """Log-likelihoods, accuracy, and accuracy of log-likelihoods over characters."""
    lls = [[continuation(model, tokenizer, context, f" {c}")[0] for c in choices] for context, choices, _ in rows]
    best = [max(range(len(ll)), key=ll.__getitem__) for ll in lls]
    norms = [
        [x / len(c) for x, c in zip(ll, choices, strict=True)] for ll, (_, choices, _) in zip(lls, rows, strict=True)
    ]
    best_norm = [max(range(len(ll)), key=ll.__getitem__) for ll in norms]
    golds = [gold for _, _, gold in rows]
    right = [sum(a == b for a, b in zip(found, golds, strict=True)) / len(rows) for found in (best, best_norm)]
    return lls, right[0], right[1]


@pytest.fixture(scope="module")
def result(tiny: Path, adapter: Path, folder: Path) -> tuple[EvaluationResult, list[Progress]]:
    reports: list[Progress] = []
    tasks = (f"sums={folder / 'sums.jsonl'}", "hellaswag", "arc_easy", "lambada", "wikitext", "ifeval")
    request = request_for(tiny, folder, "adapted.json", *tasks, adapter=adapter)
    return run_evaluation(request, on_report=reports.append), reports


def test_multiple_choice_scores_equal_a_direct_computation(
    result: tuple[EvaluationResult, list[Progress]],
    adapted: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    hellaswag = [
        (
            f"Baking: {HELLASWAG[0]['ctx_a']} Then he",
            ["adds two eggs.  slowly.", "sings.", "flies to the moon.", "paints it."],
            0,
        ),
        (f"Rowing: {HELLASWAG[1]['ctx_a']} They", HELLASWAG[1]["endings"], 0),
    ]
    hellaswag[0][1][0] = "adds two eggs. slowly."
    arc = [(f"{row['query'].strip()}\nAnswer:", row["choices"], row["gold"]) for row in CHOICES]
    for task, rows in (("hellaswag", hellaswag), ("arc_easy", arc)):
        lls, acc, acc_norm = score_choices(adapted, tokenizer, rows)
        kept = samples(folder, "adapted.json", task)
        assert [sample["row"] for sample in kept] == list(range(1, len(rows) + 1))
        for sample, expected in zip(kept, lls, strict=True):
            assert sample["responses"] == pytest.approx(expected, abs=2e-3)
        metrics = result[0].tasks[task].metrics
        assert (metrics["acc"].value, metrics["acc_norm"].value) == (acc, acc_norm)


def test_lambada_asks_for_the_greedy_word_and_its_perplexity(
    result: tuple[EvaluationResult, list[Progress]], adapted: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = [continuation(adapted, tokenizer, row["context"], f" {row['continuation']}") for row in LAMBADA]
    metrics = result[0].tasks["lambada"].metrics
    assert metrics["acc"].value == sum(greedy for _, greedy in found) / 2
    assert metrics["perplexity"].value == pytest.approx(math.exp(-sum(ll for ll, _ in found) / 2), rel=1e-3)


def test_the_greedy_word_is_recognised(
    tiny: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The random model's own greedy word and another one: accuracy is one half."""
    context = LAMBADA[0]["context"]
    with torch.no_grad():
        logits = load(tiny)(torch.tensor([tokenizer.encode(context)])).logits[0, -1]
    words = (tokenizer.decode([int(i)]) for i in logits.argsort(descending=True))
    ranked = [word for word in words if word[0] == " " and word[1:].isalpha() and word.isascii()]
    probability = logits.softmax(-1).max()
    assert probability < 0.5, "the case in which a generation has to decide"
    top = tokenizer.decode([int(logits.argmax())])
    rows = [{"context": context, "continuation": word.strip()} for word in (top, ranked[5])]
    if not (top.startswith(" ") and top.strip()):
        pytest.fail(f"the greedy token {top!r} is no word: choose another seed for the model")
    write_lines(tmp_path / "lambada" / "test.jsonl", rows)
    request = request_for(tiny, tmp_path, "greedy.json", "lambada")
    run_evaluation(request)
    assert [sample["metrics"]["acc"][0] for sample in samples(tmp_path, "greedy.json", "lambada")] == [1.0, 0.0]


def test_wikitext_predicts_every_token_once_in_windows(
    result: tuple[EvaluationResult, list[Progress]],
    adapted: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    pages = [
        "= Robert = \n\nRobert is an English film, television and theatre actor.\n\n",
        "= Du Fu = \n\nA poet.\n",
    ]
    kept = samples(folder, "adapted.json", "wikitext")
    texts = [sample["asked"][0][0] for sample in kept]
    assert [text.split() for text in texts] == [page.split() for page in pages]
    total = 0.0
    for text in texts:
        ids, window = tokenizer.encode(text), QUICK.window
        total += math.fsum(token_logprobs(adapted, [tokenizer.bos_token_id, *ids[:window]], 1)[0])
        if len(ids) > window:  # the second window looks back as far as the first one was long
            total += math.fsum(token_logprobs(adapted, ids[-window - 1 :], 2 * window + 1 - len(ids))[0])
            assert len(ids) < 2 * window
    assert len(tokenizer.encode(texts[0])) < 2 * QUICK.window
    words = (14 + 2) + (7 + 2)  # blank ends count as words, as lm-eval has it
    metrics = result[0].tasks["wikitext"].metrics
    assert metrics["word_perplexity"].value == pytest.approx(math.exp(-total / words), rel=1e-3)
    assert not result[0].tasks["wikitext"].higher_is_better


@pytest.mark.skipif(punkt_is_installed(), reason="nltk's punkt_tab is installed: no row is left out")
def test_ifeval_leaves_out_what_cannot_be_checked(
    result: tuple[EvaluationResult, list[Progress]], folder: Path
) -> None:
    task = result[0].tasks["ifeval"]
    assert task.rows == 2
    assert sum(task.left_out.values()) == 1
    assert task.chat_template
    kept = samples(folder, "adapted.json", "ifeval")
    assert "<|im_start|>assistant" in kept[0]["asked"][0][0]
    comma = "," not in kept[1]["responses"][0]
    assert kept[1]["metrics"]["inst_level_strict_acc"] == [float(comma), 2.0]
    assert kept[1]["metrics"]["prompt_level_strict_acc"][0] == 0.0


def test_every_answer_and_every_divergence_can_be_looked_into(
    result: tuple[EvaluationResult, list[Progress]], tiny: Path, adapted: torch.nn.Module, folder: Path
) -> None:
    found, reports = result
    answers = samples(folder, "adapted.json", "sums")
    assert [(answer["row"], answer["draw"]) for answer in answers[:3]] == [
        ("row-1", "greedy"),
        ("row-1", 0),
        ("row-1", 1),
    ]
    assert len(answers) == 9
    assert found.tasks["sums"].metrics["greedy/tokens"].value == sum(a["tokens"] for a in answers[::3]) / 3
    assert found.tasks["sums"].metrics["avg@2/strict"].value == 0.0
    assert reports[0] == Progress("sums", 0, 3)
    base = load(tiny)
    nats, tokens = 0.0, 0
    drawn = samples(folder, "adapted.json", "kl:sums")
    prompt = "<|im_start|>user"
    assert len(drawn) == 4
    for sample in drawn:
        assert prompt in sample["prompt"]
        tokenised = AutoTokenizer.from_pretrained(tiny).encode(sample["prompt"])
        ids = [*tokenised, *sample["ids"]]
        before, now = (token_logprobs(model, ids, len(tokenised))[0] for model in (base, adapted))
        assert sample["kl"] == pytest.approx(math.fsum(before) - math.fsum(now), abs=2e-3)
        nats += math.fsum(before) - math.fsum(now)
        tokens += len(sample["ids"])
    assert found.tasks["kl:sums"].metrics["kl_per_token"].value == pytest.approx(nats / tokens, abs=1e-3)
    assert found.tasks["kl:sums"].rows == 2


def test_a_model_is_at_no_distance_from_itself_as_another_base(tiny: Path, folder: Path) -> None:
    request = request_for(
        tiny, folder, "self.json", f"sums={folder / 'sums.jsonl'}", base=ModelSettings(name=str(tiny))
    )
    found = run_evaluation(request)
    assert found.tasks["kl:sums"].metrics["kl_per_token"].value == pytest.approx(0.0, abs=1e-4)
    assert found.base is not None


def test_an_interrupted_exam_goes_on_with_the_tasks_that_are_missing(tiny: Path, folder: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.task == "arc_easy":
            raise KeyboardInterrupt

    request = request_for(tiny, folder, "resumed.json", "hellaswag", "arc_easy")
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(request, on_report=interrupt)
    reports: list[Progress] = []
    found = run_evaluation(request, resume=True, on_report=reports.append)
    assert {report.task for report in reports} == {"arc_easy"}
    assert set(found.tasks) == {"hellaswag", "arc_easy"}
    assert len(samples(folder, "resumed.json", "hellaswag")) == 2
    assert run_evaluation(request, resume=True, on_report=lambda _: pytest.fail("nothing is left to do")) == found


def test_an_adapter_of_another_base_is_refused_before_anything_runs(tiny: Path, adapter: Path, folder: Path) -> None:
    card = {"name": "math", "version": "1", "base_model": "other"}
    (adapter / "rewright.json").write_text(json.dumps(card))
    request = request_for(tiny, folder, "refused.json", "piqa", adapter=adapter)
    try:
        with pytest.raises(AdapterError, match="was trained on other, the engine runs tiny"):
            run_evaluation(request)
    finally:
        (adapter / "rewright.json").unlink()
    assert not (folder / "refused.json").exists()


def test_a_base_that_reads_text_otherwise_has_no_divergence(tiny: Path, folder: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").write_text(template.replace("helpful", "helpless"))
    base = ModelSettings(name=str(tmp_path))
    with pytest.raises(EvaluationError, match="another chat template"):
        run_evaluation(request_for(tiny, folder, "other.json", f"sums={folder / 'sums.jsonl'}", base=base))


def as_lm_eval_reads_hellaswag(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def asked_of(task: str, row: dict[str, Any]) -> tuple[str, list[str], int]:
    """Context, continuations and the right one of a row of a file of the data folder."""
    if task == "hellaswag":
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        endings = [as_lm_eval_reads_hellaswag(ending) for ending in row["endings"]]
        return as_lm_eval_reads_hellaswag(context), endings, int(row["label"])
    return f"{row['query'].strip()}\nAnswer:", row["choices"], row["gold"]


@pytest.fixture(scope="module")
def embedded(
    model_files: ModelFiles, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluationResult, Path, torch.nn.Module]:
    """The embedded model's exam on 20 rows of each benchmark, its folder, and the same model in transformers."""
    folder = tmp_path_factory.mktemp("embedded")
    tasks = ("hellaswag", "arc_easy", "piqa", "lambada")
    request = request_for("smollm2-135m", data_folder, "unused", *tasks, limit=20, evaluate=EvaluateSettings())
    found = run_evaluation(request.model_copy(update={"output": folder / "real.json"}))
    return found, folder, load(model_files.path)


def kept_rows(embedded: tuple[EvaluationResult, Path, torch.nn.Module], task: str, file: Path) -> list[tuple[Any, Any]]:
    """Each sample of a benchmark with the line of the file that it is of."""
    lines = file.read_text().splitlines()
    kept = [(sample, json.loads(lines[sample["row"] - 1])) for sample in samples(embedded[1], "real.json", task)]
    assert len(kept) == 20
    return kept


@pytest.mark.parametrize(
    ("task", "name"),
    [("hellaswag", "validation_2000.jsonl"), ("arc_easy", "test.jsonl"), ("piqa", "validation.jsonl")],
)
def test_the_embedded_model_scores_choices_as_transformers_does(
    embedded: tuple[EvaluationResult, Path, torch.nn.Module],
    data_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    name: str,
) -> None:
    kept = kept_rows(embedded, task, data_folder / task / name)
    lls, acc, acc_norm = score_choices(embedded[2], tokenizer, [asked_of(task, row) for _, row in kept])
    for (sample, _), expected in zip(kept, lls, strict=True):
        assert sample["responses"] == pytest.approx(expected, abs=2e-2)
    metrics = embedded[0].tasks[task].metrics
    assert (metrics["acc"].value, metrics["acc_norm"].value) == (acc, acc_norm)


def test_the_embedded_model_guesses_words_as_transformers_does(
    embedded: tuple[EvaluationResult, Path, torch.nn.Module], data_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [row for _, row in kept_rows(embedded, "lambada", data_folder / "lambada" / "test.jsonl")]
    found = [continuation(embedded[2], tokenizer, r["context"], f" {r['continuation'].strip()}") for r in rows]
    metrics = embedded[0].tasks["lambada"].metrics
    assert metrics["acc"].value == sum(greedy for _, greedy in found) / 20
    assert metrics["perplexity"].value == pytest.approx(math.exp(-sum(ll for ll, _ in found) / 20), rel=1e-3)
