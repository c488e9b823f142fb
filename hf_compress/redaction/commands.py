"""Redacts command lines, and all at once what else goes into files that others will read."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from hf_compress.redaction.names import is_secret
from hf_compress.redaction.paths import WINDOWS, shorten_paths
from hf_compress.redaction.secrets import NO_SECRETS, REDACTED, is_option, redact_text, secrets_of


def redact(text: str) -> str:
    """`text` without secrets and without absolute paths.

    Example:
        >>> from hf_compress.redaction import redact
        >>> redact("loads /home/somebody/teacher with token=abc")
        'loads teacher with token=REDACTED'
    """
    return shorten_paths(redact_text(text))


def redact_arguments(arguments: Sequence[str], *, keep_paths: bool = False) -> list[str]:
    """The arguments of a command line without secrets and without absolute paths.

    The values of options and variables that are named after a secret are removed, in all forms: `--option value`,
    `--option=value`, `OPTION=value`, and in an argument of JSON.

    Args:
        arguments: of a command line.
        keep_paths: whether paths stay as they are, so that the command runs again on this machine.

    Example:
        >>> from hf_compress.redaction import redact_arguments
        >>> redact_arguments(["--hub_token", "abc", "--password=abc", "--output_dir", "/tmp/me/run"])
        ['--hub_token', 'REDACTED', '--password=REDACTED', '--output_dir', 'run']
    """
    clean = redact_text if keep_paths else redact
    secrets = secrets_of(arguments)
    found = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        assigns = equals and (is_option(argument) or re.fullmatch(r"[\w.]+", name))
        start, value = (f"{name}=", value) if assigns else ("", argument)
        found.append(start + (_hidden(value) if position in secrets else _cleaned(value, clean)))
    return found


def redact_command(command: str, *, keep_paths: bool = False) -> str:
    """A command line, quoted for a shell, without secrets and without absolute paths.

    Args:
        command: the command line.
        keep_paths: whether absolute paths stay.

    Example:
        >>> from hf_compress.redaction import redact_command
        >>> redact_command("HF_TOKEN=abc python train.py --hub_token=abc")
        'HF_TOKEN=REDACTED python train.py --hub_token=REDACTED'
    """
    if not keep_paths and WINDOWS.search(command):
        command = shorten_paths(command)  # A shell of POSIX would remove the backslashes.
    try:
        arguments = shlex.split(command)
    except ValueError:  # An open quote: a command that no shell takes.
        return redact_text(command) if keep_paths else redact(command)
    clean = redact_arguments(arguments, keep_paths=keep_paths)
    return command if clean == arguments else shlex.join(clean)


def _hidden(value: str) -> str:
    return value if value.lower() in NO_SECRETS else REDACTED


def _cleaned(argument: str, clean: Callable[[str], str]) -> str:
    """The argument without secrets; one of JSON keeps its form."""
    if argument.lstrip().startswith(("{", "[")):
        try:
            values = json.loads(argument)
        except ValueError:
            return clean(argument)
        cleaned = _cleaned_values(values, clean)
        return argument if cleaned == values else json.dumps(cleaned, ensure_ascii=False)
    return clean(argument)


def _cleaned_values(values: Any, clean: Callable[[str], str], *, secret: bool = False) -> Any:
    """The JSON value without secrets: every text below the name of one, and whatever looks like one elsewhere."""
    if isinstance(values, dict):
        return {
            clean(name): _cleaned_values(value, clean, secret=secret or is_secret(name))
            for name, value in values.items()
        }
    if isinstance(values, list):
        return [_cleaned_values(value, clean, secret=secret) for value in values]
    if secret and not isinstance(values, bool) and values is not None:
        return _hidden(str(values))
    return clean(values) if isinstance(values, str) else values
