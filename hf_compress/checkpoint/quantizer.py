"""The door to Transformers: what its `from_pretrained` and `save_pretrained` call for a compressed checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.quantizers import HfQuantizer, register_quantizer

from hf_compress.checkpoint.config import METHOD, CompressionConfig
from hf_compress.checkpoint.packed import Packed, pack
from hf_compress.layers.attention import range_owners, restore_attention
from hf_compress.layers.grids import Grid, symmetric_scale, to_integers
from hf_compress.layers.integer import Integer, Loaded, keep_integers, note
from hf_compress.layers.rounded import CompressedLayer, restore_layers
from hf_compress.models.sharding import whole_on_first
from hf_compress.models.targets import LayerKind, kind

T = TypeVar("T")


class Unpack(ConversionOps):
    """The load operation of a tensor: packed bytes to the weight they stand for."""

    def __init__(self, hf_quantizer: "CompressionQuantizer") -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unpack":
        return self  # Transformers copies it for every tensor; there is one quantizer, and one set of threads.

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: PreTrainedModel, **kwargs: Any
    ) -> dict[str, Tensor]:
        (given,) = (value[0] if isinstance(value, list) else value for value in input_dict.values())
        return {full_layer_name: self.hf_quantizer.unpacked(model, full_layer_name, given)}


@register_quantizer(METHOD)
class CompressionQuantizer(HfQuantizer):
    """Packs weights when a model is saved and unpacks them when it is loaded."""

    quantization_config: CompressionConfig
    failure: ValueError | None = None
    # Of the model that is being loaded: what decodes, its tensors as they were opened, those that are being decoded.
    executor: Executor | None = None
    packed: dict[str, Packed]
    begun: dict[str, Callable[[], Tensor]]

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
        # Every tensor, under its own name. Decoding is the CPU's work; the weight then goes to its device.
        return [WeightConverter("(.+)", r"\1", [Unpack(self)], force_cpu=True)]

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        config = self.quantization_config
        self.failure = None
        if config.run == "int8" and not config.quantized:
            raise ValueError(
                '`run="int8"` needs a checkpoint that was quantized; the weights of this one are in floating point. '
                'Load it with `run="dense"`, which is the default.'
            )
        for name in {*config.quantized, *config.pruned}:
            if kind(_layer(model, name)) is None:
                raise ValueError(f"`quantization_config` names {name}, which is no layer that hf_compress packs.")
        if config.grids is not None and config.grids.activation is not None:
            linear = [name for name in config.quantized if kind(_layer(model, name)) != "embedding"]
            restore_layers(model, linear, config.grids.activation)
        if config.attention:
            assert config.grids is not None and config.grids.attention is not None, "checked on construction"
            for operand in restore_attention(model, config.attention, config.grids.attention):
                operand.quantizing = True
        self.packed = self.check_files([Path(path) for path in kwargs.get("checkpoint_files") or []], model)
        threads = torch.get_num_threads()
        self.executor = ThreadPoolExecutor(threads) if threads > 1 else None
        # Threads decode what the CPU will keep while Transformers is at other things. What goes elsewhere is decoded
        # when its turn has come: it may be more than fits into memory.
        ahead = self.executor is not None and kwargs.get("device_map") in (None, {"": torch.device("cpu")})
        self.begun = {name: self._begin(model, name) for name in list(self.packed)} if ahead else {}
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.executor is not None:
            self.executor.shutdown(wait=False, cancel_futures=True)
        self.packed, self.begun, self.executor = {}, {}, None
        if self.failure is not None:
            raise self.failure
        # `save_pretrained` would try to revert these; what it packs has the names that the model has.
        model._weight_conversions = []
        if self.quantization_config.run == "int8":
            keep_integers(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What goes into the file: every tensor packed, tied ones once, those of quantized layers as integers.

        Sharded tensors are gathered one at a time. All processes must call it; what it returns is the first one's.
        """
        config, ignored = self.quantization_config, model._keys_to_ignore_on_save or ()
        tensors: dict[str, Tensor] = {
            name: tensor
            for name, tensor in remove_tied_weights_from_state_dict(model.state_dict(), model).items()
            if name not in ignored and not self._idle_range(name)
        }
        seal = config.seal(tensors)
        state: dict[str, Tensor] = {}
        for name, tensor in whole_on_first(tensors):
            layer, _, leaf = name.rpartition(".")
            if leaf == "weight" and layer in config.quantized:
                module = _layer(model, layer)
                layer_kind = kind(module) or "linear"
                grid = config.grid(layer, layer_kind)
                integers, scale = self._integers(tensor, module, layer_kind, grid)
                group, transposed = grid.group_size, layer_kind == "conv1d"
                state[name] = pack(integers, name, seal, scale, group, transposed)
            else:
                # A masked negative weight is -0.0, whose sign bit would be stored; adding zero makes it 0.0.
                masked = leaf == "weight" and layer in config.pruned
                state[name] = pack(tensor + 0 if masked else tensor, name, seal)
        # No metadata of ours: safetensors writes several entries in an order that changes from run to run.
        return state, {}

    def _idle_range(self, name: str) -> bool:
        """Whether it is the range of a layer that is never called: it is stored and loaded as an ordinary one."""
        (layer, _, leaf), config = name.rpartition("."), self.quantization_config
        return leaf == "input_range" and layer not in {*config.quantized, *range_owners(config.attention)}

    def _integers(self, weight: Tensor, layer: nn.Module, layer_kind: LayerKind, grid: Grid) -> tuple[Tensor, Tensor]:
        if isinstance(layer, Integer):
            return layer.rows().contiguous(), layer.weight_scale
        rows = weight.t() if layer_kind == "conv1d" else weight
        if isinstance(layer, CompressedLayer) and layer.rounded:
            rows = rows.to(layer.rounded)
        scale = symmetric_scale(rows, grid)
        return to_integers(rows, scale, grid).to(torch.int8), scale

    def unpacked(self, model: PreTrainedModel, name: str, given: Tensor) -> Tensor:
        """The tensor `name` of `model` from its bytes, in the dtype that the model has it in.

        What Transformers was `given` instead of files, a `state_dict`, holds weights, and is taken as it is.
        """
        if name not in self.packed and name not in self.begun:
            return given
        if self.failure is None:
            try:
                finish = self.begun.pop(name, None) or self._begin(model, name)
                return located(Path(model.config.name_or_path), name, finish)
            except ValueError as error:
                self.failure = error  # Transformers would swallow it.
        return torch.empty_like(model.get_parameter_or_buffer(name), device="cpu")

    def _begin(self, model: PreTrainedModel, name: str) -> Callable[[], Tensor]:
        """What gives the tensor `name`, which is being decoded meanwhile."""
        tensor, dtype = self.packed.pop(name), model.get_parameter_or_buffer(name).dtype
        scale = located(Path(model.config.name_or_path), name, tensor.scale)
        if self.quantization_config.run == "dense" or scale is None:
            return tensor.begin(dtype, self.executor)
        owner = name.removesuffix(".weight")
        layer = _layer(model, owner)
        note(layer, Loaded(scale, self.quantization_config.grid(owner, kind(layer) or "linear"), dtype))
        finish = tensor.begin(None, self.executor)
        return (lambda: finish().t().contiguous()) if tensor.transposed else finish

    def check_files(self, paths: Sequence[Path], model: PreTrainedModel) -> dict[str, Packed]:
        """The tensors of the files that are tensors of the model, opened, by name.

        Raises:
            ValueError: the files hold other tensors than were saved, or in other shapes than the model's.
        """
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        tensors = {tensor.key: tensor for path in paths for tensor in packed_tensors(path, expected)}
        seal = self.quantization_config.seal(tensors)
        for name, tensor in tensors.items():
            if tensor.seal != seal:
                raise ValueError(
                    f"{model.config.name_or_path}: {name} was not saved together with the other tensors, or with "
                    "`quantization_config` as it stands in config.json: a file was changed, mixed with another or "
                    "left out. Download or save the folder again."
                )
        return {name: tensor for name, tensor in tensors.items() if name in expected}


def packed_tensors(path: Path, expected: Mapping[str, Sequence[int]]) -> Iterator[Packed]:
    """The tensors of a file, opened, in its order.

    Args:
        expected: the shapes of the model's tensors by name; others are not looked at.

    Raises:
        ValueError: it is no safetensors file, or one of the tensors is not packed, or has another shape.
    """
    with opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - the handle is no dict
            yield located(path, key, partial(Packed.open, file.get_tensor(key), key, expected.get(key)))


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
