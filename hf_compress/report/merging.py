"""Our part of a README and its author's: the card is merged into a README, and what the author wrote survives."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

BEGIN, END = "<!-- hf_compress: begin -->", "<!-- hf_compress: end -->"
# The comment behind `BEGIN` that lists the metadata keys which we wrote.
KEYS = re.compile(r"<!-- metadata: ([\w,. -]*) -->")
FRONT = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
FIRST = ("language", "license", "license_name", "license_link")


def merged(
    existing: str,
    metadata: Mapping[str, Any],
    body: str,
    *,
    inherited: Mapping[str, Any] | None = None,
    own_tags: Sequence[str] = (),
) -> str:
    r"""`existing` with our metadata and our marked section put in the place of those that it has.

    Other metadata and tags, and all text outside the marks, stay as they are written. A README without marks gets our
    section above its text. Merging again changes nothing.

    Args:
        existing: the text of a README; empty if there is none.
        metadata: ours, as YAML values.
        body: our Markdown.
        inherited: more metadata of ours, which `existing` overrides (a licence).
        own_tags: tags that we may have written earlier, and that `metadata` replaces.

    Raises:
        ValueError: the metadata of `existing` are not YAML, or it has one of our marks and lacks the other.

    Example:
        >>> from hf_compress.report.merging import merged
        >>> card = merged("---\nlicense: mit\n---\nMy words.\n", {"pipeline_tag": "text-classification"}, "Ours.")
        >>> print(card)
        ---
        license: mit
        pipeline_tag: text-classification
        ---
        <BLANKLINE>
        <!-- hf_compress: begin -->
        <!-- metadata: pipeline_tag -->
        <BLANKLINE>
        Ours.
        <BLANKLINE>
        <!-- hf_compress: end -->
        <BLANKLINE>
        My words.
        <BLANKLINE>
        >>> merged(card, {"pipeline_tag": "text-classification"}, "Ours.") == card
        True
    """
    theirs, text = split(existing)
    before, ours, after = _around_marks(text)
    written = _written(ours)
    own = {*own_tags, *metadata.get("tags", ())}
    foreign = [tag for tag in _tags(theirs.get("tags", "")) if tag not in own]
    tags = {"tags": [*metadata.get("tags", ()), *foreign]} if foreign else {}
    new = {name: to_yaml({name: value}) for name, value in ({**metadata} | tags).items()}
    kept = {name: block for name, block in theirs.items() if name not in new and name not in {*written, "tags"}}
    rest = {name: to_yaml({name: value}) for name, value in (inherited or {}).items()}
    front = rest | new | kept
    ordered = sorted(front, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    head = "---\n" + "".join(front[name] for name in ordered) + "---"
    section = f"{BEGIN}\n<!-- metadata: {', '.join(metadata)} -->\n\n{body.strip()}\n\n{END}"
    return "\n\n".join(part for part in (head, before.strip("\n"), section, after.strip("\n")) if part) + "\n"


def split(text: str) -> tuple[dict[str, str], str]:
    r"""The metadata at the head of a README, each key with its lines as they are written, and the text behind them.

    Raises:
        ValueError: the metadata are not a YAML mapping.

    Example:
        >>> from hf_compress.report.merging import split
        >>> split("---\nlicense: mit  # as the base\nlanguage: no\n---\nText")
        ({'license': 'license: mit  # as the base\n', 'language': 'language: no\n'}, 'Text')
    """
    text = text.replace("\r\n", "\n")
    found = FRONT.match(text)
    if found is None:
        return {}, text.removeprefix("\ufeff")
    front = found[1]
    try:
        node = yaml.compose(front, Loader=yaml.SafeLoader)
        # The lines of each key are merged alone, and an alias may stand for far more text than it has letters.
        aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(front, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        problem = "they are nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"The metadata at the head of README.md are not YAML: {problem}. Correct them.") from error
    if node is None:
        return {}, text[found.end() :]
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        raise ValueError("The metadata at the head of README.md must be lines `name: value`. Correct them.")
    if aliases:
        raise ValueError("The metadata at the head of README.md use aliases (`*name`). Write their values out.")
    starts = [key.start_mark.index for key, _ in node.value]
    blocks = [front[start:stop] for start, stop in zip([0, *starts[1:]], [*starts[1:], len(front)], strict=True)]
    return {key.value: block for (key, _), block in zip(node.value, blocks, strict=True)}, text[found.end() :]


def authored(text: str) -> tuple[dict[str, str], str]:
    r"""What is not ours in a README: the other metadata, each key with its lines, and the text outside our marks.

    Raises:
        ValueError: the metadata are not YAML, or one of our marks is there without the other.

    Example:
        >>> from hf_compress.report.merging import authored, merged
        >>> authored(merged("---\nlicense: mit\n---\nMy words.\n", {"pipeline_tag": "text-classification"}, "Ours."))
        ({'license': 'license: mit\n'}, 'My words.')
    """
    metadata, body = split(text)
    before, ours, after = _around_marks(body)
    written = _written(ours)
    parts = (before.strip("\n"), after.strip("\n"))
    return {name: block for name, block in metadata.items() if name not in written or name == "tags"}, "\n\n".join(
        part for part in parts if part
    )


def to_yaml(metadata: Mapping[str, Any]) -> str:
    r"""The metadata as YAML, in their order, as the Hub reads them.

    Example:
        >>> from hf_compress.report.merging import to_yaml
        >>> to_yaml({"language": ["en"], "license": "mit"})
        'language:\n- en\nlicense: mit\n'
    """
    text: str = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=2**20)
    return text


def _around_marks(text: str) -> tuple[str, str, str]:
    """The text before our section, the section without its marks, and the text after it."""
    lines = text.split("\n")
    begins = [number for number, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [number for number, line in enumerate(lines) if line.strip() == END]
    if not begins and not ends:
        return "", "", text
    if not begins or not ends or ends[-1] < begins[0]:
        there, lacks = (BEGIN, END) if begins else (END, BEGIN)
        raise ValueError(
            f"README.md has the line `{there}` without the line `{lacks}`, so it is unknown which part of it is "
            "ours to replace. Put that line back, or remove the other."
        )
    first, last = begins[0], ends[-1]
    return "\n".join(lines[:first]), "\n".join(lines[first + 1 : last]), "\n".join(lines[last + 1 :])


def _written(section: str) -> list[str]:
    """The metadata keys that we wrote together with this section of ours."""
    found = KEYS.search(section.partition("\n\n")[0])
    return found[1].split(", ") if found else []


def _tags(block: str) -> list[Any]:
    """The tags in the lines of the key `tags`."""
    values = (yaml.safe_load(block) or {}).get("tags")
    return values if isinstance(values, list) else [] if values is None else [values]
