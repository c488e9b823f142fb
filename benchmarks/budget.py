"""Measure the score of a model trained within a number of bytes, against the same training without compression.

    python benchmarks/budget.py --model MODEL --dataset_name GLUE --task_name sst2 --output_dir OUT
    python benchmarks/budget.py --model MODEL --dataset_name GLUE --task_name sst2 --output_dir OUT --table
    python benchmarks/budget.py --model MODEL --dataset_name GLUE --task_name sst2 --output_dir OUT --plot OUT.svg

A dense model is fine-tuned from MODEL once. Every way then trains on from it with the same rows, order and steps:
`control` without compression, `5` within 5 MB, `cut3+4` three layers within 4 MB, `kd+mp60+int8` with the paper's 60 %
zeros, eight bits and the dense model as a teacher; `ways.py` lists all parts. Scores are of the reloaded file, on the
dev split and, where the task has them, on further labelled rows that no training saw; `choice` are rows by which the
parts of ways were chosen. Finished trainings are kept, so the command can be repeated after an interruption, or with
more ways and seeds. `peers.py` adds ways without training. A plot has bars for 95 % intervals of the difference from
the control of the same seed, over rows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)
from ways import recipe_of

import hf_compress as hfc
from hf_compress.checkpoint import save_compressed
from hf_compress.study.grid import TASKS, compute_metrics

DENSE, CONTROL = "dense", "control"
# Rows and steps of the default runs; rows after `train_rows` are the further ones.
DEFAULTS = {
    "sst2": {"train_rows": 32_000, "dense_steps": 1000, "steps": 600, "length": 64},
    "stsb": {"train_rows": None, "dense_steps": 540, "steps": 270, "length": 128},
    "mrpc": {"train_rows": None, "dense_steps": 460, "steps": 345, "length": 128},
    "cola": {"train_rows": None, "dense_steps": 1000, "steps": 540, "length": 64},
    "rte": {"train_rows": None, "dense_steps": 468, "steps": 234, "length": 128},
}
FURTHER = 7349  # Rows from the end of the training split.
CHOICE = 6000  # Rows after those of training, by which options were chosen.
RESAMPLES = 2000

Difference = tuple[float, float, float]  # With the ends of its interval.


class Task:
    """The tokenized rows of a task, and its metric."""

    def __init__(self, options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name, self.tokenizer = options.task_name, tokenizer
        self.known = TASKS[self.name]
        rows = load_dataset(options.dataset_name, self.name)
        train, count = rows["train"], options.train_rows
        self.train = self._tokenized(train if count is None else train.select(range(count)), options.length)
        self.sets = {"dev": self._tokenized(rows[self.known.validation], options.length)}
        last = len(train)
        if count is not None and count + FURTHER <= last:
            last -= FURTHER
            self.sets["further"] = self._tokenized(train.select(range(last, len(train))), options.length)
        if count is not None and count < last:
            chosen = train.select(range(count, min(count + CHOICE, last)))
            self.sets["choice"] = self._tokenized(chosen, options.length)

    @property
    def labels(self) -> int:
        return 1 if self.name == "stsb" else self.train.features["label"].num_classes

    def score(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """Return the main metric x 100."""
        found = compute_metrics(self.known.metrics)(EvalPrediction(logits, labels))
        return 100 * float(found[self.known.main_metric])

    def logits(self, model: PreTrainedModel, rows: Dataset) -> np.ndarray:
        """Return the logits of all rows, in their order."""
        order = np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable")
        loader = DataLoader(rows.select(order), 64, collate_fn=DataCollatorWithPadding(self.tokenizer))
        model.eval()
        with torch.no_grad():
            found = [
                model(**{name: one for name, one in batch.items() if name != "labels"}).logits for batch in loader
            ]
        placed = np.empty((len(rows), found[0].shape[-1]), np.float32)
        placed[order] = torch.cat(found).float().numpy()
        return placed

    def _tokenized(self, rows: Dataset, length: int) -> Dataset:
        columns = [column for column in rows.column_names if column != "label"]
        sentences = self.known.sentences
        return rows.map(
            lambda batch: self.tokenizer(*(batch[name] for name in sentences), truncation=True, max_length=length),
            batched=True,
            remove_columns=columns,
        )


def train(
    model: PreTrainedModel, task: Task, folder: Path, steps: int, seed: int, recipe: hfc.Recipe | None, rate: float
) -> Trainer:
    """Train `model`, compressed by `recipe` if there is one, and return its trainer."""
    arguments = TrainingArguments(
        str(folder / "run"),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=rate,
        warmup_steps=0.1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        report_to="none",
        seed=seed,
        logging_steps=100,
        disable_tqdm=True,
    )
    collator = DataCollatorWithPadding(task.tokenizer)
    trainer = Trainer(
        model, arguments, train_dataset=task.train, data_collator=collator, processing_class=task.tokenizer
    )
    if recipe is not None:
        trainer = hfc.compress(trainer, recipe)
    trainer.train()
    return trainer


def run(way: str, seed: int, task: Task, out: Path, options: argparse.Namespace) -> None:
    """Train one way with one seed, and write its bytes and logits, unless that was done before."""
    name = way if way == DENSE else f"{way}-{seed}"
    folder = out / name
    if (folder / "logits.npz").exists():
        return
    set_seed(seed)
    source = options.model if way == DENSE else out / DENSE
    attention = {"attn_implementation": "eager", "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=task.labels, **attention)
    recipe, own_rate = (None, None) if way in (DENSE, CONTROL) else recipe_of(way, out / DENSE)
    rate = own_rate or options.learning_rate
    trainer = train(model, task, folder, options.dense_steps if way == DENSE else options.steps, seed, recipe, rate)
    model = trainer.model
    if recipe is None:
        size = sum(parameter.nbytes for parameter in model.parameters())
        if way == DENSE:
            model.save_pretrained(folder)
            task.tokenizer.save_pretrained(folder)
    else:
        save_compressed(model, folder / "compressed", recipe)
        size = sum(file.stat().st_size for file in (folder / "compressed").glob("*.safetensors"))
        model = AutoModelForSequenceClassification.from_pretrained(folder / "compressed", attn_implementation="eager")
    logits = {name: task.logits(model, rows) for name, rows in task.sets.items()}
    scores = {name: task.score(found, np.array(task.sets[name]["label"])) for name, found in logits.items()}
    (folder / "facts.json").write_text(json.dumps({"bytes": size, **scores}) + "\n", encoding="utf-8")
    np.savez(folder / "logits.npz", **logits)  # Last: it says that the way is finished.
    print(name, f"{size / 1e6:.3f} MB", scores, flush=True)


def results(out: Path) -> dict[str, dict[int, Path]]:
    """Return the folders of what is finished, by way and seed, the largest files first."""
    found: dict[str, dict[int, Path]] = {}
    for folder in sorted(out.iterdir()):
        way, _, seed = folder.name.rpartition("-") if folder.name != DENSE else (DENSE, "", "0")
        if (folder / "logits.npz").exists():
            found.setdefault(way, {})[int(seed)] = folder
    return dict(sorted(found.items(), key=lambda item: -mean_fact(item[1], "bytes")))


def mean_fact(folders: dict[int, Path], name: str) -> float:
    """Return the mean over seeds of a number in the facts of a way; NaN if they lack it."""
    facts = [json.loads((folder / "facts.json").read_text(encoding="utf-8")) for folder in folders.values()]
    return float(np.mean([one.get(name, np.nan) for one in facts]))


def baseline(found: dict[str, dict[int, Path]]) -> str:
    """Return the way that the others are compared with: the control, or the dense model while there is none."""
    return CONTROL if CONTROL in found else DENSE


def compared(task: Task, found: dict[str, dict[int, Path]], way: str, name: str) -> tuple[float, Difference | None]:
    """Return the mean score of a way on the rows `name`, and its difference from the baseline."""
    labels = np.array(task.sets[name]["label"])
    score = float(np.mean([task.score(np.load(one / "logits.npz")[name], labels) for one in found[way].values()]))
    pairs = matched(found, way, baseline(found), name)
    return score, paired(task, labels, pairs) if pairs and way != baseline(found) else None


def matched(found: dict[str, dict[int, Path]], way: str, base: str, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the logits of `base` and of a way on the rows `name`, for each seed that both have; `dense` has all."""
    logits, others = (
        {seed: np.load(folder / "logits.npz")[name] for seed, folder in found[one].items()} for one in (way, base)
    )
    if base == DENSE:
        others = dict.fromkeys(logits, others[0])
    return [(others[seed], logits[seed]) for seed in logits if seed in others]


