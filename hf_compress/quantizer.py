"""The door to Transformers: what its `from_pretrained` and `save_pretrained` call for a compressed checkpoint."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_compress.coding import declared, pack, unpack
from hf_compress.layers import FakeQuantized, restore_layers
from hf_compress.schemes import Grid, Scheme, from_integers, symmetric_scale, to_integers
from hf_compress.sharding import gathered
from hf_compress.targets import Kind, kind

METHOD = "hf_compress"
FORMAT_VERSION = 1
PACKED, SCALE = ".packed", ".scale"

T = TypeVar("T")


@register_quantization_config(METHOD)
class CompressionConfig(QuantizationConfigMixin):
    """What `config.json` says of a compressed checkpoint: which weights are packed, and on which grids.

    Args:
        scheme: the grids, as `dataclasses.asdict` gives them, or None if nothing is quantized.
        quantized: names of the layers whose weights are integers in the file.
        pruned: names of the layers whose zeros are not stored.
        version: of the format; a newer one is refused.
    """

    def __init__(
        self,
        scheme: dict[str, Any] | None = None,
        quantized: list[str] | None = None,
        pruned: list[str] | None = None,
        version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        self.quant_method = METHOD
        self.scheme, self.quantized, self.pruned, self.version = scheme, quantized or [], pruned or [], version
        if version != FORMAT_VERSION:
            raise ValueError(
                f"`quantization_config.version` must be {FORMAT_VERSION}; got {version!r}. Upgrade hf_compress to "
                "read it."
            )
        if self.quantized and scheme is None:
            raise ValueError("`quantization_config.scheme` must name the grids of the quantized layers; got None.")
        try:
            self.grids = None if scheme is None else _scheme(scheme)
        except (TypeError, KeyError) as error:
            raise ValueError(f"`quantization_config.scheme` is no scheme of hf_compress: {scheme!r}.") from error

    def to_dict(self) -> dict[str, Any]:
        names = ("quant_method", "version", "scheme", "quantized", "pruned")
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    def grid(self, layer: Kind) -> Grid:
        """The grid of the weights of a quantized layer."""
        assert self.grids is not None, "checked on construction"
        return self.grids.embedding if layer == "embedding" else self.grids.weight


def _scheme(values: dict[str, Any]) -> Scheme:
    grids: dict[str, Any] = {name: None if grid is None else Grid(**grid) for name, grid in values.items()}
    return Scheme(**grids)


class Unpack(ConversionOps):
    """The load operation of a weight: packed bytes, and scales if they are integers, to the weight they stand for."""

    def __init__(self, hf_quantizer: "CompressionQuantizer") -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: PreTrainedModel, **kwargs: Any
    ) -> dict[str, Tensor]:
        tensors = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        scale = next((value for name, value in tensors.items() if name.endswith(SCALE)), None)
        packed = next((value for name, value in tensors.items() if name.endswith(PACKED)), None)
        if packed is None:
            raise ValueError(f"{full_layer_name} has scales but no packed integers")
        return {"weight": self.hf_quantizer.unpacked(model, full_layer_name, packed, scale)}


@register_quantizer(METHOD)
class CompressionQuantizer(HfQuantizer):
    """Packs weights when a model is saved and unpacks them, one at a time, when it is loaded."""

    quantization_config: CompressionConfig
    serialized_names: ClassVar[dict[str, list[str]]] = {"weight": [f"weight{PACKED}", f"weight{SCALE}"]}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        return {"deserialize": Unpack}

    def get_weight_conversions(self) -> list[WeightConverter]:
        # Decoding is the CPU's work; the weight then goes to its device.
        return [
            WeightConverter(names, weight, [Unpack(self)], force_cpu=True)
            for weight, names in self.serialized_names.items()
        ]

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        config = self.quantization_config
        for path in kwargs.get("checkpoint_files") or []:
            self.check_file(Path(path), model)
        for name in {*config.quantized, *config.pruned}:
            if kind(_layer(model, name)) is None:
                raise ValueError(f"`quantization_config` names {name}, which is no layer that hf_compress packs.")
        if config.grids is not None and config.grids.activation is not None:
            linear = [name for name in config.quantized if kind(_layer(model, name)) != "embedding"]
            restore_layers(model, linear, config.grids.activation)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # `save_pretrained` would try to revert this one; saving packs by itself.
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions
            if not any(isinstance(operation, Unpack) for operation in getattr(conversion, "operations", ()))
        ]
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What goes into the file: packed weights, their scales, and all else as it is; tied weights once.

        Sharded tensors are gathered one at a time. All processes must call it; what it returns is the first one's.
        """
        config = self.quantization_config
        state: dict[str, Tensor] = {}
        for name, tensor in remove_tied_weights_from_state_dict(model.state_dict(), model).items():
            layer, _, leaf = name.rpartition(".")
            if leaf == "input_range" and layer not in config.quantized:
                continue  # Of a layer that is never called: it is stored and loaded as an ordinary one.
            if isinstance(tensor, DTensor):
                tensor = gathered(tensor).cpu()
                if dist.get_rank() > 0:
                    continue
            if leaf != "weight" or layer not in {*config.quantized, *config.pruned}:
                state[name] = tensor
            elif layer in config.quantized:
                integers, scale = self._integers(tensor, _layer(model, layer))
                state[name + PACKED], state[name + SCALE] = pack(integers), scale
            else:
                # A masked negative weight is -0.0, whose sign bit would be stored; adding zero makes it 0.0.
                state[name + PACKED] = pack(tensor + 0)
        # No metadata of ours: safetensors writes several entries in an order that changes from run to run.
        return state, {}

    def _integers(self, weight: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
        layer_kind = kind(layer)
        grid = self.quantization_config.grid(layer_kind or "linear")
        rows = weight.t() if layer_kind == "conv1d" else weight
        if isinstance(layer, FakeQuantized) and layer.rounded:
            rows = rows.to(layer.rounded)
        scale = symmetric_scale(rows, grid)
        return to_integers(rows, scale, grid).to(torch.int8), scale

    def packed_shape(self, model: PreTrainedModel, name: str, quantized: bool) -> tuple[int, ...]:
        """The shape in which weight `name` of `model` is packed: integers of rows, also where layers have columns."""
        shape = tuple(model.get_parameter(name).shape)
        transposed = quantized and kind(_layer(model, name.removesuffix(".weight"))) == "conv1d"
        return tuple(reversed(shape)) if transposed else shape

    def unpacked(self, model: PreTrainedModel, name: str, packed: Tensor, scale: Tensor | None) -> Tensor:
        """The weight `name` of `model` from its bytes, in the dtype that the model has it in."""
        expected = model.get_parameter(name)
        values = unpack(packed, self.packed_shape(model, name, scale is not None))
        if scale is not None:
            layer = kind(_layer(model, name.removesuffix(".weight")))
            values = from_integers(values, scale, self.quantization_config.grid(layer or "linear"))
            values = values.t() if layer == "conv1d" else values
        return values.to(expected.dtype).contiguous()

    def check_file(self, path: Path, model: PreTrainedModel) -> None:
        """Refuse a file with a damaged packed tensor, or one of another shape than the model's, before loading any."""
        with opened(path) as file:
            names = set(file.keys())
            for key in sorted(names):
                if key.endswith(PACKED):
                    located(path, key, partial(self._check_tensor, file, key, model, names))

    def _check_tensor(self, file: Any, key: str, model: PreTrainedModel, names: set[str]) -> None:
        name, head = key.removesuffix(PACKED), declared(file.get_tensor(key))
        try:
            expected = self.packed_shape(model, name, name + SCALE in names)
        except AttributeError as error:
            raise ValueError(f"{type(model).__name__} has no weight of that name") from error
        if head.shape != expected:
            raise ValueError(f"the model needs shape {expected}, the packed tensor has {head.shape}")


def located(path: Path, key: str, action: Callable[[], T]) -> T:
    """What `action` returns; a `ValueError` of it names the file and the tensor."""
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{path}: {key}: {error}.") from error


def opened(path: Path) -> Any:
    """The safetensors file `path`, open for reading.

    Raises:
        ValueError: it is none, or damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is no intact safetensors file: {error}. Download or write it again.") from error


def _layer(model: PreTrainedModel, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"`quantization_config` names the layer {name}, which {type(model).__name__} does not have. Load the "
            "checkpoint with the class it was saved from."
        ) from error
