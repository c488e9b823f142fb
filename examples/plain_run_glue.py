"""Fine-tune a model on GLUE, or on sentences of your own in CSV files: an ordinary script that does not compress.

    python examples/plain_run_glue.py --model_name_or_path google-bert/bert-base-uncased --task_name rte \\
        --output_dir rte --do_train --do_eval
    hf-compress run examples/plain_run_glue.py ... --compress_recipe paper-all-60
"""

import sys
from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from scipy.stats import pearsonr
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

SENTENCES = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}


@dataclass
class ScriptArguments:
    """The model and the data."""

    model_name_or_path: str = field(metadata={"help": "Model to fine-tune: a path or a Hub id."})
    task_name: str | None = field(default=None, metadata={"help": "GLUE task.", "choices": list(SENTENCES)})
    dataset_name: str = field(default="nyu-mll/glue", metadata={"help": "Where GLUE is: a Hub id or a folder."})
    train_file: str | None = field(default=None, metadata={"help": "CSV file in place of a task: sentence, label."})
    validation_file: str | None = field(default=None, metadata={"help": "CSV file to evaluate on."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens after which a row is cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows only."})


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        script_args, training_args = parser.parse_json_file(sys.argv[1])
    else:
        script_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    if script_args.task_name is not None:
        raw = load_dataset(script_args.dataset_name, script_args.task_name)
    else:
        files = {"train": script_args.train_file, "validation": script_args.validation_file}
        raw = load_dataset("csv", data_files=files)
    columns = SENTENCES.get(script_args.task_name, ("sentence",))
    validation = "validation_matched" if script_args.task_name == "mnli" else "validation"
    regression = script_args.task_name == "stsb"
    num_labels = 1 if regression else len(set(raw["train"]["label"]))

    config = AutoConfig.from_pretrained(script_args.model_name_or_path, num_labels=num_labels)
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(script_args.model_name_or_path, config=config)

    def tokenize(rows):
        texts = (rows[column] for column in columns)
        return tokenizer(*texts, truncation=True, max_length=script_args.max_seq_length)

    with training_args.main_process_first(desc="tokenizing"):
        data = raw.map(tokenize, batched=True)
    train_dataset, eval_dataset = data["train"], data[validation]
    if script_args.max_train_samples is not None:
        train_dataset = train_dataset.select(range(min(len(train_dataset), script_args.max_train_samples)))
    if script_args.max_eval_samples is not None:
        eval_dataset = eval_dataset.select(range(min(len(eval_dataset), script_args.max_eval_samples)))

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        if regression:
            return {"pearson": float(pearsonr(prediction.predictions[:, 0], prediction.label_ids)[0])}
        return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=eval_dataset if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate(eval_dataset=eval_dataset)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
