"""Weights whose rows are spread over several processes: the local part, sums over all parts, and the whole."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

T = TypeVar("T")
Search = Generator[np.ndarray, np.ndarray, T]


@dataclass(frozen=True)
class Shards:
    """The processes that hold the rows of the same weights, in the order of the rows.

    Methods that communicate are collective: every process must call them.

    Args:
        mesh: the device mesh of the weights' `DTensor`s. Its last dimension goes over the rows, any before it over
            replicas. None means that this process holds whole weights.
    """

    mesh: DeviceMesh | None = None

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> "Shards":
        """Return the processes that hold `weights`. Call `reshard` first, so that all weights have the same."""
        meshes = {weight.device_mesh if isinstance(weight, DTensor) else None for weight in weights}
        assert len(meshes) <= 1, "checked by `refuse_shards`"
        return cls(*meshes)

    @property
    def whole(self) -> bool:
        """Whether this process holds whole weights."""
        return self.mesh is None

    def total(self, numbers: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Return the sums of `numbers` over the shards. Collective."""
        return numbers if self.mesh is None else self._summed(numbers)

    def ordered_total(self, numbers: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """Return the sums of `numbers` over the shards, added in the order of the rows. Collective.

        So all processes, replicas included, get the same bits.
        """
        if self.mesh is None:
            return numbers
        parts = np.zeros((self.mesh.size(-1), numbers.size), numbers.dtype)
        parts[self.mesh.get_local_rank(self.mesh.ndim - 1)] = numbers
        return self._summed(parts.reshape(-1)).reshape(parts.shape).sum(0)

    def rows(self, number: int) -> slice:
        """Return which of the `number` rows of a weight this process holds: FSDP2 gives all but the last as many."""
        if self.mesh is None:
            return slice(0, number)
        most = self.most_rows(number)
        begin = min(self.mesh.get_local_rank(self.mesh.ndim - 1) * most, number)
        return slice(begin, min(begin + most, number))

    def most_rows(self, number: int) -> int:
        """Return how many of the `number` rows of a weight the first process holds."""
        return number if self.mesh is None else -(-number // self.mesh.size(-1))

    def together(self, searches: Sequence[Search[T]]) -> list[T]:
        """Run the searches side by side and return their results. Collective.

        Each search yields numbers and is sent their sums over the shards. All that the searches yield in one round is
        summed in one message. A search must yield as often as its counterparts on the other processes.
        """
        if self.whole:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                return list(pool.map(_alone, searches))
        found: dict[int, T] = {}
        sums: dict[int, Any] = dict.fromkeys(range(len(searches)))
        while True:
            asked: dict[int, np.ndarray] = {}
            for index, answer in sums.items():
                try:
                    asked[index] = searches[index].send(answer)
                except StopIteration as end:
                    found[index] = end.value
            if not asked:
                return [found[index] for index in range(len(searches))]
            message = self.total(np.concatenate(list(asked.values())))
            ends = np.cumsum([len(numbers) for numbers in asked.values()])
            sums = dict(zip(asked, np.split(message, ends[:-1]), strict=True))

    def ahead(self, numbers: Int[np.ndarray, "weights"]) -> "Search[Int[np.ndarray, 'weights']]":
        """Return, for each weight, the sum of `numbers` before this process's part: in earlier weights and its own."""
        size, own = (1, 0) if self.mesh is None else (self.mesh.size(-1), self.mesh.get_local_rank(self.mesh.ndim - 1))
        parts = np.zeros((size, numbers.size), np.int64)
        parts[own] = numbers
        parts = (yield parts.reshape(-1)).reshape(parts.shape)
        sums = parts.sum(0)
        return sums.cumsum() - sums + parts[:own].sum(0)

    def disagreements(self, sums: Int[Tensor, "n"]) -> list[int]:
        """Return the indices at which `sums` differ between processes that should hold the same. Collective.

        The result is equal on all processes.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1 or not len(sums):
            return []
        # Maximum and minimum in one message: the complement reverses the order without overflow.
        extremes = torch.cat([sums, ~sums])
        if self.mesh is not None:
            extremes = extremes.to(self.mesh.device_type)  # Offloaded weights are on the CPU.
        for group in self._replicas():
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
        greatest, least = extremes[: len(sums)], ~extremes[len(sums) :]
        return np.flatnonzero(self.total((greatest != least).long().cpu().numpy())).tolist()

    def _summed(self, numbers: np.ndarray) -> np.ndarray:
        assert self.mesh is not None
        sums = torch.as_tensor(numbers, device=self.mesh.device_type)
        dist.all_reduce(sums, group=self.mesh.get_group(self.mesh.ndim - 1))
        return sums.cpu().numpy()

    def _replicas(self) -> list[dist.ProcessGroup | None]:
        """Return the groups of processes that hold the same rows as this one; None means all processes."""
        return [None] if self.mesh is None else [self.mesh.get_group(number) for number in range(self.mesh.ndim - 1)]


def _alone(search: Search[T]) -> T:
    """Return the result of `search` if this process holds whole weights: its numbers are the sums."""
    numbers: Any = None
    while True:
        try:
            numbers = search.send(numbers)
        except StopIteration as end:
            return cast(T, end.value)


def local(weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Return this process's rows of `weight`, detached and without a copy. There may be no rows."""
    with torch.no_grad():
        return weight.to_local() if isinstance(weight, DTensor) else weight.detach()


def gathered(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the whole of `tensor`. Collective if it is sharded."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_first(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors, whole, on the first process, and nothing on the others. Collective.

    Sharded tensors are gathered one at a time.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    for name, tensor in tensors.items():
        whole = gathered(tensor).cpu() if isinstance(tensor, DTensor) else tensor
        if first:
            yield name, whole


def from_first(value: T) -> T:
    """Return the `value` of the first process, on every process. Collective.

    Example:
        >>> from hf_compress.models.sharding import from_first
        >>> from_first({"bert.encoder.layer.0": 768})
        {'bert.encoder.layer.0': 768}
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    shared = [value]
    dist.broadcast_object_list(shared, 0)
    return shared[0]


def count_zeros(weights: Sequence[Shaped[Tensor, "..."]]) -> list[int]:
    """Return the number of zeros in each of `weights`, over all shards. Collective."""
    zeros = [part.numel() - int(part.count_nonzero()) for part in map(local, weights)]
    return Shards.of(weights).total(np.array(zeros, dtype=np.int64)).tolist()


def reshard(model: nn.Module) -> None:
    """Make every module of `model` hold its shard again. After an evaluation, FSDP may leave whole weights there."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 spreads the weights of `model` over processes."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def refuse_shards(model: nn.Module, weights: Mapping[str, Tensor], option: str) -> None:
    """Refuse weights of `model` that are neither whole nor sharded by rows as FSDP2 does.

    Whole weights pass (one process, DDP, DeepSpeed ZeRO-1 and ZeRO-2), and so do FSDP2's shards, hybrid ones included.

    Args:
        weights: the weights by name.
        option: the flag of the method that needs them, for the error.

    Raises:
        ValueError: a weight is sharded in another way.
    """
    remedy = "Use FSDP2 (`--fsdp true`), DDP, DeepSpeed ZeRO-1 or ZeRO-2"
    if is_deepspeed_zero3_enabled():
        raise ValueError(f"`{option}` cannot reach weights that DeepSpeed ZeRO-3 partitions. {remedy}.")
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(f"`{option}` cannot reach weights that FSDP1 flattens. {remedy}.")
    by_fsdp = is_sharded(model)
    meshes = [weight.device_mesh if isinstance(weight, DTensor) else None for weight in weights.values()]
    for (name, weight), mesh in zip(weights.items(), meshes, strict=True):
        if mesh is None:
            fits, how = weight.ndim > 1 and weight.numel() > 0, f"of shape {tuple(weight.shape)}"
        else:
            assert isinstance(weight, DTensor)
            *replicas, rows = weight.placements
            fits = by_fsdp and rows == Shard(0) and all(isinstance(one, Replicate) for one in replicas)
            how = f"sharded as {weight.placements}"
        if not fits or mesh != meshes[0]:
            raise ValueError(
                f"`{option}` needs weights that are all whole, or all sharded by rows over the same processes as "
                f"FSDP2 does, but {name} is {how}{'' if mesh == meshes[0] else ', unlike others'}. {remedy}, without "
                "tensor parallelism and without ignored modules."
            )
    if isinstance(model, PeftModel) and meshes[0] is not None:
        raise ValueError(
            f"`{option}` cannot merge sharded weights with an adapter. Use DDP, or train without an adapter "
            "(`model.merge_and_unload()`)."
        )
