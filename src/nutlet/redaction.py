"""Secrets taken out of texts, in whatever form a stranger repeats them, before anything is cut, quoted or shown."""

from __future__ import annotations

import base64
import binascii
import contextlib
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import unquote_plus

__all__ = ["HIDDEN", "secret_parameters", "without_secrets"]

HIDDEN = "***"

_PIECE = 6
"""Letters and digits; a piece of a secret of at least that length is hidden wherever it stands."""
_SHORTEST = 4
"""Letters and digits; what is shorter is no secret, and hiding it would spoil every text."""
_ROUNDS = 3
"""How often a text may have been escaped."""
_SECRET_PARAMETER = re.compile(
    r"auth|token|key|secret|passw|pwd|cookie|credential|sig|session|hmac|code|jwt|bearer", re.IGNORECASE
)
_USER = re.compile(r"(?<=://)[^\s/?#@]*@")
_PARAMETER = re.compile(r"(?<=[?&;])([^\s=&;?#\"'<>]+)=([^\s&;#\"'<>]*)")
_ESCAPE = re.compile(
    r"%[0-9a-f]{2}|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\[/\\\"']|&#x?[0-9a-f]{1,6};|&[a-z]{2,8};", re.IGNORECASE
)

_Piece = tuple[str, int, int]
"""A character, and from where to where in the text it was written."""


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    r"""Return ``text`` with ``***`` for user names, passwords and secret parameters of addresses, and for ``secrets``.

    A secret is found plain, in any case, with characters between its own, escaped as in addresses, JSON and HTML (each
    up to three times), as base64 (at any place in what was encoded), base32 or hexadecimal, backwards, and in pieces of
    six letters and digits or more.

    Args:
        text: before it is cut or quoted: half a secret would not be told from other text.
        secrets: what must not be shown.

    >>> without_secrets("PUT https://me:pear@a.example/x?v=2&sig=Zm9v", [])
    'PUT https://***@a.example/x?v=2&sig=***'
    >>> without_secrets("no such user: aG9yc2UtYmF0dGVyeQ== (horse\\u002dbat)", ["horse-battery"])
    'no such user: ***== (***)'
    """
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _PARAMETER.sub(lambda m: f"{m[1]}={HIDDEN}" if _is_secret(m[1]) and m[2] else m[0], text)
    secrets = list(secrets)
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    forms = {form for secret in secrets for part in {secret, *secret.split()} for form in _forms(part)}
    if not forms:
        return text
    hidden = [False] * len(text)
    pieces: list[_Piece] = [(character, place, place + 1) for place, character in enumerate(text)]
    for _ in range(_ROUNDS + 1):
        _mark(pieces, forms, hidden)
        unescaped = _unescaped(pieces)
        if len(unescaped) == len(pieces):
            break
        pieces = unescaped
    return _masked(text, hidden)


def secret_parameters(query: Sequence[tuple[str, str]]) -> list[str]:
    """Return the values in a query of an address whose names say that they are secret.

    >>> secret_parameters([("v", "2"), ("sig", "Zm9v")])
    ['Zm9v']
    """
    return [value for name, value in query if _is_secret(name)]


def _is_secret(name: str) -> bool:
    return _SECRET_PARAMETER.search(unquote_plus(name)) is not None


def _forms(secret: str) -> Iterator[str]:
    """Yield what a secret may look like, letters and digits alone, without their case."""
    content = secret.encode()
    plain = [secret, content.hex(), base64.b32encode(content).decode(), base64.b64encode(content).decode()]
    # What was encoded may have begun one or two bytes before the secret: of the characters at both ends then only
    # some bits are the secret's, and they are left out.
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + content).decode()
        plain.append(encoded[-(-before * 8 // 6) : (before + len(content)) * 8 // 6])
    with contextlib.suppress(binascii.Error, UnicodeDecodeError):  # it may be base64, as for basic authentication
        plain.append(base64.b64decode(content, validate=True).decode())
    for form in map(_bare, plain):
        if len(form) >= _SHORTEST:
            yield form
            yield form[::-1]


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _mark(pieces: list[_Piece], forms: set[str], hidden: list[bool]) -> None:
    """Set ``hidden`` where a long enough piece of one of ``forms`` stands."""
    bare = [
        (low, start, end) for character, start, end in pieces if character.isalnum() for low in character.casefold()
    ]
    line = "".join(character for character, _, _ in bare)
    for size in {min(_PIECE, len(form)) for form in forms}:
        sized = [form for form in forms if min(_PIECE, len(form)) == size]
        wanted = {form[place : place + size] for form in sized for place in range(len(form) - size + 1)}
        for place in range(len(line) - size + 1):
            if line[place : place + size] in wanted:
                # From the first to the last, with whatever stands between them.
                for spot in range(bare[place][1], bare[place + size - 1][2]):
                    hidden[spot] = True


def _unescaped(pieces: list[_Piece]) -> list[_Piece]:
    """Return the text with one layer of escapes taken off."""
    text = "".join(character for character, _, _ in pieces)
    result: list[_Piece] = []
    last = 0
    for found in _ESCAPE.finditer(text):
        result += pieces[last : found.start()]
        start, end = pieces[found.start()][1], pieces[found.end() - 1][2]
        result += [(character, start, end) for character in _character(found[0])]
        last = found.end()
    return result + pieces[last:]


def _character(escape: str) -> str:
    if escape[0] == "&":
        return html.unescape(escape)
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    return chr(int(escape[2:], 16)) if escape[1] in "uUxX" else escape[1]


def _masked(text: str, hidden: list[bool]) -> str:
    shown: list[str] = []
    for place, character in enumerate(text):
        if not hidden[place]:
            shown.append(character)
        elif place == 0 or not hidden[place - 1]:
            shown.append(HIDDEN)
    return "".join(shown)
