"""Waiting for the Hub: calls that fail for a passing reason are made again, for a limited time."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from typing import TypeVar

from huggingface_hub import errors
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]
from transformers.utils import logging

from hf_compress.redaction import printable

HTTPError: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # Imported there from the HTTP client.
# What the client raises if the Hub refuses or cannot be reached. A proxy that answers in HTML is no JSON; uploads of
# large files fail with a RuntimeError around the reason, or with the words of the Xet client.
FAILURES: tuple[type[Exception], ...] = (OSError, HTTPError, JSONDecodeError, RuntimeError)
TRIES = 6
TRIES_OF_UPLOADS = 2  # In each of them the client repeats every request for half a minute itself.
LONGEST_TOTAL = 60.0  # Seconds that one push spends on calls that fail and on waiting.
LONGEST_ASKED = 300.0  # Seconds that it waits because the Hub asks for it: its limits hold for five minutes.
FIRST_WAIT = 1.0
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")  # The Xet client says it in words only.
ADDRESS = re.compile(r"https?://([^\s/'\")]+)[^\s'\")]*")

logger = logging.get_logger(__name__)
Answer = TypeVar("Answer")


class Patience:
    """The patience of one push: every call is made up to six times, as long as failures take a minute at most in all.

    The wait doubles with each failure, unless the Hub says how long to wait; such waits take five minutes at most.

    Args:
        seconds: for failing calls and for waiting, in all.
        asked: for waits that the Hub asks for, in all.

    Example:
        >>> from hf_compress.hub.patience import Patience
        >>> Patience()(lambda: "answer", "ask the Hub")
        'answer'
    """

    def __init__(self, seconds: float = LONGEST_TOTAL, asked: float = LONGEST_ASKED) -> None:
        self.left, self.left_asked = seconds, asked
        self.failed = 0

    def __call__(self, call: Callable[[], Answer], doing: str, tries: int = TRIES) -> Answer:
        """Return what `call` returns, trying again after failures that pass.

        Args:
            call: a request to the Hub that may be repeated.
            doing: what it does, for the log: "create the repository".
            tries: how often it is made at most.

        Raises:
            the last error, if it does not pass or the tries or the time are used up.
        """
        while True:
            with self.failing(doing, tries):
                return call()

    @contextmanager
    def failing(self, doing: str, tries: int = TRIES) -> Iterator[None]:
        """Wait if the block fails for a reason that passes, and swallow the error; the caller then tries again.

        Raises:
            the error of the block, if it does not pass or the tries or the time are used up.
        """
        began = time.monotonic()
        try:
            yield
            self.failed = 0
        except FAILURES as error:
            self.left -= time.monotonic() - began
            self.failed += 1
            asked = asked_to_wait(error)
            seconds = FIRST_WAIT * 2 ** (self.failed - 1) if asked is None else asked
            left = self.left if asked is None else self.left_asked
            if not passes(error) or self.failed >= tries or seconds > left:
                raise
            self.left -= seconds if asked is None else 0
            self.left_asked -= asked or 0
            logger.warning(f"Could not {doing}: {reason(error)}. Trying again in {seconds:.0f} s.")
            time.sleep(seconds)


def passes(error: BaseException) -> bool:
    """Whether a failure of the Hub may be over soon: too many requests, a server error, a lost connection.

    Example:
        >>> from hf_compress.hub.patience import passes
        >>> passes(ConnectionResetError()), passes(PermissionError())
        (True, False)
    """
    for one in _chain(error):
        status = status_of(one)
        if status is not None:
            return status in (408, 429) or status >= 500
        if isinstance(one, errors.OfflineModeIsEnabled | PermissionError | FileNotFoundError):
            return False
        if isinstance(one, HTTPError | ConnectionError | TimeoutError | JSONDecodeError):
            return True
    return False


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with; None if there was no answer.

    Example:
        >>> from hf_compress.hub.patience import status_of
        >>> status_of(ConnectionError("HTTP status client error (403 Forbidden), domain: ..."))
        403
    """
    if isinstance(error, errors.HfHubHTTPError):
        return int(error.response.status_code)
    found = XET_STATUS.search(str(error)) if isinstance(error, ConnectionError) else None
    return int(found[1]) if found else None


def root(error: BaseException) -> BaseException:
    """The error among the causes of `error` that came from the Hub or the network, or else the last cause."""
    chain = list(_chain(error))
    known = (HTTPError, ConnectionError, TimeoutError, PermissionError, JSONDecodeError)
    return next((one for one in chain if isinstance(one, known)), chain[-1])


def reason(error: BaseException) -> str:
    """Why a call failed, in a few words and without addresses, because an address may hold a signature.

    Example:
        >>> from hf_compress.hub.patience import reason
        >>> reason(ConnectionResetError("reset by peer"))
        'the connection failed: reset by peer'
    """
    error = root(error)
    status = status_of(error)
    if status is not None:
        said = getattr(error, "server_message", None)
        return f"the Hub answered {status}" + (f": {printable(' '.join(str(said).split()))}" if said else "")
    if isinstance(error, JSONDecodeError):
        return "the Hub's answer could not be read"
    words = ADDRESS.sub(r"\1", printable(" ".join(str(error).split())))[:300].rstrip(".") or type(error).__name__
    return f"the connection failed: {words}" if isinstance(error, HTTPError | ConnectionError) else words


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def asked_to_wait(error: BaseException) -> float | None:
    """The seconds that the Hub asks to wait for, by `Retry-After` or by what it says about its limits; None if not.

    Example:
        >>> from hf_compress.hub.patience import asked_to_wait
        >>> asked_to_wait(ConnectionResetError()) is None
        True
    """
    found = root(error)
    if not isinstance(found, errors.HfHubHTTPError):
        return None
    headers = found.response.headers
    asked = headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    if asked:
        try:
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
        except ValueError:
            return None
    limits = parse_ratelimit_headers(headers) if status_of(found) == 429 else None
    return float(limits.reset_in_seconds) if limits is not None and limits.remaining == 0 else None
