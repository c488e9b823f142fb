"""Finished folders to push: a tiny model, trained for a few steps and compressed, with report and card."""

from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_compress import DistillationArguments, PruningArguments, QuantizationArguments, Recipe, compress, finish
from hf_compress.report.card import save_card
from tests.hub import seeds

RECIPE = Recipe(
    DistillationArguments(distill_teacher="self"),
    PruningArguments(prune_sparsity=0.6, prune_every=1),
    QuantizationArguments(quant_scheme="int8"),
)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make(folder: Path, *, seed: int = 0, formats: tuple[str, ...] = ("packed",)) -> Path:
    """Train and finish in `folder`, and return the finished folder."""
    set_seed(seed)
    tokenizer = seeds.tokenizer()
    data = seeds.sentences(64, seed).map(lambda rows: tokenizer(rows["sentence"], truncation=True), batched=True)
    trainer = Trainer(
        AutoModelForSequenceClassification.from_config(seeds.config(len(tokenizer))),
        TrainingArguments(
            str(folder),
            max_steps=4,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=data.select(range(48)),
        eval_dataset=data.select(range(48, 64)),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    compress(trainer, RECIPE)
    trainer.train()
    finish(trainer, task="made-up films", formats=formats)
    return folder / "compressed"


def with_more_files(folder: Path, count: int) -> Path:
    """Add files until the folder holds `count`, and record them."""
    (folder / "extra").mkdir()
    for number in range(count - sum(path.is_file() for path in folder.rglob("*"))):
        (folder / "extra" / f"part-{number:02}.bin").write_bytes(bytes([number]) * 1000)
    save_card(folder)
    return folder
