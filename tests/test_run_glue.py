"""examples/run_glue.py, driven through its command line on tiny models and local files."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from types import ModuleType

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, PreTrainedTokenizerFast

from hf_compress.report.report import Report
from hf_compress.report.rescoring import check_scores
from tests.conftest import BAD, GOOD, PLAIN

SCRIPT = Path(__file__).parents[1] / "examples" / "run_glue.py"
ALL_THREE = ["--distill_teacher", "self", "--prune_sparsity", "0.5", "--prune_every", "1", "--quant_scheme", "int8"]
NAMES = ("negative", "positive")

Run = Callable[..., None]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_glue", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["run_glue"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that calls the script with the options given, after a few that keep it small."""

    def call(*options: object) -> None:
        small = "--per_device_train_batch_size 8 --learning_rate 1e-3 --max_steps 8 --max_seq_length 12 --use_cpu"
        small += " --save_strategy no --disable_tqdm true"
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *small.split(), *map(str, options)])
        script.main()

    return call


@pytest.fixture
def files(tmp_path: Path, tiny_sentences: Dataset) -> list[object]:
    """The options that name the tiny sentences as .csv files, with labels in words."""
    named = tiny_sentences.map(lambda row: {"label": NAMES[row["label"]]}, features=None, remove_columns=["label"])
    named.to_csv(tmp_path / "train.csv")
    named.select(range(20)).to_csv(tmp_path / "dev.csv")
    return ["--train_file", tmp_path / "train.csv", "--validation_file", tmp_path / "dev.csv"]


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(tmp_path: Path, tiny_bert: BertForSequenceClassification, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a model that has no head yet."""
    return save(tiny_bert.bert, tiny_tokenizer, tmp_path / "encoder")


def test_without_our_flags_it_fine_tunes_a_plain_model(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", "--do_eval")
    model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(NAMES))
    assert not (out / "compressed").exists()
    assert 0 <= json.loads((out / "all_results.json").read_text())["eval_accuracy"] <= 1


def test_a_dense_model_is_trained_and_then_compressed(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", "--do_eval", *ALL_THREE]
    run(*options, "--dense_baseline", "train", "--max_train_samples", 40, "--max_steps", 80)

    report = Report.load(out / "compressed")
    assert report.recipe.name == "kd+mp50+int8"
    assert (report.dataset.train_rows, report.dataset.eval_rows) == (40, 20)
    assert report.dense["accuracy"] == 1.0, "after eighty steps these sentences are learned"
    assert report.teacher is not None
    assert report.teacher["accuracy"] == report.dense["accuracy"]
    assert report.compressed["accuracy"] == json.loads((out / "eval_results.json").read_text())["eval_accuracy"]
    assert report.achieved_sparsity >= 0.5
    assert " ".join(ALL_THREE) in report.command
    assert report.parity == 0
    assert report.size.packed_bytes < report.size.dense_bytes / 3
    assert report.base_model == encoder.name
    card = (out / "compressed" / "README.md").read_text()
    assert "int8 + 50 % sparse" in card

    dense = AutoModelForSequenceClassification.from_pretrained(out / "dense")
    small = AutoModelForSequenceClassification.from_pretrained(out / "compressed")
    assert (dense.bert.encoder.layer[0].attention.self.query.weight == 0).sum() == 0
    assert (small.bert.encoder.layer[0].attention.self.query.weight == 0).float().mean() >= 0.5


@pytest.mark.slow
def test_texts_without_labels_join_a_run(
    run: Run,
    tiny_bert: BertForSequenceClassification,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    files: list[object],
) -> None:
    model, out = save(tiny_bert, tiny_tokenizer, tmp_path / "model"), tmp_path / "out"
    (tmp_path / "unlabelled.csv").write_text("number,sentence\n1,the film was lovely\n2,a cold and dull story\n")
    extra = ["--distill_extra", tmp_path / "unlabelled.csv", "--distill_augment", 2, "--distill_extra_share", 0.5]
    options = ["--model_name_or_path", model, "--dense_baseline", model, *files, "--do_train", *ALL_THREE, *extra]
    run(*options, "--output_dir", out, "--do_eval", "--max_steps", -1, "--num_train_epochs", 1)
    report = Report.load(out / "compressed")
    assert report.teacher_rows == {"augmented": 128, "unlabelled.csv": 2}
    assert (report.dataset.train_rows, report.train_steps) == (64, 2 * 64 // 8)
    assert report.recipe.distillation.distill_extra == ["unlabelled.csv"]
    assert str(tmp_path) not in (out / "compressed" / "report.json").read_text()
    card = (out / "compressed" / "README.md").read_text()
    assert "and 2 of `unlabelled.csv`. They were 50 % of the rows of each epoch." in card


def test_unused_tokens_go_and_the_file_keeps_its_budget(
    run: Run,
    make_bert: Callable[..., BertForSequenceClassification],
    files: list[object],
    tmp_path: Path,
    tiny_sentences: Dataset,
) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    unused = [f"{letter}unused" for letter in ascii_lowercase]
    letters = [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    words = list(dict.fromkeys([*special, *unused, *letters, *PLAIN, *GOOD, *BAD]))
    built = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    built.pre_tokenizer = BertPreTokenizer()
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, **named)
    model = save(make_bert(vocab_size=len(words)), tokenizer, tmp_path / "model")
    out = tmp_path / "out"
    options = [
        "--model_name_or_path",
        model,
        "--dense_baseline",
        model,
        *files,
        "--output_dir",
        out,
        "--do_train",
        "--save_strategy",
        "steps",
    ]
    options += ["--compress_vocabulary", "--compress_budget_mb", 0.036, "--save_steps", 4]
    run(*options)
    report = Report.load(out / "compressed")
    assert report.vocabulary is not None and report.vocabulary.whole == len(words)
    seen = {word for text in tiny_sentences["sentence"] for word in text.split()}
    assert report.vocabulary.kept == len({*special, *letters, *seen}) < len(words) - 20
    assert report.dense is not None, "scored with all its words"
    assert report.recipe.name.startswith("vocab+") and report.recipe.name.endswith("+0.036MB")
    assert report.size.packed_bytes <= 36_000
    weights = (out / "compressed" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "compressed")
    shutil.rmtree(out / "checkpoint-8")
    run(*options, "--resume_from_checkpoint", "last")
    assert (out / "compressed" / "model.safetensors").read_bytes() == weights


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", *ALL_THREE]
    options += ["--dense_baseline", "train", "--save_strategy", "steps", "--save_steps", 4]
    run(*options)
    weights = (out / "compressed" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"already holds a result in .*compressed"):
        run(*options, "--resume_from_checkpoint", "last")
    shutil.rmtree(out / "compressed")
    shutil.rmtree(out / "checkpoint-8")
    dense = (out / "dense" / "eval_results.json").stat().st_mtime_ns
    run(*options, "--resume_from_checkpoint", "last")
    assert (out / "compressed" / "model.safetensors").read_bytes() == weights
    assert (out / "dense" / "eval_results.json").stat().st_mtime_ns == dense, "the dense model was not trained again"


def test_a_regression_on_pairs_is_scored_by_correlations(
    run: Run,
    make_bert: Callable[..., BertForSequenceClassification],
    tiny_sentences: Dataset,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    baseline = save(make_bert(num_labels=1, problem_type="regression"), tiny_tokenizer, tmp_path / "dense")
    texts = tiny_sentences["sentence"][:]
    pairs = {"sentence1": texts, "sentence2": texts[::-1], "score": [float(i % 5) for i in range(64)]}
    Dataset.from_dict(pairs).to_parquet(tmp_path / "train.parquet")
    file, out = tmp_path / "train.parquet", tmp_path / "out"
    run(
        *("--model_name_or_path", baseline, "--train_file", file, "--validation_file", file, "--output_dir", out),
        *("--text_columns", "sentence1", "sentence2", "--label_column", "score", "--max_eval_samples", 30),
        *("--do_train", "--prune_sparsity", 0.5, "--prune_every", 1),
    )
    report = Report.load(out / "compressed")
    assert report.main_metric == "pearson"
    assert set(report.compressed) >= {"pearson", "spearmanr"}
    assert report.teacher is None
    assert report.head == "regression"
    assert report.dataset.name == "train.parquet"
    assert report.dense is not None
    assert report.dataset.eval_rows == 30


def test_a_baseline_without_compression_is_a_control(
    run: Run,
    tiny_bert: BertForSequenceClassification,
    tiny_tokenizer: PreTrainedTokenizerFast,
    files: list[object],
    tmp_path: Path,
) -> None:
    baseline, out = save(tiny_bert, tiny_tokenizer, tmp_path / "dense"), tmp_path / "out"
    start = ["--model_name_or_path", baseline, "--dense_baseline", baseline]
    run(*start, *files, "--output_dir", out, "--do_train", "--max_steps", 60)
    report = Report.load(out / "compressed")
    assert report.recipe.name == "dense"
    assert report.compressed["loss"] < report.dense["loss"]


def test_further_rows_are_scored_beside_a_control(
    run: Run,
    tiny_bert: BertForSequenceClassification,
    tiny_tokenizer: PreTrainedTokenizerFast,
    files: list[object],
    tmp_path: Path,
) -> None:
    texts = [f"the film was {first} and {second}" for first in (*GOOD, *BAD) for second in PLAIN[:3]]
    # The last row is one that was trained on.
    table = {"sentence": [*texts, texts[0]], "label": [NAMES[index % 2] for index in range(37)]}
    Dataset.from_dict(table).to_csv(tmp_path / "more.csv")
    baseline = save(tiny_bert, tiny_tokenizer, tmp_path / "dense")
    options = ["--model_name_or_path", baseline, "--dense_baseline", baseline, "--train_file", tmp_path / "more.csv"]
    options += [*files[2:], "--do_train", "--max_train_samples", 24]
    run(*options, "--eval_extra_rows", 12, "--output_dir", tmp_path / "control")
    pruned = ["--prune_sparsity", 0.5, "--prune_every", 1, "--compress_control", tmp_path / "control"]
    run(*options, "--eval_extra_rows", 12, "--output_dir", tmp_path / "out", *pruned)
    report = Report.load(tmp_path / "out" / "compressed")
    assert report.extra is not None and (report.extra.rows, report.extra.split) == (12, "train")
    assert report.extra.dense is not None and "accuracy" in report.extra.comparison
    for seen in (report, report.extra):
        assert seen.control is not None and seen.control.name == "control"
        assert "accuracy" in seen.control.comparison
    with pytest.raises(ValueError, match="must be at most 12, .*; got 13. Train on fewer"):
        run(*options, "--eval_extra_rows", 13, "--output_dir", tmp_path / "none")
    with pytest.raises(ValueError, match="must be at most 0, .*; got 1. Train on fewer"):
        run(*options, "--max_train_samples", 37, "--eval_extra_rows", 1, "--output_dir", tmp_path / "none")


def test_labels_keep_the_numbers_of_the_model(
    script: ModuleType,
    make_bert: Callable[..., BertForSequenceClassification],
    tiny_tokenizer: PreTrainedTokenizerFast,
    files: list[object],
    tmp_path: Path,
) -> None:
    flipped = make_bert(id2label={0: "POSITIVE", 1: "NEGATIVE"}, label2id={"POSITIVE": 0, "NEGATIVE": 1})
    folder = save(flipped, tiny_tokenizer, tmp_path / "flipped")
    args = script.ScriptArguments(str(folder), train_file=str(files[1]), validation_file=str(files[3]))
    rows, columns, _ = script.load_rows(args)
    labels = script.label_names(args, rows)
    model = script.load_model(args, folder, labels)
    assert model.config.label2id == {"POSITIVE": 0, "NEGATIVE": 1}
    encoded = script.tokenized(args, rows, columns, labels, tiny_tokenizer, model.config.label2id)
    assert encoded["train"]["label"][:6] == [1, 0, 1, 0, 1, 0]
    assert "sentence" not in encoded["train"].column_names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "Give `--task_name`, or `--train_file` and `--validation_file`"),
        ("--train_file rows.csv", "Give `--task_name`, or `--train_file` and `--validation_file`"),
        ("--task_name sst2 --eval_extra_rows 0", "`--eval_extra_rows` must be at least 1; got 0"),
        ("--task_name sst2 --lora_r 0", "`--lora_r` must be at least 1; got 0"),
        ("--task_name sst2 --prune_sparsity 2", "`--prune_sparsity` must be"),
    ],
)
def test_options_without_meaning_are_refused_at_once(run: Run, options: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run("--model_name_or_path", "m", *options.split(), "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_columns_and_unknown_labels_are_named(script: ModuleType, files: list[object], tmp_path: Path) -> None:
    given = {"model_name_or_path": "m", "train_file": str(files[1]), "validation_file": str(files[3])}
    with pytest.raises(ValueError, match="has no column stars, only .*`--label_column`"):
        script.load_rows(script.ScriptArguments(**given, label_column="stars"))
    with pytest.raises(ValueError, match="has no column review, only"):
        script.load_rows(script.ScriptArguments(**given, text_columns=["review"]))
    args = script.ScriptArguments(**given)
    rows, columns, _ = script.load_rows(args)
    with pytest.raises(ValueError, match="`label` of the split validation has labels that training lacks: positive"):
        script.tokenized(args, {"validation": rows["validation"]}, columns, ["negative"], None, {"negative": 0})


@pytest.mark.slow
def test_other_formats_are_written_scored_and_on_the_card(
    run: Run,
    tiny_bert: BertForSequenceClassification,
    tiny_tokenizer: PreTrainedTokenizerFast,
    files: list[object],
    tmp_path: Path,
) -> None:
    for module in ("onnxruntime", "onnxscript", "openvino", "compressed_tensors"):
        pytest.importorskip(module)
    tiny_bert.config.id2label = dict(enumerate(NAMES))
    tiny_bert.config.label2id = {name: number for number, name in enumerate(NAMES)}
    dense = save(tiny_bert, tiny_tokenizer, tmp_path / "dense")
    formats = ["onnx", "openvino", "compressed-tensors"]
    out = tmp_path / "out"
    run(
        "--model_name_or_path",
        dense,
        *files,
        "--output_dir",
        out,
        "--do_train",
        *ALL_THREE,
        "--compress_formats",
        *formats,
    )
    report = Report.load(out / "compressed")
    assert list(report.formats) == formats
    assert all(facts.scores["accuracy"] == report.compressed["accuracy"] for facts in report.formats.values())
    assert "onnx/model_quantized.onnx" in (out / "compressed" / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_two_processes_write_one_compressed_model(encoder: Path, files: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", "--do_eval", *ALL_THREE]
    options += ["--dense_baseline", "train", "--max_steps", 8, "--per_device_train_batch_size", 4, "--use_cpu"]
    options += ["--max_train_samples", 30, "--eval_extra_rows", 5, "--train_sampling_strategy", "group_by_length"]
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", SCRIPT]
        + [str(option) for option in options],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    report = Report.load(out / "compressed")
    assert report.hyperparameters["processes"] == 2
    assert report.predictions is not None and "accuracy" in report.comparison
    assert report.extra is not None and report.extra.rows == 5 and "accuracy" in report.extra.comparison
    assert check_scores(out / "compressed", report).verdict == "true"
    assert report.parity == 0
    assert launched.stdout.count("The compressed model and its card are in") == 1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_an_adapter_is_trained_and_the_merged_model_is_small(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", "--do_eval", *ALL_THREE]
    options += ["--dense_baseline", "train", "--lora_r", 2, "--save_strategy", "steps"]
    run(*options, "--save_steps", 4)
    report = Report.load(out / "compressed")
    assert report.parity == 0
    assert report.achieved_sparsity >= 0.5
    assert report.teacher is not None
    assert report.teacher["accuracy"] == report.dense["accuracy"]
    assert (out / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert not (out / "checkpoint-4" / "model.safetensors").exists()
    weights = (out / "compressed" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "compressed")
    shutil.rmtree(out / "checkpoint-8")
    run(*options, "--save_steps", 4, "--resume_from_checkpoint", "last")
    assert (out / "compressed" / "model.safetensors").read_bytes() == weights
