"""One HTTP request and its response, within bounds of time and size, and with a word on whether to try again."""

from __future__ import annotations

import contextlib
import functools
import http.client
import math
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NoReturn

from nutlet.errors import OracleError, printable
from nutlet.redaction import without_secrets

__all__ = ["Transient", "beginning", "send"]

_CHUNK = 2**16
_COMPLAINT = 2**12
"""Bytes read of a body that only explains an error."""
_SHOWN = 200
"""Characters shown of what a stranger sent."""


class Transient(Exception):
    """What may go otherwise the next time; ``wait`` is for how many seconds the endpoint asked to be left alone."""

    def __init__(self, found: str, wait: float = 0.0) -> None:
        super().__init__(found)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Inputs and secrets go to the address that was given, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Deadline:
    """Hangs up when the time for a request is over, however short each wait was: in headers too, or in `100 Continue`.

    Connecting and the handshake of TLS are bounded by the timeout of the socket.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._socket: socket.socket | None = None
        self._turn = threading.Lock()
        self._timer = threading.Timer(seconds, self._hang_up)
        self._timer.daemon = True

    def watch(self, connected: socket.socket) -> None:
        with self._turn:
            self._socket = connected
        if self.over:
            self._hang_up()

    def _hang_up(self) -> None:
        self.over = True
        with self._turn:
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it is closed already
                    # Not by the method of an SSL socket, which would drop its state under who reads from it.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._timer.cancel()
        # What the end of the connection looked like, a short body among others, is no matter then.
        if self.over and (error is None or isinstance(error, Exception)):
            raise TimeoutError from error


class _Connection(http.client.HTTPConnection):
    """A connection that a deadline watches."""

    def __init__(self, *args: Any, deadline: _Deadline, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same with TLS."""


class _Handler(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._connection: Any = functools.partial(_Connection, deadline=deadline)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._connection: Any = functools.partial(
            _SecureConnection, deadline=deadline, context=ssl.create_default_context()
        )

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


def send(
    url: str,
    body: bytes,
    *,
    method: str,
    headers: Mapping[str, str],
    timeout: float,
    limit: int,
    secrets: Iterable[str] = (),
) -> bytes:
    """Return the body of the response.

    Args:
        url: ``http`` or ``https``; certificates are verified.
        body: of the request.
        method: ``POST`` or ``PUT``.
        headers: of the request.
        timeout: seconds for connecting, and for all of the request and its response.
        limit: bytes that the response may have.
        secrets: what errors must not show.

    Raises:
        Transient: no response, none that is whole, one that is too large, or the status 429 or 5xx.
        OracleError: a redirect, another status than 2xx, or a certificate that cannot be verified.
    """
    request = urllib.request.Request(url, data=body, headers=dict(headers), method=method)
    deadline = _Deadline(timeout)
    handler = _SecureHandler(deadline) if url.startswith("https:") else _Handler(deadline)
    opener = urllib.request.build_opener(_NoRedirect, handler)
    try:
        with deadline:
            try:
                with opener.open(request, timeout=timeout) as response:
                    return _read(response, limit)
            except urllib.error.HTTPError as error:
                with error:
                    _complain(error, secrets)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise OracleError(
                "shows a certificate that cannot be verified "
                f"({beginning(error.reason.verify_message, secrets)}); expected one of a known "
                "authority: name the file of yours in the environment variable SSL_CERT_FILE"
            ) from error
        raise Transient(f"cannot be reached: {_reason(error.reason, secrets)}") from error
    except TimeoutError as error:
        raise Transient(f"gave no whole answer within {timeout:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Transient(f"broke the connection off: {_reason(error, secrets)}") from error


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    declared, parts, size = response.length, [], 0
    if declared is not None and declared > limit:
        raise Transient(f"announces {declared:,} bytes; expected at most {limit:,}")
    while part := response.read1(_CHUNK):
        size += len(part)
        if size > limit:
            raise Transient(f"gave more than {limit:,} bytes; expected no more")
        parts.append(part)
    if declared is not None and size < declared:
        raise Transient(f"gave {size:,} of {declared:,} bytes")
    return b"".join(parts)


def _complain(error: urllib.error.HTTPError, secrets: Iterable[str]) -> NoReturn:
    if 300 <= error.code < 400:
        raise OracleError(
            f"redirects to {beginning(_address(error), secrets)}; expected an "
            "answer, redirects are not followed: if that is yours too, give its address as the url"
        ) from error
    try:
        said = beginning(error.read(_COMPLAINT), secrets)
    except (OSError, http.client.HTTPException):
        said = "nothing"
    found = f"answers with status {error.code}: {said}"
    if error.code == 429 or error.code >= 500:
        raise Transient(found, _wait(error.headers.get("Retry-After"))) from error
    raise OracleError(f"{found}; expected status 200: check url, method, headers and request") from error


def _address(error: urllib.error.HTTPError) -> str:
    return (error.headers.get("Location") or "nowhere").partition("?")[0]


def _wait(asked: str | None) -> float:
    """Return the seconds of a ``Retry-After``, which may be a number or a date; 0 where it is neither."""
    if asked is None:
        return 0.0
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):  # a date of the year 0, or 10^6
            return 0.0
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0


def _reason(reason: object, secrets: Iterable[str]) -> str:
    return beginning(str(reason) or type(reason).__name__, secrets)


def beginning(body: bytes | str, secrets: Iterable[str] = ()) -> str:
    r"""Return the first line of what a stranger sent, at most 200 characters, with nothing in it that acts on a screen.

    Secrets are hidden before the line is cut: half of one would not be found.

    >>> beginning(b"\x1b[31mno such model\nat line 3")
    '\\x1b[31mno such model'
    """
    text = body[: 4 * _COMPLAINT]
    text = text if isinstance(text, str) else text.decode("utf-8", "replace")
    line = next(iter(without_secrets(text.strip(), secrets).splitlines()), "nothing")
    return printable(line, _SHOWN)
