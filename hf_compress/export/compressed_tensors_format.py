"""A checkpoint in the format of compressed-tensors, which stock Transformers and vLLM load."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.export.parity import Parity, check_parity, load, random_batches
from hf_compress.extras import extra
from hf_compress.layers.grids import Grid, Scheme, affine_parameters, symmetric_scale
from hf_compress.layers.rounded import compressed_layers
from hf_compress.models.targets import kind

FOLDER = Path("compressed-tensors")
# Its signed integers are ours less this.
OFFSET = 128


def export_compressed_tensors(folder: str | Path, batches: Iterable[Mapping[str, Any]] | None = None) -> Parity:
    """How far the checkpoint written to `folder`/compressed-tensors is from the one in `folder`.

    Quantized linear layers are integers in it, with the scales that were trained; embeddings and all else are floating
    point, so that it is larger than the packed file. With `int8-weight` and `int4-weight` the logits are the same to
    the last bit. `int8` carries the trained ranges, and rounds a value in the middle of two integers to the other one
    now and then; `int8-dynamic` has another range for the activations of a token, 127.5 steps wide instead of 127.

    Raises:
        MissingExtraError: the extra `compressed-tensors` is not installed.
        ValueError: no linear layer of the checkpoint is quantized in a way that the format has, its products inside
            attention are rounded, or the loaded model computes something else. Nothing is left of the folder then.
    """
    require_compressed_tensors()
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    folder = Path(folder)
    reference, plain = load(folder), load(folder)
    config = getattr(plain.config, "quantization_config", None)
    scheme, layers, grids = None, [], dict[str, Grid]()
    if isinstance(config, CompressionConfig) and config.grids is not None:
        scheme, layers = config.grids, _carried(plain, config.quantized, config.grids.weight)
        grids = {name: config.grid(name, "linear") for name in layers}
    if scheme is None or not layers:
        raise ValueError(
            "`--compress_formats compressed-tensors` carries quantized linear layers, and this checkpoint has none "
            "that fit: train with `--quant_scheme`. A layer of four bits must be as wide as a multiple of its group; "
            "GPT-2's layers are of a class that the format does not know."
        )
    if scheme.attention is not None:
        raise ValueError(
            "`--compress_formats compressed-tensors` has no place for the ranges inside attention of `--quant_scheme "
            "int8-attention`. Leave the format out, or train with `int8`."
        )
    ranges = {name: layer.input_range for name, layer in compressed_layers(plain).items() if layer.has_range}
    model = _without_ours(plain)
    apply_quantization_config(model, QuantizationConfig.model_validate(_config(model, layers, scheme)))
    for name in layers:
        _fill(model.get_submodule(name), grids[name], scheme.activation, ranges.get(name))
    target, aside = folder / FOLDER, folder / f".{FOLDER.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        model.save_pretrained(aside)
        compressor.update_config(str(aside))
        _copy_tokenizer(folder, aside)
        loaded = load(aside)
        head_batches = batches or random_batches(reference)
        parity = check_parity(reference, loaded, head_batches, what="the checkpoint of compressed-tensors")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return parity


def require_compressed_tensors() -> None:
    """Check that compressed-tensors is installed.

    Raises:
        MissingExtraError: it is not installed.
    """
    with extra("compressed-tensors", "The format `compressed-tensors`"):
        import compressed_tensors  # noqa: F401


def _carried(model: PreTrainedModel, names: list[str], grid: Grid) -> list[str]:
    """The layers among `names` that the format has: linear ones, their width a multiple of the group."""
    layers = {name: model.get_submodule(name) for name in names}
    return [
        name
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear) and (grid.group_size is None or layer.in_features % grid.group_size == 0)
    ]


def _without_ours(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the plain layers, with the same weights."""
    config = model.config
    del config.quantization_config
    plain = type(model)(config).eval()
    known = plain.state_dict()
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in known})
    plain.tie_weights()
    return plain


def _config(model: PreTrainedModel, layers: list[str], scheme: Scheme) -> dict[str, Any]:
    """The quantization of `layers` in the words of the format."""
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
def _fill(layer: Any, weight: Grid, activation: Grid | None, input_range: Tensor | None) -> None:
    """Give `layer`, made ready by compressed-tensors, the scales that its weight and its input were trained with.

    Fewer bits than the scheme says are integers of smaller magnitude to it.
    """
    layer.weight_scale.data = symmetric_scale(layer.weight, weight)
    if input_range is not None:
        assert activation is not None
        step, zero = affine_parameters(input_range[0], input_range[1], activation)
        layer.input_scale.data = step.reshape(1)
        layer.input_zero_point.data = (zero - OFFSET).to(torch.int8).reshape(1)


def _copy_tokenizer(folder: Path, target: Path) -> None:
    for word in ("token", "vocab", "merges", "spiece", "sentencepiece"):
        for path in folder.glob(f"*{word}*"):
            shutil.copy(path, target)
