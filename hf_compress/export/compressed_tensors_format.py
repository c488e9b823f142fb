"""A checkpoint in the format of compressed-tensors, which stock Transformers and vLLM load."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.export.descriptor import Format
from hf_compress.export.parity import load
from hf_compress.export.plain import copy_processor, plain_model, widths_refusal
from hf_compress.extras import extra
from hf_compress.layers.affine import affine_parameters
from hf_compress.layers.grids import Grid, Grids, symmetric_scale
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.layer_kinds import CONVOLUTIONS, kind
from hf_compress.models.targets import quantizable
from hf_compress.recipe import Recipe

# The format's signed integers are ours less this.
OFFSET = 128
OPTION = "--compress_formats compressed-tensors"
NO_LAYERS = f"`{OPTION}` holds quantized linear layers, and this model has none that fit: train with `--quant_scheme`."
OF_ANOTHER_CLASS = (
    " The width of a 4-bit layer must be a multiple of its group. GPT-2's layers are of a class that the format does "
    "not know."
)
RANGES = (
    f"`{OPTION}` cannot hold the ranges inside attention of `--quant_scheme int8-attention`. Leave the format out, or "
    "train with `int8`."
)


def write_compressed_tensors(folder: Path, path: Path) -> None:
    """Write the checkpoint in `folder` to the folder `path`, in the format of compressed-tensors.

    Quantized linear layers are stored as integers with the trained scales. Embeddings and everything else are floating
    point, so this is larger than the packed file. With `int8-weight` and `int4-weight` the logits are equal to the
    last bit. `int8` carries the trained ranges, and now and then rounds a value halfway between two integers to the
    other one. `int8-dynamic` has another range for the activations of a token: 127.5 steps instead of 127.

    Raises:
        ValueError: the format cannot hold any quantized layer of the checkpoint, or products inside attention are
            rounded.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    packed = load(folder)
    config, layers, scheme = _carried(packed)
    ranges = {name: layer.input_range for name, layer in compressed_layers(packed).items() if layer.has_range}
    steps = {name: layer.step for name, layer in compressed_layers(packed).items()}
    model = plain_model(packed, OPTION)
    apply_quantization_config(model, QuantizationConfig.model_validate(_config(model, layers, scheme)))
    for name in layers:
        grid, step = config.grid(name, "linear"), steps.get(name)
        _fill(model.get_submodule(name), grid, step, scheme.activation, ranges.get(name))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(path)
    compressor.update_config(str(path))
    copy_processor(folder, path)


def _refusal(recipe: Recipe) -> str:
    if not recipe.quantization.enabled:
        return NO_LAYERS
    return RANGES if recipe.quantization.scheme.attention is not None else widths_refusal(recipe, OPTION)


def _unfit(model: PreTrainedModel) -> str:
    """Return why the format cannot hold `model`, whose layers round if any will; "" if it can.

    It holds no rounding of the inputs of convolutions, and packed weights only where Transformers loads them again.
    """
    layers = {name: layer for name, layer in compressed_layers(model).items() if layer.weight_grid}
    rounding = [name for name, layer in layers.items() if kind(layer) in CONVOLUTIONS and layer.input_grid]
    body = [target.name for target in quantizable(model) if target.name in layers] if layers else []
    linear = [name for name in body if kind(layers[name]) == "linear" and _is_whole(layers[name])]
    if rounding:
        return (
            f"`{OPTION}` holds quantized linear layers only, and the inputs of {len(rounding)} convolutions, such as "
            f"{rounding[0]}, are rounded too. Choose `onnx` or `openvino`, train with `--quant_scheme int8-weight`, "
            f"or leave them in floating point (`--quant_exclude {rounding[0].rpartition('.')[2]}`)."
        )
    if layers and not linear:
        return NO_LAYERS + OF_ANOTHER_CLASS
    if linear and not any(layers[name].input_grid for name in linear) and not _loads_packed(model, linear):
        return (
            f"`{OPTION}` packs the weights of this scheme, and Transformers cannot load a {type(model).__name__} with "
            "packed weights. Choose `dense`, `onnx` or `openvino`, or train with `--quant_scheme int8`."
        )
    return ""


