"""The options of quantization-aware training."""

import shlex
from dataclasses import dataclass, field

from hf_compress.layers.bits import parsed
from hf_compress.layers.grids import SCHEMES, Scheme
from hf_compress.patterns import check_patterns


@dataclass
class QuantizationArguments:
    """Options of quantization-aware training; off unless `quant_scheme` is given."""

    quant_scheme: str | None = field(
        default=None,
        metadata={
            "choices": list(SCHEMES),
            "help": "Number format to train for. `int8`: weights per row, embeddings per row, activations by ranges "
            "learned in training. `int8-dynamic`: activations by token, at run time. `int8-weight`, `int4-weight`: "
            "weights only. `int8-attention`: `int8`, and the products inside attention too.",
        },
    )
    quant_bits: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Items PATTERN=BITS: layers in whose name the regular expression is found have weights of so many "
            "bits, from 2 to 8, where the scheme has one scale a row; of several the last item holds. embeddings=4, "
            "for instance. Activations keep theirs."
        },
    )
    quant_begin: float = field(
        default=0.1,
        metadata={
            "help": "Share of training, in [0, 1), after which values are rounded; before it ranges are observed."
        },
    )
    quant_freeze: float = field(
        default=0.9,
        metadata={"help": "Share of training, in (quant_begin, 1], after which activation ranges no longer move."},
    )
    quant_exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions; modules in whose name one is found stay in floating point."},
    )

    @property
    def enabled(self) -> bool:
        return self.quant_scheme is not None

    @property
    def scheme(self) -> Scheme:
        if self.quant_scheme is None:
            raise ValueError(
                "`--quant_scheme` is not given, so there is no scheme. Choose one of " + ", ".join(SCHEMES)
            )
        return SCHEMES[self.quant_scheme]

    @property
    def flags(self) -> str:
        """Scheme and bits as they are given on a command line."""
        bits = ["--quant_bits", *self.quant_bits] if self.quant_bits else []
        return shlex.join(["--quant_scheme", str(self.quant_scheme), *bits])

    def __post_init__(self) -> None:
        if self.quant_scheme is not None and self.quant_scheme not in SCHEMES:
            raise ValueError(
                f"`--quant_scheme` must be one of {', '.join(SCHEMES)}; got {self.quant_scheme!r}. Choose one of "
                "these, or leave the flag out to train without quantization."
            )
        check_patterns("quant_exclude", self.quant_exclude)
        check_patterns("quant_bits", [item.rpartition("=")[0] for item in self.quant_bits])
        for item in self.quant_bits:
            parsed(item)
        if not 0 <= self.quant_begin < 1:
            raise ValueError(
                f"`--quant_begin` must be a share of training in [0, 1); got {self.quant_begin}. Give 0.1 to round "
                "after the first tenth of the steps."
            )
        if not self.quant_begin < self.quant_freeze <= 1:
            raise ValueError(
                f"`--quant_freeze` must be a share of training in (`--quant_begin`, 1] = ({self.quant_begin}, 1]; got "
                f"{self.quant_freeze}. Raise it, or lower `--quant_begin`."
            )
