"""Fine-tune an extractive question answerer on JSON lines: `question`, `context`, `answer`, `answer_start`.

Without the marked lines this is an ordinary script; with them it takes hf_compress's flags as well.

    python examples/run_qa.py --model_name_or_path google-bert/bert-base-uncased --train_file train.jsonl \\
        --validation_file dev.jsonl --output_dir qa --distill_teacher TEACHER --prune_sparsity 0.6
"""

import sys
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
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
    max_seq_length: int = field(default=384, metadata={"help": "Tokens after which question and context are cut."})


def main() -> None:
    # --- hf_compress: begin ---
    flags = hf_compress.take_flags(sys.argv)
    # --- hf_compress: end ---
    script_args, training_args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)  # Before the model, whose head may be new.
    files = {"train": script_args.train_file, "validation": script_args.validation_file}
    raw = load_dataset("json", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForQuestionAnswering.from_pretrained(script_args.model_name_or_path)

    def encode(rows):
        length = script_args.max_seq_length
        encoded = tokenizer(rows["question"], rows["context"], truncation="only_second", max_length=length)
        ends = [start + len(answer) - 1 for start, answer in zip(rows["answer_start"], rows["answer"], strict=True)]
        for name, characters in (("start_positions", rows["answer_start"]), ("end_positions", ends)):
            places = [encoded.char_to_token(row, at, sequence_index=1) for row, at in enumerate(characters)]
            # A truncated answer has no position: label the first token instead.
            encoded[name] = [place or 0 for place in places]
        return encoded

    data = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)

    def compute_metrics(prediction):
        starts, ends = (logits.argmax(-1) for logits in prediction.predictions[:2])
        hits = (starts == prediction.label_ids[0]) & (ends == prediction.label_ids[1])
        return {"exact_match": float(hits.mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
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
