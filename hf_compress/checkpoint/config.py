"""The `quantization_config` of a compressed checkpoint, as Transformers reads and writes it."""

import copy
import json
import zlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, cast, get_args

from transformers.quantizers import auto, register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_compress.layers.grids import BITS, Grid, Grids
from hf_compress.layers.steps import STEP_BITS, has_steps
from hf_compress.models.layer_kinds import CONVOLUTIONS, LayerKind

METHOD = "hf_compress"
FORMAT_VERSION = 5

Run = Literal["dense", "int8"]
# The sets of values that may share a scale, and the legal sizes of a group of them or of a side of a weight.
WEIGHTS_PER, INPUTS_PER, SIZES = ("row", "group"), ("token", "tensor"), range(1, 1 << 31)


@register_quantization_config(METHOD)
class CompressionConfig(QuantizationConfigMixin):
    """The `quantization_config` in `config.json`: which weights are packed, and on which grids.

    Args:
        scheme: the grids, as `dataclasses.asdict` returns them. None if nothing is quantized.
        quantized: names of the layers whose weights are integers in the file.
        pruned: names of the layers whose zeros are not stored.
        bits: the number of bits of quantized layers that differ from the scheme, by layer name.
        attention: names of the attention modules whose products are rounded.
        steps: whether the scales of weights are fixed steps, which further training keeps. Otherwise they follow the
            largest weight of each row.
        widths: outputs and inputs of the linear layers that have fewer than the rest of `config.json` says, by name.
        version: of the format. Any other version is refused.
        run: how loading treats the integers. "dense" gives floating-point weights, which can be trained again.
            "int8" keeps integers in a quarter of the memory, for inference; convolutions are computed in floating
            point all the same, from weights that are. It is not stored in the file: pass it as
            `from_pretrained(..., quantization_config=CompressionConfig(run="int8"))`.
        cache: whether to keep a decoded copy on the disk, which later loads map into memory. By default the
            environment variable `HF_COMPRESS_CACHE` decides. It is not stored in the file either.

    Raises:
        ValueError: a field has a wrong type, or fields contradict each other. The message names the field.

    Example:
        >>> from hf_compress import CompressionConfig
        >>> CompressionConfig(pruned=["encoder.dense"]).to_dict()["pruned"]
        ['encoder.dense']
    """

    def __init__(
        self,
        scheme: dict[str, Any] | None = None,
        quantized: list[str] | None = None,
        pruned: list[str] | None = None,
        bits: dict[str, int] | None = None,
        attention: list[str] | None = None,
        steps: bool = False,
        widths: dict[str, list[int]] | None = None,
        version: int = FORMAT_VERSION,
        run: Run = "dense",
        cache: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.quant_method = METHOD
        self.scheme, self.version = scheme, version
        self.quantized = [] if quantized is None else quantized
        self.pruned = [] if pruned is None else pruned
        self.attention = [] if attention is None else attention
        self.bits, self.steps = {} if bits is None else bits, steps
        self.widths = {} if widths is None else widths
        if kwargs.pop("quant_method", METHOD) != METHOD or kwargs:
            raise ValueError(
                f"`quantization_config` must have the fields of a packed checkpoint; got {[*kwargs] or 'no method'}."
            )
        if isinstance(version, bool) or version != FORMAT_VERSION:
            raise ValueError(
                f"`quantization_config.version` must be {FORMAT_VERSION}; got {version!r}. If that is less, "
                "save the model again; if it is more, upgrade hf_compress."
            )
        for field in ("quantized", "pruned", "attention"):
            names = getattr(self, field)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"`quantization_config.{field}` must be a list of names; got {names!r}.")
        if not isinstance(self.bits, dict) or not all(
            name in self.quantized and _is_number(number, BITS) for name, number in self.bits.items()
        ):
            raise ValueError(
                f"`quantization_config.bits` must map names in `quantized` to numbers from {BITS[0]} to {BITS[-1]}; "
                f"got {bits!r}."
            )
        if not isinstance(self.widths, dict) or not all(map(_is_width, self.widths.items())):
            raise ValueError(
                "`quantization_config.widths` must map names of layers to two numbers from 1, of outputs and of "
                f"inputs; got {widths!r}."
            )
        if not isinstance(steps, bool):
            raise ValueError(f"`quantization_config.steps` must be true or false; got {steps!r}.")
        if run not in get_args(Run):
            raise ValueError(f"`run` must be one of {', '.join(get_args(Run))}; got {run!r}.")
        if cache not in (True, False, None):
            raise ValueError(f"`cache` must be True, False or None; got {cache!r}.")
        self.run, self.cache = run, cache
        if self.quantized and scheme is None:
            raise ValueError("`quantization_config.scheme` must name the grids of the quantized layers; got None.")
        self.grids = None if scheme is None else _scheme(scheme)
        if self.attention and (self.grids is None or self.grids.attention is None):
            raise ValueError(
                "`quantization_config.scheme` must name the grid of the attention that is rounded; got None."
            )
        if self.steps and not has_steps(self.grids):
            raise ValueError(
                f"`quantization_config.steps` needs a scheme with {STEP_BITS} bits and one scale per row; got "
                f"{scheme!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        names = ["quant_method", "version", "scheme", "quantized", "pruned"]
        names += [field for field in ("bits", "attention", "steps", "widths") if getattr(self, field)]
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    def seal(self, checksums: Mapping[str, int]) -> int:
        """Return the CRC-32 of the configuration and of the names and contents of all tensors of a checkpoint.

        It changes if a tensor is removed, added, renamed or exchanged, or if the configuration is edited.

        Args:
            checksums: of all packed tensors, by name.
        """
        sealed = {field: value for field, value in self.to_dict().items() if field != "quant_method"}
        described = [sealed, sorted(checksums.items())]
        return zlib.crc32(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return the fields that `from_pretrained` takes from the user. All others are read from the file."""
        return {"run": self.run, "cache": self.cache}

    def grid(self, name: str, layer: LayerKind) -> Grid:
        """Return the grid of the weight of the quantized layer `name`."""
        assert self.grids is not None, "checked on construction"
        grid = self.grids.of(layer == "embedding")
        return replace(grid, bits=self.bits[name]) if name in self.bits else grid

    def keeps_integers(self, layer: LayerKind) -> bool:
        """Return whether quantized layers of this kind keep their integers in memory when loaded."""
        return self.run == "int8" and layer not in CONVOLUTIONS

    def layer_grids(self, kinds: Mapping[str, LayerKind]) -> dict[str, tuple[Grid | None, Grid | None]]:
        """Return the grids of weight and input of the layers that compute on grids when loaded, by name.

        Args:
            kinds: the kinds of the quantized layers.
        """
        found: dict[str, tuple[Grid | None, Grid | None]] = {}
        for name, layer_kind in kinds.items():
            inputs = None if self.grids is None else self.grids.of_input(layer_kind)
            weights = None if self.keeps_integers(layer_kind) else self.grid(name, layer_kind)
            if weights is not None or inputs is not None:
                found[name] = weights, inputs
        return found


# Transformers respects a configuration passed to `from_pretrained` for these classes only, and has no function to add
# one.
auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (CompressionConfig,)


def _scheme(values: Any) -> Grids:
    """Return the grids that `dataclasses.asdict` turned into `values`.

    Raises:
        ValueError: it is not a scheme. The message names the grid.
    """
    names = [field.name for field in fields(Grids)]
    if not isinstance(values, dict) or not set(names[:2]) <= set(values) <= set(names):
        raise ValueError(
            f"`quantization_config.scheme` must be a scheme of hf_compress with {', '.join(names)}; got {values!r}."
        )
    grids = {name: None if values.get(name) is None else _grid(name, values[name]) for name in names}
    return Grids(**cast(Any, grids))


def _grid(name: str, values: Any) -> Grid:
    known = {field.name for field in fields(Grid)}
    grouped = isinstance(values, dict) and values.get("per") == "group"
    valid = (
        isinstance(values, dict)
        and {"bits", "per"} <= set(values) <= known
        and _is_number(values["bits"], BITS)
        and values["per"] in (INPUTS_PER if name in ("activation", "attention") else WEIGHTS_PER)
        and (_is_number(values.get("group_size"), SIZES) if grouped else values.get("group_size") is None)
    )
    if not valid:
        raise ValueError(
            f"`quantization_config.scheme.{name}` must be a grid of hf_compress, of {BITS[0]} to {BITS[-1]} bits; got "
            f"{values!r}."
        )
    return Grid(**values)


def _is_width(item: tuple[Any, Any]) -> bool:
    name, width = item
    return (
        isinstance(name, str)
        and isinstance(width, list)
        and len(width) == 2
        and all(_is_number(number, SIZES) for number in width)
    )


def _is_number(value: Any, allowed: range) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in allowed
