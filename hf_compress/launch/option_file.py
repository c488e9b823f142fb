"""Files of our options: recipes in YAML or JSON, the recipe.json of a result, the argument file of a script."""

import argparse
import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import HfArgumentParser

from hf_compress.documents import YAML, read_document
from hf_compress.folders import is_repository, local_folder
from hf_compress.launch.arguments import ALL_ARGUMENTS, option_names
from hf_compress.recipe import Recipe

RECIPE_NAME = "recipe.json"
LONGEST = 60  # Characters of a value in an error.


def read_options(path: str | Path) -> dict[str, Any]:
    """Return the options in a YAML or JSON file, or in the recipe.json of a result, by the names of their flags.

    A result is a folder or the id of its repository on the Hub: "owner/name" or "owner/name@revision".

    They are grouped by method, as `Recipe.save` writes them, or not grouped.

    Raises:
        ValueError: the file cannot be read, the Hub does not return it, an option is unknown, or a value is not one
            that its flag takes.
    """
    if "/" in str(path) and Path(path).suffix not in (*YAML, ".json") and is_repository(path):
        path = local_folder(path, only=[RECIPE_NAME], option="compress_config")
    path = Path(path)
    file = path / RECIPE_NAME if path.is_dir() else path
    if not file.exists():
        raise ValueError(
            f"`--compress_config` must be a YAML or JSON file, or a folder or Hub id with a {RECIPE_NAME}; there is "
            f"none at {path}. For a recipe that comes with hf_compress, use `--compress_recipe`."
        )
    return flattened(read_document(file), str(file))


def flattened(values: Any, where: str) -> dict[str, Any]:
    """Return the options in the contents of a recipe file, each converted and checked as its flag would be."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold options by name; got {type(values).__name__}.")
    flat: dict[str, Any] = {}
    for name, value in values.items():
        options = value if name in Recipe.__dataclass_fields__ and isinstance(value, dict) else {name: value}
        twice = [f"`{option}`" for option in options if option in flat]
        if twice:
            raise ValueError(f"{where} has {', '.join(twice)} twice. Keep one.")
        flat |= options
    flat.pop("description", None)
    unknown = [f"`{name}`" for name in flat if name not in option_names() or name == "compress_config"]
    if unknown:
        raise ValueError(f"{where} has unknown options: {', '.join(unknown)}. `hf-compress run --help` lists ours.")
    return _checked(flat, where)


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options as their flags would be read. None and [] are kept: they switch off what a recipe has on."""
    actions = {action.dest: action for action in HfArgumentParser(ALL_ARGUMENTS, add_help=False)._actions}
    defaults = {name: default for arguments in ALL_ARGUMENTS for name, default in vars(arguments()).items()}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == []:
            if defaults[name] != value:
                raise ValueError(f"{where}: `{name}` must not be empty. Leave it out for its default.")
            checked[name] = value
        elif actions[name].nargs == "+":
            checked[name] = [_converted(actions[name], item, where) for item in _as_list(value)]
        else:
            checked[name] = _converted(actions[name], value, where)
    return checked


def _converted(action: argparse.Action, value: Any, where: str) -> Any:
    """Return `value` as the flag of `action` would read it."""
    if not isinstance(value, str | int | float):
        raise ValueError(f"{where}: `{action.dest}` must be a single value; got {_short(value)}.")
    convert = cast(Any, action.type or str)
    try:
        converted = convert(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        kind = getattr(convert, "__name__", "value").removeprefix("string_to_")
        raise ValueError(f"{where}: `{action.dest}` must be a {kind}; got {_short(value)}.") from error
    if action.choices is not None and converted not in action.choices:
        choices = ", ".join(map(str, action.choices))
        raise ValueError(f"{where}: `{action.dest}` must be one of {choices}; got {_short(value)}.")
    return converted


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _short(value: Any) -> str:
    """Return `value` as it appears in an error, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # An integer of more digits than Python prints.
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def split_file(file: Path) -> tuple[dict[str, Any], str]:
    """Return our options in a script's argument file, and the path of a copy without them, or of the file itself.

    Relative paths in the file keep their meaning: they are relative to the working directory, not to the file.
    """
    try:
        values = read_document(file)
    except ValueError:
        return {}, str(file)  # The script will refuse it.
    given = values if isinstance(values, dict) else {}
    ours = {name: value for name, value in given.items() if name in option_names()}
    if not ours:
        return {}, str(file)
    rest = {name: value for name, value in given.items() if name not in ours}
    folder = Path(tempfile.mkdtemp(prefix="hf-compress-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / file.name
    text = yaml.safe_dump(rest, sort_keys=False) if file.suffix in YAML else json.dumps(rest, indent=2)
    copy.write_text(text, "utf-8")
    return _checked(ours, str(file)), str(copy)
