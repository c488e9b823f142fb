"""Take our flags off a script's command line: from the arguments, its argument file, a config file, a named recipe."""

import argparse
import difflib
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from transformers import HfArgumentParser

from hf_compress.distill.extra import check_sources
from hf_compress.documents import YAML
from hf_compress.export.formats import check_recipe
from hf_compress.launch.arguments import ALL_ARGUMENTS, CompressionArguments, option_names, read_recipe
from hf_compress.launch.option_file import flattened, read_options, split_file
from hf_compress.recipe import Recipe
from hf_compress.report import provenance

PREFIXES = ("distill", "prune", "quant", "compress")
# What an option chooses, in the recipe of a finished run.
CHOSEN = {"compress_budget_mb": "quant_step", "compress_speedup": "prune_keep"}
WIDEST = 60  # Characters for the value in the help of a flag; a terminal has 80.


@dataclass(frozen=True)
class Flags:
    """The flags of one command line.

    Attributes:
        recipe: the recipe that they describe.
        options: the options of the result.
        given: whether any of our flags was given.
    """

    recipe: Recipe
    options: CompressionArguments
    given: bool


@dataclass
class Offer:
    """Flags that the launcher has taken off the command line, for a script that takes flags itself.

    Attributes:
        flags: those that the script gets.
        command: the whole command line.
        taken: whether the script has taken them, so that it compresses by itself.
    """

    flags: Flags
    command: str
    taken: bool = False


_offer: Offer | None = None


@contextmanager
def offered(flags: Flags, command: str) -> Iterator[Offer]:
    """Let `take_flags` return `flags` inside the context, and say whether it was called."""
    global _offer
    _offer = Offer(flags, command)
    try:
        yield _offer
    finally:
        _offer = None


class _Help(argparse.HelpFormatter):
    """Shows each flag once, with one word for its value, and its default if it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        word = action.dest.rpartition("_")[2].upper()
        value = self._format_args(action, word)
        if action.nargs == "+":
            value = value.partition(" [")[0] + " ..."
        if len(value) > WIDEST:
            value = word
        return f"{action.option_strings[0]} {value}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default in (None, False) or default == []:
            return action.help
        return f"{action.help} (default: {' '.join(default) if isinstance(default, list) else default})"


def help_text() -> str:
    """Return the help of all our flags, by method."""
    headings = [*Recipe.__dataclass_fields__, "recipe and result"]
    helps = [
        HfArgumentParser(arguments, add_help=False, formatter_class=_Help).format_help() for arguments in ALL_ARGUMENTS
    ]
    return "\n".join(
        f"{heading}:{text.partition('options:')[2]}" for heading, text in zip(headings, helps, strict=True)
    )


def take_flags(argv: list[str]) -> Flags:
    """Return our flags in the command line `argv` (for example `sys.argv`), and remove them from it.

    If the only other argument is a JSON or YAML file with our options, its name in `argv` is replaced by that of a
    copy without them. Priority: flags, then the argument file, then `--compress_config`, then `--compress_recipe`.
    In a script that `hf-compress run` started, which has taken the flags before, they are returned all the same.

    Raises:
        ValueError: a value is out of range, a recipe is unknown, or a file or the texts of `--distill_extra` cannot be
            read.

    Example:
        >>> from hf_compress import take_flags
        >>> argv = ["train.py", "--learning_rate", "3e-5", "--prune_sparsity", "0.6", "--quant_scheme", "int8"]
        >>> take_flags(argv).recipe.name
        'mp60+int8'
        >>> argv
        ['train.py', '--learning_rate', '3e-5']
    """
    whole = provenance.command()
    flags, rest = _parse(argv[1:])
    in_file: dict[str, Any] = {}
    if len(rest) == 1 and rest[0].endswith((".json", *YAML)) and Path(rest[0]).is_file():
        in_file, rest[0] = split_file(Path(rest[0]))
    given = _over(in_file, flags)
    _warn_of_misspellings(rest)
    values = _with_recipe(given)
    *methods, options = (
        arguments(**{known.name: values[known.name] for known in fields(arguments) if known.name in values})
        for arguments in cast(tuple[Any, ...], ALL_ARGUMENTS)
    )
    argv[1:] = rest
    if _offer is not None:
        _offer.taken = True
        provenance.keep_command(argv, _offer.command)
        return _offer.flags
    provenance.keep_command(argv, whole)
    recipe = Recipe(*methods)
    check_recipe(options.compress_formats, recipe)
    check_sources(recipe.distillation.distill_extra)
    return Flags(recipe, options, bool(given))


def _with_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options `values`, completed by the config file and then by the named recipe among them."""
    name, config = values.get("compress_recipe"), values.get("compress_config")
    named, configured = dict[str, Any](), dict[str, Any]()
    if config is not None:
        configured = read_options(config)
        name = name or configured.get("compress_recipe")
    if name is not None:
        named = flattened(read_recipe(name), name)
    return _over(_over(named, configured), values)


def _over(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of two sources; those of the `higher` one count.

    The recipe of a finished run holds the step that its budget has chosen, and the groups that its speed-up has. A new
    budget or speed-up chooses again.
    """
    chosen_before = {CHOSEN[option] for option in CHOSEN if option in higher}
    return {name: value for name, value in lower.items() if name not in chosen_before} | dict(higher)


def _parse(tokens: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return our options in `tokens`, without defaults, and the other tokens in their order."""
    parser = HfArgumentParser(ALL_ARGUMENTS, add_help=False, allow_abbrev=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS

    def refuse(message: str) -> None:
        raise ValueError(f"the command line: {message}")

    parser.error = refuse
    # What follows "--" belongs to the script; argparse would look for our flags there, too.
    end = list(tokens).index("--") if "--" in tokens else len(tokens)
    found, rest = parser.parse_known_args(list(tokens[:end]))
    return vars(found), [*rest, *tokens[end:]]


def _warn_of_misspellings(rest: Sequence[str]) -> None:
    for token in itertools.takewhile("--".__ne__, rest):
        name = token.removeprefix("--").partition("=")[0].replace("-", "_")
        if token.startswith("--") and name.startswith(PREFIXES) and "_" in name:
            close = difflib.get_close_matches(name, option_names(), n=1, cutoff=0.8)
            if close:
                warnings.warn(
                    f"`--{name}` is not a flag of ours and goes to the script. Did you mean `--{close[0]}`?",
                    stacklevel=3,
                )
