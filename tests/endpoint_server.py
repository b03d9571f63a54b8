"""A real HTTP server in a thread, which answers well until it is told to do something else."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CLASSES = 3
WEIGHT = torch.linspace(-1, 1, 4 * CLASSES).view(4, CLASSES)


def victim(x: Tensor) -> Tensor:
    """The probabilities ``(B, 3)`` that it gives to ``x`` ``(B, 4)``."""
    return (x @ WEIGHT).softmax(1)


Deed = Callable[["Handler", Tensor], None]


@dataclass
class Server:
    """What it is to do next, one deed per request, and what it was sent."""

    url: str
    deeds: list[Deed] = field(default_factory=list)
    requests: list[Tensor] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """How many inputs it was sent."""
        return sum(map(len, self.requests))


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    state: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = body["inputs"] if isinstance(body, dict) and "inputs" in body else []
        inputs = torch.tensor([] if given and isinstance(given[0], dict) else given)  # named fields are in the body
        state: Server = self.server.state  # type: ignore[attr-defined]
        state.bodies.append(body)
        state.requests.append(inputs)
        state.headers.append(dict(self.headers))
        state.targets.append(self.path)
        deed = state.deeds.pop(0) if state.deeds else answer
        deed(self, inputs)

    do_PUT = do_POST  # noqa: N815  the name that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def give(self, content: bytes, status: int = 200, **headers: object) -> None:
        """Send a response."""
        self.send_response(status)
        for name, value in {"Content_Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)


def answer(handler: Handler, inputs: Tensor) -> None:
    handler.give(json.dumps({"probabilities": victim(inputs).tolist()}).encode())


def says(value: Any) -> Deed:
    """Answer with some JSON, or with bytes as they are."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda handler, _: handler.give(content)


def status(code: int, said: str = "", **headers: object) -> Deed:
    return lambda handler, _: handler.give(said.encode(), code, **headers)


def hangs(seconds: float) -> Deed:
    def deed(handler: Handler, inputs: Tensor) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return deed


def drops(handler: Handler, inputs: Tensor) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def drips(handler: Handler, inputs: Tensor) -> None:
    """One byte now and then: no wait is long, and all of them are."""
    try:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.02)
    except OSError:  # whoever asked has gone
        handler.close_connection = True


def drips_headers(handler: Handler, inputs: Tensor) -> None:
    """A header without an end, one character now and then."""
    _drip(handler, b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a")


def goes_on_to_continue(handler: Handler, inputs: Tensor) -> None:
    """``100 Continue``, again and again."""
    _drip(handler, b"", b"HTTP/1.1 100 Continue\r\n\r\n")


def _drip(handler: Handler, first: bytes, again: bytes) -> None:
    handler.close_connection = True
    with contextlib.suppress(OSError):  # whoever asked has gone
        handler.wfile.write(first)
        for _ in range(300):
            handler.wfile.write(again)
            time.sleep(0.02)


def truncates(handler: Handler, inputs: Tensor) -> None:
    handler.give(b'{"probabilities": [[0.1', Content_Length=10_000)
    handler.close_connection = True


def goes_on_and_on(handler: Handler, inputs: Tensor) -> None:
    """A body without an end."""
    try:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 2**16)
    except OSError:
        handler.close_connection = True


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Serve at a free port of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    state = Server(f"{scheme}://127.0.0.1:{server.server_port}/classify")
    server.state = state  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client may hang up on it
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
