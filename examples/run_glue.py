"""Fine-tune a Transformers model on GLUE or on sentences of your own; with a few more flags, compress it meanwhile.

Without any `--distill_*`, `--prune_*` or `--quant_*` flag this is an ordinary fine-tuning script. With them, the model
is compressed in the course of training, and `OUTPUT_DIR/compressed` holds the small model, its report and its card.
What that takes is between the lines `hf_compress: begin` and `hf_compress: end`; all else is as it would be without.

    python examples/run_glue.py --model_name_or_path google-bert/bert-base-uncased --task_name sst2 \\
        --output_dir sst2-small --do_train --do_eval --learning_rate 3e-5 --num_train_epochs 3 \\
        --dense_baseline train --distill_teacher self --prune_sparsity 0.6 --quant_scheme int8
"""

import copy
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

# --- hf_compress: begin ---
from hf_compress import (
    ARGUMENTS,
    CompressionArguments,
    DatasetFacts,
    DistillationTrainer,
    Recipe,
    compress,
    cut_vocabulary,
    finish,
)
from hf_compress.checkpoint.resume import is_complete, last_complete_checkpoint
from hf_compress.launch.flags import as_flags, with_recipe
from hf_compress.report.tables import comparison_table
from hf_compress.study.grid.glue import REGRESSION, TASKS, compute_metrics

# --- hf_compress: end ---

logger = logging.getLogger(__name__)

TRAIN = "train"
LAST = ("last", "true")
# What a run leaves in its output folder.
RUN_FILES = ("checkpoint-*", "model*.safetensors", "config.json", "trainer_state.json", "*_results.json", "dense")
RUN_FILES += ("adapter_*", "compressed", ".compressed.partial", "predictions.csv")


