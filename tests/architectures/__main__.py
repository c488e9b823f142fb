"""Try every method on every architecture and write `docs/architectures.md`.

`python -m tests.architectures` tries all, `python -m tests.architectures bert t5 --methods int8 ONNX` some.
"""

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.architectures.families import FAMILIES
from tests.architectures.methods import METHODS, outcome
from tests.architectures.page import record, recorded


def main() -> int:
    """Return the exit status: 1 if something failed in another way than by a refusal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="Architectures; by default all.")
    parser.add_argument("--methods", nargs="*", help="Columns; by default all.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    for family in FAMILIES:
        if chosen.families and family.name not in chosen.families:
            continue
        # Trainer collects garbage after each training, which takes longer than a tiny training.
        gc.freeze()
        found: dict[str, str] = {}
        for method in METHODS:
            if chosen.methods and method.title not in chosen.methods:
                continue
            began = time.perf_counter()
            try:
                with tempfile.TemporaryDirectory() as folder:
                    found[method.title] = said = outcome(family, method, Path(folder))
            except Exception as error:  # noqa: BLE001 - Whatever it is, the page must not have it; others are tried.
                failed, said = 1, f"FAILED: {type(error).__name__}: {error}"
            print(f"{family.name} {method.title} ({time.perf_counter() - began:.1f} s): {said}", flush=True)
        outcomes = recorded()
        outcomes.setdefault(family.name, {}).update(found)
        record(outcomes)
    return failed


if __name__ == "__main__":
    sys.exit(main())
