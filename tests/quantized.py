"""Make quantized checkpoints without training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_compress.checkpoint.save import save_compressed
from hf_compress.export.parity import random_batches
from hf_compress.layers.attention import round_attention
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.spending import spend
from hf_compress.recipe import Recipe


def quantized(
    model: PreTrainedModel,
    folder: Path,
    scheme: str | None,
    *bits: str,
    step: float | None = None,
    exclude: Sequence[str] = (),
) -> Path:
    """Quantize `model` with the ranges of random batches, and save it compressed; return the folder.

    With `step`, the constant of all steps, weights have fixed steps.
    """
    if scheme is not None:
        quantize_layers(model, SCHEMES[scheme], exclude, bits, steps=step is not None)
        round_attention(model, SCHEMES[scheme], exclude)
        layers = list(compressed_layers(model).values())
        batches = list(random_batches(model))
        for layer in layers:
            layer.observing = True
        with torch.no_grad():
            for batch in batches:
                model.train()(**batch)
        if step is not None:
            spend(model, batches, None, constant=step, exclude=exclude)
        with torch.no_grad():
            for layer in layers:
                layer.quantizing, layer.observing = True, False
                if layer.has_range and layer.step_range is not None:
                    layer.input_range.copy_(layer.step_range)
            model.eval()(**batches[0])
    options = QuantizationArguments(
        quant_scheme=scheme, quant_bits=list(bits), quant_step=step, quant_exclude=list(exclude)
    )
    return save_compressed(model, folder, Recipe(quantization=options))
