"""Convolutions whose weights FSDP2 shards get the masks, ranges and file of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.models.layer_kinds import CONVOLUTIONS
from hf_compress.models.targets import prunable
from tests.invariants import test_convolutions as models
from tests.invariants.harness import PRUNE, QUANT, in_two_processes, recipe
from tests.invariants.test_sharding import in_rows, train

pytestmark = pytest.mark.slow

# Patches, depthwise convolutions, those between stages, and those of a waveform.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {"convnext": models.convnext, "wav2vec2": models.waveforms}
PLAN = recipe((PRUNE, QUANT))


def trained(name: str, shard: Callable[[nn.Module], None], folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if hasattr(model.config, "layerdrop"):
        model.config.layerdrop, model.config.apply_spec_augment = 0.0, False
    rows = models.rows(model)
    batch: dict[str, Tensor] = {one: torch.stack([row[one] for row in rows]) for one in rows[0]}
    return train(model, PLAN, shard, folder, batch)


def train_all(folder: Path) -> None:
    """Train every model in one of two processes, on the same rows."""
    for name in MODELS:
        torch.save(trained(name, in_rows({}, ()), folder / name), folder / f"{name}-{dist.get_rank()}.pt")
        dist.barrier()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes left."""
    folder = tmp_path_factory.mktemp("sharded")
    assert in_two_processes(train_all, folder) == [0, 0]
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_sharded_convolutions_are_those_of_one_process(name: str, left: Path, tmp_path: Path) -> None:
    alone = trained(name, lambda model: None, tmp_path / "alone")
    first, second = (torch.load(left / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first["zeros"] == alone["zeros"] == second["zeros"] and any(alone["zeros"][-1])
    torch.manual_seed(0)
    convolutions = [target.name for target in prunable(MODELS[name]()) if target.kind in CONVOLUTIONS]
    assert convolutions
    for weight in convolutions:
        ours, theirs = first["weights"][f"{weight}.weight"], alone["weights"][f"{weight}.weight"]
        assert torch.equal(ours, second["weights"][f"{weight}.weight"])
        assert torch.equal(ours == 0, theirs == 0) and (theirs == 0).any()
    for key, value in alone["weights"].items():
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-3, atol=1e-5)
    ours, theirs = (
        path.stat().st_size for path in (left / name / "model.safetensors", tmp_path / "alone" / "model.safetensors")
    )
    assert abs(ours - theirs) <= 0.01 * theirs
