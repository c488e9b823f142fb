"""A plain fine-tuning script that takes model and data set from the Hub, without anything of compression."""

import sys
from dataclasses import dataclass

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class ScriptArguments:
    model: str
    dataset: str


def main():
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    if len(sys.argv) == 2:
        script, arguments = parser.parse_yaml_file(sys.argv[1])  # JSON is YAML too.
    else:
        script, arguments = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(script.model)
    rows = load_dataset(script.dataset)
    encoded = rows.map(lambda batch: tokenizer(batch["sentence"], truncation=True, max_length=16), batched=True)
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(script.model),
        arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train()
    trainer.save_model()
    print(trainer.evaluate())
    if arguments.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