@dataclass
class ModelArguments:
    """Where the model comes from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model to start from: a path or a Hub id. Not needed if `--dense_baseline` names one."},
    )
    dense_baseline: str | None = field(
        default=None,
        metadata={
            "help": "The fine-tuned dense model that compression starts from and is compared with: a path or Hub id, "
            "or `train`, to fine-tune `--model_name_or_path` first, into OUTPUT_DIR/dense. By default "
            "`--model_name_or_path` itself, which then has to be fine-tuned already. Without a compression flag, "
            "training goes on from it as a control, and is reported on all the same."
        },
    )
    dense_epochs: float | None = field(
        default=None,
        metadata={"help": "Epochs of `--dense_baseline train`. By default it trains as long as the compression does."},
    )
    base_model_hub_id: str | None = field(
        default=None,
        metadata={"help": "Hub id to name on the card where `--model_name_or_path` is a copy of that model."},
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of `--model_name_or_path` on the Hub."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for downloads and prepared data."})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "How attention is computed, such as sdpa or eager; by default as Transformers chooses. With "
            "`--bf16` on a CPU, eager is the faster one."
        },
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Start with a new head where the model's has another number of labels."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete what an earlier run left in `--output_dir`."}
    )

    def __post_init__(self) -> None:
        if self.model_name_or_path is None and self.dense_baseline in (None, TRAIN):
            raise ValueError(
                "`--model_name_or_path` is missing. Give a path or a Hub id, or a fine-tuned `--dense_baseline`."
            )
        if self.dense_epochs is not None and self.dense_baseline != TRAIN:
            raise ValueError("`--dense_epochs` belongs to `--dense_baseline train`. Add that, or drop it.")
        if self.dense_epochs is not None and self.dense_epochs <= 0:
            raise ValueError(f"`--dense_epochs` must be above 0, got {self.dense_epochs}. Give 2, for instance.")

    @property
    def start(self) -> str:
        """The model to load first: where fine-tuning the dense model begins, or that model itself."""
        start = self.model_name_or_path if self.dense_baseline in (None, TRAIN) else self.dense_baseline
        assert start is not None, "checked on construction"
        return start

    def source(self, name: str) -> dict[str, Any]:
        """What to tell `from_pretrained` about the model `name`."""
        revision = self.model_revision if name == self.model_name_or_path else None
        return {"cache_dir": self.cache_dir, "revision": revision or "main"}


@dataclass
class AdapterArguments:
    """Whether all weights are trained, or an adapter beside them."""

    peft: str | None = field(
        default=None,
        metadata={
            "choices": ["lora"],
            "help": "Train a LoRA adapter and the head; the other weights stay. The dense baseline is trained whole.",
        },
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapter; at least 1."})
    lora_alpha: int = field(default=16, metadata={"help": "The adapter is scaled by this number over its rank."})
    lora_targets: list[str] | None = field(
        default=None,
        metadata={"help": "Ends of the names of the layers to adapt, such as query. By default all linear layers."},
    )

    def __post_init__(self) -> None:
        if self.lora_r < 1:
            raise ValueError(f"`--lora_r` must be at least 1, got {self.lora_r}. Give 8, for instance.")
        if self.peft is None and (self.lora_r, self.lora_alpha, self.lora_targets) != (8, 16, None):
            raise ValueError("`--lora_r`, `--lora_alpha` and `--lora_targets` belong to `--peft lora`. Add that.")

    def adapted(self, model: PreTrainedModel) -> Any:
        """The `model`, in a PEFT model with a new adapter if one was asked for."""
        if self.peft is None:
            return model
        targets = self.lora_targets or "all-linear"
        # No dropout: what is compressed is the weight merged with the adapter, and dropout has no such weight.
        return get_peft_model(
            model,
            LoraConfig(task_type=TaskType.SEQ_CLS, r=self.lora_r, lora_alpha=self.lora_alpha, target_modules=targets),
        )


@dataclass
class DataArguments:
    """What to train on, and how much of it."""

    task_name: str | None = field(
        default=None, metadata={"help": "GLUE task: sets columns, splits and metrics.", "choices": list(TASKS)}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset: a Hub id or a local folder. By default nyu-mll/glue, if there is a `--task_name`."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset. By default the `--task_name`."}
    )
    dataset_hub_id: str | None = field(
        default=None, metadata={"help": "Hub id to name on the card where `--dataset_name` is a copy of that dataset."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Training rows as .csv, .json, .jsonl or .parquet."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Rows to evaluate on, in such a file."})
    test_file: str | None = field(default=None, metadata={"help": "Rows to predict, in such a file; no label needed."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on. By default validation (mnli: validation_matched)."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split to predict. By default test (mnli: test_matched)."}
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={"help": "One or two columns with the sentences. By default the task's, or all of text."},
    )
    label_column: str = field(default="label", metadata={"help": "Column with the label; a float makes a regression."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens after which a row is cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many rows only."})

    def __post_init__(self) -> None:
        if self.dataset_name is None and self.train_file is None and self.validation_file is None:
            if self.task_name is None:
                raise ValueError(
                    "There is no data. Give `--task_name` ("
                    + ", ".join(TASKS)
                    + "), `--dataset_name`, or `--train_file` "
                    "and `--validation_file`."
                )
            self.dataset_name = "nyu-mll/glue"
        elif self.dataset_name is not None and (self.train_file or self.validation_file):
            raise ValueError("`--dataset_name` and `--train_file`/`--validation_file` exclude each other. Give one.")
        for name in ("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {value}. Leave it out for the default.")
        if self.text_columns is not None and len(self.text_columns) > 2:
            raise ValueError(f"`--text_columns` takes one or two columns, got {len(self.text_columns)}.")

    @property
    def name(self) -> str:
        """The dataset as a report names it: a Hub id, or the last part of a path."""
        source = self.dataset_name or self.train_file or self.validation_file
        assert source is not None, "checked on construction"
        return Path(source).name if Path(source).exists() else source

    @property
    def config(self) -> str | None:
        return self.dataset_config_name or (self.task_name if self.dataset_name else None)

    @property
    def task(self) -> str:
        """A short name of the task."""
        return self.task_name or self.dataset_config_name or Path(self.name).stem

    @property
    def validation(self) -> str:
        return self.validation_split or (TASKS[self.task_name].validation if self.task_name else "validation")

    @property
    def test(self) -> str:
        return self.test_split or (TASKS[self.task_name].test if self.task_name else "test")


class Rows:
    """The splits of a dataset: what its labels are called, and how its rows become the model's inputs."""

    def __init__(self, data_args: DataArguments, splits: list[str], cache_dir: str | None) -> None:
        self.arguments = data_args
        self.raw = self._load(cache_dir)
        for split in splits:
            if split not in self.raw:
                raise ValueError(
                    f"{data_args.name} has the splits {', '.join(self.raw)}, but no {split!r}. Name one of them with "
                    "`--train_split`, `--validation_split` or `--test_split`, or give a file for it."
                )
        columns = self.raw[splits[0]].column_names
        if data_args.label_column not in columns:
            raise ValueError(f"`--label_column {data_args.label_column}` is none of the columns {', '.join(columns)}.")
        self.text_columns = self._find_text(columns)
        self.labels = self._find_labels(splits)

    @property
    def regression(self) -> bool:
        return self.labels is None

    def encoded(self, split: str, tokenizer: Any, config: Any, limit: int | None, labelled: bool = True) -> Dataset:
        """The first `limit` rows of `split` as token ids, with column `label` in the model's own numbering."""
        arguments, columns, names = self.arguments, self.text_columns, self.labels
        rows = self.raw[split].select(range(min(limit or sys.maxsize, len(self.raw[split]))))
        of_dataset = self._names_by_value(split) if labelled and names is not None else {}
        numbers = {name.lower(): number for name, number in config.label2id.items()}
        # `Rows` stays out of the closure: datasets hashes that to find its cache, and could not hash us.
        value_to_number = {value: numbers[name.lower()] for value, name in of_dataset.items()}
        length, given = min(arguments.max_seq_length, tokenizer.model_max_length), "given_label"
        if labelled:
            # A column that keeps its name keeps its type as well: words would stay words.
            rows = rows.select_columns([*columns, arguments.label_column]).rename_column(arguments.label_column, given)

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            encoded = tokenizer(*(batch[column] for column in columns), truncation=True, max_length=length)
            if labelled and names is None:
                encoded["label"] = [float(value) for value in batch[given]]
            elif labelled:
                encoded["label"] = [value_to_number[value] for value in batch[given]]
            return encoded

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenizing {split}")

    def texts(self, split: str, limit: int | None) -> Iterator[str]:
        """The sentences of the rows that `encoded` takes."""
        for batch in self.raw[split].select(range(min(limit or sys.maxsize, len(self.raw[split])))).iter(1000):
            for column in self.text_columns:
                yield from batch[column]

    def _load(self, cache_dir: str | None) -> DatasetDict:
        arguments = self.arguments
        if arguments.dataset_name is not None:
            folder = Path(arguments.dataset_name)
            # Given relatively, datasets takes some names (".") for no path at all.
            source = str(folder.resolve()) if folder.is_dir() else arguments.dataset_name
            return load_dataset(source, arguments.config, cache_dir=cache_dir)
        files = {
            arguments.train_split: arguments.train_file,
            arguments.validation: arguments.validation_file,
            arguments.test: arguments.test_file,
        }
        given = {split: file for split, file in files.items() if file is not None}
        kinds = {Path(file).suffix.lstrip(".").replace("jsonl", "json") for file in given.values()}
        if len(kinds) != 1 or kinds - {"csv", "json", "parquet"}:
            raise ValueError(
                "`--train_file`, `--validation_file` and `--test_file` must be of one kind: .csv, .json, .jsonl or "
                f".parquet; got {', '.join(given.values())}."
            )
        return DatasetDict(
            # One by one, since rows to predict need no label, and datasets wants all splits to have the same columns.
            {
                split: load_dataset(*kinds, data_files={split: file}, split=split, cache_dir=cache_dir)
                for split, file in given.items()
            }
        )

    def _find_text(self, columns: list[str]) -> list[str]:
        wanted = self.arguments.text_columns
        if wanted is None and self.arguments.task_name is not None:
            wanted = list(TASKS[self.arguments.task_name].sentences)
        if wanted is None:
            features = next(iter(self.raw.values())).features
            texts = [name for name in columns if getattr(features[name], "dtype", "") in ("string", "large_string")]
            wanted = [name for name in texts if name != self.arguments.label_column]
            if len(wanted) not in (1, 2):
                raise ValueError(
                    f"`--text_columns` is needed: {len(wanted)} columns hold text ({', '.join(wanted) or 'none'}). "
                    "Name one or two."
                )
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise ValueError(f"`--text_columns` {', '.join(missing)}: there are only {', '.join(columns)}.")
        return wanted

    def _find_labels(self, splits: list[str]) -> list[str] | None:
        """The names of the classes, or None if labels are numbers to be predicted."""
        if self.arguments.task_name is not None and TASKS[self.arguments.task_name].regression:
            return None
        first = self.raw[splits[0]]
        feature = first.features[self.arguments.label_column]
        if isinstance(feature, ClassLabel):
            return list(feature.names)
        if isinstance(feature, Value) and feature.dtype.startswith(("float", "double")):
            return None
        return [str(value) for value in sorted(first.unique(self.arguments.label_column))]

    def _names_by_value(self, split: str) -> dict[Any, str]:
        """What each label in `split` is called.

        Raises:
            ValueError: a label that training does not know.
        """
        assert self.labels is not None
        rows, column = self.raw[split], self.arguments.label_column
        feature = rows.features[column]
        values = rows.unique(column)
        if isinstance(feature, ClassLabel):
            names = {value: feature.names[value] if value >= 0 else str(value) for value in values}
        else:
            names = {value: str(value) for value in values}
        unknown = sorted(set(names.values()) - set(self.labels))
        if unknown:
            raise ValueError(
                f"`--label_column {column}` of the split {split} holds {', '.join(unknown)}, but the labels are "
                f"{', '.join(self.labels)}. Drop those rows, or give a split that has labels."
            )
        return names


