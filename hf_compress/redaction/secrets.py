"""Finds secrets in texts: those in use on this machine, values that look like one, items that are named like one."""

import os
import re
import sys
from collections.abc import Sequence
from urllib.parse import quote

from huggingface_hub import get_token

from hf_compress.redaction.names import is_secret, is_surely_secret

REDACTED = "REDACTED"
# A shorter value is not searched for in texts: it may be part of any word.
SHORTEST_SECRET = 8
# Values that say whether there is a secret.
NO_SECRETS = {"", "none", "null", "true", "false", REDACTED.lower()}
_KEPT: set[str] = set()

START = r"(?<![A-Za-z0-9])"
# A secret by its looks: private keys; tokens of Hugging Face, GitHub, GitLab, Slack, PyPI, npm, Docker, Nvidia,
# Groq, OpenAI, Stripe, AWS and Google; JSON web tokens; user and password in an address, where a port is no password.
LOOKS = (
    re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(?:-----END \1PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(START + r"(?:hf_|api_org_)[A-Za-z0-9]{16,}"),
    re.compile(START + r"(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|npm_|dckr_pat_|pypi-|nvapi-|gsk_)[\w-]{12,}"),
    re.compile(START + r"(?:sk|pk|rk)[-_](?=[\w-]{0,99}\d)[\w-]{16,}"),
    re.compile(START + r"(?:AKIA|ASIA)[A-Z0-9]{12,}"),
    re.compile(START + r"(?:AIza[\w-]{30,}|ya29\.[\w-]{16,})"),
    re.compile(START + r"eyJ[\w-]{8,2000}\.[\w-]{8,}\.[\w-]*"),
    re.compile(
        r"""(?<=://)(?!git@)[^\s/@:"'`]{0,300}:(?!\d+(?:/|$))[^\s@"'`]{1,300}(?:@[^\s@/"'`]{1,300}){0,5}(?=@)"""
    ),
)
# What is a secret by what stands before or after it; that stays.
PLACES = (
    re.compile(r"""(?i)(\bauthorization\\?["']?\s*[:=]\s*\\?["']?)(?:(?:bearer|basic|token|digest)\s+)?[^\s"'\\]+"""),
    re.compile(r"(?i)\b(bearer\s{1,8})(?=\S{0,200}\d)[\w.~+/=-]{8,}"),
    re.compile(r"""(://)(?!git@)[^\s/?#"'`]{1,300}(?=@)"""),
    re.compile(r"(?i)(hooks\.slack\.com/(?:services|workflows)/|discord(?:app)?\.com/api/webhooks/)[\w/-]+"),
)
# An item NAME=VALUE or "NAME": "VALUE" in an argument, a query, JSON, YAML or a printed dict. Quotes may be escaped.
NAMED = re.compile(r"""(?P<name>(?<![\w.-])[\w.-]{1,100})(?P<between>\\{0,8}["']?\s{0,8}(?:=>|[=:])\s{0,8})""")
VALUE = re.compile(
    r"""
    \\{1,8}"(?:(?!\\{1,8}").){0,9999}\\{1,8}" | "(?:\\.|[^"\\]){0,9999}" | '(?:\\.|[^'\\]){0,9999}'
    | \[[^\]]{0,9999}\] | [^\s"',;&}\])]+
    """,
    re.VERBOSE,
)
LOOKS_RANDOM = re.compile(r"(?=.*\d)[\w+/=.-]{8,}")


def keep_secret(value: str | None) -> None:
    """Let `redact_text` remove this value from now on, whatever it looks like: for example the token that a run got.

    Args:
        value: the secret; None and values under eight characters are ignored.

    Example:
        >>> from hf_compress.redaction import keep_secret, redact_text
        >>> keep_secret("correct horse battery")
        >>> redact_text("refused: correct horse battery")
        'refused: REDACTED'
    """
    if value and len(value) >= SHORTEST_SECRET:
        _KEPT.add(value)


def secrets_in_use() -> list[str]:
    """The secrets of this process, longest first: in its environment and arguments, of `hf auth login`, and kept ones.

    Example:
        >>> from hf_compress.redaction import keep_secret, secrets_in_use
        >>> keep_secret("correct horse battery")
        >>> "correct horse battery" in secrets_in_use()
        True
    """
    named = {value for name, value in os.environ.items() if is_secret(name)} | set(secrets_of(sys.argv[1:]).values())
    found = named | _KEPT | {get_token() or ""}
    return sorted(
        (v for v in found if len(v) >= SHORTEST_SECRET and v.lower() not in NO_SECRETS), key=len, reverse=True
    )


def secrets_of(arguments: Sequence[str]) -> dict[int, str]:
    """The values of options and variables among `arguments` that are named after a secret, by their positions.

    An option has one value, but one named in the plural (`--api_keys`) has all up to the next option.

    Example:
        >>> from hf_compress.redaction.secrets import secrets_of
        >>> secrets_of(["--hub_token", "abc", "train.json", "--password=def", "--seed", "1"])
        {1: 'abc', 3: 'def'}
    """
    found, secret, several = dict[int, str](), False, False
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if is_option(argument) or (equals and re.fullmatch(r"[\w.]+", name)):
            secret, several = is_secret(name) and not equals, name.lower().endswith("s")
            if is_secret(name) and equals:
                found[position] = value
        elif secret:
            found[position], secret = argument, several
    return found


def is_option(argument: str) -> bool:
    """Whether an argument is the name of an option, with or without its value: not a negative number.

    Example:
        >>> from hf_compress.redaction.secrets import is_option
        >>> is_option("--seed=1"), is_option("-1e-5")
        (True, False)
    """
    return argument.startswith("-") and re.fullmatch(r"-?[\d.]+(?:[eE][+-]?\d+)?", argument) is None


def redact_text(text: str) -> str:
    """`text` without secrets: those in use, known kinds of tokens, credentials in addresses, and named items.

    Example:
        >>> from hf_compress.redaction import redact_text
        >>> redact_text("https://me:pass@host/data?token=abc")
        'https://REDACTED@host/data?token=REDACTED'
    """
    for secret in secrets_in_use():
        text = text.replace(secret, REDACTED).replace(quote(secret, safe=""), REDACTED)
    for pattern in LOOKS:
        text = pattern.sub(REDACTED, text)
    for pattern in PLACES:
        text = pattern.sub(rf"\1{REDACTED}", text)
    return _without_named(text)


def found_secret(text: str) -> str | None:
    """The beginning of the first secret in `text` that is in use or looks like one; None if there is none.

    Example:
        >>> from hf_compress.redaction import found_secret
        >>> found_secret("token: hf_abcdefghijklmnopqrst")
        'hf_a...'
    """
    used = (secret for secret in secrets_in_use() if secret in text)
    like = (found[0] for pattern in LOOKS for found in pattern.finditer(text) if REDACTED not in found[0])
    secret = next(used, None) or next(like, None)
    return f"{secret[:4]}..." if secret else None


def _without_named(text: str) -> str:
    """The text without the values of items that are named after a secret, also of items within values."""
    parts, kept = [], 0
    for item in NAMED.finditer(text):
        value = VALUE.match(text, item.end()) if item.start() >= kept and is_secret(item["name"]) else None
        if value is None:
            continue
        quotes = re.match(r"""\\*["']""", value[0])
        mark = quotes[0] if quotes else ""
        inner = value[0][len(mark) : len(value[0]) - len(mark)]
        if inner.lower() not in NO_SECRETS and _means_secret(item, inner, bool(quotes)):
            parts += [text[kept : item.end()], mark, REDACTED, mark]
            kept = value.end()
    return "".join([*parts, text[kept:]])


def _means_secret(item: re.Match[str], value: str, quoted: bool) -> bool:
    """Whether an item named after a secret is one, and not words of a sentence, such as "Unexpected token: )"."""
    name, between = item["name"], item["between"]
    if not between.startswith(":") or not between.endswith(" ") or is_surely_secret(name):
        return True
    line = item.string[item.string.rfind("\n", 0, item.start()) + 1 : item.start()]
    in_yaml = not line.strip(" -") and (quoted or name.lower() != "key")
    return in_yaml or LOOKS_RANDOM.fullmatch(value) is not None
