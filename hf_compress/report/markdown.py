"""Text made safe for Markdown: a name that a user chose adds no markup, HTML or line break to the card."""

import re
from collections.abc import Sequence
from urllib.parse import quote

# Control characters, line separators, and marks that reverse the direction of the text after them.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """A string that is Markdown already: `text` leaves it as it is."""

    __slots__ = ()


def one_line(value: str) -> str:
    r"""`value` without control characters and line breaks.

    Example:
        >>> from hf_compress.report.markdown import one_line
        >>> one_line("two\nlines")
        'two lines'
    """
    return " ".join(CONTROL.sub(" ", value).split())


def text(value: str) -> Markdown:
    r"""`value` as Markdown that shows these characters and nothing else, on one line.

    Example:
        >>> from hf_compress.report.markdown import text
        >>> text("<b>*x*</b>")
        '&lt;b&gt;\\*x\\*&lt;/b&gt;'
    """
    if isinstance(value, Markdown):
        return value
    escaped = SPECIAL.sub(lambda found: f"\\{found[0]}", one_line(value))
    return Markdown(re.sub("[&<>]", lambda found: ENTITIES[found[0]], escaped))


def code(value: str) -> Markdown:
    """`value` as inline code. Its backticks are kept: the delimiters are longer than any run of them.

    Example:
        >>> from hf_compress.report.markdown import code
        >>> code("a`b")
        '``a`b``'
    """
    line = one_line(value) or " "
    ticks = "`" * (1 + _longest_run(line))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{ticks}{space}{line}{space}{ticks}")


def block(value: str, language: str) -> Markdown:
    """`value` as a fenced code block. Its lines are kept: the fence is longer than any run of backticks in it.

    Example:
        >>> from hf_compress.report.markdown import block
        >>> print(block("ls", "bash"))
        ```bash
        ls
        ```
    """
    lines = [CONTROL.sub(" ", line) for line in value.splitlines()]
    ticks = "`" * max(3, 1 + _longest_run(value))
    return Markdown("\n".join([f"{ticks}{language}", *lines, ticks]))


def link(label: str, address: str) -> Markdown:
    """A link that shows `label` and leads to `address`.

    Example:
        >>> from hf_compress.report.markdown import link
        >>> link("a/b", "https://huggingface.co/a/b")
        '[a/b](https://huggingface.co/a/b)'
    """
    return Markdown(f"[{text(label)}]({quote(address, safe='/:-._~')})")


def listed(words: Sequence[str]) -> Markdown:
    """`words` as a list in a sentence.

    Example:
        >>> from hf_compress.report.markdown import listed
        >>> listed(["one", "two", "three"])
        'one, two and three'
    """
    safe = [text(word) for word in words]
    return Markdown(" and ".join([", ".join(safe[:-1]), safe[-1]]) if len(safe) > 1 else "".join(safe))


def _longest_run(value: str) -> int:
    return max((len(run) for run in re.findall("`+", value)), default=0)
