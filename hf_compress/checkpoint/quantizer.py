"""The interface to Transformers: its `from_pretrained` and `save_pretrained` call this quantizer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.quantizers import HfQuantizer, register_quantizer

from hf_compress.checkpoint import decoded
from hf_compress.checkpoint.config import METHOD, CompressionConfig
from hf_compress.checkpoint.conversion import EachTensor, Unpack
from hf_compress.checkpoint.copying import copied
from hf_compress.checkpoint.files import located, packed_tensors, printable
from hf_compress.checkpoint.reader import drop_reader, keep_reader
from hf_compress.checkpoint.skeleton import Skeleton, layer_of
from hf_compress.layers.attention import range_owners
from hf_compress.layers.grids import Grid, from_integers, to_integers
from hf_compress.layers.integer import Integer
from hf_compress.layers.rounded import RANGE, CompressedLayer, integers_of, step_of
from hf_compress.models.layer_kinds import LayerKind, as_rows, from_rows, kind
from hf_compress.models.sharding import whole_on_first
from hf_compress.packing.packed import Packed, pack, set_seal


@register_quantizer(METHOD)
class CompressionQuantizer(HfQuantizer):
    """Pack weights when a model is saved and unpack them when it is loaded.

    Transformers calls it; users do not need it.

    Example:
        >>> from hf_compress.checkpoint import CompressionConfig, CompressionQuantizer
        >>> CompressionQuantizer(CompressionConfig()).is_serializable()
        True
    """

    quantization_config: CompressionConfig
    failure: ValueError | None = None
    # While a model is loaded: the threads that decode, the opened tensors, and the tensors that are being decoded.
    executor: Executor | None = None
    packed: dict[str, Packed]
    begun: dict[str, Callable[[], Tensor]]
    skeleton: Skeleton
    copy: decoded.Copy | None = None  # That Transformers loads in place of the packed files.

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        drop_reader(config)  # Transformers looks for files only afterwards.
        return config

    update_tp_plan = update_attn_implementation  # Its counterpart in Transformers before 5.20.

    def update_parallel_plan(self, model: PreTrainedModel, plan: dict[str, str]) -> None:
        """Leave the plan as it is: a loaded model has the parameters of the dense one, under the same names."""

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        return {"deserialize": Unpack}

    def get_weight_conversions(self) -> list[WeightConverter]:
        return [EachTensor(Unpack(self))] if self.copy is None else []

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        self.failure = self.copy = None
        files, place = kwargs.get("checkpoint_files") or [], kwargs.get("device_map")
        threads = torch.get_num_threads()
        self.executor = ThreadPoolExecutor(threads) if threads > 1 else None
        # What is left on the disk is read from the packed files, and `device_map="auto"` may leave something there.
        maps = place is None or (isinstance(place, dict) and "disk" not in place.values())
        self.skeleton = Skeleton(model, self.quantization_config)
        if files and maps and decoded.wanted(self.quantization_config.cache):
            self.copy = copied(self, model, [Path(path) for path in files])
        if self.copy is not None:
            self.packed, self.begun = {}, {}
            files[:] = [str(self.copy.weights)]
            self.skeleton.drop_ranges()
            return model
        self.packed = self.checked(model, [Path(path) for path in files])
        # Threads decode ahead only what stays on the CPU. Tensors for other devices are decoded one at a time,
        # because all of them may not fit into memory.
        ahead = self.executor is not None and place in (None, {"": torch.device("cpu")})
        self.begun = {name: self._begin(model, name) for name in list(self.packed)} if ahead else {}
        return model

    def opened(self, model: PreTrainedModel, paths: Sequence[Path]) -> dict[str, Packed]:
        """Give `model` the layers of the checkpoint, in place, and return the opened tensors of its files by name.

        Every way to read a checkpoint calls this. It checks that the files hold the tensors of the model, in its
        shapes, before anything is decoded.

        Raises:
            ValueError: configuration, files and model do not fit together.
        """
        self.skeleton = Skeleton(model, self.quantization_config)
        return self.checked(model, paths)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.executor is not None:
            self.executor.shutdown(wait=False, cancel_futures=True)
        self.packed, self.begun, self.executor = {}, {}, None
        if self.failure is not None:
            raise self.failure
        if self.copy is not None:
            self.skeleton.take(self.copy.beside)
            self.copy.release()
        # Otherwise `save_pretrained` would try to revert these, although it packs under the model's own names.
        model._weight_conversions = []
        keep_reader(model)
        self.skeleton.finish()
        del self.skeleton
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors of the file: every tensor packed, tied ones once, quantized layers as integers.

        Collective where weights are sharded: they are gathered one at a time, and only rank 0 gets them.
        """
        config, ignored = self.quantization_config, model._keys_to_ignore_on_save or ()
        tensors: dict[str, Tensor] = {
            name: tensor
            for name, tensor in remove_tied_weights_from_state_dict(model.state_dict(), model).items()
            if name not in ignored and not self._left_out(name)
        }
        state: dict[str, Tensor] = {}
        for name, tensor in whole_on_first(tensors):
            layer, _, leaf = name.rpartition(".")
            if leaf == "weight" and layer in config.quantized:
                module = layer_of(model, layer)
                layer_kind = kind(module) or "linear"
                grid = config.grid(layer, layer_kind)
                integers, scale = self._integers(tensor, module, layer_kind, grid)
                transposed = layer_kind == "conv1d"
                shaped = integers if transposed else from_rows(integers, layer_kind, tensor.shape)
                state[name] = pack(shaped, name, scale, grid.group_size, transposed)
            else:
                # A masked negative weight is -0.0, and its sign bit would be stored. Adding zero makes it 0.0.
                masked = leaf == "weight" and layer in config.pruned
                state[name] = pack(tensor + 0 if masked else tensor, name)
        seal = config.seal({name: Packed.open(packed, name).checksum for name, packed in state.items()})
        for packed in state.values():
            set_seal(packed, seal)
        # No metadata: safetensors writes its entries in an order that changes from run to run.
        return state, {}

    def _left_out(self, name: str) -> bool:
        """Return whether the file does not hold the tensor `name` of the model.

        Steps are the scales of packed weights. A layer that is never called has a range, but is stored as an ordinary
        layer.
        """
        (layer, _, leaf), config = name.rpartition("."), self.quantization_config
        idle = leaf == RANGE and layer not in {*config.quantized, *range_owners(config.attention)}
        return idle or leaf == "weight_step"

    def _integers(self, weight: Tensor, layer: nn.Module, layer_kind: LayerKind, grid: Grid) -> tuple[Tensor, Tensor]:
        if isinstance(layer, Integer):
            return layer.rows().contiguous(), layer.weight_scale
        rows = as_rows(weight, layer_kind)
        if isinstance(layer, CompressedLayer) and layer.rounded:
            rows = rows.to(layer.rounded)
        step = step_of(layer)
        if step is not None:
            return integers_of(rows, grid, step.to(rows.device))
        loaded = layer.__dict__.get("loaded_scale")
        if loaded is not None:
            # The scale of values cast to 16 bits may differ from the one that they were loaded with.
            integers = to_integers(rows, loaded.to(rows.device), grid)
            if torch.equal(from_integers(integers, loaded.to(rows.device), grid).to(rows.dtype), rows):
                return integers.to(torch.int8), loaded
        return integers_of(rows, grid, None)

    def unpacked(self, model: PreTrainedModel, name: str, given: Tensor) -> Tensor:
        """Return the tensor `name` of `model`, decoded, in the dtype that it has in the model.

        A `state_dict` passed to Transformers in place of files holds plain weights: then `given` is returned as it is.
        """
        if name not in self.packed and name not in self.begun:
            return given
        if self.failure is None:
            try:
                finish = self.begun.pop(name, None) or self._begin(model, name)
                return located(Path(model.config.name_or_path), name, finish)
            except ValueError as error:
                self.failure = error  # Raised after loading, because Transformers would swallow it.
        return torch.empty_like(model.get_parameter_or_buffer(name), device="cpu")

    def _begin(self, model: PreTrainedModel, name: str) -> Callable[[], Tensor]:
        """Start to decode the tensor `name`, and return a function that returns it and notes its scales."""
        tensor = self.packed.pop(name)
        start = partial(self.start, tensor, self.skeleton.expected[name][0])
        finish = located(Path(model.config.name_or_path), name, start)

        def finish_scaled() -> Tensor:
            values, scale = finish(), tensor.scale()
            self.skeleton.note(name, cast(Tensor, scale))
            return values

        return finish_scaled if tensor.group else finish

    def start(self, tensor: Packed, dtype: torch.dtype) -> Callable[[], Tensor]:
        """Start to decode `tensor`, and return a function that returns it as it is in the model."""
        if not self.keeps_integers(tensor):
            return tensor.begin(dtype, self.executor)
        finish = tensor.begin(None, self.executor)
        return (lambda: finish().t().contiguous()) if tensor.transposed else finish

    def keeps_integers(self, tensor: Packed) -> bool:
        """Return whether `tensor` holds integers that stay such in memory. Those of convolutions have no two sides."""
        return tensor.group > 0 and self.quantization_config.run == "int8" and len(tensor.shape) == 2

    def checked(self, model: PreTrainedModel, paths: Sequence[Path]) -> dict[str, Packed]:
        """Return the opened tensors of the files that belong to the model, by name.

        Raises:
            ValueError: the files do not hold the tensors that were saved together, or not the tensors of the model.
        """
        expected = {name: shape for name, (_, shape) in self.skeleton.expected.items()}
        tensors = {tensor.key: tensor for path in paths for tensor in packed_tensors(path, expected)}
        self._check_seal(tensors, model)
        if paths and type(model).__name__ in (model.config.architectures or [type(model).__name__]):
            _check_names(tensors, expected, model)
        return {name: tensor for name, tensor in tensors.items() if name in expected}

    def _check_seal(self, tensors: Mapping[str, Packed], model: PreTrainedModel) -> None:
        """Refuse tensors that were not saved together, or not with this configuration."""
        seal = self.quantization_config.seal({name: tensor.checksum for name, tensor in tensors.items()})
        if all(tensor.seal == seal for tensor in tensors.values()):
            return
        for name, tensor in tensors.items():  # A damaged tensor is named first.
            located(Path(model.config.name_or_path), name, tensor.check)
        usual, _ = Counter(tensor.seal for tensor in tensors.values()).most_common(1)[0]
        strange = next((name for name, tensor in tensors.items() if tensor.seal != usual), next(iter(tensors)))
        raise ValueError(
            f"{model.config.name_or_path}: {printable(strange)} was not saved together with the other tensors and the "
            "`quantization_config` in config.json: a file was changed, mixed with another or left out. Download or "
            "save the folder again."
        )


def _check_names(tensors: Mapping[str, Packed], expected: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Refuse files that lack tensors of the model, or hold others. The model is of the class that was saved."""
    # Tied weights are stored once, under the name that others are tied to.
    optional = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
    missing = [name for name in expected if name not in tensors and name not in optional]
    foreign = [name for name in tensors if name not in expected]
    if missing or foreign:
        lacks = f"lacks {missing[0]}" if missing else f"holds {printable(foreign[0])}, which the model lacks"
        raise ValueError(
            f"{model.config.name_or_path}: the checkpoint {lacks} ({len(missing) + len(foreign)} such tensors). "
            "config.json describes another model than the files hold: download or save the folder again."
        )
