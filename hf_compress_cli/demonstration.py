"""A complete run without any download: synthetic sentences, a small BERT, and all three methods at once."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hf_compress.checkpoint.aside import written_aside
from hf_compress.distill import DistillationArguments
from hf_compress.launch.run import compress, finish
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report.report import REPORT_NAME, DatasetFacts, Report
from hf_compress.report.tables import comparison_table

TASK = "synthetic sentences"
LABELS = ("negative", "positive")
DENSE, COMPRESSED = "dense", "compressed"
RECIPE = Recipe(
    DistillationArguments(distill_teacher="self"),
    PruningArguments(prune_sparsity=0.6),
    QuantizationArguments(quant_scheme="int8"),
)

THINGS = ("film", "story", "plot", "script", "cast", "song", "album", "novel", "scene", "show", "meal", "soup", "room")
VERBS = ("is", "was", "seems", "seemed")
GOOD = (
    "good",
    "great",
    "clever",
    "warm",
    "moving",
    "funny",
    "fresh",
    "bright",
    "lovely",
    "elegant",
    "honest",
    "witty",
)
BAD = ("bad", "dull", "clumsy", "cold", "boring", "stale", "flat", "weak", "ugly", "tedious", "shallow", "silly")
NEGATIONS = ("not", "never", "hardly")
DEGREES = ("very", "rather", "quite", "really", "truly", "so")
TIMES = ("today", "again", "in the end", "at first", "for once", "as usual")


def sentences(rows: int, seed: int) -> list[tuple[str, int]]:
    """Return `rows` different sentences with their sentiment, 1 for positive; the same for the same seed.

    No single word decides: a negation inverts its adjective, and of two clauses only the main one counts. For example,
    "the plot was not dull , but the cast is hardly witty" is negative.
    """
    draw = random.Random(seed)
    found: dict[str, int] = {}
    while len(found) < rows:
        label, form = draw.randrange(2), draw.choice(("{main}", "{aside} , but {main}", "although {aside} , {main}"))
        text = form.format(main=_clause(draw, label), aside=_clause(draw, draw.randrange(2)))
        found[text] = label
    return list(found.items())


def _clause(draw: random.Random, label: int) -> str:
    """Return a clause with the sentiment `label`: an adjective of it, or a negated one of the other."""
    negated = draw.random() < 0.4
    words = ["the", draw.choice(THINGS), draw.choice(VERBS)]
    if negated:
        words.append(draw.choice(NEGATIONS))
    if draw.random() < 0.4:
        words.append(draw.choice(DEGREES))
    words.append(draw.choice(GOOD if label != negated else BAD))
    if draw.random() < 0.3:
        words.append(draw.choice(TIMES))
    return " ".join(words)


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with BERT's special tokens and one token for each word of `texts`."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=list(special.values())))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **special)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, within the context: layers this small are slower with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def main(
    folder: Path,
    *,
    rows: int = 12_000,
    eval_rows: int = 1_000,
    dense_steps: int = 400,
    steps: int = 400,
    layers: int = 4,
    width: int = 128,
    seed: int = 0,
) -> Report:
    """Train a dense model, compress it with all three methods and itself as the teacher, and return the report.

    Afterwards, `folder` holds the dense model in `dense`, and the compressed one with report and card in `compressed`.
    An earlier demonstration in `folder` is replaced.

    Raises:
        ValueError: `folder` holds something else.
    """
    folder = Path(folder).resolve()
    _check_free(folder)
    console = Console()
    set_seed(seed)
    text, labels = zip(*sentences(rows + eval_rows, seed), strict=True)
    console.print(f'{rows:,} synthetic sentences such as "{text[0]}" ({LABELS[labels[0]]}).')
    common = _parts(text, labels, rows)

    with written_aside(folder, COMPRESSED, replace=True) as aside:
        work = aside.parent  # Everything written here moves to `folder` at the end.
        console.print(f"\n[bold]1. Train the dense model[/bold] ({layers} layers, width {width}, {dense_steps} steps)")
        model = _model(len(common["processing_class"]), layers, width)
        trainer = Trainer(model=model, args=_arguments(work, dense_steps, 1e-3, seed), **common)
        trainer.train()
        dense = trainer.evaluate()
        trainer.save_model(str(work / DENSE))

        console.print(f"\n[bold]2. Compress it[/bold] ({RECIPE.name}, {steps} steps, the dense model is the teacher)")
        # Loaded again, because a second Trainer would not prepare a model that the first one has prepared.
        model = BertForSequenceClassification.from_pretrained(work / DENSE)
        trainer = Trainer(model=model, args=_arguments(work, steps, 5e-4, seed), **common)
        compress(trainer, RECIPE)
        trainer.train()
        report = finish(
            trainer,
            base_model=f"bert-{layers}x{width}",
            task=TASK,
            dataset=DatasetFacts(TASK, None, "train", rows, "validation", eval_rows),
            main_metric="accuracy",
            dense=dense,
        )
    assert report is not None, "there is an evaluation set"

    console.print("\n[bold]3. Compare[/bold]")
    console.print(comparison_table(report))
    classify = pipeline("text-classification", model=str(folder / COMPRESSED), device="cpu")
    for example in text[rows : rows + 3]:
        console.print(f"{classify(example)[0]['label']}: {example}")
    console.print(f"\nThe compressed model and its card (README.md) are in {folder / COMPRESSED}. Next:")
    console.print(f"  hf-compress inspect {folder / COMPRESSED}", soft_wrap=True)
    console.print("  hf-compress run --help", soft_wrap=True)
    return report


def _parts(text: Sequence[str], labels: Sequence[int], rows: int) -> dict[str, Any]:
    """Return what a Trainer needs besides model and arguments; the first `rows` sentences are to train on."""
    tokenizer = build_tokenizer(list(text[:rows]))
    data = Dataset.from_dict({**tokenizer(list(text), return_token_type_ids=False), "label": labels})
    return {
        "train_dataset": data.select(range(rows)),
        "eval_dataset": data.select(range(rows, len(data))),
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": _accuracy,
    }


def _model(tokens: int, layers: int, width: int) -> BertForSequenceClassification:
    """Return a small BERT with random weights."""
    config = BertConfig(
        vocab_size=tokens,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        max_position_embeddings=48,
        # Training is too short to overfit, and dropout would only slow it down.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    return BertForSequenceClassification(config)


def _arguments(folder: Path, steps: int, learning_rate: float, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=learning_rate,
        warmup_steps=steps // 10,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=100,
        logging_strategy="no",
        save_strategy="no",
        dataloader_pin_memory=False,
        report_to="none",
        seed=seed,
    )


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}


def _check_free(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    ours = folder / COMPRESSED
    if not (ours / REPORT_NAME).is_file() or Report.load(ours).task != TASK:
        raise ValueError(f"`--out {folder}` holds something other than an earlier demonstration. Name a new folder.")