def _is_whole(layer: Any) -> bool:
    """Return whether the rows of a linear layer that rounds its weights are whole groups."""
    group = layer.weight_grid.group_size
    return group is None or layer.in_features % group == 0


def _loads_packed(model: PreTrainedModel, names: list[str]) -> bool:
    """Return whether Transformers can load `model` with layers that have packed weights, and no `weight`, from a file.

    It then initializes what the file lacks, and some classes reach for the weights of all layers.
    """
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        built = type(model)(config)
    for name in names:
        built.get_submodule(name)._parameters.pop("weight")
    for module in built.modules():
        vars(module).pop("_is_hf_initialized", None)
    try:
        built.initialize_weights()
    except AttributeError:
        return False
    return True


def _require() -> None:
    with extra("compressed-tensors", "The format `compressed-tensors`"):
        import compressed_tensors  # noqa: F401


COMPRESSED_TENSORS = Format(
    name="compressed-tensors",
    path=Path("compressed-tensors"),
    require=_require,
    write=write_compressed_tensors,
    read=lambda path, reference: load(path),
    help="for stock Transformers and vLLM, linear layers only",
    card="`compressed-tensors`: stock Transformers and vLLM load it. Only its linear layers are integers.",
    loading="""\
from transformers import {auto_class}

model = {auto_class}.from_pretrained(folder + "/compressed-tensors")""",
    refusal=_refusal,
    unfit=_unfit,
    errors=("safetensors",),
    install="transformers torch compressed-tensors",
    running="logits = model(**inputs).logits.detach()",
    tensors="pt",
)


def _carried(model: PreTrainedModel) -> tuple[CompressionConfig, list[str], Grids]:
    """Return the configuration of the model, the names of the layers that the format can hold, and their scheme.

    It holds linear layers whose width is a multiple of the group.
    """
    config = getattr(model.config, "quantization_config", None)
    scheme, layers = None, list[str]()
    if isinstance(config, CompressionConfig) and config.grids is not None:
        scheme, group = config.grids, config.grids.weight.group_size
        for name in config.quantized:
            layer = model.get_submodule(name)
            if isinstance(layer, nn.Linear) and (group is None or layer.in_features % group == 0):
                layers.append(name)
    if scheme is None or not layers:
        raise ValueError(NO_LAYERS + OF_ANOTHER_CLASS)
    if scheme.attention is not None:
        raise ValueError(RANGES)
    assert isinstance(config, CompressionConfig)
    return config, layers, scheme


def _config(model: PreTrainedModel, layers: list[str], scheme: Grids) -> dict[str, Any]:
    """Return the quantization of `layers` in the terms of the format."""
    weights = {"num_bits": scheme.weight.bits, "type": "int", "symmetric": True}
    if scheme.weight.per == "group":
        weights |= {"strategy": "group", "group_size": scheme.weight.group_size}
    else:
        weights |= {"strategy": "channel"}
    inputs = None
    if scheme.activation is not None:
        token = scheme.activation.per == "token"
        inputs = {"num_bits": scheme.activation.bits, "type": "int", "symmetric": token, "dynamic": token}
        inputs["strategy"] = "token" if token else "tensor"
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    others = [name for name, module in model.named_modules() if kind(module) == "linear" and name not in layers]
    return {"config_groups": {"group_0": group}, "ignore": others}


@torch.no_grad()
def _fill(layer: Any, weight: Grid, step: Tensor | None, activation: Grid | None, input_range: Tensor | None) -> None:
    """Set the trained scales of weight and input in `layer`, which compressed-tensors has prepared.

    A layer with fewer bits than the scheme has integers of smaller magnitude.
    """
    layer.weight_scale.data = symmetric_scale(layer.weight, weight) if step is None else step
    if input_range is not None:
        assert activation is not None
        scale, zero = affine_parameters(input_range[0], input_range[1], activation)
        layer.input_scale.data = scale.reshape(1)
        layer.input_zero_point.data = (zero - OFFSET).to(torch.int8).reshape(1)
