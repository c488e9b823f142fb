"""A script like Transformers' run_audio_classification.py, without anything of compression."""

import random
import sys
from dataclasses import dataclass, field

import evaluate
import numpy as np
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class DataTrainingArguments:
    dataset_name: str = field(metadata={"help": "A dataset with samples in `audio`, and classes in `label`."})
    train_split_name: str = field(default="train", metadata={"help": "The split to train on."})
    eval_split_name: str = field(default="validation", metadata={"help": "The split to evaluate on."})
    max_length_seconds: float = field(default=0.1, metadata={"help": "Length that a sound is cut to in training."})


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Path to pretrained model."})
    freeze_feature_encoder: bool = field(default=True, metadata={"help": "Do not train the convolutions."})
    attention_mask: bool = field(default=True, metadata={"help": "Whether the feature extractor makes a mask."})


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    splits = {"train": data_args.train_split_name, "eval": data_args.eval_split_name}
    dataset = {name: load_dataset(data_args.dataset_name, split=split) for name, split in splits.items()}
    extractor = AutoFeatureExtractor.from_pretrained(
        model_args.model_name_or_path, return_attention_mask=model_args.attention_mask
    )
    name, rate = extractor.model_input_names[0], extractor.sampling_rate

    def cut(sound):
        length = round(data_args.max_length_seconds * rate)
        start = random.randint(0, max(len(sound) - length, 0))
        return np.asarray(sound[start : start + length])

    def train_transforms(rows):
        inputs = extractor(list(map(cut, rows["audio"])), sampling_rate=rate)
        return {name: inputs[name], "labels": list(rows["label"])}

    def val_transforms(rows):
        inputs = extractor(list(map(np.asarray, rows["audio"])), sampling_rate=rate)
        return {name: inputs[name], "labels": list(rows["label"])}

    labels = dataset["train"].features["label"].names
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        num_labels=len(labels),
        id2label={str(number): label for number, label in enumerate(labels)},
        label2id={label: str(number) for number, label in enumerate(labels)},
        finetuning_task="audio-classification",
    )
    model = AutoModelForAudioClassification.from_pretrained(model_args.model_name_or_path, config=config)
    if model_args.freeze_feature_encoder and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    dataset["train"].set_transform(train_transforms, output_all_columns=False)
    dataset["eval"].set_transform(val_transforms, output_all_columns=False)

    metric = evaluate.load("accuracy")

    def compute_metrics(p):
        return metric.compute(predictions=np.argmax(p.predictions, axis=1), references=p.label_ids)

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"] if training_args.do_train else None,
        eval_dataset=dataset["eval"] if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        processing_class=extractor,
    )
    if training_args.do_train:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
    if training_args.do_eval:
        trainer.log_metrics("eval", trainer.evaluate())
    trainer.create_model_card(finetuned_from=model_args.model_name_or_path, tasks="audio-classification")


if __name__ == "__main__":
    sys.exit(main())
