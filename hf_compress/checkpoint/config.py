"""The `quantization_config` of a compressed checkpoint, as Transformers reads and writes it."""

import copy
import json
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, get_args

from transformers.quantizers import auto, register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_compress.layers.grids import BITS, Grid, Grids
from hf_compress.models.targets import LayerKind

METHOD = "hf_compress"
FORMAT_VERSION = 3

Run = Literal["dense", "int8"]


@register_quantization_config(METHOD)
class CompressionConfig(QuantizationConfigMixin):
    """The `quantization_config` in `config.json`: which weights are packed, and on which grids.

    Args:
        scheme: the grids, as `dataclasses.asdict` returns them. None if nothing is quantized.
        quantized: names of the layers whose weights are integers in the file.
        pruned: names of the layers whose zeros are not stored.
        bits: the number of bits of quantized layers that differ from the scheme, by layer name.
        attention: names of the attention modules whose products are rounded.
        version: of the format. Any other version is refused.
        run: what loading makes of the integers. "dense" gives floating-point weights, which can be trained again.
            "int8" keeps integers in a quarter of the memory, for inference. It is not stored in the file: pass it as
            `from_pretrained(..., quantization_config=CompressionConfig(run="int8"))`.

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
        version: int = FORMAT_VERSION,
        run: Run = "dense",
        **kwargs: Any,
    ) -> None:
        self.quant_method = METHOD
        self.scheme, self.quantized, self.pruned, self.version = scheme, quantized or [], pruned or [], version
        self.bits = bits or {}
        self.attention = attention or []
        if version != FORMAT_VERSION:
            raise ValueError(
                f"`quantization_config.version` must be {FORMAT_VERSION}; got {version!r}. If that is less, "
                "save the model again; if it is more, upgrade hf_compress."
            )
        for field in ("quantized", "pruned", "attention"):
            names = getattr(self, field)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"`quantization_config.{field}` must be a list of names; got {names!r}.")
        if not isinstance(self.bits, dict) or not all(
            name in self.quantized and number in BITS for name, number in self.bits.items()
        ):
            raise ValueError(
                f"`quantization_config.bits` must map names in `quantized` to numbers from {BITS[0]} to {BITS[-1]}; "
                f"got {bits!r}."
            )
        if run not in get_args(Run):
            raise ValueError(f"`run` must be one of {', '.join(get_args(Run))}; got {run!r}.")
        self.run = run
        if self.quantized and scheme is None:
            raise ValueError("`quantization_config.scheme` must name the grids of the quantized layers; got None.")
        try:
            self.grids = None if scheme is None else _scheme(scheme)
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"`quantization_config.scheme` must be a scheme of hf_compress; got {scheme!r}."
            ) from error
        if self.attention and (self.grids is None or self.grids.attention is None):
            raise ValueError(
                "`quantization_config.scheme` must name the grid of the attention that is rounded; got None."
            )

    def to_dict(self) -> dict[str, Any]:
        names = ["quant_method", "version", "scheme", "quantized", "pruned"]
        names += [field for field in ("bits", "attention") if getattr(self, field)]
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    def seal(self, names: Iterable[str]) -> int:
        """Return the CRC-32 of the configuration and the tensor names, which all tensors of a checkpoint share.

        It changes if a tensor is removed, added or renamed, or if the configuration is edited.
        """
        sealed = {field: value for field, value in self.to_dict().items() if field != "quant_method"}
        described = [sealed, sorted(names)]
        return zlib.crc32(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return the fields that `from_pretrained` takes from the user. All others are read from the file."""
        return {"run": self.run}

    def grid(self, name: str, layer: LayerKind) -> Grid:
        """Return the grid of the weight of the quantized layer `name`."""
        assert self.grids is not None, "checked on construction"
        grid = self.grids.of(layer == "embedding")
        return replace(grid, bits=self.bits.get(name, grid.bits))


# Transformers respects a configuration passed to `from_pretrained` for these classes only, and has no function to add
# one.
auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (CompressionConfig,)


def _scheme(values: dict[str, Any]) -> Grids:
    grids: dict[str, Any] = {name: None if grid is None else Grid(**grid) for name, grid in values.items()}
    return Grids(**grids)
