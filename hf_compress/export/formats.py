"""The registry of formats. A format is added here; flags, report and card follow from its descriptor."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from hf_compress.export.compressed_tensors_format import COMPRESSED_TENSORS
from hf_compress.export.dense_format import DENSE
from hf_compress.export.descriptor import Batches, Format
from hf_compress.export.onnx_format import ONNX
from hf_compress.export.openvino_format import OPENVINO
from hf_compress.export.packed_format import PACKED
from hf_compress.export.parity import Parity
from hf_compress.export.web_format import WEB
from hf_compress.options import check_list
from hf_compress.recipe import Recipe

FORMATS: dict[str, Format] = {
    format.name: format for format in (PACKED, ONNX, WEB, OPENVINO, DENSE, COMPRESSED_TENSORS)
}


def check_formats(names: Sequence[str]) -> None:
    """Check at the start of a run that every name is a format and that its libraries are installed.

    Raises:
        ValueError: a name is not a format, or the names are one text.
        MissingExtraError: a library is missing. The message names the extra.
    """
    check_list("compress_formats", names)
    for name in names:
        if name not in FORMATS:
            raise ValueError(
                f"`--compress_formats` must be of {', '.join(FORMATS)}; got {name!r}. Choose from these, or leave "
                "the flag out to write the packed file only."
            )
        FORMATS[name].require()


def check_recipe(names: Sequence[str], recipe: Recipe) -> None:
    """Check at the start of a run that the formats can hold a model of the recipe.

    Args:
        names: keys of `FORMATS`.

    Raises:
        ValueError: one cannot.

    Example:
        >>> from hf_compress import QuantizationArguments, Recipe
        >>> from hf_compress.export.formats import check_recipe
        >>> check_recipe(["packed", "onnx"], Recipe(quantization=QuantizationArguments("int8")))
    """
    for kind in exported(names):
        if said := kind.refusal(recipe):
            raise ValueError(said)


def check_model(names: Sequence[str], model: PreTrainedModel) -> None:
    """Check at the start of a run that the formats can hold a model.

    Args:
        names: keys of `FORMATS`.

    Raises:
        ValueError: one cannot.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.export.formats import check_model
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> check_model(["packed", "onnx"], BertModel(BertConfig(vocab_size=9, **sizes)))
    """
    for kind in exported(names):
        if said := kind.unfit(model):
            raise ValueError(said)


def help_of_formats() -> str:
    """Return what `--help` says about all formats, from their descriptors."""
    return "; ".join(f"`{format.name}`: {format.help}" for format in FORMATS.values())


def exported(names: Sequence[str]) -> list[Format]:
    """Return the formats among `names` that are written from the packed file, in the order of the registry."""
    return [format for format in FORMATS.values() if format.name in names and format.write is not None]


def write_formats(folder: str | Path, names: Sequence[str], batches: Batches | None = None) -> dict[str, Parity]:
    """Write the formats `names` into the compressed `folder` and return how close each is to the packed file.

    Args:
        folder: what `save_compressed` wrote.
        names: keys of `FORMATS`. `packed` is there already.
        batches: inputs to compare on, as for `Format.export`.

    Raises:
        MissingExtraError, ValueError: as `Format.export`.

    Example:
        >>> from hf_compress.export import write_formats
        >>> write_formats("compressed", ["onnx"])["onnx"].deviation  # doctest: +SKIP
        0.0021
    """
    kept = None if batches is None else list(batches)
    return {format.name: format.export(folder, kept) for format in exported(names)}


def written(folder: str | Path) -> list[str]:
    """Return the names of the formats in `folder` that were written from the packed file."""
    return [format.name for format in exported(list(FORMATS)) if (Path(folder) / format.path).exists()]
