"""Compare pruning criteria: zeros chosen once in a fine-tuned classifier, without training.

    python benchmarks/criteria.py --model FINE_TUNED --dataset_name GLUE --task_name sst2

Criteria that read gradients or the optimizer see `--batches` batches of 32 training rows at a learning rate of 0.
`KL` is the divergence of the answers on the development set from the dense model's, in thousandths of a nat, with its
95 % interval.
"""

import argparse
import itertools

import numpy as np
import torch
from budget import DEFAULTS
from judges import answered, divergence
from shot import interval
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    logging,
)

from hf_compress.models import prunable
from hf_compress.prune import CRITERIA, PATTERNS, Masking

CASES = [
    (name, scope)
    for name, one in CRITERIA.items()
    for scope in ("layer", "global")
    if not (one.corrects and scope == "global")
]


def seen(model: PreTrainedModel, loader: DataLoader, batches: int) -> tuple[list[Masking], torch.optim.Optimizer]:
    """Return the masks to choose, one for each case, and the optimizer, after `batches` steps that change nothing."""
    targets, pattern = prunable(model), PATTERNS["unstructured"]
    maskings = [Masking(targets, CRITERIA[name], pattern, scope) for name, scope in CASES]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    for step, batch in enumerate(itertools.islice(loader, batches), 1):
        model(**batch).loss.backward()
        for masking in maskings:
            masking.observe(step, optimizer)
        optimizer.step(), optimizer.zero_grad()
    for masking in maskings:
        if masking.criterion.corrects:
            masking.look(model, loader)
    return maskings, optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="fine-tuned classifier")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    parser.add_argument("--task_name", choices=list(DEFAULTS), default="sst2", help="GLUE task (%(default)s)")
    parser.add_argument("--sparsity", nargs="*", type=float, default=[0.6, 0.8], help="(0.6 0.8)")
    parser.add_argument("--batches", type=int, default=64, help="of 32 rows, for gradients (%(default)s)")
    options = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    task = answered(argparse.Namespace(**vars(options) | DEFAULTS[options.task_name]), tokenizer, further=False)
    model = AutoModelForSequenceClassification.from_pretrained(options.model).eval()
    rows, labels = task.sets["dev"], np.array(task.sets["dev"]["label"])
    dense, before = task.logits(model, rows), {name: one.clone() for name, one in model.state_dict().items()}
    loader = DataLoader(task.train, 32, collate_fn=DataCollatorWithPadding(tokenizer))
    maskings, optimizer = seen(model, loader, options.batches)
    print(f"| zeros | criterion | scope | KL | {task.known.main_metric} |\n| ---: | --- | --- | ---: | ---: |")
    print(f"| 0% | | | 0 | {task.score(dense, labels):.2f} |", flush=True)
    for sparsity, masking in itertools.product(options.sparsity, maskings):
        masking.choose(sparsity, options.batches, optimizer)
        masking.apply()
        found = task.logits(model, rows)
        apart = interval(1000 * divergence(dense, found))
        cells = f"{sparsity:.0%} | `{masking.criterion.name}` | {masking.scope} | {apart}"
        print(f"| {cells} | {task.score(found, labels):.2f} |", flush=True)
        masking.masks = None
        model.load_state_dict(before)


if __name__ == "__main__":
    main()
