"""Scripts of sentence-transformers through the launcher, without a line of ours in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel

from hf_compress.launch import launcher
from hf_compress.report.report import Report

library = pytest.importorskip("sentence_transformers")
ROOT = Path(__file__).parents[2]
FLAGS = ["--quant_scheme", "int8", "--prune_sparsity", "0.5", "--prune_every", "1"]


@pytest.fixture
def start(bench: Any) -> str:
    """The folder of a trained embedder."""
    model = library.SentenceTransformer(bench.folder_of("plain", BertModel), device="cpu")
    model.save_pretrained(str(bench.folder / "start"))
    return str(bench.folder / "start")


def test_the_example_compresses_and_reports(start: str, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.folder)
    data = bench.folder / "data"
    (data / "stsb").mkdir(parents=True)
    splits = ", ".join(f"{{split: {one}, path: stsb/{one}.json}}" for one in ("train", "validation"))
    (data / "README.md").write_text(f"---\nconfigs:\n- config_name: stsb\n  data_files: [{splits}]\n---\n")
    for split in ("train", "validation"):
        rows = [
            {"sentence1": one, "sentence2": two, "label": float(number % 6)}
            for number, (one, two) in enumerate(zip(*bench.texts, strict=True))
        ]
        (data / "stsb" / f"{split}.json").write_text("\n".join(map(json.dumps, rows)))
    said = (
        f"--model_name_or_path {start} --dataset_name {data} --output_dir out --max_steps 8 --use_cpu --report_to none"
    )
    more = (
        "--save_strategy no --disable_tqdm true --distill_teacher self --distill_loss cosine --compress_max_drop 100"
    )
    assert (
        launcher.main([str(ROOT / "examples/train_sentence_transformer.py"), *said.split(), *more.split(), *FLAGS])
        == 0
    )
    report = Report.load("out/compressed")
    assert (report.main_metric, report.task) == ("sts-dev_spearman_cosine", "stsb")
    # Anybody can score these rows again: the split and its columns are found by trial.
    facts, found = report.dataset, report.dataset.preprocessing
    assert (facts.name, facts.config, facts.eval_split, facts.eval_split_rows) == ("data", "stsb", "validation", 32)
    assert found is not None and (found.columns, found.label_column, found.label_scale) == (
        ["sentence1", "sentence2"],
        "label",
        0.2,
    )
    assert report.dense is not None and report.teacher == report.dense and report.verdict == "ACCEPT"
    own, ours = (library.SentenceTransformer(str(path), device="cpu") for path in ("out/final", "out/compressed"))
    assert own.get_embedding_dimension() == ours.get_embedding_dimension()
    assert report.compressed == ours.evaluate(_evaluator(bench))


def _evaluator(bench: Any) -> Any:
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    return EmbeddingSimilarityEvaluator(*bench.texts, [number % 6 / 5 for number in range(32)], name="sts-dev")


def test_several_datasets_and_the_best_model(start: str, bench: Any) -> None:
    out = bench.folder / "pairs"
    assert launcher.main([str(ROOT / "tests/launched/train_pairs.py"), start, str(out), *FLAGS]) == 0
    report = Report.load(out / "compressed")
    assert report.main_metric == "words_spearman_cosine" and "triplets_cosine_accuracy" in report.compressed
    assert "sequential_score" not in report.compressed, "the main score of the last evaluator, again"
    # Its rows are made by the script, so nobody else can score them.
    assert "no pairs of" in (report.dataset.without_preprocessing or "")
    assert report.comparison.keys() >= {"words_spearman_cosine"} and report.dataset.train_rows == 48


def test_a_reranker_from_a_plain_encoder_has_no_dense_model(bench: Any) -> None:
    plain, out = bench.folder_of("plain", BertModel), bench.folder / "reranker"
    assert launcher.main([str(ROOT / "tests/launched/train_reranker.py"), plain, str(out), *FLAGS]) == 0
    report = Report.load(out / "compressed")
    assert report.main_metric == "words_spearman" and report.dense is None and report.sentence_class == "CrossEncoder"
