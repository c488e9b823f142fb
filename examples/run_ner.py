"""Fine-tune a token classifier (names, parts of speech) on JSON lines with the columns `tokens` and `tags`.

Without the marked lines this is an ordinary script; with them it takes hf_compress's flags as well.

    python examples/run_ner.py --model_name_or_path google-bert/bert-base-cased --train_file train.jsonl \\
        --validation_file dev.jsonl --output_dir ner --prune_sparsity 0.6 --quant_scheme int8
"""

import sys
from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

# --- hf_compress: begin ---
import hf_compress

# --- hf_compress: end ---


@dataclass
class ScriptArguments:
    """The model and the data."""

    model_name_or_path: str = field(metadata={"help": "Model to fine-tune: a path or a Hub id."})
    train_file: str = field(metadata={"help": "JSON lines to train on."})
    validation_file: str = field(metadata={"help": "JSON lines to evaluate on."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens after which a row is cut."})


def main() -> None:
    # --- hf_compress: begin ---
    flags = hf_compress.take_flags(sys.argv)
    # --- hf_compress: end ---
    script_args, training_args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)  # Before the model, whose head may be new.
    files = {"train": script_args.train_file, "validation": script_args.validation_file}
    raw = load_dataset("json", data_files=files)
    names = sorted({tag for tags in raw["train"]["tags"] for tag in tags})
    numbers = {name: number for number, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path, add_prefix_space=True)
    model = AutoModelForTokenClassification.from_pretrained(
        script_args.model_name_or_path, id2label=dict(enumerate(names)), label2id=numbers
    )

    def encode(rows):
        length = script_args.max_seq_length
        encoded = tokenizer(rows["tokens"], is_split_into_words=True, truncation=True, max_length=length)
        encoded["labels"] = []
        for row, tags in enumerate(rows["tags"]):
            words = encoded.word_ids(row)
            # The first piece of a word carries its tag.
            firsts = [word is not None and word != before for word, before in zip(words, [None, *words], strict=False)]
            labels = [numbers[tags[word]] if first else -100 for word, first in zip(words, firsts, strict=True)]
            encoded["labels"].append(labels)
        return encoded

    data = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)

    def compute_metrics(prediction):
        counted = prediction.label_ids != -100
        hits = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(np.mean(hits[counted]))}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    # --- hf_compress: begin ---
    options = flags.options
    hf_compress.compress(
        trainer,
        flags.recipe,
        hub_id=options.compress_hub_id,
        max_drop=options.compress_max_drop,
        control=options.compress_control,
    )
    # --- hf_compress: end ---
    trainer.train()
    trainer.log_metrics("eval", trainer.evaluate())
    # --- hf_compress: begin ---
    report = hf_compress.finish(trainer, formats=options.compress_formats, card_metadata=options.author)
    if status := hf_compress.exit_status(report):
        sys.exit(status)
    # --- hf_compress: end ---


if __name__ == "__main__":
    main()
