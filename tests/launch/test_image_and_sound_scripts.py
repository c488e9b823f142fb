"""Scripts for images and sounds through the launcher, without a line of ours in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    pipeline,
)

from hf_compress.launch import launcher
from hf_compress.report.report import Report
from hf_compress.verify import Data, verify_folder

LAUNCHED = Path(__file__).parents[1] / "launched"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
COLOURS, PITCHES, RATE = ["blue", "green", "red"], ["high", "low"], 16_000
TRAINING = (
    "--do_train --do_eval --remove_unused_columns False --max_steps 8 --learning_rate 1e-3 --use_cpu "
    "--report_to none --save_strategy no --disable_tqdm true --per_device_train_batch_size 8"
)
FLAGS = "--quant_scheme int8 --prune_sparsity 0.5 --prune_every 1 --distill_teacher self --compress_max_drop 100"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures of one colour with noise, in folders by split and class."""
    draw = np.random.default_rng(0)
    for number in range(36):
        noise = draw.integers(0, 120, (12, 10, 3))
        noise[..., 2 - number % 3] += 120
        folder = tmp_path / "pictures" / ("validation" if number % 12 > 8 else "train") / COLOURS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder with two splits of high and low tones, each of another length."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    features = Features({"audio": List(Value("float32")), "label": ClassLabel(names=PITCHES)})
    for split, rows in (("train", 24), ("validation", 10)):
        times = [np.arange(800 + 40 * (number % 5)) / RATE for number in range(rows)]
        tones = [np.sin(6.28 * (300 if number % 2 else 2000) * time) for number, time in enumerate(times)]
        columns = {"audio": tones, "label": [number % 2 for number in range(rows)]}
        Dataset.from_dict(columns, features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def vit(folder: Path) -> None:
    """Write a tiny ViT, whose head knows the colours, with its processor into `folder`."""
    names = {"id2label": dict(enumerate(COLOURS)), "label2id": {name: at for at, name in enumerate(COLOURS)}}
    ViTForImageClassification(ViTConfig(**SIZES, image_size=8, patch_size=4, **names)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)


def wav2vec2(folder: Path) -> None:
    """Write a tiny Wav2Vec2 with its feature extractor into `folder`."""
    convolutions = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    names = {"id2label": dict(enumerate(PITCHES)), "label2id": {name: at for at, name in enumerate(PITCHES)}}
    config = Wav2Vec2Config(**SIZES, **convolutions, **positions, **names, apply_spec_augment=False)
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    # As the published models without a norm of layers: no mask unless the script asks for one.
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)


def launch(script: str, options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the exit status of a script in `tests/launched`, which finds its metric there."""
    monkeypatch.chdir(LAUNCHED)
    return launcher.main([script, *options.split(), *TRAINING.split()])


def of_pictures(pictures: Path, start: Path) -> str:
    train, validation, out = pictures / "train", pictures / "validation", start.parent / "out"
    return f"--model_name_or_path {start} --train_dir {train} --validation_dir {validation} --output_dir {out}"


def test_a_script_for_images_gets_report_and_card(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit(tmp_path / "vit")
    assert launch("train_images.py", f"{of_pictures(pictures, tmp_path / 'vit')} {FLAGS}", monkeypatch) == 0
    folder = tmp_path / "out" / "compressed"
    report = Report.load(folder)
    assert (report.head, report.main_metric, report.verdict) == ("image classification", "accuracy", "ACCEPT")
    assert report.teacher == report.dense and report.parity == 0 and report.comparison.keys() == {"accuracy", "loss"}
    assert report.dataset.preprocessing is not None and report.dataset.preprocessing.kind == "image"
    assert report.labels == dict(enumerate(COLOURS))
    assert {method: shares.convolutions for method, shares in report.touched.items()} == {"pruned": 1, "quantized": 1}
    assert "pipeline_tag: image-classification" in (folder / "README.md").read_text("utf-8")
    found = pipeline("image-classification", str(folder))(str(next(pictures.rglob("*.png"))))
    assert {answer["label"] for answer in found} == set(COLOURS)
    verification = verify_folder(folder, data=Data(dataset=str(pictures)))
    assert verification.verdict == "true" and verification.remeasured is not None
    assert verification.remeasured.rows == report.dataset.eval_rows and verification.remeasured.agreement == 1


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["True", "False"])
def test_a_script_for_sounds_gets_report_card_and_graph(
    mask: str, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, out = tmp_path / "wav2vec2", tmp_path / "out"
    wav2vec2(start)
    options = f"--model_name_or_path {start} --dataset_name {sounds} --output_dir {out} --attention_mask {mask}"
    assert launch("train_sounds.py", f"{options} {FLAGS} --compress_formats onnx", monkeypatch) == 0
    report = Report.load(out / "compressed")
    assert (report.head, report.parity) == ("audio classification", 0)
    assert report.formats["onnx"].scores["accuracy"] == report.compressed["accuracy"]
    found = pipeline("audio-classification", str(out / "compressed"))(np.zeros(800, np.float32))
    assert {answer["label"] for answer in found} == set(PITCHES)
    assert verify_folder(out / "compressed", data=Data(dataset=str(sounds))).verdict == "true"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--quant_scheme int8 --compress_formats web", "`--compress_formats web` is for models that read text"),
        ("--quant_scheme int8 --compress_vocabulary", "`--compress_vocabulary` removes tokens, and this ViT"),
        ("--distill_teacher self --distill_augment 2", "this model does image classification. Leave the options"),
        ("--prune_layers 2", "`--prune_layers`"),
        ("--distill_teacher self --distill_cache", "cannot be used with `Dataset.set_transform`"),
    ],
)
def test_what_images_cannot_have_is_refused_first(
    flags: str, said: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    vit(tmp_path / "vit")
    assert launch("train_images.py", f"{of_pictures(pictures, tmp_path / 'vit')} {flags}", monkeypatch) == 1
    error = capsys.readouterr().err
    assert said in error.partition("Error: ")[2]
    assert "Traceback" not in error and not (tmp_path / "out" / "compressed").exists()
