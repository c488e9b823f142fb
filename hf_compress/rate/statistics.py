"""What a model's texts say about its weights: how much the outputs depend on each, and the inputs of each layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from hf_compress.models.heads import LABELS, Head, find_head
from hf_compress.models.sharding import gathered
from hf_compress.models.targets import Target

MASK = "attention_mask"
Inputs = Mapping[str, Any]
Pooling = Literal["mean", "first"]


@dataclass(frozen=True)
class Statistics:
    """Statistics of the weights of a model over a sample of rows.

    Attributes:
        sensitivity: by the name of a target, the mean over its weights and over the rows of the squared derivative of
            the outputs: the mean of the diagonal of the Gauss-Newton matrix J'J, J the Jacobian of the outputs.
        moments: by the name of a linear layer, the sum X'X over its input vectors, of shape (inputs, inputs).
        uses: by the name of an embedding, how often each of its rows was looked up. Targets in neither `moments` nor
            `uses` were never called.

    Example:
        >>> from hf_compress.rate import Statistics
        >>> Statistics({"embeddings": 0.5}, moments={}).sensitivity["embeddings"]
        0.5
    """

    sensitivity: dict[str, float]
    moments: dict[str, Float[Tensor, "inputs inputs"]]
    uses: dict[str, Int[Tensor, " rows"]] = field(default_factory=dict)


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
    with _evaluating(model, list(weights.values())), inputs_seen:
        outputs = _outputs(model, pooling)
        for batch in batches:
            inputs = _without_labels(model, batch)
            inputs_seen.mask = inputs.get(MASK)
            found = outputs(inputs)
            total = torch.stack([(one * _signs(one, signs)).sum() for one in found]).sum()
            for key, gradient in zip(weights, _gradients(total, list(weights.values())), strict=True):
                if gradient is not None:
                    squares[key] += gathered(gradient.float().square().sum(dtype=torch.float64)).cpu()
            rows += len(found[0])
    if not rows:
        raise ValueError("The sample of rows is empty. Give some text to measure the model on.")
    sensitivity = {target.name: float(squares[id(target.weight)]) / rows / target.weight.numel() for target in targets}
    return Statistics(sensitivity, inputs_seen.moments, inputs_seen.uses)


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
                inputs = _without_labels(model, batch)
                seen.mask = inputs.get(MASK)
                model(**inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    return seen.moments


def embedding(
    hidden: Float[Tensor, "rows tokens width"], mask: Tensor | None, pooling: Pooling = "mean"
) -> Float[Tensor, "rows width"]:
    """Return the normalized mean of the hidden states of each row, as sentence-transformers pools by default.

    Args:
        hidden: the last hidden states.
        mask: 1 for tokens and 0 for padding, of shape (rows, tokens); None if there is no padding.
        pooling: "mean", or "first" for the hidden state of the first token alone.

    Example:
        >>> import torch
        >>> from hf_compress.rate import embedding
        >>> embedding(torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 0]]))
        tensor([[0.6000, 0.8000]])
    """
    if pooling == "first":
        # Tokenizers that pad on the left put the first token behind the padding.
        first = torch.zeros(len(hidden), dtype=torch.long) if mask is None else mask.argmax(1)
        return nn.functional.normalize(hidden[torch.arange(len(hidden)), first.to(hidden.device)], dim=-1)
    weight = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.to(hidden.dtype)
    pooled = (hidden * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1e-9)
    return nn.functional.normalize(pooled, dim=-1)


def _without_labels(model: PreTrainedModel, batch: Inputs) -> dict[str, Any]:
    """Return the inputs of a batch without labels; what a decoder would read of them is made here."""
    inputs = {name: value for name, value in batch.items() if name not in LABELS}
    head, ids = _head(model), "decoder_input_ids"
    if head is not None and head.descriptor.decodes and ids not in inputs and "labels" in batch:
        inputs[ids] = cast(Any, model).prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    return inputs


def _outputs(model: PreTrainedModel, pooling: Pooling) -> Callable[[Inputs], Sequence[Tensor]]:
    """Return the function from the inputs of `model` to the outputs that its weights are judged by."""
    head = _head(model)
    if head is not None:
        return lambda inputs: [_counted(one, inputs.get(MASK)) for one in head.logits(model(**inputs))]
    return lambda inputs: [embedding(model(**inputs).last_hidden_state, inputs.get(MASK), pooling)]


def _head(model: PreTrainedModel) -> Head | None:
    try:
        return find_head(model)
    except ValueError:
        return None


def _counted(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return the logits with those of padding set to zero."""
    if mask is None or logits.shape[: mask.dim()] != mask.shape:
        return logits
    kept = mask.bool().reshape(*mask.shape, *[1] * (logits.dim() - mask.dim()))
    return torch.where(kept, logits, 0.0)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


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
            if target.kind == "embedding":
                self._looking = target
            else:
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


def _gradients(total: Tensor, weights: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """Return the gradients of `total`, without leaving them on the weights."""
    if not any(isinstance(weight, DTensor) for weight in weights):
        return torch.autograd.grad(total, weights, allow_unused=True)
    total.backward()  # FSDP2 shards gradients only in a backward pass that accumulates them.
    gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return gradients


@contextmanager
def _evaluating(model: PreTrainedModel, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which `model` is in evaluation mode and only `weights` need gradients."""
    modes = {module: module.training for module in model.modules()}
    needs = {parameter: parameter.requires_grad for parameter in model.parameters()}
    sharded = any(isinstance(weight, DTensor) for weight in weights)
    try:
        model.eval()
        if not sharded:  # FSDP2 fixes what needs gradients when it first gathers a weight.
            model.requires_grad_(False)
            for weight in weights:
                weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, need in needs.items():
            if sharded:
                parameter.grad = None
            else:
                parameter.requires_grad_(need)
