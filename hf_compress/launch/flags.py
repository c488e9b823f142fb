"""Our flags apart from a script's own: on the command line, in its argument file, in recipe files and by name."""

import argparse
import atexit
import difflib
import itertools
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import HfArgumentParser

from hf_compress.export.formats import FORMATS, check_formats, help_of_formats
from hf_compress.recipe import ARGUMENTS, Recipe

PREFIXES = ("distill", "prune", "quant", "compress")
RECIPE_NAME = "recipe.json"
YAML = (".yaml", ".yml")
WIDEST = 60  # Characters of what a flag's help shows as its value, of the 80 of a terminal.


def recipe_names() -> list[str]:
    """The recipes that come with the package, for `--compress_recipe`."""
    return sorted(path.name.removesuffix(".json") for path in _shipped().iterdir() if path.name.endswith(".json"))


def _shipped() -> Any:
    return files("hf_compress").joinpath("recipes")


@dataclass
class CompressionArguments:
    """Where the recipe of a run comes from beside its flags, and what becomes of the result."""

    compress_recipe: str | None = field(
        default=None,
        metadata={
            "choices": recipe_names(),
            "help": "A recipe that comes with hf_compress; `hf-compress run --help` describes them. The options of "
            "`compress_config` and flags go before it.",
        },
    )
    compress_config: str | None = field(
        default=None,
        metadata={
            "help": "YAML or JSON file of options, or the folder of an earlier result with its recipe.json. Flags go "
            "before it."
        },
    )
    compress_hub_id: str | None = field(
        default=None,
        metadata={"help": "owner/name on the Hub to push the compressed model to, with its report and card."},
    )
    compress_formats: list[str] = field(
        default_factory=lambda: ["packed"],
        metadata={
            "choices": FORMATS,
            "help": f"Write the compressed model in these formats and score each: {help_of_formats()}.",
        },
    )

    def __post_init__(self) -> None:
        check_formats(self.compress_formats)


# What all our flags are fields of.
KINDS = (*ARGUMENTS, CompressionArguments)


@dataclass(frozen=True)
class Flags:
    """What was asked of us: the recipe, what becomes of the result, and whether anything was asked at all."""

    recipe: Recipe
    options: CompressionArguments
    given: bool


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with one spelling of each flag, one word for its value, and its default where it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        word = action.dest.rpartition("_")[2].upper()
        value = self._format_args(action, word)
        if action.nargs == "+":
            value = value.partition(" [")[0] + " ..."
        if len(value) > WIDEST:
            value = word
        return f"{action.option_strings[0]} {value}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def help_text() -> str:
    """What all our flags do, by method."""
    headings = [*Recipe.__dataclass_fields__, "recipe and result"]
    helps = [HfArgumentParser(kind, add_help=False, formatter_class=_Help).format_help() for kind in KINDS]
    return "\n".join(
        f"{heading}:{text.partition('options:')[2]}" for heading, text in zip(headings, helps, strict=True)
    )


def take_flags(argv: list[str]) -> Flags:
    """What the command line `argv` (such as `sys.argv`) asks of us; our flags are taken out of it.

    A script whose only argument is a JSON or YAML file finds in `argv` another of the same name, without our options.
    Where an option is given more than once, flags go before the argument file, that before `--compress_config`, and
    that before `--compress_recipe`.

    Raises:
        ValueError: a value outside its range, an unknown recipe, or a file that cannot be read as one.
    """
    flags, rest = _parse(argv[1:], "the command line")
    in_file: dict[str, Any] = {}
    if len(rest) == 1 and rest[0].endswith((".json", *YAML)) and Path(rest[0]).is_file():
        in_file, rest[0] = _split_file(Path(rest[0]))
    given = in_file | flags
    _warn_of_misspellings(rest)
    values = with_recipe(given)
    *methods, options = (
        kind(**{known.name: values[known.name] for known in fields(kind) if known.name in values})
        for kind in cast(tuple[Any, ...], KINDS)
    )
    argv[1:] = rest
    return Flags(Recipe(*methods), options, bool(given))


