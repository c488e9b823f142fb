"""What can go wrong on the way to the Hub, on demand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

ALWAYS = 10**9


@dataclass
class Fault:
    """A fault for requests whose "METHOD /path" matches a regular expression.

    `kind` is "status" (answer with `status`), "drop" (read `read` bytes of the body and close the connection), "lost"
    (do what is asked, then close the connection without an answer) or "slow" (wait `seconds` first). The first `skip`
    requests pass, and the fault happens `times` times.
    """

    match: str
    kind: str
    times: int = ALWAYS
    skip: int = 0
    status: int = 500
    message: str = "injected"
    headers: Mapping[str, str] = field(default_factory=dict)
    html: bool = False
    read: int = 0
    seconds: float = 0.0

    def strikes(self, request: str) -> bool:
        """Whether the fault happens to this request; counts it."""
        if self.times <= 0 or not re.search(self.match, request):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


def status(
    match: str, code: int, times: int = ALWAYS, *, skip: int = 0, message: str = "injected", **more: str
) -> Fault:
    """Answer with an error. Keywords become headers (`Retry_After="1"`)."""
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    return Fault(match, "status", times, skip, status=code, message=message, headers=headers)


def gateway(match: str, code: int = 502, times: int = ALWAYS) -> Fault:
    """Answer as a proxy in front of the Hub does: a page of HTML."""
    return Fault(match, "status", times, status=code, html=True, message="<html><body>Bad Gateway</body></html>")


def drop(match: str, times: int = ALWAYS, *, read: int = 0, skip: int = 0) -> Fault:
    """Close the connection after `read` bytes of the request's body."""
    return Fault(match, "drop", times, skip, read=read)


def lost(match: str, times: int = 1) -> Fault:
    """Do what is asked, and lose the answer."""
    return Fault(match, "lost", times)


def slow(match: str, seconds: float, times: int = ALWAYS) -> Fault:
    """Answer late."""
    return Fault(match, "slow", times, seconds=seconds)
