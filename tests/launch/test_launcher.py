"""Scripts that nobody adapted, run by the launcher: compressed with our flags, bit for bit the same without."""

import contextlib
import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from hf_compress import Recipe, compress, finish, hub, take_flags
from hf_compress.launch import launcher as launch
from hf_compress.report.report import Report

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "launched"
ALL = ["--distill_teacher", "self", "--prune_sparsity", "0.5", "--prune_every", "1", "--quant_scheme", "int8"]
SMALL = "--max_steps 8 --per_device_train_batch_size 8 --learning_rate 1e-3 --use_cpu --save_strategy no"
SMALL += " --disable_tqdm true --report_to none --logging_steps 2"

Folder = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path, tiny_bert: BertForSequenceClassification, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a classifier, its head trained as far as anyone can tell, and its tokenizer."""
    tiny_bert.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def answerer(tmp_path: Path, make_bert: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a question answerer and its tokenizer."""
    BertForQuestionAnswering(make_bert().config).save_pretrained(tmp_path / "qa")
    tiny_tokenizer.save_pretrained(tmp_path / "qa")
    return tmp_path / "qa"


@pytest.fixture
def file(tmp_path: Path, tiny_sentences: Dataset) -> Path:
    tiny_sentences.to_csv(tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts that load a metric find it in the working directory; afterwards nothing of the launcher is left."""
    monkeypatch.chdir(SCRIPTS)
    before = {name: Trainer.__dict__[name] for name in ("train", "init_hf_repo", "push_to_hub")}
    state = sys.argv, sys.path[0], sys.modules["__main__"]
    yield
    assert {name: Trainer.__dict__[name] for name in before} == before
    assert (sys.argv, sys.path[0], sys.modules["__main__"]) == state


@pytest.fixture
def text_options(model: Path, file: Path, tmp_path: Path) -> list[str]:
    """The options of train_text.py."""
    options = ["--model_name_or_path", model, "--train_file", file, "--validation_file", file]
    return [*map(str, options), "--output_dir", str(tmp_path / "out"), *SMALL.split()]


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_plain_script_is_compressed_scored_and_carded(
    text_options: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(SCRIPTS / "train_text.py"), *text_options, "--do_train", "--do_eval"]
    assert launch.main([*arguments, *ALL]) == 0
    folder = tmp_path / "out" / "compressed"
    report = Report.load(folder)
    assert report.recipe.name == "kd+mp50+int8"
    assert report.base_model == model.name
    assert report.main_metric == "accuracy"
    assert report.dense == report.teacher, "the teacher is the model that training began with"
    assert (
        report.compressed["accuracy"] == json.loads((tmp_path / "out/eval_results.json").read_text())["eval_accuracy"]
    )
    assert report.parity == 0
    assert report.achieved_sparsity >= 0.5
    assert (report.dataset.train_rows, report.dataset.eval_rows) == (64, 64)
    assert (report.dataset.train_split, report.dataset.eval_split) == ("train", "validation")
    assert report.task == "train_text"
    assert hub.check(folder) == report, "the folder is fit to be pushed"
    assert AutoModelForSequenceClassification.from_pretrained(folder).bert is not None
    out, err = capsys.readouterr()
    assert err.count("Recipe: kd+mp50+int8") == 1
    assert "--prune_sparsity" in err
    assert str(folder) in out
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    logged = next(entry for entry in reversed(history) if "loss" in entry)
    assert {"distill_loss", "label_loss", "sparsity", "quant_range_mean", "quant_range_max"} <= logged.keys()


def test_a_script_that_takes_our_flags_compresses_alone(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = str(ROOT / "examples" / "run_glue.py"), tmp_path / "out"
    options = [
        "--model_name_or_path",
        model,
        "--dense_baseline",
        model,
        "--train_file",
        file,
        "--validation_file",
        file,
    ]
    options += ["--text_columns", "sentence", "--output_dir", out, "--do_train", "--do_eval", *SMALL.split()]
    assert launch.main([script, *map(str, options), *ALL]) == 0
    report = Report.load(out / "compressed")
    assert report.recipe.name == "kd+mp50+int8"
    assert report.base_model == model.name
    assert "already holds a result" not in capsys.readouterr().err


def test_a_result_that_the_script_finished_stays(text_options: list[str], tmp_path: Path) -> None:
    source = (SCRIPTS / "train_text.py").read_text()
    own = "    import hf_compress\n    hf_compress.finish(trainer, task='mine')\n"
    script = write(
        tmp_path / "train.py",
        source.replace("    if training_args.do_predict", own + "\n    if training_args.do_predict"),
    )
    assert launch.main([script, *text_options, "--do_train", "--do_eval", *ALL]) == 0
    assert Report.load(tmp_path / "out" / "compressed").task == "mine"


def test_cutting_the_vocabulary_of_tokenized_rows_is_refused(
    text_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(SCRIPTS / "train_text.py"), *text_options, "--do_train"]
    assert launch.main([*arguments, "--compress_vocabulary", "--quant_scheme", "int8"]) == 1
    assert "hf_compress.cut_vocabulary(model, tokenizer, texts)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "compressed").exists()


def test_a_budget_becomes_a_recipe_that_is_shown(
    text_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(SCRIPTS / "train_text.py"), *text_options, "--do_train", "--do_eval"]
    assert launch.main([*arguments, "--compress_budget_mb", "0.033"]) == 0
    chosen = Report.load(tmp_path / "out" / "compressed").recipe
    assert chosen.quantization.enabled and chosen.budget.compress_budget_mb == 0.033
    assert f"Recipe: {chosen.name}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train_text", "train_answers", "train_twice"])
def test_without_our_flags_a_run_is_that_of_the_script_itself(
    name: str, text_options: list[str], answerer: Path, model: Path, file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    script, out = str(SCRIPTS / f"{name}.py"), str(tmp_path / "out")
    options = {
        "train_text": [*text_options, "--do_train", "--do_eval"],
        "train_answers": [str(answerer), "--output_dir", out, *SMALL.split()],
        "train_twice": [str(model), str(file), out],
    }[name]
    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", [script, *options])
        patch.syspath_prepend(str(SCRIPTS))
        runpy.run_path(script, run_name="__main__")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    options[options.index(out)] = str(tmp_path / "launched")
    before = sys.argv
    assert launch.main([script, *options]) == 0
    assert sys.argv is before
    assert (tmp_path / "launched" / "model.safetensors").read_bytes() == weights
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("out", "launched")]
    assert names[0] == names[1]
    if name != "train_text":
        return
    states = [
        json.loads((tmp_path / f / "trainer_state.json").read_text())["log_history"] for f in ("out", "launched")
    ]
    losses = [[entry["loss"] for entry in state if "loss" in entry] for state in states]
    assert losses[0] == losses[1]


def test_a_trainer_is_evaluated_by_its_own_evaluate(answerer: Path, tmp_path: Path) -> None:
    arguments = [str(answerer), "--output_dir", str(tmp_path / "out"), *SMALL.split()]
    assert launch.main([str(SCRIPTS / "train_answers.py"), *arguments, *ALL]) == 0
    report = Report.load(tmp_path / "out" / "compressed")
    assert {"found", "loss"} <= report.compressed.keys(), "numbers only, and without their prefix"
    assert report.compressed["rows"] == 16
    assert report.head == "question answering"
    assert report.parity == 0


def test_only_the_trainer_that_trains_is_compressed(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(model), str(file), str(tmp_path / "out")]
    assert launch.main([str(SCRIPTS / "train_twice.py"), *arguments, *ALL]) == 0
    before, trained = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert before[0] == "Trainer"
    assert "DistillationMixin" not in before
    ours, theirs = trained.index("DistillationMixin"), trained.index("WeightedTrainer", 1)
    assert trained[0] == "WeightedTrainer" and ours < theirs, "named as it was, our methods before its own"
    assert Report.load(tmp_path / "out" / "compressed").achieved_sparsity >= 0.5
    assert not (tmp_path / "out" / "before" / "compressed").exists()


@pytest.mark.parametrize("do", ["--do_eval", "--do_predict"])
def test_a_run_that_trains_nothing_is_left_alone_and_says_so(text_options: list[str], tmp_path: Path, do: str) -> None:
    with pytest.warns(UserWarning, match="Nothing was compressed.*no Trainer"):
        assert launch.main([str(SCRIPTS / "train_text.py"), *text_options, do, *ALL]) == 0
    assert not (tmp_path / "out" / "compressed").exists()


def test_without_evaluation_rows_there_is_no_report(text_options: list[str], tmp_path: Path) -> None:
    assert launch.main([str(SCRIPTS / "train_text.py"), *text_options, "--do_train", "--quant_scheme", "int8"]) == 0
    written = {path.name for path in (tmp_path / "out" / "compressed").iterdir()}
    assert {"model.safetensors", "recipe.json", "tokenizer.json"} <= written
    assert not {"report.json", "README.md"} & written


def test_an_untrained_head_gives_no_dense_baseline(
    text_options: list[str], tiny_bert: BertForSequenceClassification, tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path, model: Path,
) -> None:  # fmt: skip
    tiny_bert.bert.save_pretrained(tmp_path / "body")
    tiny_tokenizer.save_pretrained(tmp_path / "body")
    options = [str(tmp_path / "body") if option == str(model) else option for option in text_options]
    options += ["--do_train", "--do_eval", "--prune_sparsity", "0.5", "--prune_every", "1"]
    assert launch.main([str(SCRIPTS / "train_text.py"), *options]) == 0
    report = Report.load(tmp_path / "out" / "compressed")
    assert report.dense is None
    assert report.teacher is None
    assert "no dense model of this task was evaluated" in (tmp_path / "out" / "compressed" / "README.md").read_text()


def test_the_dense_baseline_is_the_model_at_the_start(text_options: list[str], tmp_path: Path) -> None:
    options = [*text_options, "--do_train", "--do_eval", "--prune_sparsity", "0.5", "--prune_every", "1"]
    assert launch.main([str(SCRIPTS / "train_text.py"), *options]) == 0
    pruned = Report.load(tmp_path / "out" / "compressed")
    (tmp_path / "out").rename(tmp_path / "pruned")
    options = [*text_options, "--do_train", "--do_eval", *ALL, "--distill_student_layers", "1"]
    assert launch.main([str(SCRIPTS / "train_text.py"), *options]) == 0
    cut = Report.load(tmp_path / "out" / "compressed")
    assert pruned.dense == cut.teacher
    assert cut.dense == cut.teacher, "the whole model, not the first layers of it"


def test_an_existing_result_is_refused_before_training(
    text_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "compressed").mkdir(parents=True)
    (tmp_path / "out" / "compressed" / "model.safetensors").touch()
    assert launch.main([str(SCRIPTS / "train_text.py"), *text_options, "--do_train", *ALL]) == 1
    err = capsys.readouterr().err
    assert "already holds a result in" in err
    assert "'loss'" not in err


def test_push_to_hub_uploads_only_the_compressed_model(
    text_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[Path, str]] = []
    monkeypatch.setattr(
        "hf_compress.launch.result.push", lambda folder, repo_id, **_: pushed.append((folder, repo_id))
    )
    asked: list[str] = []
    monkeypatch.setattr("hf_compress.launch.run.check_access", lambda repo_id, **_: asked.append(repo_id))
    options = [*text_options, "--do_train", "--do_eval", "--push_to_hub", *ALL]
    assert launch.main([str(SCRIPTS / "train_text.py"), *options, "--hub_model_id", "me/small"]) == 0
    assert pushed == [(tmp_path / "out" / "compressed", "me/small")]
    pushed.clear()
    (tmp_path / "out").rename(tmp_path / "first")
    assert launch.main([str(SCRIPTS / "train_text.py"), *options, "--compress_hub_id", "me/smaller"]) == 0
    assert [repo_id for _, repo_id in pushed] == ["me/smaller"]
    assert asked == ["me/small", "me/smaller"], "before training"


def test_our_options_in_the_script_s_argument_file_are_ours(
    text_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = zip(text_options, [*text_options[1:], "--"], strict=True)
    values: dict[str, Any] = {n[2:]: True if v.startswith("--") else v for n, v in pairs if n.startswith("--")}
    values |= {"max_steps": 8, "learning_rate": 1e-3, "logging_steps": 2, "per_device_train_batch_size": 8}
    values |= {"disable_tqdm": True, "do_train": True, "prune_sparsity": 0.5, "prune_every": 4, "quant_scheme": "int8"}
    file = write(tmp_path / "arguments.json", json.dumps(values))
    assert launch.main([str(SCRIPTS / "train_text.py"), file, "--prune_every", "1"]) == 0
    recipe = json.loads((tmp_path / "out" / "compressed" / "recipe.json").read_text())
    assert recipe["pruning"]["prune_sparsity"] == 0.5
    assert recipe["pruning"]["prune_every"] == 1, "a flag goes before the file"
    assert json.loads(Path(file).read_text()) == values, "the file itself is left as it is"
    values["surprise"] = 1
    file = write(tmp_path / "arguments.json", json.dumps(values))
    assert launch.main([str(SCRIPTS / "train_text.py"), file]) == 1
    assert "['surprise']" in capsys.readouterr().err, "what is unknown is the script's to refuse"


SCORED = """
import functools, sys, types
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

class ScoredTrainer(Trainer):
    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        whole = model.forward

        @functools.wraps(type(model).forward)
        def forward(self, *args, scored=False, labels=None, **inputs):
            outputs = whole(*args, **inputs)
            if scored:
                outputs["rows"] = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")
            return outputs

        model.forward = types.MethodType(forward, model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model(**inputs, scored=True).rows.mean()
        with torch.no_grad():
            outputs = model(**inputs)
        return (loss, outputs) if return_outputs else loss

model, file, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
data = load_dataset("csv", data_files={"train": file})["train"]
data = data.map(lambda rows: tokenizer(rows["sentence"], padding="max_length", max_length=10), batched=True)
trainer = ScoredTrainer(
    AutoModelForSequenceClassification.from_pretrained(model),
    TrainingArguments(
        folder, max_steps=8, learning_rate=1e-3, disable_tqdm=True, use_cpu=True, report_to="none", logging_steps=4,
    ),
    train_dataset=data, eval_dataset=data, processing_class=tokenizer,
)
trainer.train()
trainer.save_metrics("eval", trainer.evaluate(), combined=False)
trainer.save_state()
"""


def test_a_replaced_forward_also_evaluates_other_models(model: Path, file: Path, tmp_path: Path) -> None:
    script = write(tmp_path / "scored.py", SCORED)
    assert launch.main([script, str(model), str(file), str(tmp_path / "out"), *ALL]) == 0
    report = Report.load(tmp_path / "out" / "compressed")
    own = json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_loss"]
    assert report.parity == 0
    assert report.compressed["loss"] == own
    assert report.teacher == report.dense
    assert report.teacher is not None and report.teacher["loss"] != own
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["distill_loss"] for entry in history if "distill_loss" in entry][-1] > 0, "a copy of the model"


def test_a_teacher_teaches_through_outputs_without_gradients(
    model: Path, file: Path, tmp_path: Path, make_bert: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    make_bert(seed=1).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    script = write(tmp_path / "scored.py", SCORED)
    flags = ["--distill_teacher", str(tmp_path / "teacher"), "--distill_alpha", "1"]
    assert launch.main([script, str(model), str(file), str(tmp_path / "out"), *flags]) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["distill_loss"] for entry in history if "distill_loss" in entry]
    assert losses[-1] < losses[0]


def test_a_model_with_a_forward_of_a_trainer_s_is_not_cut(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = write(tmp_path / "scored.py", SCORED)
    flags = ["--distill_teacher", "self", "--distill_student_layers", "1"]
    assert launch.main([script, str(model), str(file), str(tmp_path / "out"), *flags]) == 1
    assert "`forward` was replaced" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [None, 7])
def test_a_language_model_is_always_scored_on_the_same_masks(
    seed: int | None, make_bert: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast, tiny_dataset: Dataset,
    tmp_path: Path,
) -> None:  # fmt: skip
    BertForMaskedLM(make_bert().config).save_pretrained(tmp_path / "mlm")
    trainer = Trainer(
        BertForMaskedLM.from_pretrained(tmp_path / "mlm"),
        TrainingArguments(str(tmp_path / "out"), max_steps=1, learning_rate=0.0, use_cpu=True, report_to="none"),
        train_dataset=tiny_dataset.remove_columns("labels"),
        eval_dataset=tiny_dataset.remove_columns("labels"),
        data_collator=DataCollatorForLanguageModeling(tiny_tokenizer, seed=seed),
    )
    compress(trainer, Recipe())
    trainer.train()
    report = finish(trainer)
    assert report is not None and report.dense is not None
    assert report.dense["loss"] == report.compressed["loss"]


def test_scores_that_are_not_finite_numbers_are_left_out(
    model: Path, tiny_dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Scoring(Trainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            loss = super().evaluate(*args, **kwargs)
            return {**loss, "half": numpy.float32(0.5), "rows": numpy.int64(64), "mcc": math.nan, "table": [[1]]}

    trainer = Scoring(
        AutoModelForSequenceClassification.from_pretrained(model),
        TrainingArguments(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none"),
        train_dataset=tiny_dataset,
        eval_dataset=tiny_dataset,
    )
    compress(trainer, Recipe())
    trainer.train()
    finish(trainer)
    report = Report.load(tmp_path / "out" / "compressed")
    assert report.compressed.keys() == {"loss", "half", "rows"}
    assert (report.compressed["half"], report.compressed["rows"]) == (0.5, 64)


def test_only_transformers_models_are_compressed(
    tiny_bert: BertForSequenceClassification, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    arguments = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="Only models of Transformers and .*trains a Sequential"):
        compress(Trainer(torch.nn.Sequential(tiny_bert), arguments), Recipe())


def test_a_head_that_is_not_known_is_compressed_without_report(
    make_bert: Callable[..., Any], tiny_dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tiny_dataset.add_column("next_sentence_label", tiny_dataset["labels"]).remove_columns("labels")
    trainer = Trainer(
        BertForNextSentencePrediction(make_bert().config),
        TrainingArguments(str(tmp_path / "out"), max_steps=6, use_cpu=True, report_to="none", disable_tqdm=True),
        train_dataset=rows.rename_column("next_sentence_label", "labels"),
        eval_dataset=rows.rename_column("next_sentence_label", "labels"),
    )
    compress(trainer, take_flags(["", "--prune_sparsity", "0.5", "--prune_every", "1"]).recipe)
    trainer.train()
    assert finish(trainer) is None
    assert (tmp_path / "out" / "compressed" / "model.safetensors").is_file()


class Recorder(TensorBoardCallback):
    """Keeps what TensorBoard would be sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.closed = False

    def setup(self, *args: Any) -> None:
        pass

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        assert not self.closed, "as W&B raises after `wandb.finish()`"
        self.sent.append(dict(logs))


def test_reporters_receive_sparsity_ranges_and_both_losses(model: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(model),
        TrainingArguments(str(tmp_path / "out"), max_steps=4, logging_steps=4, use_cpu=True, report_to="none"),
        train_dataset=tiny_dataset,
        eval_dataset=tiny_dataset,
        callbacks=[recorder],
    )
    compress(trainer, take_flags(["", *ALL]).recipe)
    trainer.train()
    sent = next(logs for logs in recorder.sent if "loss" in logs)
    keys = {"distill_loss", "label_loss", "sparsity", "quant_range_mean", "quant_range_max"}
    assert keys <= sent.keys()
    assert all(isinstance(sent[key], float) for key in keys), "what reporters take"
    recorder.closed = True
    assert finish(trainer) is not None, "whose evaluations are sent nowhere"


ENDINGS = {
    "nothing": ("pass", 0),
    "exit": ("import sys; sys.exit()", 0),
    "a number": ("import sys; sys.exit(3)", 3),
    "a message": ("import sys; sys.exit('that was it')", 1),
    "an error": ("def inner():\n    raise KeyError('lost')\ninner()", 1),
    "a chain": ("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise RuntimeError('wrapped') from e", 1),
    "a caught exit": ("try:\n    raise SystemExit(4)\nexcept SystemExit:\n    print('went on')", 0),
    "no syntax": ("def", 1),
    "an interrupt": ("raise KeyboardInterrupt", 130),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("flags", [[], ["--prune_sparsity", "0.5"]], ids=["plain", "compressing"])
@pytest.mark.filterwarnings("ignore:Nothing was compressed")
def test_exit_status_and_traceback_are_the_script_s_own(
    ending: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, status = ENDINGS[ending]
    script = write(tmp_path / "script.py", *text.splitlines())
    itself = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert launch.main([script, *flags]) == status == (130 if ending == "an interrupt" else itself.returncode)
    out, err = capsys.readouterr()
    assert out == itself.stdout
    assert err == itself.stderr


def test_the_script_finds_its_own_name_arguments_and_neighbours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "beside.py", "WORD = 'found'")
    lines = "import sys, pickle, __main__, beside", "class Thing: pass"
    lines += ("print(sys.argv[1:], beside.WORD, __name__, __file__, __spec__, __package__, sys.path[0])",)
    lines += ("print(type(pickle.loads(pickle.dumps(Thing()))) is Thing, __main__.Thing is Thing)",)
    script = write(tmp_path / "script.py", *lines)
    arguments = ["--own", "-x", "-1", "", "--", "--prune_sparsity", "0.5", "a b"]
    assert launch.main([script, *arguments]) == 0
    ours = capsys.readouterr().out
    assert ours == subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True).stdout
    assert "found __main__" in ours


def test_help_shows_the_script_s_flags_and_then_ours(
    text_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main([str(SCRIPTS / "train_text.py"), "--help"]) == 0
    theirs, ours = capsys.readouterr().out.split("Flags of hf_compress")
    assert "--max_seq_length" in theirs
    assert "--prune_sparsity" not in theirs
    assert "--prune_sparsity" in ours
    assert "paper-all-60" in ours
    assert launch.main(["--help"]) == 0
    assert "torchrun -m hf_compress.launch" in capsys.readouterr().out


def test_our_help_fits_a_terminal_and_names_every_flag_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert launch.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    flags = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert len(flags) == len(set(flags))
    assert {"--distill_teacher", "--prune_sparsity", "--quant_scheme", "--compress_recipe"} <= set(flags)
    assert "None" not in text and "[]" not in text


def test_processes_stay_connected_until_the_result_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("import torch.distributed as dist", "from torch.distributed import destroy_process_group")
    lines += ("dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)",)
    script = write(tmp_path / "script.py", *lines, "destroy_process_group()", "print(dist.is_initialized())")
    destroy = torch.distributed.destroy_process_group
    with pytest.warns(UserWarning, match="Nothing was compressed"):
        assert launch.main([script, "--quant_scheme", "int8"]) == 0
    assert capsys.readouterr().out == "True\n"
    assert not torch.distributed.is_initialized()
    assert torch.distributed.destroy_process_group is destroy


@pytest.mark.filterwarnings("ignore:Nothing was compressed")
def test_one_process_instead_of_several_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write(tmp_path / "script.py", "pass")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(UserWarning, match="This run has one process"):
        launch.main([script, "--quant_scheme", "int8"])


def test_misuse_is_refused_before_the_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write(tmp_path / "script.py", "print('ran')")
    for arguments, message in (
        ([str(tmp_path / "absent.py")], "there is no file"),
        (["-m", "package.module"], "for a module that you run with `python -m`, give its file"),
        ([script, "--prune_sparsity", "1.5"], "`--prune_sparsity` must be a share"),
        ([script, "--prune_sparsity", "much"], "invalid float value: 'much'"),
        ([script, "--compress_recipe", "none-such"], "invalid choice: 'none-such'"),
        ([script, "--compress_config", "absent.yaml"], "there is none at absent.yaml"),
    ):
        assert launch.main(arguments) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert "ran" not in out


SEARCH = """
import sys
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
model, file, folder, last = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
data = load_dataset("csv", data_files={"train": file})["train"]
data = data.map(lambda rows: tokenizer(rows["sentence"], padding="max_length", max_length=10), batched=True)
trainer = Trainer(
    args=TrainingArguments(folder, max_steps=6, disable_tqdm=True, use_cpu=True, report_to="none", save_strategy="no"),
    model_init=lambda trial: AutoModelForSequenceClassification.from_pretrained(model),
    train_dataset=data, eval_dataset=data, processing_class=tokenizer,
)
best = trainer.hyperparameter_search(
    lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)}, n_trials=2, backend="optuna"
)
if last == "train":
    for name, value in best.hyperparameters.items():
        setattr(trainer.args, name, value)
    trainer.train()
"""


@pytest.mark.parametrize("last", ["train", "search"])
def test_a_search_leaves_a_result_only_if_a_training_follows(
    last: str, model: Path, file: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("optuna")
    script = write(tmp_path / "search.py", SEARCH)
    flags = ["--prune_sparsity", "0.5", "--prune_every", "1"]
    assert launch.main([script, str(model), str(file), str(tmp_path / "out"), last, *flags]) == 0
    assert (tmp_path / "out" / "compressed").exists() == (last == "train")
    assert any("only searched" in str(warned.message) for warned in recwarn) == (last == "search")


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
    "accelerate": ["accelerate.commands.launch", "--config_file", str(ROOT / "examples" / "accelerate" / "cpu.yaml")],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_write_one_report_and_repeatable_weights(
    launcher: str, text_options: list[str], tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script, weights = str(ROOT / "examples" / "plain_run_glue.py"), []
    for attempt in range(2):
        command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "hf_compress.launch", script, *text_options]
        command += ["--do_train", "--do_eval", *ALL]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stderr.count("Recipe: kd+mp50+int8") == 1
        assert run.stdout.count("The compressed model is in") == 1
        folder = tmp_path / "out" / "compressed"
        report = Report.load(folder)
        assert report.hyperparameters["processes"] == 2
        assert report.command.startswith("python -m hf_compress.launch")
        assert len(list(folder.parent.rglob("report.json"))) == 1
        weights.append((folder / "model.safetensors").read_bytes())
        (tmp_path / "out").rename(tmp_path / f"out{attempt}")
    assert weights[0] == weights[1]


def test_a_training_that_diverged_ends_in_one_sentence(
    text_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*text_options, "--do_train", "--learning_rate", "1e38", "--quant_scheme", "int8"]
    assert launch.main([str(SCRIPTS / "train_text.py"), *options]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("Error: training diverged: ") and "Lower `--learning_rate`" in said
    assert not (tmp_path / "out" / "compressed").exists()


def test_text_in_place_of_a_number_is_refused_at_once(
    text_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = zip(text_options, [*text_options[1:], "--"], strict=True)
    values: dict[str, Any] = {n[2:]: True if v.startswith("--") else v for n, v in pairs if n.startswith("--")}
    values |= {"max_steps": 8, "logging_steps": 2, "per_device_train_batch_size": 8, "disable_tqdm": True}
    values |= {"do_train": True, "learning_rate": "fast", "prune_sparsity": 0.5}
    file = write(tmp_path / "arguments.json", json.dumps(values))
    assert launch.main([str(SCRIPTS / "train_text.py"), file]) == 1
    assert "`--learning_rate` must be a number; got 'fast'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "compressed").exists()
