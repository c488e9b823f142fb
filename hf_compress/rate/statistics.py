"""What a model's texts say about its weights: how much the outputs depend on each, and the inputs of each layer."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from hf_compress.models.layer_kinds import CONVOLUTIONS
from hf_compress.models.sharding import gathered
from hf_compress.models.targets import Target
from hf_compress.rate.outputs import (
    MASK,
    Inputs,
    Pooling,
    evaluating,
    gradients_of,
    outputs_of,
    random_signs,
    without_labels,
)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the weights of a model over a sample of rows.

    Attributes:
        sensitivity: by the name of a target, the mean over its weights and over the rows of the squared derivative of
            the outputs: the mean of the diagonal of the Gauss-Newton matrix J'J, J the Jacobian of the outputs.
        moments: by the name of a linear layer, the sum X'X over its input vectors, of shape (inputs, inputs).
        uses: by the name of an embedding, how often each of its rows was looked up.
        called: the names of all targets that were called; convolutions are in none of the others.

    Example:
        >>> from hf_compress.rate import Statistics
        >>> Statistics({"embeddings": 0.5}, moments={}).sensitivity["embeddings"]
        0.5
    """

    sensitivity: dict[str, float]
    moments: dict[str, Float[Tensor, "inputs inputs"]]
    uses: dict[str, Int[Tensor, " rows"]] = field(default_factory=dict)
    called: Set[str] = frozenset()


def gather(
    model: PreTrainedModel,
    targets: Sequence[Target],
    batches: Iterable[Inputs],
    seed: int = 0,
    pooling: Pooling = "mean",
) -> Statistics:
    """Return the statistics of the weights `targets` of `model` over the rows of `batches`.

    The outputs z are the logits, or the normalized, pooled hidden states where the model has no head. For random
    signs r, the expectation of the squared gradient of r.z is the diagonal of J'J, summed over outputs; so one
    backward per batch is enough. The model runs in evaluation mode, without labels. Parameters and their gradients,
    modes and random states are as before.

    Args:
        model: the dense model, on any device.
        targets: the weights, from `quantizable`. Tied weights may be there several times.
        batches: model inputs, as a collator makes them.
        seed: of the signs.
        pooling: of the hidden states of a model without a head.

    Raises:
        ValueError: there is no batch, or FSDP2 shards a weight that is frozen.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.models import quantizable
        >>> from hf_compress.rate import gather
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> targets = quantizable(model)
        >>> statistics = gather(model, targets, [{"input_ids": torch.tensor([[1, 2, 3]])}])
        >>> sorted(statistics.sensitivity) == sorted(target.name for target in targets)
        True
    """
    frozen = [one.name for one in targets if isinstance(one.weight, DTensor) and not one.weight.requires_grad]
    if frozen:
        raise ValueError(
            f"{frozen[0]} is frozen, and FSDP2 gives frozen weights no gradient, so nothing tells how much it counts. "
            f"Train it, leave it out by `--quant_exclude {frozen[0]}`, or train under DDP."
        )
    signs = torch.Generator().manual_seed(seed)
    squares = {id(target.weight): torch.zeros((), dtype=torch.float64) for target in targets}
    weights = {id(target.weight): target.weight for target in targets}
    inputs_seen, rows = _Inputs(targets), 0
    with evaluating(model, list(weights.values())), inputs_seen:
        outputs = outputs_of(model, pooling)
        for batch in batches:
            inputs = without_labels(model, batch)
            inputs_seen.mask = inputs.get(MASK)
            found = outputs(inputs)
            total = torch.stack([(one * random_signs(one, signs)).sum() for one in found]).sum()
            for key, gradient in zip(weights, gradients_of(total, list(weights.values())), strict=True):
                if gradient is not None:
                    squares[key] += gathered(gradient.float().square().sum(dtype=torch.float64)).cpu()
            rows += len(found[0])
    if not rows:
        raise ValueError("The sample of rows is empty. Give some text to measure the model on.")
    sensitivity = {target.name: float(squares[id(target.weight)]) / rows / target.weight.numel() for target in targets}
    return Statistics(sensitivity, inputs_seen.moments, inputs_seen.uses, inputs_seen.called)


@torch.no_grad()
def input_moments(model: PreTrainedModel, targets: Sequence[Target], batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """Return the sums X'X over the input vectors of linear layers, of shape (inputs, inputs), by their names.

    The model runs in evaluation mode, without labels. Padding does not count. Layers that are never called have none.

    Args:
        model: on any device.
        targets: linear layers.
        batches: model inputs, as a collator makes them.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.models import prunable
        >>> from hf_compress.rate import input_moments
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> moments = input_moments(model, prunable(model), [{"input_ids": torch.tensor([[1, 2, 3]])}])
        >>> tuple(moments["bert.encoder.layer.0.output.dense"].shape)
        (16, 16)
    """
    seen, modes = _Inputs(targets), {module: module.training for module in model.modules()}
    try:
        model.eval()
        with seen:
            for batch in batches:
                inputs = without_labels(model, batch)
                seen.mask = inputs.get(MASK)
                model(**inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    return seen.moments


class _Inputs(TorchFunctionMode):
    """Hooks that sum X'X over the inputs of linear layers, and count the rows that embeddings look up.

    Layers that read the same tensor share the sum. Rows are counted where PyTorch looks them up: some embeddings, such
    as Bart's of positions, compute the row numbers from what they are given.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        super().__init__()
        self.targets = targets
        self.moments: dict[str, Tensor] = {}
        self.uses: dict[str, Tensor] = {}
        self.called: set[str] = set()
        self.mask: Tensor | None = None
        self._last: tuple[Tensor, str] | None = None
        self._shared: dict[str, str] = {}
        self._looking: Target | None = None  # The embedding that is called, until it looks up its rows.

    def __enter__(self) -> "_Inputs":
        self._handles = [
            target.module.register_forward_pre_hook(self._hook(target), with_kwargs=True) for target in self.targets
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._last = None
        self.moments |= {name: self.moments[owner] for name, owner in self._shared.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.embedding and self._looking is not None:
            target, self._looking = self._looking, None
            self._count(target, args[0])
        return func(*args, **(kwargs or {}))

    def _hook(self, target: Target) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def called(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.called.add(target.name)
            if target.kind == "embedding":
                self._looking = target
            elif target.kind not in CONVOLUTIONS:
                self._multiply(target, [*arguments, *named.values()][0])

        return called

    def _count(self, target: Target, places: Tensor) -> None:
        kept = places[self.mask.bool()] if self.mask is not None and self.mask.shape == places.shape else places
        count = torch.bincount(kept.reshape(-1).cpu(), minlength=len(target.weight))
        self.uses[target.name] = self.uses.get(target.name, 0) + count

    def _multiply(self, target: Target, values: Tensor) -> None:
        name, given = target.name, values
        if self._last is not None and self._last[0] is given and name not in self.moments:
            self._shared[name] = self._last[1]
            return
        self._last = given, name
        values = values.detach()
        if self.mask is not None and values.shape[: self.mask.dim()] == self.mask.shape:
            values = values[self.mask.bool()]
        flat = values.reshape(-1, values.shape[-1]).float()
        with torch.autocast(flat.device.type, enabled=False):  # Sums of 16-bit products are not positive definite.
            moment = flat.t() @ flat
        self.moments[name] = self.moments[name] + moment if name in self.moments else moment
