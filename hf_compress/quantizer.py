"""The door to Transformers: what its `from_pretrained` and `save_pretrained` call for a compressed checkpoint."""

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
from transformers.quantizers import HfQuantizer, register_quantizer

from hf_compress.coding import declared, pack, unpack
from hf_compress.compression_config import METHOD, CompressionConfig
from hf_compress.integer import Integer, Loaded, keep_integers, note
from hf_compress.layers import FakeQuantized, restore_layers
from hf_compress.schemes import from_integers, symmetric_scale, to_integers
from hf_compress.sharding import gathered
from hf_compress.targets import kind

PACKED, SCALE = ".packed", ".scale"

T = TypeVar("T")


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
        if config.run == "int8" and not config.quantized:
            raise ValueError(
                '`run="int8"` needs a checkpoint that was quantized; the weights of this one are in floating point. '
                'Load it with `run="dense"`, which is the default.'
            )
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
        if self.quantization_config.run == "int8":
            keep_integers(model)
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
        if isinstance(layer, Integer):
            return layer.rows().contiguous(), layer.weight_scale
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
        """The weight `name` of `model` from its bytes: in the dtype that the model has it in, or as it is, int8."""
        expected = model.get_parameter(name)
        values = unpack(packed, self.packed_shape(model, name, scale is not None))
        if scale is not None:
            layer = _layer(model, name.removesuffix(".weight"))
            layer_kind = kind(layer)
            grid = self.quantization_config.grid(layer_kind or "linear")
            if self.quantization_config.run == "int8":
                note(layer, Loaded(scale, grid, expected.dtype))
            else:
                values = from_integers(values, scale, grid).to(expected.dtype)
            return (values.t() if layer_kind == "conv1d" else values).contiguous()
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
