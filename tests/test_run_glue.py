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
    results = json.loads((out / "all_results.json").read_text())
    assert (results["train_samples"], results["eval_samples"]) == (64, 20)
    assert 0 <= results["eval_accuracy"] <= 1


def test_a_dense_model_is_trained_then_compressed_by_all_methods(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", "--do_eval", *ALL_THREE]
    run(*options, "--dense_baseline", "train", "--dense_epochs", 16, "--max_train_samples", 40)

    report = Report.load(out / "compressed")
    assert report.recipe.name == "kd+mp50+int8"
    assert (report.dataset.train_rows, report.dataset.eval_rows) == (40, 20)
    assert report.dense["accuracy"] == 1.0, "after sixteen epochs these sentences are learned"
    assert report.teacher is not None
    assert report.teacher["accuracy"] == report.dense["accuracy"]
    assert report.compressed["accuracy"] == json.loads((out / "eval_results.json").read_text())["eval_accuracy"]
    assert report.achieved_sparsity >= 0.5
    assert report.parity == 0
    assert report.size.packed_bytes < report.size.dense_bytes / 3
    assert report.base_model == str(encoder)
    card = (out / "compressed" / "README.md").read_text()
    assert "kd+mp50+int8" in card

    dense = AutoModelForSequenceClassification.from_pretrained(out / "dense")
    small = AutoModelForSequenceClassification.from_pretrained(out / "compressed")
    assert (dense.bert.encoder.layer[0].attention.self.query.weight == 0).sum() == 0
    assert (small.bert.encoder.layer[0].attention.self.query.weight == 0).float().mean() >= 0.5


def test_unused_words_are_cut_and_the_file_keeps_its_budget(
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
    options = ["--dense_baseline", model, *files, "--output_dir", out, "--do_train", "--save_strategy", "steps"]
    options += ["--compress_vocabulary", "--compress_budget_mb", 0.036, "--prune_every", 1, "--save_steps", 4]
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


def test_a_resumed_run_ends_where_the_uninterrupted_one_did(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", *ALL_THREE]
    options += ["--dense_baseline", "train", "--dense_epochs", 1, "--save_strategy", "steps", "--save_steps", 4]
    run(*options)
    weights = (out / "compressed" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"`--resume_from_checkpoint` would finish a finished run.*compressed"):
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
        *("--dense_baseline", baseline, "--train_file", file, "--validation_file", file, "--output_dir", out),
        *("--text_columns", "sentence1", "sentence2", "--label_column", "score", "--max_eval_samples", 30),
        *("--do_train", "--prune_sparsity", 0.5, "--prune_every", 1),
    )
    report = Report.load(out / "compressed")
    assert report.main_metric == "pearson"
    assert set(report.compressed) >= {"pearson", "spearmanr"}
    assert report.teacher is None
    assert report.head == "regression"
    assert report.task == "train"
    assert report.dataset.eval_rows == 30


def test_a_baseline_without_compression_is_reported(
    run: Run,
    tiny_bert: BertForSequenceClassification,
    tiny_tokenizer: PreTrainedTokenizerFast,
    files: list[object],
    tmp_path: Path,
) -> None:
    baseline, out = save(tiny_bert, tiny_tokenizer, tmp_path / "dense"), tmp_path / "out"
    run("--dense_baseline", baseline, *files, "--output_dir", out, "--do_train", "--max_steps", 60)
    report = Report.load(out / "compressed")
    assert report.recipe.name == "dense"
    assert report.compressed["loss"] < report.dense["loss"]


def test_predictions_come_in_the_order_of_the_questions(
    run: Run, encoder: Path, files: list[object], tmp_path: Path, tiny_sentences: Dataset
) -> None:
    out = tmp_path / "out"
    tiny_sentences.remove_columns("label").to_csv(tmp_path / "test.csv")
    run(
        *("--model_name_or_path", encoder, *files, "--test_file", tmp_path / "test.csv", "--output_dir", out),
        *("--do_train", "--do_predict", "--max_steps", 60, "--train_sampling_strategy", "group_by_length"),
    )
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "index,prediction"
    expected = [f"{index},{NAMES[label]}" for index, label in enumerate(tiny_sentences["label"])]
    assert lines[1:] == expected, "these sentences are learned, so a wrong answer is one out of order"


def test_a_model_without_a_head_has_no_scores_to_compare_with(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"is not fine-tuned.*classifier.*`--dense_baseline train`"):
        run("--model_name_or_path", encoder, *files, "--output_dir", tmp_path / "out", "--do_train", *ALL_THREE)


def test_a_folder_of_another_run_is_refused_unless_overwritten(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "checkpoint-8").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", "--max_steps", 1]
    with pytest.raises(ValueError, match=r"`--output_dir .*out` holds another run \(checkpoint-8\).*`--overwrite"):
        run(*options)
    run(*options, "--overwrite_output_dir")
    assert not (out / "checkpoint-8").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_overwriting_spares_the_model_that_the_run_starts_from(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    for out in (encoder, encoder.parent):
        (encoder.parent / "dense").mkdir(exist_ok=True)
        source = encoder if out == encoder else encoder.parent / "dense"
        options = ["--model_name_or_path", encoder, "--dense_baseline", source, *files, "--output_dir", out]
        with pytest.raises(ValueError, match="would delete .*, which this run needs"):
            run(*options, "--do_train", "--overwrite_output_dir")
        assert (encoder / "config.json").is_file()


def test_labels_follow_the_models_numbers_of_their_names(
    script: ModuleType,
    make_bert: Callable[..., BertForSequenceClassification],
    tiny_tokenizer: PreTrainedTokenizerFast,
    files: list[object],
    tmp_path: Path,
) -> None:
    flipped = make_bert(id2label={0: "POSITIVE", 1: "NEGATIVE"}, label2id={"POSITIVE": 0, "NEGATIVE": 1})
    folder = save(flipped, tiny_tokenizer, tmp_path / "flipped")
    arguments = script.DataArguments(train_file=str(files[1]), validation_file=str(files[3]))
    rows = script.Rows(arguments, ["train", "validation"], None)
    model, untrained = script.load_model(str(folder), rows, script.ModelArguments(model_name_or_path=str(folder)))
    assert untrained == []
    encoded = rows.encoded("train", tiny_tokenizer, model.config, 6)
    assert encoded["label"][:] == [1, 0, 1, 0, 1, 0]
    assert "sentence" not in encoded.column_names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--task_name sst2", "`--model_name_or_path` is missing"),
        ("--model_name_or_path m", "There is no data.*`--task_name`"),
        ("--model_name_or_path m --task_name sst2 --max_train_samples 0", "`--max_train_samples` must be at least 1"),
        ("--model_name_or_path m --task_name sst2 --dense_epochs 2", "`--dense_epochs` belongs to"),
        ("--model_name_or_path m --task_name sst2 --lora_r 4", "`--lora_r`.*belong to `--peft lora`"),
        ("--model_name_or_path m --task_name sst2 --prune_sparsity 0.5", "`--do_train` is missing"),
        ("--model_name_or_path m --dataset_name d --train_file t.csv", "exclude each other"),
        ("--model_name_or_path m --train_file t.txt --do_train", r"must be of one kind.*got t\.txt"),
        ("--model_name_or_path m --task_name rte --do_train --resume_from_checkpoint x", "`--resume_from_checkpoint`"),
        (
            "--model_name_or_path m --task_name rte --do_train --quant_scheme int8 --push_to_hub",
            "`--push_to_hub` would upload.*hf-compress push",
        ),
        (
            "--model_name_or_path m --task_name rte --do_train --compress_formats compressed-tensors",
            "`--compress_formats` writes the compressed model, and nothing compresses it",
        ),
    ],
)
def test_impossible_options_are_named_before_loading(run: Run, options: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(*options.split(), "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_columns_and_labels_that_are_not_there_are_named(script: ModuleType, files: list[object]) -> None:
    given = {"train_file": str(files[1]), "validation_file": str(files[3])}
    with pytest.raises(ValueError, match="`--label_column stars` is none of the columns"):
        script.Rows(script.DataArguments(**given, label_column="stars"), ["train"], None)
    with pytest.raises(ValueError, match="`--text_columns` review"):
        script.Rows(script.DataArguments(**given, text_columns=["review"]), ["train"], None)
    with pytest.raises(ValueError, match="no 'test'"):
        script.Rows(script.DataArguments(**given), ["train", "test"], None)


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
    assert "`onnx/model_quantized.onnx`" in (out / "compressed" / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_two_processes_write_one_compressed_model(encoder: Path, files: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", "--do_eval", *ALL_THREE]
    options += ["--dense_baseline", "train", "--max_steps", 8, "--per_device_train_batch_size", 4, "--use_cpu"]
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
    assert report.parity == 0
    assert launched.stdout.count("The compressed model and its card are in") == 1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_an_adapter_learns_from_its_base_and_merges_small(
    run: Run, encoder: Path, files: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--model_name_or_path", encoder, *files, "--output_dir", out, "--do_train", "--do_eval", *ALL_THREE]
    options += ["--dense_baseline", "train", "--peft", "lora", "--lora_r", 2, "--save_strategy", "steps"]
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
