"""Fine-tune a sequence-to-sequence model on JSON lines with the columns `document` and `summary`.

Without the marked lines this is an ordinary script; with them it takes hf_compress's flags as well.

    python examples/run_summarization.py --model_name_or_path google-t5/t5-small --train_file train.jsonl \\
        --validation_file dev.jsonl --output_dir summaries --predict_with_generate --quant_scheme int8
"""

import sys
from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
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
    prefix: str = field(default="", metadata={"help": "What to put before each document, such as 'summarize: '."})
    max_source_length: int = field(default=512, metadata={"help": "Tokens after which a document is cut."})
    max_target_length: int = field(default=64, metadata={"help": "Tokens after which a summary is cut."})


def main() -> None:
    # --- hf_compress: begin ---
    flags = hf_compress.take_flags(sys.argv)
    # --- hf_compress: end ---
    parser = HfArgumentParser((ScriptArguments, Seq2SeqTrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses()
    files = {"train": script_args.train_file, "validation": script_args.validation_file}
    raw = load_dataset("json", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(script_args.model_name_or_path)

    def encode(rows):
        documents = [script_args.prefix + document for document in rows["document"]]
        encoded = tokenizer(documents, truncation=True, max_length=script_args.max_source_length)
        targets = tokenizer(text_target=rows["summary"], truncation=True, max_length=script_args.max_target_length)
        encoded["labels"] = targets["input_ids"]
        return encoded

    data = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)

    def compute_metrics(prediction):
        """The share of a summary's words that were found: ROUGE-1 recall without stemming."""
        ids = [np.where(rows >= 0, rows, tokenizer.pad_token_id) for rows in prediction]
        found, wanted = (tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in ids)
        words = [(set(one.split()), set(other.split())) for one, other in zip(found, wanted, strict=True)]
        return {"recall": float(np.mean([len(one & other) / max(len(other), 1) for one, other in words]))}

    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
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
