"""Fine-tune a causal language model on JSON lines with a column `text`, with the plain Trainer.

Without the marked lines this is an ordinary script; with them it takes hf_compress's flags as well.

    python examples/train_sft.py --model_name_or_path openai-community/gpt2 --train_file train.jsonl \\
        --validation_file dev.jsonl --output_dir sft --distill_teacher self --quant_scheme int8
"""

import sys
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
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

    model_name_or_path: str = field(metadata={"help": "Model to fine-tune: a path or a Hub id."})
    train_file: str = field(metadata={"help": "JSON lines to train on."})
    validation_file: str = field(metadata={"help": "JSON lines to evaluate on."})
    max_seq_length: int = field(default=512, metadata={"help": "Tokens after which a text is cut."})


def main() -> None:
    # --- hf_compress: begin ---
    flags = hf_compress.take_flags(sys.argv)
    # --- hf_compress: end ---
    script_args, training_args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    files = {"train": script_args.train_file, "validation": script_args.validation_file}
    raw = load_dataset("json", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(script_args.model_name_or_path)

    def encode(rows):
        return tokenizer(rows["text"], truncation=True, max_length=script_args.max_seq_length)

    data = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
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
