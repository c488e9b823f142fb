"""The demonstration: its sentences, and the whole run made small."""

import random
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_compress.report.report import Report
from hf_compress_cli.demonstration import BAD, GOOD, NEGATIONS, main, sentences

SMALL = {"rows": 64, "eval_rows": 32, "dense_steps": 4, "steps": 30, "layers": 1, "width": 64}


def sentiment(text: str) -> int:
    """The sentiment by the grammar's rules, read from the sentence: 1 for positive."""
    main_clause = text.rsplit(" , ", 1)[-1].split()
    return int(any(word in GOOD for word in main_clause) != any(word in NEGATIONS for word in main_clause))


def test_sentences_differ_and_are_labelled_by_main_clause() -> None:
    rows = sentences(2000, seed=0)
    assert len({text for text, _ in rows}) == 2000
    assert 0.45 < sum(label for _, label in rows) / 2000 < 0.55
    assert all(sentiment(text) == label for text, label in rows)


def test_a_seed_fixes_the_sentences_and_spares_the_random_state() -> None:
    random.seed(1)
    state = random.getstate()
    assert sentences(50, seed=3) == sentences(50, seed=3) != sentences(50, seed=4)
    assert random.getstate() == state


def test_counting_kind_and_unkind_words_decides_few_sentences() -> None:
    """What a bag of words could learn at best from adjectives and negations falls far short of the rules."""
    bags: dict[tuple[int, ...], Counter[int]] = {}
    rows = sentences(5000, seed=0)
    for text, label in rows:
        words = text.split()
        bag = tuple(sum(word in kind for word in words) for kind in (GOOD, BAD, NEGATIONS))
        bags.setdefault(bag, Counter())[label] += 1
    best = sum(max(counts.values()) for counts in bags.values()) / len(rows)
    assert best < 0.8


def test_a_small_demo_leaves_a_model_with_report_and_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    report = main(folder, **SMALL)
    assert Report.load(folder / "compressed") == report
    assert report.recipe.name == "kd+mp60+int8"
    assert report.achieved_sparsity >= 0.6
    assert report.parity == 0
    assert "int8 + 60 % sparse" in (folder / "compressed" / "README.md").read_text()
    for name in ("dense", "compressed"):
        model = AutoModelForSequenceClassification.from_pretrained(folder / name)
        assert model.config.id2label == {0: "negative", 1: "positive"}
    assert len(AutoTokenizer.from_pretrained(folder / "compressed")) == model.config.vocab_size
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    printed = capsys.readouterr().out
    assert "weights on disk" in printed
    assert f"hf-compress inspect {folder / 'compressed'}" in printed


def test_a_second_demo_replaces_only_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    main(folder, **SMALL)
    (folder / "notes.txt").write_text("mine")
    assert main(folder, **SMALL, seed=1).seed == 1
    assert (folder / "notes.txt").read_text() == "mine"

    other = tmp_path / "other"
    (other / "compressed").mkdir(parents=True)
    (other / "compressed" / "model.safetensors").write_text("precious")
    with pytest.raises(ValueError, match=r"`--out .*other` holds something other.*Name a new folder"):
        main(other, **SMALL)
    assert (other / "compressed" / "model.safetensors").read_text() == "precious"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_learns_its_task_and_keeps_it_compressed(tmp_path: Path) -> None:
    report = main(tmp_path / "out")
    assert report.dense["accuracy"] > 0.95
    assert report.compressed["accuracy"] > report.dense["accuracy"] - 0.02
    assert report.size.ratio > 6
