"""Facts for the people who read a card are found, or left out: never guessed."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from hf_compress.models.heads import find_head
from hf_compress.report.background import find_baseline, label_names, license_and_languages
from hf_compress.report.course import MOST_POINTS, emissions_kg, training_curves
from hf_compress.report.evaluation import Origin
from hf_compress.report.examples import find_example
from hf_compress.report.report import DatasetFacts

FILMS = DatasetFacts("films", None, "train", 10, "validation", 5)
ON_HUB = replace(FILMS, hub_id="me/films")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[tuple[str, str], str]:
    """READMEs of the Hub by kind and id."""
    readmes: dict[tuple[str, str], str] = {}

    def download(self: Any, repo_id: str, filename: str, repo_type: str) -> str:
        if (repo_type, repo_id) not in readmes:
            raise FileNotFoundError(repo_id)
        path = tmp_path / "README.md"
        path.write_text(readmes[repo_type, repo_id])
        return str(path)

    monkeypatch.setattr("hf_compress.report.background.HfApi.hf_hub_download", download)
    return readmes


def test_licence_is_the_base_models_language_the_datas(hub: dict[tuple[str, str], str]) -> None:
    hub["model", "me/base"] = "---\nlicense: apache-2.0\nlanguage: [de, en]\n---\n"
    hub["dataset", "me/films"] = "---\nlicense: cc-by-4.0\nlanguage: no\n---\n"
    assert license_and_languages(None, "me/base", ON_HUB) == ("apache-2.0", ["no"])
    assert license_and_languages(None, "me/base", FILMS) == ("apache-2.0", ["de", "en"])


@pytest.mark.parametrize("readme", ["", "---\nlicense: [a\n---\n", "---\nlicense: unknown\nlanguage: {a: b}\n---\n"])
def test_unknown_licence_and_language_are_left_out(hub: dict[tuple[str, str], str], readme: str) -> None:
    assert license_and_languages(None, "me/base", ON_HUB) == (None, [])
    hub["model", "me/base"] = readme
    assert license_and_languages(None, "me/base", ON_HUB) == (None, [])


def test_a_local_base_model_says_its_licence(tmp_path: Path, hub: dict[tuple[str, str], str]) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nA model.")
    assert license_and_languages(tmp_path, None, FILMS) == ("mit", [])


def test_label_names_come_from_the_model_or_the_data() -> None:
    named = SimpleNamespace(id2label={0: "bad", 1: "good"})
    plain = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})
    rows = Dataset.from_dict({"label": [0, 1]}, Features({"label": ClassLabel(names=["no", "yes"])}))
    assert label_names(named, True, rows) == {0: "bad", 1: "good"}
    assert label_names(plain, True, rows) == {0: "no", 1: "yes"}
    assert label_names(plain, True, rows.cast_column("label", Value("int64"))) is None
    assert label_names(named, False, rows) is None


def test_the_baseline_says_how_long_it_was_trained(tmp_path: Path) -> None:
    origin = Origin(str(tmp_path), None, True, tmp_path)
    assert find_baseline(origin).epochs is None
    (tmp_path / "eval_results.json").write_text(json.dumps({"epoch": 2.0}))
    assert (find_baseline(origin).epochs, find_baseline(origin).steps) == (2.0, None)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"epoch": 3.0, "global_step": 90}))
    assert (find_baseline(origin).epochs, find_baseline(origin).steps) == (3.0, 90)
    (tmp_path / "trainer_state.json").write_text("[")
    assert find_baseline(origin).epochs == 2.0


def test_curves_hold_loss_score_and_sparsity() -> None:
    log = [
        {"loss": 0.9, "sparsity": 0.0, "learning_rate": 1e-4, "step": 10},
        {"eval_accuracy": 0.6, "eval_loss": 0.8, "step": 10},
        {"loss": 0.5, "sparsity": 0.5, "step": 20},
        {"eval_accuracy": 0.7, "step": 20},
        {"train_runtime": 3.0, "train_loss": 0.7, "step": 20},
    ]
    assert training_curves(log, "accuracy") == {
        "loss": [[10, 0.9], [20, 0.5]],
        "accuracy": [[10, 0.6], [20, 0.7]],
        "sparsity": [[10, 0.0], [20, 0.5]],
    }
    assert training_curves(log[:1], "accuracy") == {}


def test_long_curves_keep_both_ends() -> None:
    (points,) = training_curves([{"loss": 1.0 / step, "step": step} for step in range(1, 5001)], "f1").values()
    assert len(points) == MOST_POINTS
    assert points[0] == [1, 1.0] and points[-1] == [5000, 1 / 5000]
    assert points == sorted(points)


def test_emissions_are_those_that_codecarbon_measured() -> None:
    class CodeCarbonCallback:
        tracker = SimpleNamespace(final_emissions=0.0021)

    trainer: Any = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[object(), CodeCarbonCallback()]))
    assert emissions_kg(trainer) == 0.0021
    CodeCarbonCallback.tracker = None  # type: ignore[assignment]  # On other processes than the first.
    assert emissions_kg(trainer) is None


@pytest.fixture
def classifier(tiny_tokenizer: Any, tmp_path: Path) -> Trainer:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    labels: dict[str, Any] = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tiny_tokenizer), **labels, **sizes)).eval()
    rows = Dataset.from_list([{**tiny_tokenizer(text), "label": 0} for text in ("x " * 150, "the film is good")])
    return Trainer(
        model,
        TrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
        eval_dataset=rows,
        processing_class=tiny_tokenizer,
        data_collator=DataCollatorWithPadding(tiny_tokenizer),
    )


def example_of(trainer: Trainer, dataset: DatasetFacts, author: dict[str, Any]) -> Any:
    model: Any = trainer.model
    return find_example(trainer, model, find_head(model), dataset, author)


def test_the_example_is_a_short_row_with_its_answer(classifier: Trainer) -> None:
    found = example_of(classifier, ON_HUB, {})
    tokenizer: Any = classifier.processing_class
    batch = tokenizer(found.inputs, return_tensors="pt")
    model: Any = classifier.model
    probabilities = model(**batch).logits.detach().softmax(-1)[0]
    best = int(probabilities.argmax())
    assert found.output == [{"label": ["bad", "good"][best], "score": round(float(probabilities[best]), 4)}]
    assert len(found.inputs) == 1 and 0 < len(found.inputs[0]) <= 200


def test_rows_that_are_not_published_stay_private(classifier: Trainer) -> None:
    assert example_of(classifier, FILMS, {}) is None
    assert example_of(classifier, FILMS, {"example": ["good"]}).inputs == ["good"]
    assert example_of(classifier, ON_HUB, {"example": False}) is None
    assert len(example_of(classifier, ON_HUB, {"example": ["good", "film"]}).output) == 1


def test_rows_as_tensors_give_the_same_example(classifier: Trainer) -> None:
    plain = example_of(classifier, ON_HUB, {})
    rows: Any = classifier.eval_dataset
    rows.set_format("torch")
    assert example_of(classifier, ON_HUB, {}) == plain


def test_an_example_that_a_head_cannot_answer_is_left_out(tiny_tokenizer: Any, classifier: Trainer) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(tiny_tokenizer), **sizes)
    for head, wrong, right in (
        (BertForTokenClassification(config), ["one", "two"], ["the film"]),
        (BertForMaskedLM(config), ["no mask"], [f"the {tiny_tokenizer.mask_token} is good"]),
        (BertForMaskedLM(config), [f"{tiny_tokenizer.mask_token} {tiny_tokenizer.mask_token}"], None),
    ):
        classifier.model = head.eval()
        assert example_of(classifier, FILMS, {"example": wrong}) is None
        if right:
            assert example_of(classifier, FILMS, {"example": right}).output
