"""Print one table of what `budget.py` measured on several tasks, with the mean over them.

    python benchmarks/budget_tasks.py --dataset_name GLUE --output_dir OUT --names WINNER=WAY ...

Each cell is the difference of a way from the control of the same seeds, on dev rows, with a 95 % interval over rows;
with `--against dense` the difference from the dense model. The last column is the mean over the tasks: rows of each
task are drawn again on their own. A way that lacks a task has no mean. For a task in `--train_rows`, the labelled rows
that neither a training nor a choice has seen are added to the dev rows.
"""

import argparse
from argparse import Namespace
from pathlib import Path

import numpy as np
from budget import CONTROL, DEFAULTS, DENSE, Task, differences, matched, mean_fact, results
from transformers import AutoTokenizer, logging

# By the `choice` rows of two tasks options were chosen; those of the others are as unseen as dev rows.
CHOICE = "choice"
CHOSEN_BY = {"sst2", "stsb"}


def cell(observed: float, drawn: np.ndarray) -> str:
    """Return a difference with its interval."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{observed:+.2f} ({low:+.2f} to {high:+.2f})"


def unseen(task: Task) -> list[str]:
    """Return the names of the sets whose rows neither a training nor a choice has seen."""
    return [name for name in task.sets if name != CHOICE or task.name not in CHOSEN_BY]


def labels_of(task: Task) -> np.ndarray:
    """Return the labels of all unseen rows."""
    return np.concatenate([np.array(task.sets[name]["label"]) for name in unseen(task)])


def pairs_of(
    task: Task, found: dict[str, dict[int, Path]], way: str, base: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the logits of `base` and of a way on all unseen rows, for each seed that both have."""
    each = [matched(found, way, base, name) for name in unseen(task)]
    return [tuple(np.concatenate(parts) for parts in zip(*sets, strict=True)) for sets in zip(*each, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    parser.add_argument("--output_dir", required=True, type=Path, help="that of `budget.py`")
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULTS), choices=DEFAULTS, help="(%(default)s)")
    parser.add_argument("--names", nargs="+", required=True, metavar="NAME=WAY", help="rows, each a way with its name")
    parser.add_argument("--against", default=CONTROL, choices=(CONTROL, DENSE), help="(%(default)s)")
    parser.add_argument(
        "--train_rows", nargs="+", default=[], metavar="TASK=ROWS", help="that of `budget.py`, of tasks with more rows"
    )
    options = parser.parse_args()
    rows = {name: int(count) for name, count in (given.split("=") for given in options.train_rows)}
    logging.set_verbosity_error()
    found = {task: results(options.output_dir / task) for task in options.tasks}
    tasks = {}
    for name in options.tasks:
        tokenizer = AutoTokenizer.from_pretrained(options.output_dir / name / DENSE)
        given = Namespace(task_name=name, dataset_name=options.dataset_name, train_rows=rows.get(name), length=128)
        tasks[name] = Task(given, tokenizer)
    seen = [sum(len(task.sets[name]) for name in unseen(task)) for task in tasks.values()]
    print(f"| {options.against} of | {' | '.join(options.tasks)} | mean |\n| --- |{' ---: |' * (len(tasks) + 1)}")
    print(f"| rows | {' | '.join(f'{count:,}' for count in seen)} | |")
    for base in dict.fromkeys((DENSE, CONTROL)):
        scores = []
        for name, task in tasks.items():
            each = [logits for _, logits in pairs_of(task, found[name], base, base)]
            scores.append(float(np.mean([task.score(one, labels_of(task)) for one in each])))
        print(f"| {base} | {' | '.join(f'{one:.2f}' for one in scores)} | {np.mean(scores):.2f} |")
    for given in options.names:
        row, _, way = given.partition("=")
        cells, observed, draws, seeds, size = [], [], [], set(), 0.0
        for name, task in tasks.items():
            pairs = pairs_of(task, found[name], way, options.against) if way in found[name] else []
            if not pairs:
                cells.append("")
                continue
            one, drawn = differences(task, labels_of(task), pairs)
            cells.append(cell(one, drawn))
            observed.append(one), draws.append(drawn), seeds.add(len(pairs))
            size = mean_fact(found[name][way], "bytes") / 1e6
        mean = cell(float(np.mean(observed)), np.mean(draws, axis=0)) if len(observed) == len(tasks) else ""
        print(f"| {row}, {size:.1f} MB, {'/'.join(map(str, sorted(seeds)))} seeds | {' | '.join(cells)} | {mean} |")


if __name__ == "__main__":
    main()
