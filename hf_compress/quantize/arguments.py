"""The options of quantization-aware training."""

import math
import shlex
from dataclasses import dataclass, field

from hf_compress.layers.bits import parsed
from hf_compress.layers.grids import SCHEMES, Scheme
from hf_compress.layers.steps import has_steps
from hf_compress.options import check_list
from hf_compress.patterns import check_patterns


@dataclass
class QuantizationArguments:
    """Options of quantization-aware training; it is off unless `quant_scheme` is given.

    Raises:
        ValueError: an option is outside its range.

    Example:
        >>> from hf_compress import QuantizationArguments
        >>> QuantizationArguments(quant_scheme="int8", quant_bits=["embeddings=4"]).flags
        '--quant_scheme int8 --quant_bits embeddings=4'
    """

    quant_scheme: str | None = field(
        default=None,
        metadata={
            "choices": SCHEMES.keys(),
            "help": "Number format to train for. Convolutions count as linear layers, with a row per output channel. "
            + " ".join(f"`{name}`: {scheme.help}." for name, scheme in SCHEMES.items()),
        },
    )
    quant_bits: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Items PATTERN=BITS, for example embeddings=4: bits from 2 to 8 for the weights of layers whose "
            "name contains a match of the regular expression. The last matching item counts. The scheme must have "
            "one scale per row. Activations keep their bits. For a file size use `--compress_budget_mb` instead."
        },
    )
    quant_step: float | None = field(
        default=None,
        metadata={
            "help": "Round the weights of each layer to multiples of a fixed step: this number, above 0, over the "
            "root of the layer's sensitivity. `--compress_budget_mb` chooses it for a file size."
        },
    )
    quant_begin: float = field(
        default=0.1,
        metadata={
            "help": "Share of training, in [0, 1), after which values are rounded. Before it, ranges are observed."
        },
    )
    quant_freeze: float = field(
        default=0.9,
        metadata={"help": "Share of training, in (`quant_begin`, 1], after which activation ranges no longer move."},
    )
    quant_exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions; layers whose name contains a match stay in floating point."},
    )

    @property
    def enabled(self) -> bool:
        """Whether anything is rounded."""
        return self.quant_scheme is not None

    @property
    def scheme(self) -> Scheme:
        """The scheme of that name.

        Raises:
            ValueError: none is given.
        """
        if self.quant_scheme is None:
            raise ValueError("`--quant_scheme` is not given. Choose one of " + ", ".join(SCHEMES) + ".")
        return SCHEMES[self.quant_scheme]

    @property
    def flags(self) -> str:
        """Scheme, bits and the constant of the steps as command-line flags."""
        bits = ["--quant_bits", *self.quant_bits] if self.quant_bits else []
        step = [] if self.quant_step is None else ["--quant_step", str(self.quant_step)]
        return shlex.join(["--quant_scheme", str(self.quant_scheme), *bits, *step])

    def check_steps(self, option: str) -> None:
        """Refuse a scheme whose weights cannot have the fixed steps that `option` asks for.

        Raises:
            ValueError: the scheme has other bits or scales, or bits are given.
        """
        if self.quant_bits:
            raise ValueError(
                f"`{option}` chooses a step for every layer, so `--quant_bits {' '.join(self.quant_bits)}` cannot be "
                "given beside it. Leave one of them out."
            )
        if self.quant_scheme is not None and not has_steps(self.scheme):
            fitting = ", ".join(name for name, scheme in SCHEMES.items() if has_steps(scheme))
            raise ValueError(
                f"`{option}` needs a `--quant_scheme` of 8 bits with one scale per row: {fitting}; got "
                f"{self.quant_scheme}. Choose one of these; the packed file spends fewer bits per weight anyway."
            )

    def __post_init__(self) -> None:
        if self.quant_scheme is not None and self.quant_scheme not in SCHEMES:
            raise ValueError(
                f"`--quant_scheme` must be one of {', '.join(SCHEMES)}; got {self.quant_scheme!r}. Choose one of "
                "these, or leave the flag out to train without quantization."
            )
        if self.quant_step is not None:
            if not 0 < self.quant_step < math.inf:
                raise ValueError(
                    f"`--quant_step` must be a number above 0; got {self.quant_step}. Take the one that a run with "
                    "`--compress_budget_mb` has chosen, from its recipe.json."
                )
            self.check_steps("--quant_step")
        check_patterns("quant_exclude", self.quant_exclude)
        check_list("quant_bits", self.quant_bits)
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
