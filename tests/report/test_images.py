"""A model of images gets a report, a card and a bench as a model of text does."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_compress.checkpoint.save import save_compressed
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report import DatasetFacts, Report, bench, latency_table, measure, save_card

RECIPE = Recipe(quantization=QuantizationArguments(quant_scheme="int8"))
ROWS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The folder of a tiny ViT after five steps of training in int8, and its report."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes))
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": index % 3} for index in range(ROWS)]
    folder = tmp_path_factory.mktemp("vit")
    arguments = TrainingArguments(
        str(folder / "run"), max_steps=5, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=RECIPE.callbacks())
    trainer.train()
    small = save_compressed(trainer.model, folder / "small", RECIPE)
    facts = DatasetFacts("noise", None, "train", ROWS, "train", ROWS)
    report = measure(trainer, small, RECIPE, base_model="vit", task="noise", dataset=facts, dense=None)
    report.save(small)
    return small, report


def test_a_report_measures_an_image_model(run: tuple[Path, Report]) -> None:
    folder, report = run
    assert (report.head, report.pipeline_tag) == ("image classification", "image-classification")
    assert report.auto_class == "AutoModelForImageClassification"
    assert (report.parity, report.parity_rows) == (0.0, ROWS)
    assert report.size.packed_bytes == (folder / "model.safetensors").stat().st_size


def test_a_card_describes_an_image_model(run: tuple[Path, Report]) -> None:
    card = save_card(run[0]).read_text("utf-8")
    assert "pipeline_tag: image-classification" in card
    assert (
        'predict = pipeline("image-classification", model="path/to/this/folder")\nprint(predict("picture.jpg"))'
        in card
    )


def test_an_image_model_is_benched_by_rows(run: tuple[Path, Report]) -> None:
    latency = bench([run[0]], batch_sizes=[1, 2], lengths=[128], rounds=1)
    assert [variant.name for variant in latency.variants] == ["torch-fp32", "torch-dense", "torch-int8"]
    assert {(timing.batch_size, timing.length) for timing in latency.timings} == {(1, None), (2, None)}
    assert latency_table(latency).row_count == 6
