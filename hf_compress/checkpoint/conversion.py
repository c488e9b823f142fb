"""How Transformers, while it loads a model, gets weights in place of packed bytes."""

import copy
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter

if TYPE_CHECKING:
    from hf_compress.checkpoint.quantizer import CompressionQuantizer


class Unpack(ConversionOps):
    """The load operation of Transformers that decodes a packed tensor."""

    def __init__(self, hf_quantizer: "CompressionQuantizer") -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unpack":
        return self  # Transformers copies it for every tensor, but there is one quantizer with one set of threads.

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: PreTrainedModel, **kwargs: Any
    ) -> dict[str, Tensor]:
        (given,) = (value[0] if isinstance(value, list) else value for value in input_dict.values())
        return {full_layer_name: self.hf_quantizer.unpacked(model, full_layer_name, given)}


class EachTensor(WeightConverter):
    """The conversion of every tensor under its own name.

    The CPU decodes; the weight then moves to its device. Transformers copies a conversion for every tensor. These
    copies share what is the same for all tensors, because copying that takes longer than decoding a small tensor.
    """

    def __init__(self, operation: ConversionOps) -> None:
        super().__init__("(.+)", r"\1", [operation], force_cpu=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> "EachTensor":
        copied = copy.copy(self)
        copied.collected_tensors, copied.layer_targets = defaultdict(list), defaultdict(set)
        return copied
