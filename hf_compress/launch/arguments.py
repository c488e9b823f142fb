"""Options of a whole run, beside those of the methods: the source of its recipe and the use of its result."""

import json
from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any

from hf_compress.export.formats import FORMATS, check_formats, help_of_formats
from hf_compress.recipe import ARGUMENTS
from hf_compress.report.author import read_author
from hf_compress.report.gate import check_max_drop


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with hf_compress, for `--compress_recipe`."""
    return sorted(path.name.removesuffix(".json") for path in _shipped().iterdir() if path.name.endswith(".json"))


def _shipped() -> Any:
    return files("hf_compress").joinpath("recipes")


@dataclass
class CompressionArguments:
    """Options for the source of the recipe, besides the flags, and for the use of the result.

    Example:
        >>> from transformers import HfArgumentParser
        >>> from hf_compress import CompressionArguments
        >>> flags = ["--compress_recipe", "kd-int8", "--compress_hub_id", "someone/minilm-sst2"]
        >>> (options,) = HfArgumentParser(CompressionArguments).parse_args_into_dataclasses(flags)
        >>> options.compress_recipe, options.compress_formats
        ('kd-int8', ['packed'])
    """

    compress_recipe: str | None = field(
        default=None,
        metadata={
            "choices": recipe_names(),
            "help": "Use a recipe that comes with hf_compress, described below. Flags and the config override it.",
        },
    )
    compress_config: str | None = field(
        default=None,
        metadata={
            "help": "Read options from a YAML or JSON file, or from an earlier result, by its folder or Hub id. Flags "
            "override it."
        },
    )
    compress_hub_id: str | None = field(
        default=None,
        metadata={
            "help": "Push the compressed model with report and card to this repository on the Hub (owner/name)."
        },
    )
    compress_formats: list[str] = field(
        default_factory=lambda: ["packed"],
        metadata={
            "choices": FORMATS,
            "help": f"Write the compressed model in these formats and score each: {help_of_formats()}.",
        },
    )
    compress_card_metadata: str | None = field(
        default=None,
        metadata={
            "help": "Add a YAML or JSON file to the card: license, language, tags and other metadata of the Hub, and "
            "`title`, `text` (Markdown) and `example`."
        },
    )
    compress_max_drop: float | None = field(
        default=None,
        metadata={
            "help": "Points that the main metric may fall below the dense model. If it falls more, or a format or the "
            "sparsity is missed, the model is kept but not pushed, and the exit status is 3."
        },
    )

    compress_control: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a control: the same training without compression, on the same rows. Report and card "
            "then say the difference to it, with its paired interval."
        },
    )

    def __post_init__(self) -> None:
        check_formats(self.compress_formats)
        check_max_drop(self.compress_max_drop)
        # Read once: the file may be gone when training is over.
        self.author = read_author(self.compress_card_metadata)


# All our flags are fields of these.
ALL_ARGUMENTS = (*ARGUMENTS, CompressionArguments)


def option_names() -> list[str]:
    """Return the names of all our options."""
    return [option.name for arguments in ALL_ARGUMENTS for option in fields(arguments)]


def read_recipe(name: str) -> dict[str, Any]:
    """Return the contents of a recipe that comes with hf_compress."""
    values: dict[str, Any] = json.loads(_shipped().joinpath(f"{name}.json").read_text("utf-8"))
    return values


def descriptions() -> dict[str, str]:
    """Return a sentence on each recipe that comes with hf_compress, by name."""
    return {name: read_recipe(name)["description"] for name in recipe_names()}
