"""Searches: scores of each query, so that differences have paired intervals over queries."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertModel

from hf_compress import Report, compress, finish
from hf_compress.report.queries import QUERIES_NAME, noting_queries, searches, stored_queries
from hf_compress.report.rescoring import check_scores
from tests.invariants.harness import PRUNE, QUANT, recipe

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.sentence_transformer.evaluation import (  # noqa: E402
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    SequentialEvaluator,
)

from tests.sentence_bench import Bench  # noqa: E402

NAMES = {"dev_cosine_recall@2", "dev_cosine_ndcg@2", "dev_cosine_mrr@2", "dev_cosine_map@2"}
NAMES |= {"dev_cosine_accuracy@2", "dev_cosine_precision@2"}


def search(bench: Bench) -> Any:
    """Each query has two right texts among 24, and 12 queries."""
    corpus = {f"d{number}": text for number, text in enumerate(bench.texts[1][:24])}
    queries = {f"q{number}": text for number, text in enumerate(bench.texts[0][:12])}
    right = {f"q{number}": {f"d{number}", f"d{number + 12}"} for number in range(12)}
    at = {f"{name}_at_k": [2] for name in ("mrr", "ndcg", "accuracy", "precision_recall", "map")}
    return InformationRetrievalEvaluator(queries, corpus, right, name="dev", **at)


def test_each_query_has_the_scores_of_its_own_search(bench: Bench) -> None:
    evaluator = search(bench)
    model = library.SentenceTransformer(bench.folder_of("one", BertModel, num_hidden_layers=1), device="cpu")
    both = SequentialEvaluator([EmbeddingSimilarityEvaluator(*bench.texts, list(range(32))), evaluator])
    assert searches(both) == [evaluator] and searches(None) == []
    with noting_queries(both) as queries:
        scores = both(model)
    assert queries.keys() == NAMES and "compute_metrics" not in vars(evaluator)
    assert {name: values.mean() for name, values in queries.items()} == pytest.approx(
        {name: scores[name] for name in NAMES}
    )
    ours, theirs = (model.encode(texts) for texts in (evaluator.queries, evaluator.corpus))
    cosines = ours @ theirs.T / np.linalg.norm(ours, axis=1)[:, None] / np.linalg.norm(theirs, axis=1)
    for number, row in enumerate(cosines):  # By hand; of equal texts the first by name stands first.
        first = sorted(range(24), key=lambda place, row=row: (-np.float32(row[place]).round(5), f"d{place}"))[:2]
        hits = [place in (number, number + 12) for place in first]
        assert queries["dev_cosine_recall@2"][number] == sum(hits) / 2
        assert queries["dev_cosine_mrr@2"][number] == (1 / (1 + hits.index(True)) if any(hits) else 0)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: Any, tiny_tokenizer: Any, tiny_sentences: Any) -> tuple[Report, Path]:
    """An embedder whose only evaluator is a search, compressed in training, with its report."""
    bench = Bench(tmp_path_factory.mktemp("searched"), tiny_tokenizer, tiny_sentences["sentence"][:])
    folder = bench.folder_of("one", BertModel, num_hidden_layers=1)
    library.SentenceTransformer(folder, device="cpu").save_pretrained(str(bench.folder / "start"))
    model = library.SentenceTransformer(str(bench.folder / "start"), device="cpu")
    run = bench.trainer("run", model, evaluator=search(bench))
    compress(run, recipe((PRUNE, QUANT))).train()
    report = finish(run)
    assert report is not None
    return report, bench.folder / "run" / "compressed"


def test_differences_of_a_search_are_paired_by_query(searched: tuple[Report, Path]) -> None:
    report, folder = searched
    assert report.main_metric == "dev_cosine_ndcg@2" and report.queries == QUERIES_NAME
    assert report.comparison.keys() == report.intervals.keys() == NAMES and not report.without_interval
    kept = stored_queries(folder, report)
    difference = kept["compressed"][report.main_metric] - kept["dense"][report.main_metric]
    found = report.comparison[report.main_metric]
    assert (found.units, found.count, found.value) == ("queries", 12, pytest.approx(difference.mean(), abs=1e-6))
    spread = difference.std() / 12**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.3)
    assert "paired bootstrap, 2,000 resamples of queries; 12 queries" in (folder / "README.md").read_text("utf-8")


def test_edited_scores_of_queries_are_found(searched: tuple[Report, Path], tmp_path: Path) -> None:
    report, folder = searched
    assert check_scores(folder, report).verdict == "true"
    table = pq.read_table(folder / QUERIES_NAME)
    place = table.column_names.index("compressed")
    pq.write_table(table.set_column(place, "compressed", pa.array(np.ones(len(table)))), tmp_path / QUERIES_NAME)
    found = check_scores(tmp_path, report)
    assert found.verdict == "differs" and "The queries of the compressed model give" in found.details[0]
    (tmp_path / QUERIES_NAME).write_bytes(b"no table")
    assert check_scores(tmp_path, report).verdict == "differs"
