"""`verify` scores an embedder, a sparse encoder and a reranker again, from the rows that their reports name."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from hf_compress import Report, compress, finish
from hf_compress.report.card import save_card
from hf_compress.report.comparing import with_intervals
from hf_compress.report.predictions import save_predictions
from hf_compress.report.rescoring import stored_outputs
from hf_compress.report.sentence_trial import find_pairs
from hf_compress.verify import Data, Verification, score_folder, verify_folder
from tests.invariants.harness import PRUNE, QUANT, recipe

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.cross_encoder import losses as pair_losses  # noqa: E402
from sentence_transformers.cross_encoder.evaluation import CrossEncoderCorrelationEvaluator  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402
from sentence_transformers.sparse_encoder import losses as sparse_losses  # noqa: E402
from sentence_transformers.sparse_encoder.evaluation import SparseEmbeddingSimilarityEvaluator  # noqa: E402

from tests.sentence_bench import Bench  # noqa: E402

KINDS = {
    "SentenceTransformer": (BertModel, EmbeddingSimilarityEvaluator, losses.CoSENTLoss),
    "CrossEncoder": (BertForSequenceClassification, CrossEncoderCorrelationEvaluator, pair_losses.MSELoss),
    "SparseEncoder": (BertForMaskedLM, SparseEmbeddingSimilarityEvaluator, None),
}


def sparse_loss(model: Any) -> Any:
    return sparse_losses.SpladeLoss(model, sparse_losses.SparseCoSENTLoss(model), document_regularizer_weight=0.1)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("CrossEncoder", "SparseEncoder")]


@pytest.fixture(scope="module", params=["SentenceTransformer", *SLOW])
def made(request: Any, tmp_path_factory: Any, tiny_tokenizer: Any, tiny_sentences: Any) -> tuple[Path, Path, Bench]:
    """A finished folder of each kind, and the dataset whose validation split it was measured on, backwards."""
    kind, (inner, evaluator, loss) = request.param, KINDS[request.param]
    bench = Bench(tmp_path_factory.mktemp(kind), tiny_tokenizer, tiny_sentences["sentence"][:])
    data = bench.folder / "pairs"
    data.mkdir()
    rows = bench.pairs.add_column("label", [float(number % 6) for number in range(32)])
    rows.to_parquet(data / "train.parquet")
    rows.select(range(30)).to_parquet(data / "validation.parquet")
    loaded = load_dataset(str(data), cache_dir=str(bench.folder / "cache"))
    train, dev = (loaded[name].map(lambda row: {"score": row["label"] / 5}) for name in ("train", "validation"))
    more = {"num_labels": 1} if kind == "CrossEncoder" else {}
    model = getattr(library, kind)(bench.folder_of("start", inner, **more), device="cpu", **more)
    back = dev.select(range(len(dev))[::-1])
    texts = back["anchor"][:], back["positive"][:]
    pairs = [[list(pair) for pair in zip(*texts, strict=True)]] if kind == "CrossEncoder" else texts
    run = bench.trainer(
        "run",
        model,
        loss or sparse_loss,
        train_dataset=train.select_columns(["anchor", "positive", "score"]),
        evaluator=evaluator(*pairs, back["score"][:], name="dev"),
    )
    compress(run, recipe((PRUNE, QUANT))).train()
    finish(run, formats=["onnx"] if kind == "SentenceTransformer" else [])
    return bench.folder / "run" / "compressed", data, bench


def verdicts(verification: Verification) -> dict[str, str]:
    return {check.name: check.verdict for check in verification.checks if check.verdict != "true"}


def test_scores_are_measured_again_row_by_row(made: tuple[Path, Path, Bench]) -> None:
    folder, data, _ = made
    report = Report.load(folder)
    facts = report.dataset
    assert (facts.eval_split, facts.eval_rows, facts.eval_split_rows) == ("validation", 30, 30)
    found = verify_folder(folder, Data(str(data)))
    assert (verdicts(found), found.verdict) == ({}, "true")
    again = found.remeasured
    assert again is not None and (again.rows, again.agreement) == (30, 1.0)
    assert again.measured == pytest.approx(
        {name: value for name, value in report.compressed.items() if name in again.measured}, abs=1e-5
    )
    assert report.main_metric in again.measured


def test_edited_predictions_are_measured(made: tuple[Path, Path, Bench], tmp_path: Path) -> None:
    """The folder agrees with itself that it is perfect: only the model on the data can tell."""
    folder, data, _ = made
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("onnx")))
    report = Report.load(copy)
    rows, stored = stored_outputs(copy, report)
    perfect = replace(stored["compressed"], predicted=stored["compressed"].labels)
    save_predictions(copy, rows, {"compressed": perfect})
    best = {name: 1.0 for name in report.compressed if "pearson" in name or "spearman" in name}
    typed = replace(report, compressed=report.compressed | best, dense=None, formats={})
    with_intervals(typed, perfect, None, {}).save(copy)
    save_card(copy)
    found = verify_folder(copy, Data(str(data)))
    assert verdicts(found) == {"score": "differs"}
    assert found.remeasured is not None and (found.remeasured.agreement or 0) < 0.9
    assert found.remeasured.reported[report.main_metric] == 1.0 > found.remeasured.measured[report.main_metric]


def test_what_names_no_data_says_what_to_do(made: tuple[Path, Path, Bench]) -> None:
    folder, data, _ = made
    found = verify_folder(folder)
    (check,) = (check for check in found.checks if check.name == "score")
    assert (check.verdict, found.status) == ("cannot be checked", 2)
    assert "Name one with `--dataset`, an id or a folder" in " ".join(check.details)
    if (folder / "onnx").exists():
        scored = score_folder(folder, Data(str(data)), format="onnx")
        assert scored.outputs.rows == 30 and scored.scores.keys() >= {Report.load(folder).main_metric}


def test_rows_are_found_in_any_order_and_scale(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(20)]
    Dataset.from_dict({"b": texts[::-1], "a": texts, "stars": list(range(20))}).to_parquet(tmp_path / "test.parquet")
    rows = load_dataset("parquet", data_files={"test": str(tmp_path / "test.parquet")}, cache_dir=str(tmp_path / "c"))
    dataset = rows["test"].map(lambda row: row | {"new": row["a"]})
    pairs = list(zip(texts, texts[::-1], strict=True))[3:18:2]
    found = find_pairs(dataset, pairs, [number / 19 for number in range(3, 18, 2)])
    assert found is not None and (found.split, found.rows) == ("test", list(range(3, 18, 2)))
    assert found.preprocessing.columns == ["a", "b"] and found.preprocessing.label_column == "stars"
    assert found.preprocessing.label_scale == pytest.approx(1 / 19)
    assert find_pairs(dataset, pairs, [0.5] * 8) is None, "other labels"
    assert find_pairs(dataset, [*pairs, ("text 3", "no text")], [0.1] * 9) is None
    assert find_pairs(Dataset.from_dict({"a": texts}), pairs, [0.5] * 8) is None, "made in memory"