def prepare_output(model_args: ModelArguments, training_args: TrainingArguments) -> str | None:
    """The checkpoint to resume from, if any, once the output folder is known to be free for this run.

    Raises:
        ValueError: the folder holds another run, and nothing was said about what to do with it.
    """
    folder, resume = Path(training_args.output_dir), training_args.resume_from_checkpoint
    if not training_args.do_train:
        return None
    if resume is not None:
        finished = folder / "compressed"
        if finished.exists():
            raise ValueError(
                f"`--resume_from_checkpoint` would finish a finished run: there is {finished}. Move that away, "
                "or start anew with another `--output_dir`."
            )
        if str(resume).lower() in LAST:
            return last_complete_checkpoint(folder)
        if not is_complete(resume):
            what = "was not written to its end" if Path(resume).is_dir() else "is not there"
            raise ValueError(
                "`--resume_from_checkpoint` must be a checkpoint's folder, or `last` for the last complete one in "
                f"`--output_dir`; got {resume}, which {what}."
            )
        return resume
    found = sorted({path for pattern in RUN_FILES for path in folder.glob(pattern)})
    if not found:
        return None
    if not model_args.overwrite_output_dir:
        raise ValueError(
            f"`--output_dir {folder}` holds another run ({', '.join(path.name for path in found[:4])}). Give another "
            "folder, go on with `--resume_from_checkpoint last`, or delete that run with `--overwrite_output_dir`."
        )
    for source in (model_args.model_name_or_path, model_args.dense_baseline):
        needed = Path(source or "").resolve()
        if source and any(path.resolve() in (needed, *needed.parents, needed / path.name) for path in found):
            raise ValueError(f"`--overwrite_output_dir` would delete {source}, which this run needs. Move it away.")
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def load_model(name: str, rows: Rows, model_args: ModelArguments) -> tuple[PreTrainedModel, list[str]]:
    """The model with a head for the labels of `rows`, and the names of the weights that were not in the checkpoint."""
    source = model_args.source(name)
    config = AutoConfig.from_pretrained(name, **source)
    if rows.labels is None:
        config.num_labels, config.problem_type = 1, "regression"
    elif not {label.lower() for label in rows.labels} <= {str(label).lower() for label in config.label2id}:
        config.id2label = dict(enumerate(rows.labels))
        config.label2id = {label: number for number, label in enumerate(rows.labels)}
    model, info = AutoModelForSequenceClassification.from_pretrained(
        name,
        config=config,
        # Weights are trained in float32 whatever they were saved in; `--bf16` and `--fp16` concern the computation.
        dtype=torch.float32,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        output_loading_info=True,
        attn_implementation=model_args.attn_implementation,
        **source,
    )
    return model, sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])


