"""One HTTP request and its response, within bounds of time and size, and with a word on whether to try again."""

from __future__ import annotations

import http.client
import math
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from nutlet.errors import OracleError, first_line

__all__ = ["Transient", "beginning", "send"]

_CHUNK = 2**16
_COMPLAINT = 2**12
"""Bytes read of a body that only explains an error."""


class Transient(Exception):
    """What may go otherwise the next time; ``wait`` is for how many seconds the endpoint asked to be left alone."""

    def __init__(self, found: str, wait: float = 0.0) -> None:
        super().__init__(found)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Inputs and secrets go to the address that was given, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send(url: str, body: bytes, *, method: str, headers: Mapping[str, str], timeout: float, limit: int) -> bytes:
    """Return the body of the response.

    Args:
        url: ``http`` or ``https``; certificates are verified.
        body: of the request.
        method: ``POST`` or ``PUT``.
        headers: of the request.
        timeout: seconds for each wait on the network, and for all of the body.
        limit: bytes that the response may have.

    Raises:
        Transient: no response, none that is whole, one that is too large, or the status 429 or 5xx.
        OracleError: a redirect, another status than 2xx, or a certificate that cannot be verified.
    """
    request = urllib.request.Request(url, data=body, headers=dict(headers), method=method)
    verifying = urllib.request.HTTPSHandler(context=ssl.create_default_context()) if url.startswith("https:") else None
    opener = urllib.request.build_opener(_NoRedirect, *filter(None, [verifying]))
    try:
        with opener.open(request, timeout=timeout) as response:
            return _read(response, limit, time.monotonic() + timeout)
    except urllib.error.HTTPError as error:
        with error:
            _complain(error)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise OracleError(
                f"shows a certificate that cannot be verified ({error.reason.verify_message}); expected one of a known "
                "authority: name the file of yours in the environment variable SSL_CERT_FILE"
            ) from error
        raise Transient(f"cannot be reached: {_reason(error.reason)}") from error
    except TimeoutError as error:
        raise Transient(f"gave no whole answer within {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise Transient(f"broke the connection off: {_reason(error)}") from error


def _read(response: http.client.HTTPResponse, limit: int, deadline: float) -> bytes:
    declared, parts, size = response.length, [], 0
    if declared is not None and declared > limit:
        raise Transient(f"announces {declared:,} bytes; expected at most {limit:,}")
    while part := response.read1(_CHUNK):
        size += len(part)
        if size > limit:
            raise Transient(f"gave more than {limit:,} bytes; expected no more")
        if time.monotonic() > deadline:
            raise TimeoutError
        parts.append(part)
    if declared is not None and size < declared:
        raise Transient(f"gave {size:,} of {declared:,} bytes")
    return b"".join(parts)


def _complain(error: urllib.error.HTTPError) -> NoReturn:
    if 300 <= error.code < 400:
        raise OracleError(
            f"redirects to {beginning((error.headers.get('Location') or 'nowhere').partition('?')[0])}; expected an "
            "answer, redirects are not followed: if that is yours too, give its address as the url"
        ) from error
    try:
        said = beginning(error.read(_COMPLAINT))
    except (OSError, http.client.HTTPException):
        said = "nothing"
    found = f"answers with status {error.code}: {said}"
    if error.code == 429 or error.code >= 500:
        raise Transient(found, _wait(error.headers.get("Retry-After"))) from error
    raise OracleError(f"{found}; expected status 200: check url, method, headers and request") from error


def _wait(asked: str | None) -> float:
    """Return the seconds of a ``Retry-After``, which may be a number or a date; 0 where it is neither."""
    if asked is None:
        return 0.0
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0


def _reason(reason: object) -> str:
    return first_line(reason) if isinstance(reason, BaseException) else str(reason)


def beginning(body: bytes | str) -> str:
    r"""Return the first line of what a stranger sent, at most 200 characters, with nothing in it that acts on a screen.

    >>> beginning(b"\x1b[31mno such model\nat line 3")
    '?[31mno such model'
    """
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    line = next(iter(text.strip().splitlines()), "nothing")[:200]
    return "".join(character if character.isprintable() else "?" for character in line)
