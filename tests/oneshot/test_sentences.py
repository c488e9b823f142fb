"""Models of sentence-transformers, compressed without training: what is measured is what their users get."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import spearmanr
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from hf_compress.oneshot import Data, quantize_once
from hf_compress.report.predictions import read_predictions
from hf_compress.verify import Data as Rows
from hf_compress.verify import verify_folder

library = pytest.importorskip("sentence_transformers")
from tests.sentence_bench import Bench  # noqa: E402

LABELS = [float(number % 5) for number in range(32)]


@pytest.fixture
def pairs(bench: Bench, tmp_path: Path) -> Path:
    """A folder of scored pairs: 32 to learn from, and others to measure on."""
    (tmp_path / "pairs").mkdir()
    for split, texts in (("train", bench.texts[0]), ("validation", bench.texts[0][::-1])):
        rows = {"sentence1": texts, "sentence2": bench.texts[1], "score": LABELS}
        Dataset.from_dict(rows).to_parquet(tmp_path / "pairs" / f"{split}.parquet")
    return tmp_path / "pairs"


def saved(bench: Bench, kind: str, body: type, **changes: Any) -> Path:
    """The folder of a model of sentence-transformers that is as large as a budget needs."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}
    folder = bench.folder / kind
    getattr(library, kind)(bench.folder_of(f"{kind} body", body, **sizes, **changes), device="cpu").save_pretrained(
        str(folder)
    )
    return folder


def verdicts(folder: Path, data: Path) -> dict[str, str]:
    found = verify_folder(folder, Rows(str(data)))
    assert found.remeasured is not None, found.checks
    assert found.remeasured.agreement == 1.0
    return {check.name: check.verdict for check in found.checks if check.verdict != "true"}


def with_dense(bench: Bench) -> Path:
    bench.embedder().save_pretrained(str(bench.folder / "dense"))
    return bench.folder / "dense"


def bare(bench: Bench) -> Path:
    return Path(bench.folder_of("bare", BertModel, hidden_size=64, intermediate_size=128))


def reranker(bench: Bench) -> Path:
    return saved(bench, "CrossEncoder", BertForSequenceClassification, num_labels=1)


@pytest.mark.parametrize(
    ("make", "megabytes"),
    [
        pytest.param(with_dense, 0.03, id="modules behind the pooling"),
        pytest.param(bare, 0.05, id="bare encoder", marks=pytest.mark.slow),
        pytest.param(reranker, 0.05, id="reranker", marks=pytest.mark.slow),
    ],
)
def test_verify_measures_what_quantize_reports(
    make: Callable[[Bench], Path], megabytes: float, bench: Bench, pairs: Path, tmp_path: Path
) -> None:
    report = quantize_once(make(bench), str(pairs), tmp_path / "small", budget_mb=megabytes)
    assert verdicts(tmp_path / "small", pairs) == {}
    known = report.dataset.preprocessing
    assert known is not None and (known.columns, known.label_column) == (["sentence1", "sentence2"], "score")
    if report.sentence_class == "SentenceTransformer":  # By hand, as a user computes it.
        model = library.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        one, two = (model.encode(texts) for texts in (bench.texts[0][::-1], bench.texts[1]))
        cosines = (one * two).sum(1)
        assert report.compressed["spearmanr"] == pytest.approx(spearmanr(cosines, LABELS).statistic, abs=1e-5)


@pytest.mark.slow
def test_other_weights_are_not_what_quantize_reports(bench: Bench, pairs: Path, tmp_path: Path) -> None:
    """Scores of the dataset's scale: labels from 0 to 4 must not hide that the cosines are others."""
    quantize_once(with_dense(bench), str(pairs), tmp_path / "small", budget_mb=0.03)
    config = tmp_path / "small" / "1_Pooling" / "config.json"
    config.write_text(config.read_text().replace('"mean"', '"max"'))
    found = {check.name: check.verdict for check in verify_folder(tmp_path / "small", Rows(str(pairs))).checks}
    assert (found["files"], found["score"]) == ("differs", "differs")


@pytest.mark.slow
def test_heads_of_rerankers_and_sparse_models_stay(bench: Bench, pairs: Path, tmp_path: Path) -> None:
    sparse = saved(bench, "SparseEncoder", BertForMaskedLM)
    quantize_once(sparse, Data(str(pairs), columns=["sentence1"]), tmp_path / "sparse", budget_mb=0.05)
    dense, small = (library.SparseEncoder(str(path), device="cpu") for path in (sparse, tmp_path / "sparse"))
    one, two = (model.encode(bench.sentences).to_dense().numpy() for model in (dense, small))
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9
    ranked = reranker(bench)
    quantize_once(ranked, str(pairs), tmp_path / "ranked", budget_mb=0.05)
    both = list(zip(bench.texts[0][::-1], bench.texts[1], strict=True))
    found = library.CrossEncoder(str(tmp_path / "ranked"), device="cpu").predict(both, activation_fn=lambda one: one)
    columns = read_predictions(tmp_path / "ranked")
    assert found[columns["row"]] == pytest.approx(columns["compressed"], abs=1e-5)


@pytest.mark.slow
def test_a_similarity_of_its_own_cannot_be_verified(bench: Bench, pairs: Path, tmp_path: Path) -> None:
    source = bare(bench)
    model = library.SentenceTransformer(str(source), device="cpu", similarity_fn_name="dot")
    model.save_pretrained(str(tmp_path / "dot"))
    options = json.loads((tmp_path / "dot" / "config_sentence_transformers.json").read_text())
    assert options["similarity_fn_name"] == "dot"
    report = quantize_once(tmp_path / "dot", str(pairs), tmp_path / "small", budget_mb=0.05)
    assert report.dataset.preprocessing is None
    assert "by `dot`, the report by cosine" in str(report.dataset.without_preprocessing)
