"""What the outputs of a model lose if a neuron or a head is taken out, estimated on rows of the training set."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from hf_compress.models.groups import Part
from hf_compress.models.sharding import gathered
from hf_compress.rate.outputs import (
    Inputs,
    Pooling,
    evaluating,
    gradients_of,
    outputs_of,
    random_signs,
    without_labels,
)


def removal_errors(
    model: PreTrainedModel,
    readers: Sequence[Part],
    batches: Iterable[Inputs],
    seed: int = 0,
    pooling: Pooling = "mean",
    weights: Sequence[Tensor] | None = None,
) -> list[Float[Tensor, " groups"]]:
    """Return, for each reader, by how much the outputs change if one of its groups is taken out: squares, by group.

    A gate of 1 before each group would be 0 without it. To first order the outputs then change by the derivative by
    the gate: the product of the weights that read the group and their gradients. Its square is summed over outputs and
    rows. For random signs r, the expectation of the squared gradient of r.z is that sum (z: the outputs, as in
    `gather`), so one backward per batch is enough.

    Source: the diagonal of the Fisher information of masks (Kwon et al., 2022, eq. 5), with the outputs in place of
    the loss, so that labels are not needed.

    Args:
        model: in floating point, on any device.
        readers: parts with `side` "inputs", of distinct layers.
        batches: model inputs, as a collator makes them.
        seed: of the signs.
        pooling: of the hidden states of a model without a head.
        weights: of the readers' layers, as they are used, if they are merged with an adapter.

    Raises:
        ValueError: there is no batch, or a square is not finite.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.blocks import find_groups
        >>> from hf_compress.rate import removal_errors
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> blocks = find_groups(model, ["neurons", "heads"])
        >>> batches = [{"input_ids": torch.tensor([[1, 2, 3]])}]
        >>> [len(one) for one in removal_errors(model, [block.consumer for block in blocks], batches)]
        [2, 16]
    """
    draw, rows = torch.Generator().manual_seed(seed), 0
    layers = [reader.target.weight for reader in readers]
    used = layers if weights is None else weights
    owners = [reader.owners() for reader in readers]
    found = [torch.zeros(reader.count + 1, dtype=torch.float64) for reader in readers]
    with evaluating(model, layers):
        outputs = outputs_of(model, pooling)
        for batch in batches:
            seen = outputs(without_labels(model, batch))
            total = torch.stack([(one * random_signs(one, draw)).sum() for one in seen]).sum()
            for place, gradient in enumerate(gradients_of(total, layers)):
                if gradient is not None:
                    product = gathered(used[place]).detach().double() * gathered(gradient).double()
                    along = product.sum(1 - readers[place].dim).cpu()
                    sums = torch.zeros_like(found[place]).index_add_(0, owners[place] % len(found[place]), along)
                    found[place] += sums.square()
            rows += len(seen[0])
    if not rows:
        raise ValueError("The sample of rows is empty. Give some text to measure the model on.")
    errors = [one[:-1] / rows for one in found]
    broken = [
        reader.target.name for reader, one in zip(readers, errors, strict=True) if not bool(one.isfinite().all())
    ]
    if broken:
        raise ValueError(
            f"The sample of the training set gives gradients that are not finite in {broken[0]}, so nothing tells "
            "which neurons and heads count. Load the model in float32 or bfloat16, or look for broken rows."
        )
    return errors
