"""Lets Transformers 5 load this folder by itself: `from_pretrained(..., trust_remote_code=True)`.

`model.safetensors` beside this file is packed by hf_compress. This file reads it with torch, numpy and zstandard, and
gives the same weights and outputs as hf_compress. `auto_map` in config.json names it, so `AutoModelFor...` and
`pipeline` use it if you trust it. It reads the files that Transformers hands over and does nothing else: it opens no
connection, starts no program and evaluates no text. The model is for inference. To train or save it, or to keep int8
weights in memory, install hf_compress and `import hf_compress`.

Copyright the hf_compress authors. SPDX-License-Identifier: Apache-2.0
"""

import json
import math
import re
import struct
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.masking_utils import eager_mask
from transformers.quantizers import HfQuantizer, auto
from transformers.utils.quantization_config import QuantizationConfigMixin

try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        import zstandard as zstd
except ImportError:
    zstd = None  # type: ignore[assignment]

FORMAT_VERSION = 5
# The format's name in config.json, and another one in Transformers, so that `import hf_compress` works afterwards.
METHOD, OWN_NAME = "hf_compress", "hf_compress_loading"
HEAD = struct.Struct("<4sIIBBBBII")  # Magic, checksum, seal, kind, dimensions, transposed, order, group, step.
TUPLES = {1: (2, 16), 2: (3, 6), 3: (4, 4)}  # By coder: how many values share a byte, and the base of their digits.
KINDS = ("int8", "float32", "float16", "bfloat16", "float64", "uint8", "int16", "int32", "int64", "bool")
RANGE = ".input_range"  # The end of the names of tensors that hold the smallest and the largest input of a layer.
OPERANDS = ("query", "key", "value", "probabilities")  # Of the products inside attention. The last have no range.
SMALLEST_SCALE = 1e-30


def check(holds: bool, what: str) -> None:
    """Refuse a folder in which something is wrong."""
    if not holds:
        raise ValueError(f"The packed model is damaged: {what}. Download the whole folder again.")


