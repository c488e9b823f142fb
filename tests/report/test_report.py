"""A report is lossless as JSON, and every number in it is measured on what was written."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_compress.checkpoint.save import save_compressed
from hf_compress.export.onnx_format import export_onnx
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report import provenance
from hf_compress.report.card import save_card
from hf_compress.report.evaluation import evaluating
from hf_compress.report.measuring import measure
from hf_compress.report.report import DatasetFacts, Report
from hf_compress.report.scores import clean_scores
from hf_compress.report.sizes import analytic_bytes, dense_size

GOLDEN = Path(__file__).parents[1] / "golden"
PLAIN = Recipe()
PRUNED_INT8 = Recipe(pruning=PruningArguments(prune_sparsity=0.6), quantization=QuantizationArguments("int8"))
FACTS = DatasetFacts("kind words", None, "train", 48, "train", 16)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture
def golden() -> Report:
    return Report.load(GOLDEN)


@pytest.fixture
def make_trainer(tmp_path: Path, tiny_dataset: Dataset) -> Callable[..., Trainer]:
    def build(model: BertForSequenceClassification, recipe: Recipe = PLAIN, **changes: Any) -> Trainer:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 20,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 5,
            "learning_rate": 1e-2,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return Trainer(
            model,
            TrainingArguments(**settings | changes),
            train_dataset=tiny_dataset.select(range(48)),
            eval_dataset=tiny_dataset.select(range(48, 64)),
            compute_metrics=accuracy,
            callbacks=recipe.callbacks(),
        )

    return build


@pytest.fixture
def compressed_run(
    make_bert: Callable[..., BertForSequenceClassification],
    make_trainer: Callable[..., Trainer],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> tuple[Trainer, Path, Recipe]:
    """A trainer after twenty steps of pruning and quantization, and the folder that was written from it."""
    recipe = Recipe(
        pruning=PruningArguments(prune_sparsity=0.5, prune_every=1),
        quantization=QuantizationArguments(quant_scheme="int8"),
    )
    trainer = make_trainer(make_bert(), recipe)
    trainer.train()
    return trainer, save_compressed(trainer.model, tmp_path / "compressed", recipe, tiny_tokenizer), recipe


def report_on(trainer: Trainer, folder: Path, recipe: Recipe, **changes: Any) -> Report:
    arguments: dict[str, Any] = {
        "base_model": "/runs/dense",
        "task": "kindness",
        "dataset": FACTS,
        "main_metric": "accuracy",
        "dense": {"eval_accuracy": 0.75, "eval_loss": 0.5, "eval_runtime": 1.0, "epoch": 3.0},
    }
    return measure(trainer, folder, recipe, **arguments | changes)


def test_a_report_comes_back_from_json_as_it_was(golden: Report, tmp_path: Path) -> None:
    odd = replace(golden, teacher=None, train_seconds=0.1 + 0.2, command="run --name 'ü\n|'")
    for report in (golden, odd):
        report.save(tmp_path)
        assert Report.load(tmp_path) == report


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"parity": math.nan}, "report.parity"),
        ({"achieved_sparsity": math.inf}, "report.achieved_sparsity"),
        ({"compressed": {"accuracy": math.nan}}, "report.compressed.accuracy"),
        ({"sparsity": {"a.b": -math.inf}}, "report.sparsity.a.b"),
        ({"hyperparameters": {"adam_beta": [0.9, math.nan]}}, r"report.hyperparameters.adam_beta\[1\]"),
    ],
)
def test_a_report_holds_only_finite_numbers(golden: Report, change: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        replace(golden, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("seed"), "lacks the field `seed`"),
        (lambda values: values["size"].pop("analytic_bytes"), "report.size lacks the field `analytic_bytes`"),
        (lambda values: values.update(sizes={}), "does not know the field `sizes`"),
        (lambda values: values["recipe"]["pruning"].update(prune_more=1), "report.recipe.pruning does not know"),
        (lambda values: values.update(schema="hf_compress.report/99"), "`schema` must be 'hf_compress.report/1'"),
        (lambda values: values.pop("schema"), "`schema` must be"),
        (lambda values: values.update(seed="42"), "report.seed must be int; got '42'"),
        (lambda values: values.update(seed=True), "report.seed must be int; got True"),
        (lambda values: values.update(task=None), "report.task must be str; got None"),
        (lambda values: values.update(parity="small"), "report.parity must be a finite number; got 'small'"),
        (lambda values: values.update(parity="nan"), "report.parity must be a finite number; got 'nan'"),
        (lambda values: values.update(parity=math.nan), "report.parity must be a finite number; got nan"),
        (lambda values: values.update(dense=[0.5]), "report.dense must be an object"),
        (lambda values: values.update(main_metric="f1"), "`main_metric` must be one of the `dense` scores"),
    ],
)
def test_json_that_is_no_report_is_refused_by_name(golden: Report, change: Callable[[Any], Any], message: str) -> None:
    values = json.loads((GOLDEN / "report.json").read_text("utf-8"))
    assert Report.from_dict(values) == golden
    change(values)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Report.from_dict(values)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no report.json"), ("{", "not JSON"), ("[]", "a JSON object")]
)
def test_a_folder_without_a_readable_report_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Report.load(tmp_path)


def test_the_scores_are_those_of_the_reloaded_folder(
    compressed_run: tuple[Trainer, Path, Recipe], tiny_dataset: Dataset
) -> None:
    trainer, folder, recipe = compressed_run
    report = report_on(trainer, folder, recipe)
    reloaded = BertForSequenceClassification.from_pretrained(folder).eval()
    rows = tiny_dataset.select(range(48, 64)).with_format("torch")[:]
    labels = rows.pop("labels")
    with torch.no_grad():
        logits = reloaded(**rows).logits
    assert report.compressed["accuracy"] == (logits.argmax(-1) == labels).float().mean().item()
    # The trainer averages over batches, and its last one is short but counts as a full one.
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert report.compressed["loss"] == pytest.approx(loss, abs=0.01)
    assert report.dense == {"accuracy": 0.75, "loss": 0.5}
    assert (report.parity, report.parity_rows) == (0.0, 16)


def test_a_trained_model_unlike_its_file_shows_in_parity(
    compressed_run: tuple[Trainer, Path, Recipe],
) -> None:
    trainer, folder, recipe = compressed_run
    before = report_on(trainer, folder, recipe)
    with torch.no_grad():
        trainer.model.classifier.bias += torch.tensor([100.0, 0.0])
    after = report_on(trainer, folder, recipe)
    assert after.compressed == before.compressed
    assert after.parity == pytest.approx(100.0)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"no result: .* = nan.* trained model: classifier.bias\."):
        report_on(trainer, folder, recipe)


def test_sizes_are_those_of_files_and_formulas(compressed_run: tuple[Trainer, Path, Recipe], tmp_path: Path) -> None:
    trainer, folder, recipe = compressed_run
    size = report_on(trainer, folder, recipe).size
    BertForSequenceClassification(trainer.model.config).save_pretrained(tmp_path / "dense")
    assert size.dense_bytes == (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert size.packed_bytes == (folder / "model.safetensors").stat().st_size
    config = trainer.model.config
    embeddings = (config.vocab_size + config.max_position_embeddings + config.type_vocab_size) * config.hidden_size
    everything = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert size.parts["embeddings"].dense_bytes == 4 * embeddings
    assert sum(part.dense_bytes for part in size.parts.values()) == 4 * everything
    assert sum(part.packed_bytes for part in size.parts.values()) < size.packed_bytes
    assert size.analytic_bytes == round(embeddings + 0.5 * (everything - embeddings))
    assert 0 < size.entropy_bytes < size.packed_bytes < size.dense_bytes


def test_sparsity_is_that_of_the_reloaded_weights(compressed_run: tuple[Trainer, Path, Recipe]) -> None:
    trainer, folder, recipe = compressed_run
    report = report_on(trainer, folder, recipe)
    assert "bert.encoder.layer.1.output.dense" in report.sparsity
    assert "classifier" not in report.sparsity
    # Rounding to integers adds zeros to those of pruning and takes none away.
    assert min(report.sparsity.values()) >= 0.499
    assert 0.5 <= report.achieved_sparsity < 0.6


def test_the_rest_of_the_report_is_found_by_itself(compressed_run: tuple[Trainer, Path, Recipe]) -> None:
    trainer, folder, recipe = compressed_run
    report = report_on(trainer, folder, recipe, teacher={"eval_accuracy": 0.5})
    assert (report.model_class, report.pipeline_tag) == ("BertForSequenceClassification", "text-classification")
    assert report.auto_class == "AutoModelForSequenceClassification"
    assert report.teacher == {"accuracy": 0.5}
    assert (report.train_steps, report.seed) == (20, trainer.args.seed)
    assert report.train_seconds > 0
    assert report.hyperparameters["learning_rate"] == 1e-2
    assert report.hyperparameters["max_steps"] == 20
    assert report.versions["torch"] == torch.__version__
    assert "cores" in report.hardware
    assert (report.base_model_hub_id, report.base_model_revision) == (None, None)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_measuring_leaves_the_trainer_as_it_was(compressed_run: tuple[Trainer, Path, Recipe]) -> None:
    trainer, folder, recipe = compressed_run
    scores = clean_scores(trainer.evaluate())
    names = ("model", "model_wrapped", "deepspeed", "model_preparation_time")
    before = {name: trainer.__dict__.get(name) for name in names}
    models, seen = trainer.accelerator._models, trainer.callback_handler.model
    trainer.model.train()
    report_on(trainer, folder, recipe)
    assert {name: trainer.__dict__.get(name) for name in names} == before
    assert trainer.accelerator._models is models
    assert trainer.callback_handler.model is seen
    assert trainer.model.training
    assert clean_scores(trainer.evaluate()) == scores
    trainer.train()


def test_a_failed_evaluation_restores_the_model(
    make_bert: Callable[..., BertForSequenceClassification], make_trainer: Callable[..., Trainer]
) -> None:
    model, other = make_bert(), make_bert(seed=1)
    trainer = make_trainer(model)

    def fails() -> None:
        with evaluating(trainer, other):
            assert trainer.model is trainer.model_wrapped is trainer.callback_handler.model is other
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert trainer.model is trainer.model_wrapped is trainer.callback_handler.model is model


def test_the_reloaded_model_runs_in_mixed_precision_too(
    make_bert: Callable[..., BertForSequenceClassification], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    recipe = Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_every=1))
    trainer = make_trainer(make_bert(), recipe, bf16=True)
    trainer.train()
    folder = save_compressed(trainer.model, tmp_path / "compressed", recipe)
    report = report_on(trainer, folder, recipe)
    assert report.compressed == clean_scores(trainer.evaluate())
    assert report.parity == 0.0


@pytest.mark.slow
def test_a_graph_is_compared_without_mixed_precision(
    make_bert: Callable[..., BertForSequenceClassification], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    recipe = Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_every=1))
    trainer = make_trainer(make_bert(), recipe, bf16=True)
    trainer.train()
    folder = save_compressed(trainer.model, tmp_path / "compressed", recipe)
    export_onnx(folder)
    assert report_on(trainer, folder, recipe).formats["onnx"].parity < 1e-5


def test_a_trainer_without_evaluation_set_is_refused(compressed_run: tuple[Trainer, Path, Recipe]) -> None:
    trainer, folder, recipe = compressed_run
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="`eval_dataset` must be given"):
        report_on(trainer, folder, recipe)


@pytest.mark.parametrize(
    ("layers", "width", "recipe", "megabytes"),
    [
        (12, 768, PLAIN, 438),
        (2, 128, PLAIN, 18),
        (12, 768, PRUNED_INT8, 58),
        (4, 256, PRUNED_INT8, 9),
    ],
)
def test_the_analytic_size_is_the_paper_s(layers: int, width: int, recipe: Recipe, megabytes: int) -> None:
    """Movva et al., 2022, fig. 1: BASE and TINY dense; BASE and MINI with everything at 60 %, 58 and 9.2 MB."""
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=2, intermediate_size=4 * width
    )
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    assert round(analytic_bytes(model, recipe) / 1e6) == megabytes


def test_the_analytic_size_counts_the_bits_of_each_layer(tiny_bert: BertForSequenceClassification) -> None:
    embeddings = sum(weight.numel() for name, weight in tiny_bert.named_parameters() if "_embeddings" in name)
    others = sum(weight.numel() for weight in tiny_bert.parameters()) - embeddings
    wide = Recipe(quantization=QuantizationArguments("int4-weight"))
    assert analytic_bytes(tiny_bert, wide) == round(embeddings + others / 2)
    mixed = Recipe(
        pruning=PruningArguments(prune_sparsity=0.5),
        quantization=QuantizationArguments("int8", quant_bits=["embeddings=4", "query=2"]),
    )
    queries = 2 * 32 * 32
    assert analytic_bytes(tiny_bert, mixed) == round(embeddings / 2 + (others - 0.75 * queries) / 2)


def test_tied_weights_are_counted_once(tiny_bert: BertForSequenceClassification) -> None:
    from transformers import BertForMaskedLM

    with torch.device("meta"):
        model = BertForMaskedLM(tiny_bert.config)
    _, numbers = dense_size(model)
    assert numbers["embeddings"] == (tiny_bert.config.vocab_size + 32 + 2) * 32
    assert sum(numbers.values()) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("bert-base-uncased", None),
        ("./runs/dense", None),
        ("/data/model", None),
        ("../model", None),
        ("runs/sst2/dense", None),
    ],
)
def test_a_name_that_may_be_a_folder_is_not_a_hub_id(name: str, expected: str | None) -> None:
    assert provenance.hub_id(name) == expected


def test_an_existing_folder_is_not_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "dense").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert provenance.hub_id("runs/dense") is None


def test_the_command_runs_again_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    monkeypatch.setattr("sys.argv", ["examples/run_glue.py", "--output_dir", "my runs"])
    assert provenance.command() == "python examples/run_glue.py --output_dir 'my runs'"
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/hf-compress", "demo"])
    assert provenance.command() == "hf-compress demo"


def test_no_file_holds_a_token_or_a_path_of_the_author(
    compressed_run: tuple[Trainer, Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, folder, recipe = compressed_run
    secret = "my-own-token"
    monkeypatch.setattr(
        "sys.argv", ["/home/me/train.py", "--hub_token", secret, f"--token={secret}", str(tmp_path / "x")]
    )
    facts = replace(FACTS, name=str(tmp_path / "data"))
    report = report_on(trainer, folder, recipe, base_model=str(tmp_path / "dense"), dataset=facts)
    report.save(folder)
    save_card(folder)
    assert (report.base_model, report.dataset.name) == ("dense", "data")
    for path in folder.iterdir():
        content = path.read_bytes()
        assert secret.encode() not in content and str(tmp_path).encode() not in content, path.name
