"""Gradient accumulation of 4 x 4 rows equals 16 x 1 with every method (other heads: tests/distill/test_trainer.py)."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import prunable
from tests.invariants.harness import KD, NAMED, PRUNE, QUANT, SUBSETS, logged, make, rows
from tests.tiny import NO_DROPOUT, bert


@pytest.mark.parametrize("methods", SUBSETS, ids=NAMED)
def test_four_batches_of_four_are_one_of_sixteen(methods: Sequence[str], tmp_path: Path) -> None:
    runs = []
    for size, accumulation in ((16, 1), (4, 4)):
        run = make(
            tmp_path,
            methods,
            # In float32, another order of summation may move a weight to the next grid point.
            model=bert(**NO_DROPOUT).double(),
            teacher=bert(seed=1, **NO_DROPOUT).double(),
            data=rows(54),  # The last step of an epoch has 6 rows: a batch of four and one of two.
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=8,
            learning_rate=1e-3,
        )
        run.train()
        runs.append(run)
    once, fourfold = runs
    names = ["loss", "grad_norm"] + ["distill_loss", "label_loss"] * (KD in methods)
    for one, four in zip(logged(once, *names), logged(fourfold, *names), strict=True):
        assert four == pytest.approx(one, rel=1e-5)
    for one, four in zip(prunable(once.model), prunable(fourfold.model), strict=True):
        assert torch.equal(one.weight == 0, four.weight == 0), one.name
        assert (one.weight == 0).any() == (PRUNE in methods)
    layers = compressed_layers(once.model)
    assert bool(layers) == (QUANT in methods)
    for name, layer in compressed_layers(fourfold.model).items():
        if layer.has_range:
            torch.testing.assert_close(layer.input_range, layers[name].input_range)
