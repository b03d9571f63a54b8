"""One HTTP request and its response, within bounds of time and size, and with a word on whether to try again."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import ssl
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from nutlet.errors import OracleError, printable
from nutlet.redaction import without_secrets

__all__ = ["Transient", "beginning", "send"]

_COMPLAINT = 2**12
"""Bytes read of a body that only explains an error."""
_SHOWN = 200
"""Characters shown of what a stranger sent."""


class Transient(Exception):
    """What may go otherwise the next time; ``wait`` is for how many seconds the endpoint asked to be left alone."""

    def __init__(self, found: str, wait: float = 0.0) -> None:
        super().__init__(found)
        self.wait = wait


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
    parts = urlsplit(url)
    # Path and query apart: the query may hold a signature, and httpx logs addresses. They are sent as written, too.
    address = f"{parts.scheme}://{parts.netloc}"
    target = {"target": urlunsplit(("", "", parts.path or "/", parts.query, "")).encode()}
    headers = {"Accept-Encoding": "identity", **headers}  # packed content could unpack to more than the limit

    async def exchange() -> bytes:
        # One deadline over all: the timeouts of httpx begin anew with each byte, in headers and in `100 Continue`.
        with anyio.fail_after(timeout):
            async with (
                httpx2.AsyncClient(verify=_trust(os.environ.get("SSL_CERT_FILE")), timeout=None) as client,
                client.stream(method, address, content=body, headers=headers, extensions=target) as response,
            ):
                if not response.is_success:
                    await _complain(response, secrets)
                return await _read(response, limit)

    try:
        with start_blocking_portal() as portal:  # a notebook has an event loop of its own in this thread
            return portal.call(exchange)
    except TimeoutError as error:
        raise Transient(f"gave no whole answer within {timeout:g} s") from error
    except httpx2.ConnectError as error:
        first = _first_cause(error)
        if isinstance(first, ssl.SSLCertVerificationError):
            raise OracleError(
                f"shows a certificate that cannot be verified ({beginning(first.verify_message, secrets)}); expected "
                "one of a known authority: name the file of yours in the environment variable SSL_CERT_FILE"
            ) from error
        raise Transient(f"cannot be reached ({type(first).__name__}): {_reason(first, secrets)}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Transient(f"broke the connection off: {_reason(error, secrets)}") from error


@functools.lru_cache(1)
def _trust(certificates: str | None) -> ssl.SSLContext:
    """Return what verifies certificates, which takes long to load; ``SSL_CERT_FILE`` decides whom it trusts."""
    return ssl.create_default_context(cafile=certificates)


async def _read(response: httpx2.Response, limit: int) -> bytes:
    declared = int(response.headers.get("Content-Length", 0))
    if declared > limit:
        raise Transient(f"announces {declared:,} bytes; expected at most {limit:,}")
    read = b""
    async for part in response.aiter_raw():
        read += part
        if len(read) > limit:
            raise Transient(f"gave more than {limit:,} bytes; expected no more")
    return read


async def _complain(response: httpx2.Response, secrets: Iterable[str]) -> NoReturn:
    if response.is_redirect:
        address = response.headers.get("Location", "nowhere").partition("?")[0]
        raise OracleError(
            f"redirects to {beginning(address, secrets)}; expected an "
            "answer, redirects are not followed: if that is yours too, give its address as the url"
        )
    said = b""
    with contextlib.suppress(httpx2.TransportError):
        async for part in response.aiter_raw():
            said += part
            if len(said) > _COMPLAINT:
                break
    found = f"answers with status {response.status_code}: {beginning(said[:_COMPLAINT], secrets)}"
    if response.status_code == 429 or response.is_server_error:
        raise Transient(found, _wait(response.headers.get("Retry-After")))
    raise OracleError(f"{found}; expected status 200: check url, method, headers and request")


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


def _first_cause(error: BaseException) -> BaseException:
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


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
