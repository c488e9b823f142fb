"""The one error for optional packages that are not installed."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ImportError):
    """An optional package is not installed. The message names the extra that installs it."""


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Return a context for imports that need an extra of `pyproject.toml`.

    Args:
        name: the extra, for example "study".
        purpose: what needs it, as the start of a sentence.

    Contexts nest: the outermost one names the extra.

    Raises:
        MissingExtraError: a package imported inside the context is not installed.

    Example:
        >>> from hf_compress.extras import extra
        >>> with extra("study", "A study"):
        ...     import no_such_package
        Traceback (most recent call last):
        ...
        hf_compress.extras.MissingExtraError: A study needs the package `no_such_package`, which is not installed. \
Run: pip install 'hf-compress[study]'
    """
    try:
        yield
    except (ModuleNotFoundError, MissingExtraError) as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "hf_compress"):
            raise  # Our own bug: no extra would fix it.
        raise MissingExtraError(
            f"{purpose} needs the package `{package}`, which is not installed. Run: pip install 'hf-compress[{name}]'",
            name=package,
        ) from error
