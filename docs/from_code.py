"""Reference tables made from the code when the site is built, so that they cannot differ from it.

Directives: `{flags}` lists the options of every method, `{commands}` the commands of `hf-compress`, `{recipes}` the
recipes that come with the package, `{registry} MODULE:NAME` the entries of a registry with their sources, and
`{record} MODULE:CLASS` the fields of a dataclass.
"""

import dataclasses
import importlib
import json
import re
from importlib.resources import files
from typing import Any, get_type_hints

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hf_compress.launch.arguments import ALL_ARGUMENTS
from hf_compress.recipe import Recipe
from hf_compress_cli import app as program


def _cell(text: str) -> str:
    """`text` as the content of one cell of a Markdown table."""
    return " ".join(text.replace("|", r"\|").replace("<", r"\<").split())


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [headings, ["---"] * len(headings), *rows]]
    return "\n".join(lines)


def _entry(name: str, words: str, default: str) -> str:
    """One entry of a definition list: a name, what it means, and its default if it has one."""
    return f"{name}\n: {_cell(words)}" + (f" Default: `{default}`." if default else "")


def _default(field: dataclasses.Field) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return "" if value in (None, False) else str(value)


def flags() -> str:
    """All flags as Markdown: one section for each dataclass of options."""
    parts = []
    titles = [*Recipe.__dataclass_fields__, "recipe and result"]
    for title, kind in zip((title.capitalize() for title in titles), ALL_ARGUMENTS, strict=True):
        purpose = (kind.__doc__ or "").strip().partition("\n\n")[0]
        parts += [f"## {title}", _cell(purpose)]
        for field in dataclasses.fields(kind):
            choices = field.metadata.get("choices")
            words = field.metadata["help"].replace("%%", "%")
            words += f" Choices: {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
            parts.append(_entry(f"`--{field.name}`", words, _default(field)))
    return "\n\n".join(parts)


def commands() -> str:
    """Every command of `hf-compress` as Markdown: what it does, its arguments and its options."""
    return "\n\n".join(_described(["hf-compress"], typer.main.get_command(program)))


def _described(words: list[str], command: Any) -> list[str]:
    inner = getattr(command, "commands", {})
    own = [f"{'#' * len(words)} {' '.join(words)}", _cell(command.help or "")]
    if inner:
        parts = [part for name in inner for part in _described([*words, name], inner[name])]
        return parts if len(words) == 1 else [*own, *parts]
    for parameter in command.params:
        if parameter.name != "help":
            option = parameter.param_type_name == "option"
            names = parameter.opts if option else [parameter.metavar or parameter.name.upper()]
            default = "" if parameter.default in (None, False, ()) else str(parameter.default)
            own.append(_entry(", ".join(f"`{name}`" for name in names), parameter.help or "", default))
    return own


def recipes() -> str:
    """The recipes that come with the package, as Markdown: name, description, flags that give the same."""
    rows = []
    for file in sorted(files("hf_compress").joinpath("recipes").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            values = json.loads(file.read_text("utf-8"))
            options = {k: v for section in values.values() if isinstance(section, dict) for k, v in section.items()}
            same = " ".join(f"`--{name} {value}`" for name, value in options.items())
            rows.append([f"`{file.name.removesuffix('.json')}`", _cell(values["description"]), same])
    return _table(["name", "what it does", "the same as flags"], rows)


def registry(where: str) -> str:
    """The entries of the registry `MODULE:NAME`, as a definition list: the help of each, and its sources."""
    module, _, name = where.partition(":")
    entries = getattr(importlib.import_module(module), name)
    return "\n\n".join(
        _entry(f"`{name}`", _sentence(entry.help) + _sources(entry), "") for name, entry in entries.items()
    )


def _sentence(clause: str) -> str:
    return clause[:1].upper() + clause[1:].rstrip(".") + "."


def _sources(entry: Any) -> str:
    """The titles and addresses in the BibTeX entries of a descriptor."""
    found = []
    for bibtex in getattr(entry, "citation", "").split("\n@"):
        fields = dict(re.findall(r"^\s*(title|url)\s*=\s*\{(.+?)\},?$", bibtex, re.MULTILINE))
        if "title" in fields:
            found.append(f"[{fields['title']}]({fields['url']})" if "url" in fields else fields["title"])
    return f" Source: {', '.join(found)}." if found else ""


def record(where: str) -> str:
    """The fields of the dataclass `MODULE:CLASS`, as Markdown: its docstring's first line, then name and type."""
    module, _, name = where.partition(":")
    kind = getattr(importlib.import_module(module), name)
    hints = get_type_hints(kind)
    rows = [[f"`{field.name}`", _cell(f"`{_type(hints[field.name])}`")] for field in dataclasses.fields(kind)]
    return _table(["field", "type"], rows)


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not getattr(hint, "__args__", None) else str(hint)
    return " ".join(part.rpartition(".")[2] if "." in part and "[" not in part else part for part in text.split())


class _FromCode(SphinxDirective):
    """A directive that parses the Markdown made by one of the functions above."""

    optional_arguments = 1
    make: Any = None

    def run(self) -> list[nodes.Node]:
        text = type(self).make(*self.arguments)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    for name, function in (
        ("flags", flags),
        ("commands", commands),
        ("recipes", recipes),
        ("record", record),
        ("registry", registry),
    ):
        app.add_directive(name, type(name, (_FromCode,), {"make": staticmethod(function)}))
    return {"parallel_read_safe": True}
