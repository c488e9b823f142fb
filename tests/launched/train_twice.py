"""A script with two Trainers: one only evaluates; the other trains, in a class defined in a function."""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments


def build(model, data, tokenizer, folder):
    class WeightedTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            weight = torch.tensor([1.0, 2.0], device=labels.device)
            loss = torch.nn.functional.cross_entropy(outputs.logits, labels, weight=weight)
            return (loss, outputs) if return_outputs else loss

    arguments = TrainingArguments(
        folder, max_steps=8, learning_rate=1e-3, save_strategy="no", disable_tqdm=True, use_cpu=True, report_to="none"
    )
    return WeightedTrainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer)


def main(model_path, file, folder):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    data = load_dataset("csv", data_files={"train": file})["train"]
    data = data.map(lambda rows: tokenizer(rows["sentence"], padding="max_length", max_length=10), batched=True)
    before = Trainer(
        AutoModelForSequenceClassification.from_pretrained(model_path),
        TrainingArguments(folder + "/before", disable_tqdm=True, use_cpu=True, report_to="none"),
        eval_dataset=data,
        processing_class=tokenizer,
    )
    scores = before.evaluate()
    trainer = build(AutoModelForSequenceClassification.from_pretrained(model_path), data, tokenizer, folder)
    trainer.train()
    trainer.save_model()
    Path(folder, "classes.json").write_text(
        json.dumps([[kind.__name__ for kind in type(one).__mro__] for one in (before, trainer)])
    )
    print("before", scores["eval_loss"], "after", trainer.evaluate()["eval_loss"])


if __name__ == "__main__":
    main(*sys.argv[1:])
    raise SystemExit