class Bytes:
    """Reads a run of bytes from front to back, and nothing beyond its end."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> memoryview:
        check(count <= len(self.data) - self.at, "a tensor ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, width: int = 4) -> int:
        return int.from_bytes(self.take(width), "little")

    def section(self, size: int) -> np.ndarray:
        """Return the next section, which must have `size` bytes. It may be a zstandard frame."""
        length, method = self.number(), self.number(1)
        content: Any = self.take(length)
        if method == 1 and zstd is None:
            raise ImportError("The weights of this model are compressed with zstandard. Run `pip install zstandard`.")
        if method == 1:  # At most one byte too much is decompressed, whatever the frame claims.
            late, frame = sys.version_info >= (3, 14), zstd.ZstdDecompressor()
            content = frame.decompress(content, size + 1) if late else frame.stream_reader(content).read(size + 1)
        check(method < 2 and len(content) == size, f"a section should have {size} bytes")
        return np.frombuffer(content, np.uint8)

    def planes(self, count: int, width: int) -> np.ndarray:
        """Return `count` values of `width` bytes: the first bytes of all, then the second bytes, and so on."""
        return np.stack([self.section(count) for _ in range(width)], axis=1).reshape(-1).view(f"<u{width}")

    def tuples(self, count: int, size: int, base: int) -> np.ndarray:
        """Return `count` small integers, of which `size` share a byte as its digits. Large ones are escaped."""
        number, numbers = self.number(), self.section(-(-count // size))
        digits = np.stack([numbers // base**place % base for place in range(size)], axis=1).reshape(-1)[:count]
        values = digits - np.uint8(base // 2 - 1)
        values[digits == base - 1] = self.section(min(number, count))
        return values

    def chunk(self, count: int, width: int) -> np.ndarray:
        """Return the next `count` values of `width` bytes as unsigned integers with the same bits."""
        length, (places, coder) = self.number(), divmod(self.number(1), 4)
        part, kept = Bytes(self.take(length)), np.arange(count)
        if places == 1:  # A mask of the values that are not zero.
            kept = np.flatnonzero(np.unpackbits(part.section((count + 7) // 8), count=count, bitorder="little"))
        elif places == 2:  # The lengths of the runs of zeros between them.
            gaps = part.section(min(part.number(), count)).astype(np.int64)
            kept = (np.cumsum(gaps + (gaps < 255)) - 1)[gaps < 255]
        stored = part.tuples(len(kept), *TUPLES[coder]) if coder else part.planes(len(kept), width)
        check(places < 3 and stored.itemsize == width and part.at == length, "a chunk has another length")
        values = np.zeros(count, stored.dtype)
        values[kept] = stored
        return values


class PackedTensor:
    """A packed tensor. Making one reads its head and tests its checksum; `weight` decodes it."""

    def __init__(self, name: str, stored: Tensor) -> None:
        is_bytes = stored.dtype == torch.uint8 and stored.dim() == 1
        check(is_bytes and len(stored) >= HEAD.size, f"{name!r} is not packed")
        data = stored.contiguous().numpy().data.cast("B")
        magic, self.checksum, self.seal, kind, dimensions, turned, *rest = HEAD.unpack_from(data)
        self.order, self.group, self.step = rest
        check(magic == b"HFC%d" % FORMAT_VERSION, f"{name!r} begins with {magic!r}")
        check(zlib.crc32(data[12:], zlib.crc32(name.encode())) == self.checksum, f"the checksum of {name!r} differs")
        check(self.step > 0 and (not self.group or (kind == 0 and dimensions > 1)), f"{name!r} contradicts itself")
        self.rest, self.turned = Bytes(data[HEAD.size :]), bool(turned)
        self.stored_shape = tuple(self.rest.number() for _ in range(dimensions))
        self.shape = self.stored_shape[::-1] if turned else self.stored_shape
        self.dtype: torch.dtype = getattr(torch, KINDS[kind])

    def weight(self) -> Tensor:
        """Return the weight: the stored values, times their scales in float32 if there are any."""
        rest, size, numel = self.rest, self.dtype.itemsize, math.prod(self.stored_shape)
        if self.group:
            rows, width = self.stored_shape[0], math.prod(self.stored_shape[1:])
            bits = rest.planes(rows * -(-width // self.group), 2)
            check(bool(((bits > 0) & (bits < 0x7F80)).all()), "a scale is not a positive number")
            keys = rest.section(len(bits)) if self.order == 2 else bits
            scales = (bits.astype("<u4") << 16).view("<f4")  # bfloat16 is the upper half of float32.
        chunks = [rest.chunk(min(self.step, numel - begin), size) for begin in range(0, numel, self.step)]
        check(rest.at == len(rest.data), "bytes follow the last chunk of a tensor")
        values = np.concatenate([np.empty(0, f"<u{size}"), *chunks]).view(np.uint8)
        if self.order:  # Runs that share a scale are stored in the order of their keys.
            values = values.reshape(-1, self.group)[np.argsort(np.argsort(keys, kind="stable"))].reshape(-1)
        weight = torch.from_numpy(values).view(self.dtype).reshape(self.stored_shape)
        if self.group:
            spread = np.repeat(scales.reshape(rows, -1), self.group, axis=1)[:, :width]
            weight = weight.float().mul_(torch.from_numpy(spread).view(self.stored_shape))
        return weight.t().contiguous() if self.turned else weight


def opened(paths: Sequence[str], fields: dict[str, Any]) -> dict[str, PackedTensor]:
    """Return the packed tensors of the files by name, after checking that all were saved together with `fields`."""
    tensors: dict[str, PackedTensor] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            tensors |= {name: PackedTensor(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    sealed = {key: value for key, value in fields.items() if key != "quant_method"}
    described = [sealed, sorted((name, tensor.checksum) for name, tensor in tensors.items())]
    seal = zlib.crc32(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    check(all(one.seal == seal for one in tensors.values()), "tensors and `quantization_config` are not of one saving")
    return tensors


class Rounding:
    """Rounds values to integers times a scale, in float32, as the model did in training.

    `ends` are those of the range of values, which is around zero if `centred`. Without them, each token has a scale.
    """

    def __init__(self, bits: int, ends: Tensor | None = None, centred: bool = False) -> None:
        self.largest, levels, self.bounds = 2 ** (bits - 1) - 1, 2**bits - 1, None
        if ends is not None and centred:
            step = (ends.abs().amax() / self.largest).clamp(min=SMALLEST_SCALE)
            self.bounds = step, -(self.largest + 1) * step, self.largest * step
        elif ends is not None:
            low, high = ends[0].clamp(max=0.0), ends[1].clamp(min=0.0)
            step = ((high - low) / levels).clamp(min=SMALLEST_SCALE)
            zero = (-low / step).round().clamp(0, levels)
            self.bounds = step, -zero * step, (levels - zero) * step

    def hook(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # A forward pre-hook.
        return self(inputs[0]), *inputs[1:]

    def __call__(self, values: Tensor) -> Tensor:
        if self.bounds is None:
            rows = values.float()
            step = torch.maximum(rows.amax(-1), rows.amin(-1).neg()).unsqueeze(-1)
            step = step.div_(self.largest).clamp_(min=SMALLEST_SCALE)
            step = step.view(torch.int32).add_(0xFF).bitwise_and_(~0xFF).view(torch.float32)  # 16 significant bits.
            return torch.div(rows, step).round_().mul_(step).to(values.dtype)
        # Plain numbers are faster on a CPU. A GPU divides by them in another way, with another last bit.
        on_cpu = values.device.type == "cpu"
        step, low, high = (bound.item() if on_cpu else bound.to(values.device) for bound in self.bounds)
        return values.float().clamp(low, high).div_(step).round_().mul_(step).to(values.dtype)


def rounded_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Return results and probabilities of attention with the operands of its products rounded, if `module` says so."""
    on_grid = module.__dict__.get("roundings") or dict.fromkeys(OPERANDS, nn.Identity())
    query, key, value = on_grid["query"](query), on_grid["key"](key.transpose(2, 3)), on_grid["value"](value)
    if (sharing := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(sharing, dim=1), value.repeat_interleave(sharing, dim=1)
    scores = query @ key * (options.get("scaling") or query.shape[-1] ** -0.5)
    for added in (options.get("position_bias"), attention_mask):
        scores = scores if added is None else scores + added
    probabilities = on_grid["probabilities"](scores.softmax(dim=-1, dtype=torch.float32)).to(value.dtype)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(OWN_NAME, rounded_attention)
AttentionMaskInterface.register(OWN_NAME, eager_mask)


class PackedConfig:
    """The class that `auto_map` in config.json names: it gives the model's own configuration."""

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> Any:
        """Return what `AutoConfig.from_pretrained` returns without this file, prepared for loading by it."""
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        fields: Any = getattr(config, "quantization_config", None)
        packed = isinstance(fields, dict) and fields.get("quant_method") == METHOD
        if packed and METHOD not in auto.AUTO_QUANTIZER_MAPPING:  # With hf_compress imported, it reads the folder.
            auto.AUTO_QUANTIZATION_CONFIG_MAPPING[OWN_NAME] = PackedFields
            auto.AUTO_QUANTIZER_MAPPING[OWN_NAME] = PackedQuantizer
            config.quantization_config = {**fields, "quant_method": OWN_NAME}
            config.__dict__.pop("transformers_weights", None)  # The message for Transformers without this file.
        return found

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing. Transformers calls this for every class that it takes from a folder."""


class PackedFields(QuantizationConfigMixin):
    """The fields of `quantization_config` in config.json."""

    def __init__(self, **fields: Any) -> None:
        self.quant_method, self.fields = OWN_NAME, fields | {"quant_method": METHOD}
        version = fields.get("version")
        check(version == FORMAT_VERSION, f"config.json names version {version}, this file reads {FORMAT_VERSION}")

    def to_dict(self) -> dict[str, Any]:
        return dict(self.fields)


class Unpack(ConversionOps):
    """Gives Transformers the weight in place of its packed bytes."""

    def __init__(self, hf_quantizer: "PackedQuantizer") -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unpack":
        return self

    def convert(self, input_dict: dict[str, Any], full_layer_name: str, **kwargs: Any) -> dict[str, Tensor]:
        """Return the weight by its name. Without files, what was given is a weight already."""
        (given,) = (value[0] if isinstance(value, list) else value for value in input_dict.values())
        weight = self.hf_quantizer.weights.pop(full_layer_name, None)
        return {full_layer_name: given if weight is None else weight.to(given.device)}


class PackedQuantizer(HfQuantizer):
    """Transformers calls it while it loads a model: it decodes the weights and sets up the rounding of inputs."""

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        raise ValueError("hf_compress_loading.py loads models for inference. To save one, load it with hf_compress.")

    def get_weight_conversions(self) -> list[WeightConverter]:
        return [WeightConverter("(.+)", r"\1", operations=[Unpack(self)])]

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        paths = [str(path) for path in kwargs.get("checkpoint_files") or []]
        fields, layers = self.quantization_config.fields, dict(model.named_modules())
        if missing := {*fields["quantized"], *fields["pruned"], *fields.get("widths", ())} - layers.keys():
            raise ValueError(f"{type(model).__name__} has no layer {min(missing)}: load the class that was saved.")
        for name, (outputs, inputs) in fields.get("widths", {}).items():
            layer, owner = layers[name], layers[name.rpartition(".")[0]].__dict__
            rows, columns = (outputs, inputs) if (linear := isinstance(layer, nn.Linear)) else (inputs, outputs)
            if "split_size" in owner:  # Of GPT-2, which computes queries, keys and values by one layer.
                owner["split_size"] = owner["split_size"] * outputs // layer.weight.shape[1 - linear]
            if "attention_head_size" in owner:  # Of DeBERTa, for example.
                owner["num_attention_heads"] = outputs // owner["attention_head_size"]
            layer.weight, layer.out_features, layer.nf = nn.Parameter(layer.weight[:rows, :columns]), outputs, outputs
            layer.bias, layer.in_features = None if layer.bias is None else nn.Parameter(layer.bias[:outputs]), inputs
        tensors, expected = opened(paths, fields), model.state_dict()
        self.ranges = {name: tensors.pop(name).weight() for name in list(tensors) if name.endswith(RANGE)}
        ignored: Any = [] if (names := model._keys_to_ignore_on_load_unexpected) is None else names
        model._keys_to_ignore_on_load_unexpected = type(ignored)([*ignored, re.escape(RANGE)])
        if paths and type(model).__name__ in (model.config.architectures or ()):
            optional = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
            wrong = [*(expected.keys() - tensors.keys() - optional), *(tensors.keys() - expected.keys())]
            check(not wrong, f"config.json describes another model, without or with {wrong[:1]}")
        self.weights: dict[str, Tensor] = {}
        for name in tensors.keys() & expected.keys():
            check(tensors[name].shape == tuple(expected[name].shape), f"{name!r} has another shape than in the model")
            self.weights[name] = tensors[name].weight().to(expected[name].dtype)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        model._weight_conversions = []
        fields, layers = self.quantization_config.fields, dict(model.named_modules())
        scheme: dict[str, Any] = fields["scheme"] or {}
        inputs, products = scheme.get("activation") or {}, scheme.get("attention") or {}
        for name in fields["quantized"] if inputs else ():
            if not isinstance(layers[name], (nn.Embedding, *(nn.Conv1d, nn.Conv2d) * (inputs["per"] == "token"))):
                ends = self.ranges[name + RANGE] if inputs["per"] == "tensor" else None  # Convolutions lack tokens.
                layers[name].register_forward_pre_hook(Rounding(inputs["bits"], ends).hook)
        for name in fields.get("attention", ()):
            ranges = {one: self.ranges[f"{name}.operands.{one}{RANGE}"] for one in OPERANDS[:3]}
            roundings = {one: Rounding(products["bits"], ends, centred=True) for one, ends in ranges.items()}
            roundings["probabilities"] = Rounding(products["bits"], torch.tensor([0.0, 1.0]))
            layers[name].__dict__["roundings"] = roundings
        if fields.get("attention"):
            model.set_attn_implementation(OWN_NAME)
        return model