def with_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options `values`, and those of the `compress_config` and the `compress_recipe` among them, in that order."""
    name, config = values.get("compress_recipe"), values.get("compress_config")
    named, configured = dict[str, Any](), dict[str, Any]()
    if config is not None:
        configured = read_options(config)
        name = name or configured.get("compress_recipe")
    if name is not None:
        if name not in recipe_names():
            raise ValueError(f"`--compress_recipe` must be one of {', '.join(recipe_names())}; got {name!r}.")
        named = _flattened(json.loads(_shipped().joinpath(f"{name}.json").read_text("utf-8")), name)
    return named | configured | dict(values)


def as_flags(argv: Sequence[str]) -> list[str]:
    """The command line `argv` (without the program) with the flags of the recipes that it names put in front of it.

    For a script with a parser of its own that knows all our flags: of two equal ones argparse takes the last.
    """
    values, _ = _parse(argv, "the command line")
    return [*_tokens({name: value for name, value in with_recipe(values).items() if name not in values}), *argv]


def read_options(path: str | Path) -> dict[str, Any]:
    """The options in a YAML or JSON file, or in the recipe.json of a folder, by the names of their flags.

    They stand in sections by method, as `Recipe.save` writes them, or directly.

    Raises:
        ValueError: no such file, not YAML or JSON, an unknown option, or a value that its flag would not take.
    """
    path = Path(path)
    file = path / RECIPE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"`--compress_config` must be a YAML or JSON file, or a folder with a {RECIPE_NAME}; there is none at "
            f"{path}. A recipe that comes with hf_compress is named by `--compress_recipe`."
        )
    return _flattened(_read(file), str(file))


def descriptions() -> dict[str, str]:
    """What each recipe that comes with the package is, by name."""
    return {
        name: json.loads(_shipped().joinpath(f"{name}.json").read_text("utf-8"))["description"]
        for name in recipe_names()
    }


def _parse(tokens: Sequence[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """The options that are given in `tokens`, without defaults, and the tokens that are not ours, in order."""
    ours = HfArgumentParser(KINDS, add_help=False, allow_abbrev=False)
    for action in ours._actions:
        action.default = argparse.SUPPRESS

    def refuse(message: str) -> None:
        raise ValueError(f"{where}: {message}")

    ours.error = refuse
    # What stands behind "--" is the script's alone; argparse would look for our flags there, too.
    end = list(tokens).index("--") if "--" in tokens else len(tokens)
    found, rest = ours.parse_known_args(list(tokens[:end]))
    return vars(found), [*rest, *tokens[end:]]


def _tokens(values: Mapping[str, Any]) -> list[str]:
    tokens = []
    for name, value in values.items():
        if isinstance(value, list):
            tokens += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            tokens.append(f"--{name}={value}")
    return tokens


def _flattened(values: Any, where: str) -> dict[str, Any]:
    """The options in what a recipe file holds, checked as if each were a flag."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold options by name; got {type(values).__name__}.")
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if name in Recipe.__dataclass_fields__ and isinstance(value, dict) else {name: value}
    flat.pop("description", None)
    unknown = [f"`{name}`" for name in flat if name not in _names() or name == "compress_config"]
    if unknown:
        raise ValueError(f"{where} has options that are none of ours: {', '.join(unknown)}. `--help` lists ours.")
    return _checked(flat, where)


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options as their flags would give them; what is empty stays so, as it can be switched on by another file."""
    empty = {name: value for name, value in values.items() if value is None or value == []}
    for name, value in empty.items():
        if _defaults()[name] != value:
            raise ValueError(f"{where}: `{name}` must not be empty. Leave it out for its default.")
    return _parse(_tokens(values), where)[0] | empty


def _defaults() -> dict[str, Any]:
    return {name: value for kind in KINDS for name, value in vars(kind()).items()}


def _names() -> list[str]:
    return [option.name for kind in KINDS for option in fields(kind)]


def _read(file: Path) -> Any:
    try:
        text = file.read_text("utf-8")
        return yaml.safe_load(text) if file.suffix in YAML else json.loads(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as {'YAML' if file.suffix in YAML else 'JSON'}: {error}") from error


def _split_file(file: Path) -> tuple[dict[str, Any], str]:
    """Our options in a script's argument file, and the path of that file, or of a copy without them if there are any.

    What is in the file means the same in the copy: paths are relative to the working directory, not to the file.
    """
    try:
        values = _read(file)
    except ValueError:
        return {}, str(file)  # The script's to refuse.
    ours = {name: value for name, value in values.items() if name in _names()} if isinstance(values, dict) else {}
    if not ours:
        return {}, str(file)
    rest = {name: value for name, value in values.items() if name not in ours}
    folder = Path(tempfile.mkdtemp(prefix="hf-compress-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / file.name
    text = yaml.safe_dump(rest, sort_keys=False) if file.suffix in YAML else json.dumps(rest, indent=2)
    copy.write_text(text, "utf-8")
    return _checked(ours, str(file)), str(copy)


def _warn_of_misspellings(rest: Sequence[str]) -> None:
    for token in itertools.takewhile("--".__ne__, rest):
        name = token.removeprefix("--").partition("=")[0].replace("-", "_")
        if token.startswith("--") and name.startswith(PREFIXES) and "_" in name:
            close = difflib.get_close_matches(name, _names(), n=1, cutoff=0.8)
            if close:
                warnings.warn(f"`--{name}` is left to the script. Is `--{close[0]}` meant?", stacklevel=3)
