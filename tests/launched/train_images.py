"""A script like Transformers' run_image_classification.py, without anything of compression."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class DataTrainingArguments:
    train_dir: str = field(metadata={"help": "A folder of pictures, with a folder for each class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same for the evaluation."})
    train_val_split: float = field(default=0.25, metadata={"help": "Share of the training set to evaluate on."})


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Path to pretrained model."})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Load a model with another head."})


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
    files = {name: str(Path(folder) / "**") for name, folder in folders.items() if folder is not None}
    dataset = load_dataset("imagefolder", data_files=files)
    if "validation" not in dataset:
        split = dataset["train"].train_test_split(data_args.train_val_split, seed=training_args.seed)
        dataset["train"], dataset["validation"] = split["train"], split["test"]

    labels = dataset["train"].features["label"].names
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        num_labels=len(labels),
        id2label={str(number): label for number, label in enumerate(labels)},
        label2id={label: str(number) for number, label in enumerate(labels)},
        finetuning_task="image-classification",
    )
    model = AutoModelForImageClassification.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
    )
    processor = AutoImageProcessor.from_pretrained(model_args.model_name_or_path)

    def prepared(images):
        return list(processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"])

    def train_transforms(rows):
        pixels = prepared(rows["image"])
        rows["pixel_values"] = [picture.flip(-1) if torch.rand(()) < 0.5 else picture for picture in pixels]
        return rows

    def val_transforms(rows):
        rows["pixel_values"] = prepared(rows["image"])
        return rows

    dataset["train"].set_transform(train_transforms)
    dataset["validation"].set_transform(val_transforms)

    def collate(rows):
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    metric = evaluate.load("accuracy")

    def compute_metrics(p):
        return metric.compute(predictions=np.argmax(p.predictions, axis=1), references=p.label_ids)

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"] if training_args.do_train else None,
        eval_dataset=dataset["validation"] if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        processing_class=processor,
        data_collator=collate,
    )
    if training_args.do_train:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
    if training_args.do_eval:
        trainer.log_metrics("eval", trainer.evaluate())
    trainer.create_model_card(finetuned_from=model_args.model_name_or_path, tasks="image-classification")


if __name__ == "__main__":
    sys.exit(main())
