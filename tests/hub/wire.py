"""Requests and answers of the local Hub as values, and the handler that moves them over a socket."""

import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import Fault


@dataclass
class Request:
    """A request, and what became of it.

    `target` is the path as it was sent, with the query. `status` is None if the connection was closed instead of
    answered.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    target: str = ""
    body: bytes = b""
    status: int | None = None
    fault: str | None = None

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def token(self) -> str | None:
        sent = self.headers.get("authorization")
        return sent.removeprefix("Bearer ") if sent else None

    def json(self) -> Any:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in {"1", "true"}


@dataclass
class Answer:
    """An answer; a body that is not bytes is sent as JSON."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def refuse(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error as the Hub says it: in the body and in headers, which the client reads first."""
    named = {"X-Error-Message": message.replace("\n", " ").encode("ascii", "replace").decode()}
    named |= {"X-Error-Code": code} if code else {}
    return Answer(status, {"error": message}, named | {name.replace("_", "-"): text for name, text in headers.items()})


def part(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    """A file, or the range of it that is asked for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    unit, _, asked = request.headers.get("range", "").partition("=")
    first, dash, last = asked.partition("-")
    if unit != "bytes" or not dash or "," in asked:
        return Answer(200, content, headers)
    size = len(content)
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size:
        return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
    return Answer(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})


class Handler(BaseHTTPRequestHandler):
    """Reads a request, applies a fault, and sends the answer of `route`."""

    protocol_version = "HTTP/1.1"
    route: ClassVar[Callable[[Request], Answer]]
    strike: ClassVar[Callable[[str], Fault | None]]
    note: ClassVar[Callable[[Request], None]]

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(address.path), parse_qs(address.query), headers, self.path)
        type(self).note(request)
        try:
            self.answer(request)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = do_PATCH = handle_any

    def answer(self, request: Request) -> None:
        fault = type(self).strike(request.line)
        request.fault = fault.kind if fault else None
        if fault and fault.kind == "drop":
            self.rfile.read(min(fault.read, int(self.headers.get("Content-Length") or 0) // 2))
            self.hang_up()
        request.body = self.read_body()
        if fault and fault.kind == "status":
            body = fault.message.encode() if fault.html else {"error": fault.message}
            named = {"Content-Type": "text/html"} if fault.html else {"X-Error-Message": fault.message}
            return self.send(request, Answer(fault.status, body, named | dict(fault.headers)))
        if fault and fault.kind == "slow":
            time.sleep(fault.seconds)
        answer = type(self).route(request)
        if fault and fault.kind == "lost":
            self.hang_up()
        return self.send(request, answer)

    def hang_up(self) -> None:
        """Reset the connection, as a broken line does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise ConnectionAbortedError

    def read_body(self) -> bytes:
        if (length := self.headers.get("Content-Length")) is not None:
            return self.rfile.read(int(length))
        parts = []
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        return b"".join(parts)

    def send(self, request: Request, answer: Answer) -> None:
        request.status = answer.status
        content = answer.content
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
