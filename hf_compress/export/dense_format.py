"""A checkpoint as plain safetensors, which Transformers loads without anything else."""

from pathlib import Path

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.export.descriptor import Format
from hf_compress.export.parity import load
from hf_compress.export.plain import copy_processor, plain_model, widths_refusal
from hf_compress.layers.grids import Grids
from hf_compress.recipe import Recipe

OPTION = "--compress_formats dense"
ROUNDS = (
    f"`{OPTION}` cannot hold this model: it rounds the inputs of its layers, and Transformers alone does not. Choose "
    "`onnx` or `openvino`, or train with `--quant_scheme int8-weight`."
)


def write_dense(folder: Path, path: Path) -> None:
    """Write the checkpoint in `folder` to the folder `path` as an ordinary one, with weights in floating point.

    Weights keep their zeros and their grids. A model without some neurons or heads is an ordinary one if all its
    layers have as many (`--prune_uniform`).

    Raises:
        ValueError: the layers have widths of their own, or the model rounds inputs, which Transformers does not.
    """
    packed = load(folder)
    config = getattr(packed.config, "quantization_config", None)
    grids = config.grids if isinstance(config, CompressionConfig) else None
    if grids is not None and _rounds_inputs(grids):
        raise ValueError(ROUNDS)
    plain_model(packed, OPTION).save_pretrained(path)
    copy_processor(folder, path)


def _refusal(recipe: Recipe) -> str:
    grids = recipe.quantization.scheme if recipe.quantization.enabled else None
    return ROUNDS if grids is not None and _rounds_inputs(grids) else widths_refusal(recipe, OPTION)


def _rounds_inputs(grids: Grids) -> bool:
    return grids.activation is not None or grids.attention is not None


def _installed() -> None:
    """Do nothing: Transformers is always installed."""


DENSE = Format(
    name="dense",
    path=Path("dense"),
    require=_installed,
    write=write_dense,
    read=lambda path, reference: load(path),
    help="plain safetensors for stock Transformers, as large as floating point",
    card="`dense`: plain safetensors, which Transformers loads without hf_compress.",
    loading="""\
from transformers import {auto_class}

model = {auto_class}.from_pretrained(folder + "/dense")""",
    refusal=_refusal,
    runtime="Transformers alone",
    install="transformers torch",
    running="logits = model(**inputs).logits.detach()",
    tensors="pt",
    errors=("safetensors",),
)