def main() -> None:
    """Run the script with the options in `sys.argv`, or in the one JSON or YAML file that is named there."""
    parser = HfArgumentParser(
        (ModelArguments, AdapterArguments, DataArguments, TrainingArguments, *ARGUMENTS, CompressionArguments)
    )
    # --- hf_compress: begin ---
    # `--compress_recipe` and `--compress_config` stand for the options that they hold.
    if len(sys.argv) == 2 and sys.argv[1].endswith((".json", ".yaml", ".yml")):
        text = Path(sys.argv[1]).read_text(encoding="utf-8")
        values = json.loads(text) if sys.argv[1].endswith(".json") else yaml.safe_load(text)
        parsed = parser.parse_dict(with_recipe(values))
    else:
        parsed = parser.parse_args_into_dataclasses(as_flags(sys.argv[1:]))
    # --- hf_compress: end ---
    model_args, adapter_args, data_args, training_args, *methods, options = parsed

    # --- hf_compress: begin ---
    recipe = Recipe(*methods)
    reporting = recipe.name != "dense" or model_args.dense_baseline is not None
    if set(options.compress_formats) - {"packed"} and not reporting:
        raise ValueError(
            "`--compress_formats` writes the compressed model, and nothing compresses it here. Add `--quant_scheme "
            "int8`, for instance, or `--dense_baseline` to write the dense one."
        )
    # --- hf_compress: end ---
    if not training_args.do_train and (recipe.name != "dense" or model_args.dense_baseline == TRAIN):
        raise ValueError("`--do_train` is missing: models are compressed in the course of training.")
    if reporting and training_args.push_to_hub:
        raise ValueError(
            "`--push_to_hub` would upload the training checkpoint. Drop it, and afterwards push the small one: "
            f"hf-compress push {training_args.output_dir}/compressed OWNER/NAME"
        )
    reporting = reporting and training_args.do_train

    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
        datefmt="%m/%d/%Y %H:%M:%S",
        handlers=[logging.StreamHandler(sys.stdout)],
    )
    level = training_args.get_process_log_level()
    logger.setLevel(level)
    transformers.utils.logging.set_verbosity(level)
    transformers.utils.logging.enable_default_handler()
    transformers.utils.logging.enable_explicit_format()
    logger.warning(
        f"Process {training_args.process_index} of {training_args.world_size}, device {training_args.device}, "
        f"bf16 {training_args.bf16}, fp16 {training_args.fp16}"
    )

    # The folder is the main process's affair; the others wait, and find the same checkpoint in it.
    resume = None
    with training_args.main_process_first(local=False, desc="looking at the output folder"):
        if training_args.process_index == 0 or training_args.resume_from_checkpoint:
            resume = prepare_output(model_args, training_args)
    set_seed(training_args.seed)

    splits = {
        data_args.train_split: training_args.do_train,
        data_args.validation: training_args.do_eval or reporting,
        data_args.test: training_args.do_predict,
    }
    with training_args.main_process_first(desc="loading the dataset"):
        rows = Rows(data_args, [split for split, used in splits.items() if used], model_args.cache_dir)
    metrics = TASKS[data_args.task_name].metrics if data_args.task_name else None
    metrics = metrics or (REGRESSION if rows.regression else ("accuracy",))

    tokenizer = AutoTokenizer.from_pretrained(model_args.start, **model_args.source(model_args.start))
    model, untrained = load_model(model_args.start, rows, model_args)
    if reporting and untrained and model_args.dense_baseline != TRAIN:
        raise ValueError(
            f"{model_args.start} is not fine-tuned: it has no weights for {', '.join(untrained)}, so that there is "
            "nothing to compare with. Give `--dense_baseline train` to fine-tune it first, or a fine-tuned model."
        )
    limits = {
        data_args.train_split: data_args.max_train_samples,
        data_args.validation: data_args.max_eval_samples,
        data_args.test: data_args.max_predict_samples,
    }

    def tokenized(tokenizer: Any) -> tuple[dict[str, Dataset], dict[str, Any]]:
        """The rows of each split as token ids, and what every Trainer is given beside its model."""
        with training_args.main_process_first(desc="tokenizing"):
            encoded = {
                split: rows.encoded(split, tokenizer, model.config, limits[split], labelled=split != data_args.test)
                for split, used in splits.items()
                if used
            }
        return encoded, {
            "train_dataset": encoded.get(data_args.train_split),
            "eval_dataset": encoded.get(data_args.validation),
            "compute_metrics": compute_metrics(metrics),
            "processing_class": tokenizer,
            # Batches are padded to their longest row; to a multiple of 8 where tensor cores like it.
            "data_collator": DataCollatorWithPadding(
                tokenizer, pad_to_multiple_of=8 if training_args.fp16 or training_args.bf16 else None
            ),
        }

    encoded, common = tokenized(tokenizer)

    if reporting and model_args.dense_baseline == TRAIN:
        model = train_dense(model, rows, model_args, training_args, common)
    # On a copy: a model that one Trainer has prepared, if only for evaluation, the next would neither wrap for several
    # processes nor for mixed precision.
    # --- hf_compress: begin ---
    dense = DistillationTrainer(copy.deepcopy(model), training_args, **common).evaluate() if reporting else {}
    if recipe.vocabulary.enabled:
        texts = rows.texts(data_args.train_split, limits[data_args.train_split])
        model, tokenizer = cut_vocabulary(model, tokenizer, texts)
        encoded, common = tokenized(tokenizer)
    # --- hf_compress: end ---
    train_rows, eval_rows = common["train_dataset"], common["eval_dataset"]
    model = adapter_args.adapted(model)

    trainer = Trainer(model=model, args=training_args, **common)
    # --- hf_compress: begin ---
    if training_args.do_train:
        compress(trainer, recipe)
    # --- hf_compress: end ---

    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=resume)
        trainer.log_metrics("train", result.metrics | {"train_samples": len(train_rows)})
        trainer.save_metrics("train", result.metrics | {"train_samples": len(train_rows)})
        trainer.save_state()
        if not reporting:
            trainer.save_model()
    if training_args.do_eval:
        scores = trainer.evaluate() | {"eval_samples": len(eval_rows)}
        trainer.log_metrics("eval", scores)
        trainer.save_metrics("eval", scores)

    # --- hf_compress: begin ---
    if reporting:
        report = finish(
            trainer,
            base_model=model_args.base_model_hub_id or model_args.model_name_or_path or model_args.start,
            base_model_hub_id=model_args.base_model_hub_id,
            task=data_args.task,
            dataset=dataset_facts(data_args, len(train_rows), len(eval_rows)),
            main_metric=metrics[0],
            dense=dense,
            hub_id=options.compress_hub_id,
            formats=options.compress_formats,
        )
        if trainer.is_world_process_zero():
            folder = Path(training_args.output_dir) / "compressed"
            Console().print(comparison_table(report), f"The compressed model and its card are in {folder}")
    # --- hf_compress: end ---

    if training_args.do_predict:
        predict(trainer, encoded[data_args.test])
    if training_args.push_to_hub:
        trainer.push_to_hub(
            dataset=data_args.name, finetuned_from=model_args.model_name_or_path, tasks="text-classification"
        )


