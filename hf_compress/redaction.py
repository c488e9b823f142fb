"""Removes secrets and the author's absolute paths from what is written into files that others will read."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

REDACTED = "REDACTED"
SECRET_WORDS = {"token", "key", "apikey", "password", "passwd", "passphrase", "secret", "secrets"} | {
    "credential",
    "credentials",
}
# Names such as `pad_token_id`, `key_column` and `token_type` hold a secret word and no secret.
HARMLESS_WORDS = {"id", "ids", "type", "length", "column", "name", "names", "size", "dropout", "pad", "eos", "bos"}
SHORTEST_SECRET = 8
PATTERNS = (
    # Tokens of Hugging Face, GitHub, GitLab, Slack, AWS, OpenAI and similar services, and JSON web tokens.
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), REDACTED),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|AKIA)[\w-]{12,}"), REDACTED),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), REDACTED),
    # Credentials in addresses.
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), REDACTED),
)
# An item NAME=VALUE or "NAME": "VALUE" inside an argument, as in a query or in JSON.
ITEM = re.compile(r"""([\w.-]+)(["']?\s*[=:]\s*["']?)([^\s"',;&}\]]+)""")
ABSOLUTE = re.compile(r"""(?:(?<=^)|(?<=[\s"'=:,;\[({]))(?:file://)?(~?/[^\s"',;:\])}]+)""")


def is_secret(name: str) -> bool:
    """Whether an option of this name holds a secret.

    Example:
        >>> from hf_compress.redaction import is_secret
        >>> is_secret("--hub_token"), is_secret("--tokenizer_name"), is_secret("pad_token_id")
        (True, False, False)
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = {word for word in re.split(r"[^A-Za-z0-9]+", spaced.lower()) if word}
    return bool(words & SECRET_WORDS) and not words & HARMLESS_WORDS


def redact_text(text: str) -> str:
    """`text` without secrets: known tokens, credentials in addresses, named items, and secrets of the environment.

    Example:
        >>> from hf_compress.redaction import redact_text
        >>> redact_text("https://me:pass@host/data?token=abc")
        'https://REDACTED@host/data?token=REDACTED'
    """
    for secret in _secrets_of_environment():
        text = text.replace(secret, REDACTED)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return ITEM.sub(_redact_item, text)


def shorten_paths(text: str) -> str:
    """`text` with the absolute paths of this machine relative to the working directory, or cut to their last part.

    A path counts as one of this machine if its first folder exists here.

    Example:
        >>> from hf_compress.redaction import shorten_paths
        >>> shorten_paths("/tmp/somebody/teacher")
        'teacher'
    """
    whole = _shortened(text) if text.startswith(("/", "~/")) and "\n" not in text else None
    return whole or ABSOLUTE.sub(lambda found: _shortened(found[1]) or found[0], text)


def redact(text: str) -> str:
    """`text` without secrets and without absolute paths of this machine."""
    return shorten_paths(redact_text(text))


def redact_arguments(arguments: Sequence[str], *, keep_paths: bool = False) -> list[str]:
    """The arguments of a command line without secrets and without absolute paths of this machine.

    The values of options that are named after a secret are removed, in both forms, `--option value` and
    `--option=value`.

    Args:
        arguments: of a command line.
        keep_paths: whether paths stay as they are, so that the command runs again on this machine.

    Example:
        >>> from hf_compress.redaction import redact_arguments
        >>> redact_arguments(["--hub_token", "abc", "--password=abc", "--output_dir", "/tmp/me/run"])
        ['--hub_token', 'REDACTED', '--password=REDACTED', '--output_dir', 'run']
    """
    clean = redact_text if keep_paths else redact
    found, secret = [], False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option.startswith("-") and not _is_number(option):
            secret = is_secret(option) and not equals
            hidden = REDACTED if is_secret(option) else clean(value)
            found.append(f"{option}={hidden}" if equals else clean(argument))
        else:
            found.append(REDACTED if secret else clean(argument))
    return found


def redact_command(command: str, *, keep_paths: bool = False) -> str:
    """A command line, quoted for a shell, without secrets and without absolute paths of this machine.

    Args:
        command: the command line.
        keep_paths: whether absolute paths stay.

    Example:
        >>> from hf_compress.redaction import redact_command
        >>> redact_command("python train.py --hub_token=abc")
        'python train.py --hub_token=REDACTED'
    """
    try:
        return shlex.join(redact_arguments(shlex.split(command), keep_paths=keep_paths))
    except ValueError:  # An open quote: a command that no shell takes.
        return redact(command)


def _redact_item(item: re.Match[str]) -> str:
    """The item without its value if its name is one of a secret, or else without the items in its value."""
    value = REDACTED if is_secret(item[1]) else ITEM.sub(_redact_item, item[3])
    return f"{item[1]}{item[2]}{value}"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+(?:[eE][+-]?\d+)?", text) is not None


def _secrets_of_environment() -> list[str]:
    return [v for name, v in os.environ.items() if is_secret(name) and len(v) >= SHORTEST_SECRET]


def _shortened(path: str) -> str | None:
    """The path as others may see it; None if it is not one of this machine."""
    whole = Path(path).expanduser() if path.startswith("~/") else Path(path)
    if len(whole.parts) < 2 or not Path(*whole.parts[:2]).exists():
        return None
    here = Path.cwd()
    if whole != here and whole.is_relative_to(here):
        return str(whole.relative_to(here))
    return whole.name
