"""An HTTP endpoint as a victim: asked again where that may help, and believed only after a look at what it says."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import torch
from torch import Tensor

from nutlet.data.columns import Columns
from nutlet.errors import ConfigError, DataError, OracleError, nearest, shown
from nutlet.options import Hidden, Range, Validated
from nutlet.oracle.disclosure import Disclosure
from nutlet.oracle.http import Transient, beginning, send
from nutlet.oracle.template import Template, rows_of
from nutlet.reading import load_yaml
from nutlet.redaction import secret_parameters, without_secrets
from nutlet.signals import undeferred
from nutlet.storage import digest

__all__ = ["Endpoint", "load_endpoint"]

_LONGEST_BACKOFF = 60.0
_LONGEST_WAIT = 600.0
"""Seconds. Where an endpoint asks to be left alone for longer, the run ends, and can go on later."""
_SECRET = re.compile("auth|token|key|secret|passw|cookie|credential|signature|session", re.IGNORECASE)
_FROM_ENVIRONMENT = re.compile(r"env:([A-Za-z_]\w*)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Endpoint(Validated):
    """An HTTP endpoint of your own, which takes inputs and gives scores, both as JSON.

    Timeouts, dropped connections, the statuses 429 and 5xx, and answers that are not what was promised are tried again:
    after 1, 2, 4 … seconds, or as long as ``Retry-After`` asks for. No redirect is followed, certificates are verified,
    and no more is read than an answer can be long.

    Args:
        url: with ``https``, or with ``http`` where no secret is sent or it is on this machine. A signature in it
            (``sig=``), for which no header can stand, is shown nowhere.
        classes: scores of one answer.
        outputs: what it promises for each input: ``probabilities``, ``logits``, or ``labels`` (the number of a class).
        i_own_this_endpoint: your word that it is yours.
        method: ``POST`` or ``PUT``.
        headers: sent along. A secret is written as ``env:NAME`` and taken from that environment variable.
        batch: inputs in one request, at most 256.
        request: where the inputs, nested lists, go in the body: ``inputs``, ``a.b``, or empty where they are the body.
        response: where the answers are in the body of the response, one per input; a number steps into a list, ``*``
            into each entry of one. Of a table scores may go by the names of the classes, and labels may be names.
        template: of a table, the body with named fields in the place of ``request``, see
            :class:`nutlet.oracle.template.Template`; without one each input is a mapping of all columns by name.
        timeout: seconds for one request, from connecting to the end of the answer.
        retries: further attempts at one request.
        pause: seconds before each request, to stay below a limit of requests.
        sleep: how it waits.
        columns: where inputs are rows of a table, what their numbers stand for.

    Raises:
        ConfigError: a value out of range, a secret in plain sight, or no word that it is yours.

    >>> Endpoint(url="https://models.example.org/digits", classes=10)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    nutlet.errors.ConfigError: nobody said whose ... is; ... confirm it with --i-own-this-endpoint (...)
    """

    url: Annotated[str, Hidden]
    classes: Annotated[int, Range(2, 1_000_000)]
    outputs: Literal["probabilities", "logits", "labels"] = "probabilities"
    i_own_this_endpoint: bool = False
    method: Literal["POST", "PUT"] = "POST"
    headers: Annotated[Mapping[str, str], Hidden] = field(default_factory=dict, hash=False)
    batch: Annotated[int, Range(1, 256)] = 64
    request: str = "inputs"
    response: str = "probabilities"
    template: object = field(default=None, hash=False)
    timeout: Annotated[float, Range(0.01, 3600, noun="seconds")] = 30.0
    retries: Annotated[int, Range(0, 20)] = 4
    pause: Annotated[float, Range(0, 3600, noun="seconds")] = 0.0
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False, compare=False)
    columns: Columns | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        _check_url(self.url)
        self._check_headers()
        body = self._body()
        if self.template is not None and self.request != type(self).request:
            raise ConfigError("both `request` and `template` say where inputs go; expected one of them")
        if self.template is not None and self.columns is None:
            raise ConfigError(
                "the endpoint takes named fields (`template`), and the data have no columns; expected a table: a .csv "
                "or .parquet file and the name of its label (--label), or columns="
            )
        if body is not None and self.columns is not None:
            body.check(self.columns)
            if self.columns.classes and len(self.columns.classes) > self.classes:
                raise ConfigError(
                    f"the endpoint has {self.classes} classes, the table {len(self.columns.classes)}; expected as many "
                    "in `classes`"
                )
        if self.i_own_this_endpoint is not True:
            raise ConfigError(
                f"nobody said whose {self.where} is; expected an endpoint of your own: confirm it with "
                "--i-own-this-endpoint (i_own_this_endpoint=True)"
            )

    def _body(self) -> Template | None:
        """Return what the body of a request is made of; None for nested lists of numbers."""
        if self.template is not None:
            return Template(self.template)
        return None if self.columns is None else Template(self._placed(["${*}"]))

    def _placed(self, content: Any) -> Any:
        """Return inputs at the place that ``request`` names."""
        for name in reversed(self.request.split(".") if self.request else []):
            content = {name: content}
        return content

    @property
    def per_request(self) -> int:
        """Inputs in one request: ``batch``, or 1 where the template has no list of them."""
        body = self._body()
        return 1 if body is not None and not body.many else self.batch

    def _check_headers(self) -> None:
        for name, value in self.headers.items():
            if not isinstance(name, str) or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
                raise ConfigError(f"found a header named {shown(name)}; expected letters, digits and hyphens")
            if not isinstance(value, str) or not value.isascii() or not value.isprintable():
                raise ConfigError(
                    f"the header {shown(name)} holds what no header can; expected printable ASCII, in quotes"
                )
            if _SECRET.search(name) and not re.fullmatch(rf"(\w+ )?{_FROM_ENVIRONMENT.pattern}", value):
                raise ConfigError(
                    f"the header {shown(name)} holds a secret in plain sight; expected `env:NAME`: put the secret into "
                    "an environment variable of that name"
                )
        parts = urlsplit(self.url)
        if self._secrets() and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(f"a secret would go to {self.where} for all to read; expected https, or this machine")

    @property
    def where(self) -> str:
        """The address without what follows a question mark, as it is shown."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    def __repr__(self) -> str:
        options = (f for f in dataclasses.fields(self) if f.repr)
        shown = ", ".join(f"{option.name}={getattr(self, option.name)!r}" for option in options)
        return f"Endpoint({without_secrets(shown)})"

    @property
    def answers(self) -> Disclosure:
        """What it shows, for the oracle before it."""
        return Disclosure(self.outputs)

    def fingerprint(self) -> str:
        """Return a hash of what its answers depend on, as far as can be known from here; no secret is in it.

        An address that was signed anew is the same endpoint, and what it answered stays paid for.
        """
        plain = {name: value for name, value in self.headers.items() if not _FROM_ENVIRONMENT.search(value)}
        deciding = [
            without_secrets(self.url),
            self.method,
            self.request,
            self.response,
            self.outputs,
            self.classes,
            sorted(plain.items()),
        ]
        if self.columns is not None:
            deciding += [self.template, self.columns.fingerprint()]
        return digest(json.dumps(deciding))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the answers ``(B, classes)`` float32 to ``x`` ``(B, ...)``; labels as ones and zeros.

        Raises:
            DataError: the inputs hold NaN or infinity, which JSON does not know.
            OracleError: the endpoint does not answer, or answers something else than promised.
        """
        if not bool(torch.isfinite(x).all()):
            raise DataError("the inputs hold NaN or infinity, which JSON does not know; expected finite numbers")
        return torch.cat([self._ask(part) for part in torch.split(x.detach().float(), self.per_request)])

    def _ask(self, x: Tensor) -> Tensor:
        body = self._body()
        if body is None or self.columns is None:
            content = self._placed(x.tolist())
        else:
            content = body.filled(rows_of(self.columns, x.numpy()))
        secrets = self._secrets()
        headers = {name: _FROM_ENVIRONMENT.sub(lambda m: secrets[m[1]], value) for name, value in self.headers.items()}
        hidden = [*secrets.values(), *secret_parameters(parse_qsl(urlsplit(self.url).query))]
        delay = self.pause
        for attempt in range(1, self.retries + 2):
            if delay:
                with undeferred():  # nothing is under way
                    self.sleep(delay)
            try:
                answer = send(
                    self.url,
                    json.dumps(content).encode(),
                    method=self.method,
                    headers={"Content-Type": "application/json", "Accept": "application/json", **headers},
                    timeout=self.timeout,
                    # A score is written in about 25 characters; the rest of the body may hold something else.
                    limit=2**20 + 64 * len(x) * self.classes,
                    secrets=hidden,
                )
                return self._scores(answer, len(x), hidden)
            except OracleError as error:
                raise OracleError(f"{self.where} {error}") from None
            except Transient as problem:
                found, wait = str(problem), problem.wait
            if wait > _LONGEST_WAIT:
                raise OracleError(f"{self.where} {found}; it asks to wait {wait:,.0f} s: go on after that")
            delay = max(self.pause, wait, min(_LONGEST_BACKOFF, 2.0 ** (attempt - 1)))
        raise OracleError(f"{self.where} {found} (attempt {attempt} of {attempt})")

    def _secrets(self) -> dict[str, str]:
        """Return the environment variables that headers name, with what they hold."""
        secrets = {}
        for header, value in self.headers.items():
            for name in _FROM_ENVIRONMENT.findall(value):
                secret = os.environ.get(name, "").strip()
                if not secret or not secret.isascii() or not secret.isprintable():
                    found = "holds what no header can" if secret else "is not set"
                    raise ConfigError(
                        f"the environment variable {name}, for the header {header!r}, {found}; expected a secret in it"
                    )
                secrets[name] = secret
        return secrets

    def _scores(self, body: bytes, rows: int, secrets: Sequence[str]) -> Tensor:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise Transient(f"gave {beginning(body, secrets)!r}; expected JSON") from None
        steps = self.response.split(".") if self.response else []
        value = self._found(value, steps, secrets)
        if self.per_request == 1 and "*" not in steps and _is_one(value):
            value = [value]
        value = self._by_index(value)
        try:
            scores = torch.tensor(_numbers(value), dtype=torch.float64).float()
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise Transient(
                f"gave {beginning(json.dumps(value), secrets)!r}; expected lists of numbers of equal length"
            ) from None
        return self._labels(scores, rows) if self.outputs == "labels" else self._rows(scores, rows)

    def _found(self, value: Any, steps: Sequence[str], secrets: Sequence[str]) -> Any:
        """Return what lies where ``response`` says."""
        for k, name in enumerate(steps):
            if name == "*" and isinstance(value, list):
                return [self._found(entry, steps[k + 1 :], secrets) for entry in value]
            if isinstance(value, dict) and name in value:
                value = value[name]
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                names = beginning(", ".join(value), secrets) if isinstance(value, dict) else ""
                held = f"the names {names}" if names else type(value).__name__
                raise Transient(f"gave {held} where {name!r} of `response: {self.response}` should be; mend `response`")
        return value

    def _by_index(self, value: Any) -> Any:
        """Return answers by the names of classes as answers by their index; whatever else there is stays."""
        if self.columns is None or not isinstance(value, list):
            return value
        classes = self.columns.classes
        index = {name: k for k, name in enumerate(classes)}
        if self.outputs == "labels":
            return [index.get(row, row) if isinstance(row, str) else row for row in value]
        return [
            [row[name] for name in classes] if isinstance(row, dict) and row.keys() == index.keys() else row
            for row in value
        ]

    def _labels(self, labels: Tensor, rows: int) -> Tensor:
        if labels.numel() != rows or labels.ndim not in (1, 2):
            raise Transient(
                f"gave numbers of shape {tuple(labels.shape)} for {rows} inputs; expected one label for each"
            )
        labels = labels.reshape(-1)
        wrong = labels[(labels != labels.round()) | (labels < 0) | (labels >= self.classes)]
        if len(wrong):
            raise Transient(f"gave {wrong[0].item():g} as a label; expected whole numbers from 0 to {self.classes - 1}")
        return torch.nn.functional.one_hot(labels.long(), self.classes).float()

    def _rows(self, scores: Tensor, rows: int) -> Tensor:
        if scores.shape != (rows, self.classes):
            raise Transient(
                f"gave scores of shape {tuple(scores.shape)} to {rows} inputs; expected ({rows}, {self.classes}): mend "
                "`classes`, `response`, or what the endpoint gives"
            )
        if not bool(torch.isfinite(scores).all()):
            raise Transient(f"gave NaN or infinity for {int((~scores.isfinite()).any(1).sum())} of {rows} inputs")
        sums = scores.sum(1)
        if self.outputs == "probabilities" and (bool(((sums - 1).abs() > 1e-3).any()) or bool((scores < -1e-6).any())):
            raise Transient(
                f"gave rows that sum to {sums.min():.4g} to {sums.max():.4g}, and scores from {scores.min():.4g} on; "
                "expected probabilities: if these are logits, say `outputs: logits`"
            )
        return scores


def _check_url(url: str) -> None:
    """Raise ConfigError, without showing it, for an address that cannot be asked or that holds a secret."""
    try:
        parts = urlsplit(url)
        name = (parts.hostname or "").encode("idna")  # as it is looked up
        usable = parts.scheme in ("http", "https") and name and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("the url of the endpoint is none that can be asked; expected https://host/path")
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(name)]
    if parts.username is not None or named:
        raise ConfigError(
            f"the url of the endpoint holds a secret ({named[0] if named else 'a user name'}); expected none in plain "
            "sight: send it as a header, `Authorization: env:NAME`"
        )


def _is_one(value: Any) -> bool:
    """Whether it is the answer to one input, and not a list of such answers."""
    return not isinstance(value, list) or (len(value) > 1 and not isinstance(value[0], (list, dict)))


def _numbers(value: Any) -> Any:
    """Return numbers, or lists of them, as they are; torch would take ``true`` for 1.0.

    Raises:
        TypeError: there is something else among them.
    """
    rows = value if isinstance(value, list) else [value]
    for row in rows:
        for number in row if isinstance(row, list) else [row]:
            if type(number) not in (int, float):
                raise TypeError(f"found {type(number).__name__}")
    return value


def load_endpoint(
    path: Path | str | None = None,
    *,
    url: str | None = None,
    classes: int | None = None,
    i_own_this_endpoint: bool = False,
    columns: Columns | None = None,
) -> Endpoint:
    """Read an endpoint from a YAML file with the fields of :class:`Endpoint`.

    Args:
        path: the file; None where ``url`` and ``classes`` say enough.
        url: in place of that in the file.
        classes: in place of that in the file.
        i_own_this_endpoint: your word, which no file can give for you.
        columns: where inputs are rows of a table, what their numbers stand for (``data.columns``); its classes are
            counted where nobody says how many there are.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds an unknown key or a bad value.
    """
    fields: Any = {} if path is None else load_yaml(Path(path), "the endpoint", "its fields, one a line")
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds {type(fields).__name__}; expected the fields of an endpoint, `url: …` first")
    known = {option.name for option in dataclasses.fields(Endpoint)} - {"sleep", "columns", "i_own_this_endpoint"}
    for key in fields:
        if key == "i_own_this_endpoint":
            raise ConfigError(f"{path} says {key}; expected your word with each run: --i-own-this-endpoint")
        if key not in known:
            raise ConfigError(f"{path} has the unknown key {shown(key)}; {nearest(str(key), known)}")
    given = {name: value for name, value in (("url", url), ("classes", classes)) if value is not None}
    fields = {**fields, **given}
    if columns is not None and columns.classes:
        fields = {"classes": len(columns.classes), **fields}
    for name in ("url", "classes"):
        if name not in fields:
            raise ConfigError(f"the endpoint has no {name}; expected it in the file or on the command line")
    return Endpoint(**fields, columns=columns, i_own_this_endpoint=i_own_this_endpoint)