def paired(task: Task, labels: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Difference:
    """Return the mean difference over seeds and its 95 % interval; rows are drawn again, the same for both models."""
    observed, drawn = differences(task, labels, pairs)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return observed, float(low), float(high)


def differences(
    task: Task, labels: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, np.ndarray]:
    """Return the mean difference over seeds, and the same over rows that are drawn again `RESAMPLES` times."""
    generator = np.random.default_rng(0)
    if task.known.main_metric == "accuracy":  # The mean of its rows, which is quick to draw again.
        right = [[logits.argmax(-1) == labels for logits in pair] for pair in pairs]
        apart = np.mean([100.0 * after - 100.0 * before for before, after in right], axis=0)

    def difference(rows: np.ndarray | slice) -> float:
        if task.known.main_metric == "accuracy":
            return float(apart[rows].mean())
        return float(
            np.mean([task.score(b[rows], labels[rows]) - task.score(a[rows], labels[rows]) for a, b in pairs])
        )

    drawn = [difference(generator.integers(0, len(labels), len(labels))) for _ in range(RESAMPLES)]
    return difference(slice(None)), np.array(drawn)


def table(task: Task, out: Path) -> None:
    """Print the scores of all ways, with paired intervals against the baseline of the same seed."""
    found = results(out)
    heads = [f"{name} | against {baseline(found)}" for name in task.sets]
    print(f"| way | MB | after zstd | seeds | {' | '.join(heads)} |")
    print("| --- | ---: | ---: | ---: |" + " ---: | ---: |" * len(heads))
    for way, folders in found.items():
        again = mean_fact(folders, "zstd_bytes")
        cells = [way, f"{mean_fact(folders, 'bytes') / 1e6:.2f}", "" if np.isnan(again) else f"{again / 1e6:.2f}"]
        cells.append(str(len(folders)))
        for name in task.sets:
            if any(name not in np.load(folder / "logits.npz") for folder in folders.values()):
                cells += ["", ""]
                continue
            score, difference = compared(task, found, way, name)
            cells += [f"{score:.2f}", "{:+.2f} ({:+.2f} to {:+.2f})".format(*difference) if difference else ""]
        print(f"| {' | '.join(cells)} |")


def plot(task: Task, out: Path, path: Path) -> None:
    """Draw all ways, on the further rows if there are any."""
    from budget_plot import Point, draw  # Here, so that trainings need no matplotlib.

    name, found, points = "further" if "further" in task.sets else "dev", results(out), []
    for way, folders in found.items():
        score, difference = compared(task, found, way, name)
        points.append(Point(way, mean_fact(folders, "bytes"), score, difference and difference[1:]))
    draw(points, baseline(found), path, f"{task.name}: {task.known.main_metric}, {len(task.sets[name]):,} {name} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model to fine-tune: Hub id or folder")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    parser.add_argument("--task_name", default="sst2", choices=DEFAULTS, help="(%(default)s)")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for trainings and results")
    parser.add_argument("--ways", nargs="+", default=[CONTROL, "7", "5", "4", "3"], help="(control 7 5 4 3)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="(0)")
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="of ways that name none (%(default)s)")
    parser.add_argument("--table", action="store_true", help="only print the table of what is finished")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="only draw what is finished, as .svg or .png")
    parser.add_argument("--train_rows", type=int, help="by default a number that suits the task, as for those below")
    parser.add_argument("--dense_steps", type=int, help="of the dense model")
    parser.add_argument("--steps", type=int, help="of all other ways")
    parser.add_argument("--length", type=int, help="of the longest row, in tokens")
    options = parser.parse_args()
    for name, value in DEFAULTS[options.task_name].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    logging.set_verbosity_error(), logging.disable_progress_bar()
    task = Task(options, AutoTokenizer.from_pretrained(options.model))
    out = options.output_dir / options.task_name
    if not options.table and options.plot is None:
        for way, seeds in {DENSE: [0], **dict.fromkeys(options.ways, options.seeds)}.items():
            for seed in seeds:
                run(way, seed, task, out, options)
    if options.plot is not None:
        plot(task, out, options.plot)
    else:
        table(task, out)


if __name__ == "__main__":
    main()
