"""A model is compressed without training, from texts alone, and its folder is as good as one that was trained."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)
from typer.testing import CliRunner

from hf_compress import BudgetArguments, Recipe, Report, compress, finish
from hf_compress.layers.turning import compressed_layers
from hf_compress.oneshot import Data, quantize_once
from hf_compress.rate import embedding
from hf_compress.report.card import is_current
from hf_compress.report.predictions import read_predictions
from hf_compress.verify import verify_folder
from hf_compress_cli import app
from tests.oneshot.conftest import BUDGET, SIZES
from tests.tiny import VOCABULARY, bert

runner = CliRunner(env={"COLUMNS": "160"})


def test_the_file_fits_the_budget_and_uses_it(compressed: tuple[Path, Report]) -> None:
    folder, report = compressed
    size = (folder / "model.safetensors").stat().st_size
    assert 0.8e6 * BUDGET < size <= 1e6 * BUDGET
    assert report.size.packed_bytes == size
    assert Recipe.load(folder / "recipe.json").quantization.quant_step == report.recipe.quantization.quant_step


def test_a_loaded_folder_computes_what_was_rounded(compressed: tuple[Path, Report]) -> None:
    folder, report = compressed
    assert report.parity == 0
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    layers = [layer for layer in compressed_layers(model).values() if layer.has_range]
    assert layers and all(bool(layer.input_range.isfinite().all()) for layer in layers)


def test_the_divergence_is_that_of_the_held_out_rows(
    compressed: tuple[Path, Report], dense: Path, tiny_sentences: Dataset
) -> None:
    """By hand, on the last fifth of the rows, one row at a time."""
    folder, report = compressed
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = [AutoModelForSequenceClassification.from_pretrained(path).eval() for path in (dense, folder)]
    held = tiny_sentences["sentence"][-12:]
    assert report.dataset.eval_rows == len(held)
    assert report.dataset.eval_part == "train[52:64]"
    total, same = 0.0, 0
    for text in held:
        with torch.no_grad():
            ours, theirs = (model(**tokenizer(text, return_tensors="pt")).logits for model in models)
        total += float(F.kl_div(theirs.log_softmax(-1), ours.softmax(-1), reduction="sum"))
        same += int(ours.argmax()) == int(theirs.argmax())
    assert report.compressed["kl_divergence"] == pytest.approx(total / 12, rel=1e-3)
    assert report.compressed["agreement"] == same / 12


def test_labels_give_paired_scores_of_both_models(compressed: tuple[Path, Report], tiny_sentences: Dataset) -> None:
    folder, report = compressed
    assert report.main_metric == "accuracy"
    assert report.dataset.preprocessing is not None
    assert report.dataset.preprocessing.classes == {"Negative": 0, "Positive": 1}
    columns = read_predictions(folder)
    assert report.compressed["accuracy"] == (columns["label"] == columns["compressed"]).mean()
    assert report.dense is not None
    assert report.dense["accuracy"] == (columns["label"] == columns["dense"]).mean()
    assert report.comparison["accuracy"].low <= report.comparison["accuracy"].high
    assert {*columns["row"].tolist()} == {*range(52, 64)}
    assert [int(columns["label"][columns["row"] == row][0]) for row in range(52, 64)] == tiny_sentences["label"][52:]


def test_nothing_differs_from_the_report(compressed: tuple[Path, Report]) -> None:
    folder, _ = compressed
    verification = verify_folder(folder)
    assert [check.name for check in verification.checks if check.verdict == "differs"] == []
    assert next(check for check in verification.checks if check.name == "scores").verdict == "true"


def test_the_card_says_what_its_author_adds(compressed: tuple[Path, Report]) -> None:
    head = (compressed[0] / "README.md").read_text("utf-8").split("---")[1].splitlines()
    assert {"license: mit", "base_model: someone/bert"} <= {*head}


def test_the_card_claims_no_training(compressed: tuple[Path, Report]) -> None:
    folder, report = compressed
    card = (folder / "README.md").read_text()
    assert not report.is_trained and is_current(folder)
    assert "**Training.**" not in card and "During training" not in card and "was not trained" in card
    assert "chosen on other rows" in card and "hf-compress quantize" in card


def test_what_the_author_adds_is_checked_before_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--card_metadata` must leave out `metrics`"):
        quantize_once("no model", "no texts", tmp_path / "small", budget_mb=1, card_metadata={"metrics": ["f1"]})


def test_texts_without_labels_give_agreement(dense: Path, texts: Path, tmp_path: Path) -> None:
    report = quantize_once(dense, str(texts), tmp_path / "small", budget_mb=BUDGET, scheme="int8-weight")
    assert report.main_metric == "agreement" and report.dense is None and report.predictions is None
    assert report.intervals["kl_divergence"].low <= report.compressed["kl_divergence"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert not any(layer.has_range for layer in compressed_layers(model).values())
    card = (tmp_path / "small" / "README.md").read_text()
    assert "agree with those of the dense model" in card and "- agreement" not in card  # No metric of the Hub.


def test_more_bytes_give_answers_nearer_to_the_dense_ones(dense: Path, texts: Path, tmp_path: Path) -> None:
    divergence = [
        quantize_once(dense, str(texts), tmp_path / f"{budget}", budget_mb=budget).compressed["kl_divergence"]
        for budget in (0.035, 0.09)
    ]
    assert divergence[0] > 2 * divergence[1]


def test_an_encoder_is_judged_by_its_own_pooling(encoder: Path, texts: Path, tmp_path: Path) -> None:
    """The folder says that the first token is the embedding. The small files beside the model stay."""
    report = quantize_once(encoder, str(texts), tmp_path / "small", budget_mb=BUDGET)
    assert report.main_metric == "distortion" and report.auto_class == "AutoModel"
    names = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
    assert all((tmp_path / "small" / name).is_file() and name in report.files for name in names)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    held = [line for line in texts.read_text().splitlines() if line][-12:]
    inputs = tokenizer(held, return_tensors="pt", padding=True)
    with torch.no_grad():
        ours, theirs = (
            F.normalize(AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state[:, 0], dim=-1)
            for path in (encoder, tmp_path / "small")
        )
    assert report.compressed["distortion"] == pytest.approx(
        1000 * float((1 - (ours * theirs).sum(-1)).mean()), rel=1e-2
    )


def test_the_first_token_may_follow_padding() -> None:
    hidden = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [1.0, 0.0]]])
    assert embedding(hidden, torch.tensor([[0, 1, 1]]), "first").tolist() == [pytest.approx([0.6, 0.8])]
    assert embedding(hidden, torch.tensor([[0, 1, 1]])).tolist() == [pytest.approx([2**-0.5, 2**-0.5])]


def test_the_command_says_what_was_reached(dense: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / ".small-killed.partial" / "new").mkdir(parents=True)  # Of a process that was killed.
    words = [
        "quantize",
        str(dense),
        "--budget_mb",
        str(BUDGET),
        "--data",
        str(texts),
        "--out",
        str(tmp_path / "small"),
    ]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"instead of {0.31:.2f} MB" in result.stdout and "agreement: " in result.stdout
    assert "hf-compress inspect" in result.stdout
    again = runner.invoke(app, words)
    assert again.exit_code == 1 and "is not empty" in again.stderr and "Traceback" not in again.output
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "no such model!"}, "neither an existing path nor a Hub id"),
        ({"model": "texts"}, "there is no `config.json`"),
        ({"model": "vit"}, "cannot feed with texts|has no known head"),
        ({"model": "compressed"}, "quantized already"),
        ({"model": "adapter"}, "is an adapter. Merge it"),
        ({"model": "wordless"}, "has no tokenizer"),
        ({"model": "cut off"}, "cannot be loaded"),
        ({"model": "few tokens"}, r"gives token \d\d, but the model has embeddings for 8 tokens only"),
        (
            {"model": "broken"},
            r"weights of the model are not finite, for example `bert.pooler.dense.bias` \(1 tensors",
        ),
        ({"max_length": 33}, "`--max_length` must be at most 32"),
        ({"budget_mb": 0.001}, r"too small for this model.*Give at least 0\.0\d"),
        ({"budget_mb": -1}, "above 0"),
        ({"scheme": "int4-weight"}, "needs a `--quant_scheme` of 8 bits"),
        ({"scheme": "int9"}, "must be one of"),
        ({"formats": ["onxx"]}, "onxx"),
        ({"data": Data("nowhere.txt")}, "could not be loaded"),
        ({"data": Data("empty.txt")}, "is an empty file"),
        ({"data": Data("blank.txt")}, "At least 2 rows with text are needed; got 0"),
        ({"data": Data("picture.png")}, "must end in"),
        ({"data": Data("rows.jsonl", eval_split="train")}, "`--eval_split` must differ from the split"),
        ({"data": Data("scored.csv", columns=("score",))}, "must name columns of text; score of scored.csv holds"),
        ({"data": Data("rows.jsonl", columns=("text",))}, "`--columns` names text, but .* has sentence, label"),
        ({"data": Data("rows.jsonl", split="test")}, "`--split test` is not a split"),
        ({"data": Data("rows.jsonl", label_column="sentence")}, "does not hold the labels"),
        ({"data": Data("numbers.csv")}, "no column of text"),
        ({"data": Data("glue")}, "Name one of its configurations: `--config NAME`"),
        ({"data": Data("saved")}, "Write it with `Dataset.to_parquet`"),
        ({"data": Data("two.csv")}, "has the text columns a, b. Name one"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    changes: dict[str, object],
    said: str,
    dense: Path,
    labelled: Path,
    compressed: tuple[Path, Report],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for name, text in (
        ("empty.txt", ""),
        ("blank.txt", "\n \n"),
        ("picture.png", "x"),
        ("numbers.csv", "a,b\n1,2\n3,4\n"),
        ("two.csv", "a,b\nwarm,cold\nold,new\n"),
        ("scored.csv", "text,score\nwarm,1\nold,2\n"),
        ("rows.jsonl", labelled.read_text()),
    ):
        (tmp_path / name).write_text(text)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    Dataset.from_dict({"text": ["warm", "old"]}).save_to_disk("saved")
    (tmp_path / "glue").mkdir()
    for name in ("one", "two"):
        (tmp_path / "glue" / f"{name}.csv").write_text("text\nwarm\n")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in ("one", "two"))
    (tmp_path / "glue" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    if changes.get("model") == "vit":
        ViTModel(ViTConfig(image_size=8, patch_size=4, **small)).save_pretrained("vit")
        AutoTokenizer.from_pretrained(dense).save_pretrained("vit")
    if changes.get("model") == "compressed":
        changes = {"model": compressed[0]}
    if changes.get("model") == "adapter":
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    if (name := changes.get("model")) in ("wordless", "few tokens", "broken"):
        made = bert(**SIZES | {"vocab_size": 8 if name == "few tokens" else VOCABULARY})
        if name == "broken":
            made.bert.pooler.dense.bias.data[0] = math.nan
        made.save_pretrained(str(name))
        if name != "wordless":
            AutoTokenizer.from_pretrained(dense).save_pretrained(str(name))
    if changes.get("model") == "cut off":
        shutil.copytree(dense, "cut off")
        os.truncate("cut off/model.safetensors", 5000)
    given = {"model": dense, "data": Data("rows.jsonl"), "out": "out", "budget_mb": BUDGET} | changes
    with pytest.raises(ValueError, match=said) as caught:
        quantize_once(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_behind(
    dense: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "report.json")

    monkeypatch.setattr("hf_compress.report.report.Report.save", full)
    with pytest.raises(OSError, match="No space left"):
        quantize_once(dense, str(texts), tmp_path / "small", budget_mb=BUDGET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["negative", "positive"], "with labels"),
        ([None, "positive"], "without labels (`label` does not hold labels of this model)"),
        (None, "without labels"),
    ],
)
def test_the_log_says_whether_there_are_labels(
    labels: list[str | None] | None, said: str, dense: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"sentence": text} for text in ("warm", "cold", "old", "new") * 3]
    for number, row in enumerate(rows):
        row |= {} if labels is None else {"label": labels[number % 2]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard: list[str] = []

    def tell(sentence: str) -> None:
        heard.append(sentence)
        if "measure on" in sentence:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_once(dense, str(tmp_path / "rows.jsonl"), tmp_path / "small", budget_mb=BUDGET, tell=tell)
    assert heard[-1].endswith(f"2 others to measure on, {said}.")


@pytest.mark.slow
def test_training_goes_on_from_the_folder(
    compressed: tuple[Path, Report], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(compressed[0])
    arguments = TrainingArguments(
        str(tmp_path), max_steps=20, learning_rate=1e-3, report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=tiny_dataset,
        eval_dataset=tiny_dataset,
        processing_class=AutoTokenizer.from_pretrained(compressed[0]),
    )
    trainer = compress(trainer, Recipe(budget=BudgetArguments(compress_budget_mb=BUDGET)))
    trainer.train()
    report = finish(trainer)
    assert report is not None and report.is_trained
    assert report.dense is None  # The start is compressed itself.
    assert report.size.packed_bytes <= 1e6 * BUDGET and math.isfinite(report.compressed["loss"])


@pytest.mark.slow
def test_other_formats_are_scored_like_the_packed_file(dense: Path, labelled: Path, tmp_path: Path) -> None:
    report = quantize_once(dense, str(labelled), tmp_path / "small", budget_mb=BUDGET, formats=["onnx"])
    assert not report.failed_formats
    assert {*report.formats["onnx"].scores} == {*report.compressed}
    assert report.formats["onnx"].scores["accuracy"] == pytest.approx(report.compressed["accuracy"], abs=0.1)


@pytest.mark.slow
def test_sentence_transformers_loads_the_result(encoder: Path, texts: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    modules = json.loads((encoder / "modules.json").read_text())
    for part in modules:
        part["type"] = f"sentence_transformers.models.{part['type'].removeprefix('st.')}"
    source = tmp_path / "source"
    source.mkdir()
    for path in encoder.rglob("*"):
        if path.is_file():
            (source / path.relative_to(encoder)).parent.mkdir(exist_ok=True)
            (source / path.relative_to(encoder)).write_bytes(path.read_bytes())
    (source / "modules.json").write_text(json.dumps(modules))
    report = quantize_once(source, str(texts), tmp_path / "small", budget_mb=BUDGET)
    held = [line for line in texts.read_text().splitlines() if line][-12:]
    one, two = (SentenceTransformer(str(path)).encode(held) for path in (source, tmp_path / "small"))
    assert 1000 * float((1 - (one * two).sum(-1)).mean()) == pytest.approx(report.compressed["distortion"], rel=1e-2)


def test_labelled_pairs_of_an_encoder_are_ranked(encoder: Path, tiny_sentences: Dataset, tmp_path: Path) -> None:
    """By hand: the Spearman correlation of cosines with labels, for both models, on the held-out pairs."""
    texts = tiny_sentences["sentence"]
    rows = [{"sentence1": texts[i], "sentence2": texts[i - 1], "score": (7 * i % 11) / 2} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = quantize_once(encoder, str(tmp_path / "pairs.jsonl"), tmp_path / "small", budget_mb=BUDGET)
    held, tokenizer = rows[-12:], AutoTokenizer.from_pretrained(encoder)
    assert report.main_metric == "spearmanr" and report.dataset.eval_rows == 12
    for path, scores in ((encoder, report.dense), (tmp_path / "small", report.compressed)):
        model = AutoModel.from_pretrained(path).eval()
        with torch.no_grad():
            one, two = (
                model(**tokenizer([row[name] for row in held], return_tensors="pt", padding=True)).last_hidden_state
                for name in ("sentence1", "sentence2")
            )
        cosines = F.cosine_similarity(one[:, 0], two[:, 0])
        assert scores is not None
        assert scores["spearmanr"] == pytest.approx(spearmanr(cosines, [row["score"] for row in held]).statistic)
    columns = read_predictions(tmp_path / "small")
    assert columns["row"].tolist() == [*range(48, 60)]
    assert verify_folder(tmp_path / "small").verdict != "differs"
