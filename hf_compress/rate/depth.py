"""What the outputs of a model lose if a whole layer is passed over, measured on rows of the training set."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.models.skipping import skipping
from hf_compress.rate.outputs import Inputs, Pooling, evaluating, outputs_of, without_labels


def skipping_errors(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    batches: Iterable[Inputs],
    beside: int | None = None,
    pooling: Pooling = "mean",
) -> list[float]:
    """Return, for each of `layers`, by how much the outputs change if it is passed over: squares, as a mean over rows.

    The outputs are those that `removal_errors` judges neurons and heads by: logits, or the embedding of a model
    without a head. The model is in evaluation mode. Each layer costs one forward per batch.

    Source: layers are dropped by what they contribute in Sajjad et al., 2023, and Men et al., 2024, which look at
    hidden states. The outputs are what the loss reads.

    Args:
        model: on any device.
        layers: of the model, none of which is passed over now.
        batches: model inputs, as a collator makes them.
        beside: how many values a layer returns behind its hidden states, in a tuple; None for no tuple.
        pooling: of the hidden states of a model without a head.

    Raises:
        ValueError: there is no batch, or a square is not finite.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.stacks import layers_of
        >>> from hf_compress.rate import skipping_errors
        >>> sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> len(skipping_errors(model, layers_of(model), [{"input_ids": torch.tensor([[1, 2, 3]])}]))
        2
    """
    totals, rows = [0.0] * len(layers), 0
    with evaluating(model, []), torch.no_grad():
        outputs = outputs_of(model, pooling)
        for batch in batches:
            inputs = without_labels(model, batch)
            whole = outputs(inputs)
            for place, layer in enumerate(layers):
                with skipping(layer, beside):
                    totals[place] += _apart(whole, outputs(inputs))
            rows += len(whole[0])
    if not rows:
        raise ValueError("The sample of rows is empty. Give some text to measure the model on.")
    if not all(math.isfinite(total) for total in totals):
        raise ValueError(
            "The sample of the training set gives outputs that are not finite, so nothing tells which layers count. "
            "Load the model in float32 or bfloat16, or look for broken rows."
        )
    return [total / rows for total in totals]


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    squares = [(one.double() - other.double()).square().sum() for one, other in zip(ours, theirs, strict=True)]
    return float(torch.stack(squares).sum())
