"""The work of one node: fine-tune a dense model, or compress one and measure the result."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_compress.cut.students import student_from
from hf_compress.distill.teacher import SELF
from hf_compress.launch.run import compress, finish
from hf_compress.recipe import Recipe
from hf_compress.report.extra_set import on_extra
from hf_compress.report.predictions import COMPRESSED
from hf_compress.report.provenance import hub_id
from hf_compress.report.report import DatasetFacts
from hf_compress.report.rescoring import stored_outputs
from hf_compress.report.scores import clean_scores
from hf_compress.study.grid.answers import Answers
from hf_compress.study.grid.glue import TASKS, compute_metrics
from hf_compress.study.grid.plan import Cell, DenseModel
from hf_compress.study.grid.sources import EXTRA, Sources, located, model_identity
from hf_compress.study.run.results import MAIN, Measured
from hf_compress.study.run.store import Store

# Settings of every run. No result depends on them, except for the rounding of sums over an evaluation batch.
SETTINGS: dict[str, Any] = {
    "per_device_eval_batch_size": 64,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Training:
    """The real work of a study, on the models and data of `sources`. See `node.Work`."""

    sources: Sources

    def dense(self, node: DenseModel, store: Store, folder: Path) -> tuple[Path, dict[str, float]]:
        """Fine-tune a dense model; return its folder, inside `folder`, and its scores."""
        entry = self.sources.model(node.model)
        place, revision = located(entry.path), entry.revision or "main"
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
        rows, names = self._rows(node, tokenizer)
        config = AutoConfig.from_pretrained(place, revision=revision)
        if names is None:
            config.num_labels, config.problem_type = 1, "regression"
        else:
            config.id2label = dict(enumerate(names))
            config.label2id = {name: number for number, name in enumerate(names)}
        set_seed(node.seed)  # Draws the head, before Trainer sets the seed.
        model = AutoModelForSequenceClassification.from_pretrained(
            place,
            revision=revision,
            config=config,
            dtype=torch.float32,
            attn_implementation=entry.attn_implementation,
        )
        if node.layers is not None:
            model = student_from(model, node.layers)
        trainer = self._trainer(node, model, tokenizer, rows, folder)
        trainer.train()
        trainer.save_model(str(folder / "model"))
        scores = trainer.evaluate()
        if EXTRA in rows:
            scores |= trainer.evaluate(rows[EXTRA], metric_key_prefix=EXTRA)
        return folder / "model", clean_scores(scores)

    def cell(self, node: Cell, store: Store, folder: Path) -> Measured:
        """Compress and measure a cell. The weights stay in `folder`."""
        entry = self.sources.model(node.model)
        start = store.model(node.starts_from)
        tokenizer = AutoTokenizer.from_pretrained(start)
        rows, _ = self._rows(node, tokenizer)
        model = AutoModelForSequenceClassification.from_pretrained(
            start, dtype=torch.float32, attn_implementation=entry.attn_implementation
        )
        trainer = self._trainer(node, model, tokenizer, rows, folder)
        compress(trainer, self._recipe(node, store))
        trainer.train()
        task = TASKS[node.task]
        data = self.sources.grid.data
        dense = store.dense(node.starts_from) or {}
        further = {name.removeprefix(f"{EXTRA}_"): dense.pop(name) for name in [*dense] if name.startswith(EXTRA)}
        report = finish(
            trainer,
            dense=dense,
            extra_eval_dataset=rows.get(EXTRA),
            extra_dense=further or None,
            base_model=entry.hub_id or hub_id(entry.path) or entry.name,
            base_model_hub_id=entry.hub_id or hub_id(entry.path),
            task=node.task,
            dataset=DatasetFacts(
                data, node.task, "train", len(rows["train"]), task.validation, len(rows[task.validation]), hub_id(data)
            ),
            main_metric=task.main_metric,
            command=f"hf-compress study {self.sources.grid.name}.yaml",
        )
        assert report is not None, "a study always evaluates"
        answers = {
            name: Answers.of(stored_outputs(folder / "compressed", seen)[1][COMPRESSED])
            for name, seen in ((MAIN, report), (EXTRA, on_extra(report)))
            if seen is not None and seen.predictions is not None
        }
        # Training used the teacher's folder on this machine; the report names the teacher of the grid.
        return Measured(replace(report, recipe=Recipe.from_dict(node.recipe).shareable()).to_dict(), answers)

    def _recipe(self, node: Cell, store: Store) -> Recipe:
        """Return the recipe of a cell with the paths of this machine."""
        recipe = {method: dict(options) for method, options in node.recipe.items()}
        if node.taught_by is not None:
            own = node.taught_by == node.starts_from
            recipe["distillation"]["distill_teacher"] = SELF if own else str(store.model(node.taught_by))
            if not recipe["distillation"].get("distill_layer_loss"):  # They need more of the teacher than is cached.
                recipe["distillation"]["distill_cache"] = str(store.teachers)
        return Recipe.from_dict(recipe)

    def _rows(self, node: DenseModel | Cell, tokenizer: Any) -> tuple[dict[str, Any], list[str] | None]:
        identity = model_identity(self.sources.model(node.model))
        return self.sources.encoded(self.sources.task(node.task), tokenizer, identity)

    def _trainer(
        self, node: DenseModel | Cell, model: PreTrainedModel, tokenizer: Any, rows: dict[str, Any], folder: Path
    ) -> Trainer:
        task = TASKS[node.task]
        trainer = Trainer(
            model=model,
            args=training_arguments(node, folder),
            train_dataset=rows["train"],
            eval_dataset=rows[task.validation],
            compute_metrics=compute_metrics(task.metrics),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def training_arguments(node: DenseModel | Cell, folder: Path) -> TrainingArguments:
    """Return the training arguments of a node.

    Raises:
        ValueError: Transformers refuses a value.
    """
    settings: dict[str, Any] = {"output_dir": str(folder), "seed": node.seed}
    if not torch.accelerator.is_available():
        # Without `use_cpu` Transformers refuses `bf16`; with pinned memory torch warns at every batch.
        settings |= {"use_cpu": True, "dataloader_pin_memory": False}
    return TrainingArguments(**SETTINGS | settings | dict(node.training))