def train_dense(
    model: PreTrainedModel,
    rows: Rows,
    model_args: ModelArguments,
    training_args: TrainingArguments,
    common: dict[str, Any],
) -> PreTrainedModel:
    """The dense model, fine-tuned into OUTPUT_DIR/dense, or read from there where a resumed run had finished it."""
    arguments = copy.copy(training_args)
    folder = Path(training_args.output_dir) / "dense"
    arguments.output_dir = str(folder)
    if model_args.dense_epochs is not None:
        arguments.num_train_epochs, arguments.max_steps = model_args.dense_epochs, -1
    # Its scores are written last, so that they say it is complete.
    if not (folder / "eval_results.json").is_file():
        trainer = Trainer(model=model, args=arguments, **common)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        trainer.save_model()
        scores = trainer.evaluate()
        trainer.log_metrics("dense", scores)
        trainer.save_metrics("eval", scores, combined=False)
        trainer.accelerator.wait_for_everyone()
    return load_model(str(folder), rows, model_args)[0]


def dataset_facts(data_args: DataArguments, train_rows: int, eval_rows: int) -> DatasetFacts:
    """What the report says about the data."""
    on_hub = data_args.dataset_name is not None and not Path(data_args.dataset_name).exists()
    return DatasetFacts(
        name=data_args.name,
        config=data_args.config,
        train_split=data_args.train_split,
        train_rows=train_rows,
        eval_split=data_args.validation,
        eval_rows=eval_rows,
        hub_id=data_args.dataset_hub_id or (data_args.dataset_name if on_hub else None),
    )


def predict(trainer: Trainer, rows: Dataset) -> None:
    """Write a line of OUTPUT_DIR/predictions.csv for each of `rows`: its index, and its label or number."""
    # Trainer would group these by length, too, and so give the answers in another order than the questions.
    trainer.args.train_sampling_strategy = "random"
    logits = trainer.predict(rows, metric_key_prefix="predict").predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    names = trainer.model.config.id2label
    if logits.shape[-1] == 1:
        answers = [f"{number:.4f}" for number in logits.reshape(-1)]
    else:
        answers = [names[number] for number in np.argmax(logits, axis=-1)]
    if trainer.is_world_process_zero():
        lines = ["index,prediction", *(f"{index},{answer}" for index, answer in enumerate(answers))]
        Path(trainer.args.output_dir, "predictions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
