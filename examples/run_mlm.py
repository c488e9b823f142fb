"""Train a masked language model further on JSON lines with a column `text`.

Without the marked lines this is an ordinary script; with them it takes hf_compress's flags as well.

    python examples/run_mlm.py --model_name_or_path google-bert/bert-base-uncased --train_file train.jsonl \\
        --validation_file dev.jsonl --output_dir mlm --compress_recipe paper-all-60
"""

import sys
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

# --- hf_compress: begin ---
import hf_compress

# --- hf_compress: end ---


@dataclass
class ScriptArguments:
    """The model and the data."""

    model_name_or_path: str = field(metadata={"help": "Model to train further: a path or a Hub id."})
    train_file: str = field(metadata={"help": "JSON lines to train on."})
    validation_file: str = field(metadata={"help": "JSON lines to evaluate on."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens after which a text is cut."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens to mask."})


def main() -> None:
    # --- hf_compress: begin ---
    flags = hf_compress.take_flags(sys.argv)
    # --- hf_compress: end ---
    script_args, training_args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    files = {"train": script_args.train_file, "validation": script_args.validation_file}
    raw = load_dataset("json", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForMaskedLM.from_pretrained(script_args.model_name_or_path)

    def encode(rows):
        return tokenizer(rows["text"], truncation=True, max_length=script_args.max_seq_length)

    data = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)
    probability = script_args.mlm_probability
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        # The same seed masks the same tokens whenever the validation rows are read.
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=training_args.seed),
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
