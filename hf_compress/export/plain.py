"""A reloaded model in Transformers' own layers, and the files that lie beside its weights."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from hf_compress.models.widths import widths_of
from hf_compress.prune.patterns import PATTERNS
from hf_compress.recipe import Recipe

ONE_FOR_ALL = "their config has one number for all. Train with `--prune_uniform`, or choose `onnx`."


def widths_refusal(recipe: Recipe, option: str) -> str:
    """Return why an ordinary model cannot hold the widths that the recipe leaves, or "" if it can."""
    pruning = recipe.pruning
    if pruning.enabled and PATTERNS[pruning.prune_pattern].kinds and not pruning.prune_uniform:
        return (
            f"`{option}` cannot hold what `--prune_pattern {pruning.prune_pattern}` leaves: layers with their own "
            f"widths, and {ONE_FOR_ALL}"
        )
    return ""


def plain_model(model: PreTrainedModel, option: str) -> PreTrainedModel:
    """Return a model of Transformers' own layers with the weights of a reloaded one.

    Args:
        option: names the format, for the error.

    Raises:
        ValueError: its layers have widths of their own, which no configuration says.
    """
    if widths := widths_of(model):
        raise ValueError(
            f"`{option}` cannot say that {len(widths)} layers, such as {next(iter(widths))}, have their own widths: "
            f"{ONE_FOR_ALL}"
        )
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config).eval()
    known = plain.state_dict()
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in known})
    plain.tie_weights()
    return plain


def copy_processor(folder: Path, target: Path) -> None:
    """Copy the files of the tokenizer, image processor or feature extractor from `folder` to `target`."""
    for word in ("token", "vocab", "merges", "spiece", "sentencepiece", "processor"):
        for path in folder.glob(f"*{word}*"):
            shutil.copy(path, target)
