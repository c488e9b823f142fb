"""Fine-tune a Transformers model on GLUE or on sentences of your own, and compress it while it trains.

Without a flag of hf_compress this is an ordinary fine-tuning script. With such flags the model is compressed during
training, and OUTPUT_DIR/compressed holds the small model, its report and its card. The lines that do this are marked.

    python examples/run_glue.py --model_name_or_path google-bert/bert-base-uncased --task_name sst2 \\
        --output_dir sst2-small --do_train --do_eval --learning_rate 3e-5 --num_train_epochs 3 \\
        --dense_baseline train --distill_teacher self --prune_sparsity 0.6 --quant_scheme int8
"""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import ClassLabel, load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_compress
from hf_compress.study.grid import TASKS, compute_metrics

EXTRA = "extra"


@dataclass
class ScriptArguments:
    """The model, the data, and the dense baseline."""

    model_name_or_path: str = field(metadata={"help": "Model to start from: a path or a Hub id."})
    task_name: str | None = field(
        default=None, metadata={"help": "GLUE task; sets columns, splits and metrics.", "choices": list(TASKS)}
    )
    dataset_name: str = field(default="nyu-mll/glue", metadata={"help": "Dataset: a Hub id or a local folder."})
    train_file: str | None = field(default=None, metadata={"help": "Training rows: .csv, .json, .jsonl or .parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "Evaluation rows, in the same format."})
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "One or two text columns. By default, those of the task or `sentence`."}
    )
    label_column: str = field(default="label", metadata={"help": "Label column; floats make it a regression."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens per row; longer rows are cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first N rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first N rows only."})
    eval_extra_rows: int | None = field(
        default=None,
        metadata={
            "help": "Score on N further rows of the training split too, which the training does not see. Needs "
            "`--max_train_samples`."
        },
    )
    dense_baseline: str | None = field(
        default=None,
        metadata={
            "help": "Fine-tuned dense model to start from and compare with: a path or Hub id, or `train` to fine-tune "
            "`--model_name_or_path` first, into OUTPUT_DIR/dense. Without compression flags it is a control run."
        },
    )
    lora_r: int | None = field(default=None, metadata={"help": "Train LoRA adapters of this rank, not all weights."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention kernel: eager, sdpa, ..."})
    base_model_hub_id: str | None = field(
        default=None, metadata={"help": "Hub id for the card, if `--model_name_or_path` is a local copy."}
    )
    dataset_hub_id: str | None = field(
        default=None, metadata={"help": "Hub id for the card, if `--dataset_name` is a local copy."}
    )

    def __post_init__(self):
        if self.task_name is None and (self.train_file is None or self.validation_file is None):
            raise ValueError("Give `--task_name`, or `--train_file` and `--validation_file`.")
        if self.eval_extra_rows is not None and self.eval_extra_rows < 1:
            raise ValueError(f"`--eval_extra_rows` must be at least 1; got {self.eval_extra_rows}.")
        if self.lora_r is not None and self.lora_r < 1:
            raise ValueError(f"`--lora_r` must be at least 1; got {self.lora_r}.")

    @property
    def start(self):
        """The model to load."""
        return self.model_name_or_path if self.dense_baseline in (None, "train") else self.dense_baseline

    @property
    def validation(self):
        """The split to evaluate on."""
        return TASKS[self.task_name].validation if self.task_name else "validation"


def load_rows(args):
    """Return the rows by split (`EXTRA` are those after the training rows), text columns, the whole split's size."""
    if args.train_file is not None:
        kind = Path(args.train_file).suffix.lstrip(".").replace("jsonl", "json")
        raw = load_dataset(kind, data_files={"train": args.train_file, "validation": args.validation_file})
    else:
        local = Path(args.dataset_name)
        raw = load_dataset(str(local.resolve()) if local.is_dir() else args.dataset_name, args.task_name)
    rows = {}
    for split, limit in (("train", args.max_train_samples), (args.validation, args.max_eval_samples)):
        rows[split] = raw[split].select(range(min(limit or sys.maxsize, len(raw[split]))))
    if args.eval_extra_rows is not None:
        rows[EXTRA] = raw["train"].select([*range(len(rows["train"]), len(raw["train"]))])
    columns = args.text_columns or (list(TASKS[args.task_name].sentences) if args.task_name else ["sentence"])
    missing = {*columns, args.label_column} - {*rows["train"].column_names}
    if missing:
        raise ValueError(
            f"The data has no column {', '.join(sorted(missing))}, only {', '.join(rows['train'].column_names)}. Name "
            "columns with `--text_columns` and `--label_column`."
        )
    return rows, columns, len(raw[args.validation])


def label_names(args, rows):
    """Return the names of the classes, or None for a regression."""
    feature = rows["train"].features[args.label_column]
    if isinstance(feature, ClassLabel):
        return feature.names
    if args.task_name == "stsb" or feature.dtype.startswith("float"):
        return None
    return [str(value) for value in sorted(rows["train"].unique(args.label_column))]


def load_model(args, name, labels):
    """Return the model `name` with a head for these labels. Its own label numbers are kept if it knows the names."""
    config = AutoConfig.from_pretrained(name)
    if labels is None:
        config.num_labels, config.problem_type = 1, "regression"
    elif not {label.lower() for label in labels} <= {str(label).lower() for label in config.label2id}:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    # Weights are trained in float32; `--bf16` and `--fp16` choose the precision of the computation.
    return AutoModelForSequenceClassification.from_pretrained(
        name, config=config, dtype=torch.float32, attn_implementation=args.attn_implementation
    )


def tokenized(args, rows, columns, labels, tokenizer, label2id):
    """Return the rows by split as token ids, with the column `label` in the model's own numbering."""
    column, numbers = args.label_column, {str(label).lower(): number for label, number in label2id.items()}
    encoded = {}
    for split, part in rows.items():
        feature = part.features[column]
        name = feature.int2str if isinstance(feature, ClassLabel) else str
        unknown = {name(value) for value in part.unique(column)} - {*labels} if labels else None
        if unknown:
            raise ValueError(f"`{column}` of the split {split} has labels that training lacks: {', '.join(unknown)}.")
        number = float if labels is None else {v: numbers[name(v).lower()] for v in part.unique(column)}.__getitem__
        # Under another name, because a column that keeps its name keeps its type as well.
        part = part.select_columns([*columns, column]).rename_column(column, "given")

        def encode(batch, number=number):
            texts = tokenizer(*(batch[name] for name in columns), truncation=True, max_length=args.max_seq_length)
            return {**texts, "label": [number(value) for value in batch["given"]]}

        encoded[split] = part.map(encode, batched=True, remove_columns=part.column_names)
    return encoded


def further_rows(args, encoded):
    """Return the rows of `--eval_extra_rows` and the index of each in its split; None and None without it."""
    if args.eval_extra_rows is None:
        return None, None
    train, later = encoded["train"], encoded[EXTRA]
    unseen = hf_compress.unseen_rows(later, train, ["input_ids"])
    if len(unseen) < args.eval_extra_rows:
        raise ValueError(
            f"`--eval_extra_rows` must be at most {len(unseen):,}, the rows of its split that differ from the "
            f"{len(train):,} trained on; got {args.eval_extra_rows:,}. Train on fewer (`--max_train_samples`)."
        )
    chosen = unseen[: args.eval_extra_rows]
    return later.select(chosen), [len(train) + index for index in chosen]


def train_dense(args, training_args, model, labels, parts):
    """Return the dense model, fine-tuned into OUTPUT_DIR/dense unless an interrupted run has done that."""
    folder = Path(training_args.output_dir) / "dense"
    if not (folder / "eval_results.json").is_file():  # Written last.
        dense_args = copy.copy(training_args)
        dense_args.output_dir = str(folder)
        trainer = Trainer(model=model, args=dense_args, **parts)
        trainer.train(resume_from_checkpoint=hf_compress.last_complete_checkpoint(folder))
        trainer.save_model()
        trainer.save_state()
        trainer.save_metrics("eval", trainer.evaluate(), combined=False)
        trainer.accelerator.wait_for_everyone()
    return load_model(args, folder, labels)


def main():
    """Run the script with the options in `sys.argv`, or in the one JSON or YAML file named there."""
    # --- hf_compress: begin ---
    flags = hf_compress.take_flags(sys.argv)
    # --- hf_compress: end ---
    parser = HfArgumentParser(
        (ScriptArguments, TrainingArguments), epilog="Flags that compress the model: `hf-compress run --help`."
    )
    if len(sys.argv) == 2 and sys.argv[1].endswith((".json", ".yaml", ".yml")):
        args, training_args = parser.parse_yaml_file(sys.argv[1])
    else:
        args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    tokenizer = AutoTokenizer.from_pretrained(args.start)
    with training_args.main_process_first(desc="loading the dataset"):
        rows, columns, whole = load_rows(args)
    labels = label_names(args, rows)
    metrics = TASKS[args.task_name or ("stsb" if labels is None else "sst2")].metrics
    model = load_model(args, args.start, labels)

    def parts_with(tokenizer):
        """Return what a Trainer needs besides model and arguments, and the further rows to score on."""
        with training_args.main_process_first(desc="tokenizing"):
            encoded = tokenized(args, rows, columns, labels, tokenizer, model.config.label2id)
        parts = {
            "train_dataset": encoded["train"],
            "eval_dataset": encoded[args.validation],
            "compute_metrics": compute_metrics(metrics),
            "processing_class": tokenizer,
            "data_collator": DataCollatorWithPadding(tokenizer),
        }
        return parts, *further_rows(args, encoded)

    parts, extra, extra_indices = parts_with(tokenizer)
    dense = extra_dense = None
    if args.dense_baseline == "train" and training_args.do_train:
        model = train_dense(args, training_args, model, labels, parts)
    # --- hf_compress: begin ---
    compresses = training_args.do_train and (flags.given or args.dense_baseline is not None)
    if compresses and flags.recipe.vocabulary.enabled:
        # The dense model reads all tokens, so it is scored before the vocabulary is cut.
        evaluator = Trainer(model=copy.deepcopy(model), args=training_args, **parts)
        dense = evaluator.evaluate()
        extra_dense = None if extra is None else evaluator.evaluate(extra)
        texts = (text for column in columns for text in rows["train"][column])
        model, tokenizer = hf_compress.cut_vocabulary(model, tokenizer, texts)
        parts, extra, extra_indices = parts_with(tokenizer)
    # --- hf_compress: end ---
    if args.lora_r is not None:
        # No dropout: what is compressed is the merged weight, which dropout does not have.
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=args.lora_r, lora_alpha=16, target_modules="all-linear")
        model = get_peft_model(model, lora)

    trainer = Trainer(model=model, args=training_args, **parts)
    resume = training_args.resume_from_checkpoint
    # --- hf_compress: begin ---
    if compresses:
        options = flags.options
        hf_compress.compress(
            trainer,
            flags.recipe,
            hub_id=options.compress_hub_id,
            max_drop=options.compress_max_drop,
            dense=dense,
            control=options.compress_control,
            extra_eval_dataset=extra,
            extra_eval_rows=extra_indices,
            formats=options.compress_formats,
        )
    if resume == "last":
        resume = hf_compress.last_complete_checkpoint(training_args.output_dir)
    # --- hf_compress: end ---
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=resume)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        if not compresses:
            trainer.save_model()
    if training_args.do_eval:
        scores = trainer.evaluate()
        if extra is not None and not compresses:
            scores |= trainer.evaluate(extra, metric_key_prefix=EXTRA)
        trainer.log_metrics("eval", scores)
        trainer.save_metrics("eval", scores)
    # --- hf_compress: begin ---
    if compresses:
        report = hf_compress.finish(
            trainer,
            base_model=args.base_model_hub_id or args.model_name_or_path,
            base_model_hub_id=args.base_model_hub_id,
            task=args.task_name,
            dataset=dataset_facts(args, parts, whole),
            main_metric=metrics[0],
            dense=dense,
            extra_dense=extra_dense,
            formats=options.compress_formats,
            card_metadata=options.author,
        )
        if trainer.is_world_process_zero():
            print(f"{report.size.dense_bytes:,} bytes became {report.size.packed_bytes:,}: {report.compressed}")
            print(f"The compressed model and its card are in {training_args.output_dir}/compressed")
        if status := hf_compress.exit_status(report):
            sys.exit(status)
    # --- hf_compress: end ---


def dataset_facts(args, parts, whole):
    """Return what the card says about the data. `whole` is the number of rows of the split for evaluation."""
    evaluated = len(parts["eval_dataset"])
    source = args.train_file or args.dataset_name
    local = Path(source).exists()
    return hf_compress.DatasetFacts(
        name=Path(source).name if local else source,
        config=None if args.train_file else args.task_name,
        train_split="train",
        train_rows=len(parts["train_dataset"]),
        eval_split=args.validation,
        eval_rows=evaluated,
        eval_split_rows=whole,
        eval_part=None if evaluated == whole else f"{args.validation}[:{evaluated}]",
        hub_id=args.dataset_hub_id or (None if local else source),
    )


if __name__ == "__main__":
    main()
