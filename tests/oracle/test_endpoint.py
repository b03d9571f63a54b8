"""An HTTP endpoint as a victim, against a real server that misbehaves in every way we could think of."""

from __future__ import annotations

import asyncio
import base64
import gzip
import logging
import pickle
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch

import endpoint_server as server
from endpoint_server import CLASSES, Deed, Server, says, status, victim
from nutlet.errors import ConfigError, DataError, NutletError, OracleError
from nutlet.oracle import Disclosure, Endpoint, Oracle, load_endpoint

X = torch.linspace(-2, 3, 28).view(7, 4)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with server.serving() as state:
        yield state


class Waits(list[float]):
    """Seconds that somebody asked to sleep, who did not."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def endpoint(served: Server, **options: Any) -> Endpoint:
    fixed = {"url": served.url, "classes": CLASSES, "i_own_this_endpoint": True, "sleep": Waits(), "timeout": 5}
    return Endpoint(**{**fixed, **options})


def waits(asked: Endpoint) -> Waits:
    assert isinstance(asked.sleep, Waits)
    return asked.sleep


def test_the_answers_are_those_of_the_victim(served: Server) -> None:
    asked = endpoint(served, batch=3)
    torch.testing.assert_close(asked(X), victim(X))
    assert asked(X).dtype == torch.float32
    assert [len(request) for request in served.requests] == [3, 3, 1] * 2
    assert torch.equal(torch.cat(served.requests[:3]), X)  # to the last bit
    assert waits(asked) == []


def test_an_oracle_before_it_counts(served: Server) -> None:
    oracle = Oracle(endpoint(served), budget=7)
    torch.testing.assert_close(oracle.query(X), victim(X))
    assert (oracle.queries, oracle.left, served.inputs) == (7, 0, 7)


def test_places_in_the_bodies(served: Server) -> None:
    served.deeds = [says({"outputs": [{"data": victim(X).tolist()}]}), says(victim(X).tolist())]
    torch.testing.assert_close(endpoint(served, request="a.b", response="outputs.0.data")(X), victim(X))
    torch.testing.assert_close(endpoint(served, request="", response="", method="PUT")(X), victim(X))
    assert served.bodies[0] == {"a": {"b": X.tolist()}}
    assert served.bodies[1] == X.tolist()


def test_logits_and_labels(served: Server) -> None:
    logits = X @ server.WEIGHT
    served.deeds = [says({"probabilities": logits.tolist()}), says({"probabilities": logits.argmax(1).tolist()})]
    torch.testing.assert_close(endpoint(served, outputs="logits")(X), logits)
    asked = endpoint(served, outputs="labels")
    assert torch.equal(asked(X), torch.eye(CLASSES)[logits.argmax(1)])
    assert asked.answers == Disclosure("labels")


TRANSIENT: dict[str, tuple[Deed, str]] = {
    "drops": (server.drops, "broke the connection off|cannot be reached"),
    "truncates": (server.truncates, r"received 23 bytes, expected 10000"),
    "429": (status(429, "slow down"), "answers with status 429: slow down"),
    "500": (status(500), "answers with status 500: nothing"),
    "503": (status(503, "down\nfor maintenance"), "answers with status 503: down "),
    "garbage": (says(b"<html>\nhello"), r"gave '<html>'; expected JSON"),
    "not text": (says(b"\xff\xfe\xfd"), "expected JSON"),
    "deep": (says(b"[" * 100_000), "expected JSON"),
    "empty": (says(b""), "gave 'nothing'; expected JSON"),
    "another name": (says({"scores": []}), r"gave the names scores where 'probabilities' of `response: probabilities`"),
    "no names": (says([1, 2]), "gave list where 'probabilities'"),
    "words": (says({"probabilities": [["a"] * CLASSES] * 7}), r"gave .*; expected lists of numbers of equal length"),
    "nothing": (says({"probabilities": None}), "gave 'null'; expected lists of numbers"),
    "ragged": (says({"probabilities": [[0.5, 0.5], [1.0]]}), "expected lists of numbers of equal length"),
    "huge numbers": (says({"probabilities": [[10**400] * CLASSES] * 7}), "expected lists of numbers"),
    "NaN": (says({"probabilities": [[float("nan"), 0.5, 0.5]] * 2 + [[0, 0, 1]] * 5}), "NaN or infinity for 2 of 7"),
    "infinity": (says({"probabilities": [[float("inf"), 0, 0]] * 7}), "NaN or infinity for 7 of 7"),
    "too large": (says({"probabilities": [[1e300, 0, 0]] * 7}), "NaN or infinity for 7 of 7"),
    "rows": (says({"probabilities": [[0, 0, 1]] * 6}), r"shape \(6, 3\) to 7 inputs; expected \(7, 3\): mend"),
    "classes": (says({"probabilities": [[0, 1]] * 7}), r"shape \(7, 2\) to 7 inputs; expected \(7, 3\): mend"),
    "a number": (says({"probabilities": 0.5}), r"shape \(\) to 7 inputs"),
    "logits": (
        says({"probabilities": [[4.0, -2.0, 1]] * 7}),
        "sum to 3 to 3, and scores from -2 on; .*`outputs: logits`",
    ),
    "true for one": (says({"probabilities": [[True, 0.0, 0.0]] * 7}), "true.*expected lists of numbers"),
    "false for nought": (says({"probabilities": [[1.0, 0.0, False]] * 7}), "false.*expected lists of numbers"),
    "digits in quotes": (says({"probabilities": [["1", 0, 0]] * 7}), "expected lists of numbers"),
    "lists in lists": (says({"probabilities": [[[1.0], [0.0], [0.0]]] * 7}), "expected lists of numbers"),
    "a status line": (lambda handler, _: handler.wfile.write(b"HTTP/9 \x1b[2J\r\n\r\n"), r"off: .*\\x1b\[2J"),
    "negative": (says({"probabilities": [[1.5, -0.5, 0]] * 7}), r"scores from -0\.5 on; expected probabilities"),
}


@pytest.mark.parametrize("deed", TRANSIENT)
def test_what_may_pass_is_tried_again(served: Server, deed: str) -> None:
    asked = endpoint(served)
    served.deeds = [TRANSIENT[deed][0]] * 2
    torch.testing.assert_close(asked(X), victim(X))
    assert waits(asked) == [1, 2]
    assert len(served.requests) == 3


@pytest.mark.parametrize("deed", TRANSIENT)
def test_what_does_not_pass_is_said(served: Server, deed: str) -> None:
    asked = endpoint(served, retries=1)
    served.deeds = [TRANSIENT[deed][0]] * 2
    with pytest.raises(OracleError, match=TRANSIENT[deed][1]) as caught:
        asked(X)
    assert str(caught.value).startswith(served.url)
    assert str(caught.value).endswith("(attempt 2 of 2)")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([3] * 7, "gave 3 as a label; expected whole numbers from 0 to 2"),
        ([-1] * 7, "gave -1 as a label"),
        ([True] * 7, "true.*expected lists of numbers"),
        ([0.5] * 7, "gave 0.5 as a label"),
        ([float("nan")] * 7, "gave nan as a label"),
        ([0] * 6, r"shape \(6,\) for 7 inputs; expected one label for each"),
        ([[0, 0, 1]] * 7, r"shape \(7, 3\) for 7 inputs"),
    ],
)
def test_labels_out_of_range(served: Server, value: list[Any], message: str) -> None:
    served.deeds = [says({"probabilities": value})]
    with pytest.raises(OracleError, match=message):
        endpoint(served, outputs="labels", retries=0)(X)


def test_labels_one_in_a_row(served: Server) -> None:
    served.deeds = [says({"probabilities": [[2]] * 7})]
    assert torch.equal(endpoint(served, outputs="labels")(X), torch.tensor([[0.0, 0, 1]] * 7))


SLOW = {
    "hangs": server.hangs(0.5),
    "drips": server.drips,
    "headers": server.drips_headers,
    "continue": server.goes_on_to_continue,
}


@pytest.mark.parametrize("deed", SLOW.values(), ids=SLOW)
def test_a_slow_endpoint_is_tried_again(served: Server, deed: Deed) -> None:
    served.deeds = [deed]
    asked = endpoint(served, timeout=0.2)
    torch.testing.assert_close(asked(X), victim(X))
    assert waits(asked) == [1]
    served.deeds = [deed]
    start = time.monotonic()
    with pytest.raises(OracleError, match=r"0\.2 s|timed out"):
        endpoint(served, timeout=0.2, retries=0)(X)
    assert time.monotonic() - start < 1.5


def test_a_notebook_has_an_event_loop_of_its_own(served: Server) -> None:
    async def cell() -> torch.Tensor:
        return endpoint(served)(X)

    torch.testing.assert_close(asyncio.run(cell()), victim(X))


def test_nothing_is_unpacked(served: Server) -> None:
    served.deeds = [lambda handler, _: handler.give(gzip.compress(b" " * 10**7), Content_Encoding="gzip")]
    with pytest.raises(OracleError, match="expected JSON"):
        endpoint(served, retries=0)(X)
    assert served.headers[0]["Accept-Encoding"] == "identity"


def test_nobody_there() -> None:
    with server.serving() as state:
        pass
    with pytest.raises(OracleError, match=r"cannot be reached \(ConnectionRefusedError\)"):
        endpoint(state, retries=0)(X)


@pytest.mark.parametrize("deed", [server.goes_on_and_on, says(b" " * 2**21)], ids=["without an end", "announced"])
def test_no_more_is_read_than_an_answer_can_be_long(served: Server, deed: Deed) -> None:
    served.deeds = [deed]
    with pytest.raises(OracleError, match=r"bytes; expected (at most|no more)"):
        endpoint(served, retries=0)(X)


def test_a_wait_that_was_asked_for(served: Server) -> None:
    later = formatdate(time.time() + 90, usegmt=True)
    served.deeds = [
        status(429, Retry_After=7),
        status(503, Retry_After=0.5),
        status(429, Retry_After=later),
        status(503, Retry_After="soon"),
    ]
    asked = endpoint(served)
    torch.testing.assert_close(asked(X), victim(X))
    assert waits(asked)[:2] + waits(asked)[3:] == [7, 2, 8]
    assert 80 < waits(asked)[2] <= 90


def test_a_wait_that_is_too_long_ends_the_run(served: Server) -> None:
    served.deeds = [status(429, "come back tomorrow", Retry_After=86_400)]
    asked = endpoint(served)
    with pytest.raises(OracleError, match="tomorrow; it asks to wait 86,400 s"):
        asked(X)
    assert waits(asked) == []


def test_waits_grow_up_to_a_minute_and_no_request_comes_before_its_pause(served: Server) -> None:
    served.deeds = [status(500)] * 8
    asked = endpoint(served, retries=8, pause=3)
    asked(X)
    assert waits(asked) == [3, 3, 3, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_tried_again(served: Server, code: int) -> None:
    served.deeds = [status(code, "\x1b[2Jno such model\nTraceback")]
    asked = endpoint(served)
    with pytest.raises(OracleError, match=rf"status {code}: \\x1b\[2Jno such model; expected status 200"):
        asked(X)
    assert len(served.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(served: Server, code: int) -> None:
    with server.serving() as other:
        served.deeds = [status(code, Location=f"{other.url}?secret=1")]
        with pytest.raises(OracleError, match=f"redirects to {other.url}; expected an answer") as caught:
            endpoint(served)(X)
        assert "secret" not in str(caught.value)
        assert (len(served.requests), len(other.requests)) == (1, 0)


def test_inputs_that_json_does_not_know(served: Server) -> None:
    with pytest.raises(DataError, match="NaN or infinity"):
        endpoint(served)(torch.full((1, 4), torch.nan))
    assert served.requests == []


def test_a_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("no_proxy", "*")
    with server.serving(context) as state:
        asked = endpoint(state)
        with pytest.raises(OracleError, match=r"certificate that cannot be verified.*SSL_CERT_FILE"):
            asked(X)
        assert (state.requests, waits(asked)) == ([], [])
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        torch.testing.assert_close(asked(X), victim(X))


SECRET = "horse-battery"


@pytest.fixture
def secretive(served: Server, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setenv("TOKEN_OF_TEST", f"{SECRET}\n")
    headers = {"Authorization": "Bearer env:TOKEN_OF_TEST", "X-Version": "2"}
    return endpoint(served, headers=headers, retries=0)


def test_a_secret_comes_from_the_environment_and_goes_nowhere_else(served: Server, secretive: Endpoint) -> None:
    def repeats(handler: server.Handler, inputs: torch.Tensor) -> None:
        handler.give(f"who is {handler.headers['Authorization']}?".encode(), 401)

    def repeats_as_garbage(handler: server.Handler, inputs: torch.Tensor) -> None:
        handler.give(handler.headers["Authorization"].encode())

    secretive(X)
    assert served.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert served.headers[0]["X-Version"] == "2"
    shown = [repr(secretive), str(pickle.dumps(secretive)), secretive.fingerprint()]
    served.deeds = [repeats, repeats_as_garbage]
    for _ in range(2):
        with pytest.raises(OracleError, match=r"Bearer \*\*\*") as caught:
            secretive(X)
        shown += [str(caught.value), *(str(error) for error in (caught.value.__cause__,) if error)]
    assert not any(SECRET in text for text in shown)
    assert pickle.loads(pickle.dumps(secretive)) == secretive


LONG = "sk-9fQ2xLw7ZbR4mK1tVn8Ye3Ua6Hd0Pj5C"
FORMS: dict[str, Any] = {
    "plain": lambda s: s,
    "half": lambda s: s[: len(s) // 2],
    "six": lambda s: s[5:11],
    "hexadecimal": lambda s: s.encode().hex().upper(),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64 of more": lambda s: base64.urlsafe_b64encode(f"a{s} ".encode()).decode(),
    "base64, half": lambda s: base64.b64encode(b"x" + s.encode()).decode()[9:25],
    "base32": lambda s: base64.b32encode(s.encode()).decode().lower(),
    "percent": lambda s: "".join(f"%{ord(c):02x}" for c in s),
    "percent twice": lambda s: quote("".join(f"%{ord(c):02X}" for c in s)),
    "json": lambda s: "".join(f"\\u{ord(c):04x}" for c in s),
    "html": lambda s: "".join(f"&#{ord(c)};" for c in s),
    "backwards": lambda s: s[::-1],
    "spaced": lambda s: " ".join(s),
    "case": lambda s: s.swapcase(),
    "past the cut": lambda s: "x" * 190 + s,
    "quoted": lambda s: f"'\"{s[:17]}'\"{s[17:]}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["refusal", "garbage", "value", "name", "redirect", "reason"])
def test_an_echoed_token_is_hidden_in_any_form(
    served: Server, monkeypatch: pytest.MonkeyPatch, form: str, where: str
) -> None:
    monkeypatch.setenv("TOKEN_OF_TEST", LONG)
    asked = endpoint(served, headers={"X-API-Key": "env:TOKEN_OF_TEST"}, retries=0)
    shown = FORMS[form](LONG)
    served.deeds = [
        {
            "refusal": status(401, shown),
            "garbage": says(shown.encode()),
            "value": says({"probabilities": [shown]}),
            "name": says({shown: 1}),
            "redirect": status(302, Location=f"https://a.example/{shown}"),
            "reason": lambda handler, _: handler.wfile.write(f"HTTP/9 {shown}\r\n\r\n".encode()),
        }[where]
    ]
    with pytest.raises(OracleError) as caught:
        asked(X)
    said = str(caught.value)
    # Of a character at either end only some bits may be the secret's.
    secret = shown.replace("x" * 190, "")[3:-3]
    pieces = {secret[place : place + 8] for place in range(len(secret))}
    assert "***" in said or form == "past the cut"
    assert not any(piece in said for piece in pieces if len(piece) == 8), said


def test_a_signature_in_the_address_is_sent_and_shown_nowhere(served: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    signed = endpoint(served, url=f"{served.url}?v=1&sig={LONG}", retries=0)
    again = endpoint(served, url=f"{served.url}?v=1&sig={LONG[::-1]}")
    served.deeds = [server.answer, status(403, f"no: {LONG}")]
    torch.testing.assert_close(signed(X), victim(X))
    assert signed.fingerprint() == again.fingerprint() != endpoint(served).fingerprint()
    with pytest.raises(OracleError, match=r"no: \*\*\*") as caught:
        signed(X)
    assert served.targets[:2] == [f"/classify?v=1&sig={LONG}"] * 2
    assert not any(LONG in text for text in (repr(signed), str(caught.value), signed.where, caplog.text))


@pytest.mark.parametrize(("held", "found"), [(None, "is not set"), ("", "is not set"), ("a\nb", "no header can")])
def test_a_secret_that_is_not_there(
    served: Server, monkeypatch: pytest.MonkeyPatch, held: str | None, found: str
) -> None:
    monkeypatch.delenv("TOKEN_OF_TEST", raising=False)
    if held is not None:
        monkeypatch.setenv("TOKEN_OF_TEST", held)
    with pytest.raises(ConfigError, match=f"variable TOKEN_OF_TEST, for the header 'Authorization', .*{found}"):
        endpoint(served, headers={"Authorization": "env:TOKEN_OF_TEST"})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "not owned": ({"i_own_this_endpoint": False}, "--i-own-this-endpoint"),
    "half owned": ({"i_own_this_endpoint": "yes"}, "expected True or False"),
    "no url": ({"url": "models.example.org"}, "expected https://host/path"),
    "a file": ({"url": "file:///etc/passwd"}, "expected https://host/path"),
    "a port": ({"url": "https://a:99999/"}, "expected https://host/path"),
    "no host": ({"url": "https:///digits"}, "expected https://host/path"),
    "an empty label": ({"url": "https://a..b/digits"}, "expected https://host/path"),
    "a blank": ({"url": "https://a/b c"}, "expected https://host/path"),
    "a number": ({"url": 3}, "Endpoint.url is a int; expected text"),
    "a user": ({"url": "https://me:pear@a/"}, "holds a secret .a user name."),
    "a key": ({"url": "https://a/?v=1&api_key=pear"}, "holds a secret .api_key."),
    "classes": ({"classes": 1}, "Endpoint.classes is 1; expected a whole number from 2 to 1,000,000"),
    "true": ({"classes": True}, "Endpoint.classes is True"),
    "batch": ({"batch": 0}, "Endpoint.batch is 0"),
    "half a batch": ({"batch": 0.5}, r"Endpoint.batch is 0\.5"),
    "retries": ({"retries": -1}, "Endpoint.retries is -1"),
    "timeout": ({"timeout": float("nan")}, "Endpoint.timeout is nan"),
    "pause": ({"pause": "1"}, "Endpoint.pause is '1'"),
    "outputs": ({"outputs": "scores"}, "expected one of 'probabilities', 'logits', 'labels'"),
    "method": ({"method": "GET"}, "expected one of 'POST', 'PUT'"),
    "headers": ({"headers": ["a"]}, "Endpoint.headers is a list; expected a mapping"),
    "a name": ({"headers": {"a b": "c"}}, "found a header named 'a b'"),
    "a line break": ({"headers": {"A": "b\r\nC: d"}}, "'A' holds what no header can"),
    "a number in a header": ({"headers": {"A": 2}}, "in quotes"),
    "a secret": ({"headers": {"authorization": "Bearer pear"}}, "'authorization' holds a secret in plain sight"),
    "another secret": ({"headers": {"X-API-Key": "pear"}}, "expected `env:NAME`"),
    "a secret for all": (
        {"url": "http://models.example.org/", "headers": {"X-API-Key": "env:PATH"}},
        "secret would go to http://models.example.org/ for all to read; expected https",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused_at_the_door(case: str) -> None:
    options, message = WRONG[case]
    fixed: dict[str, Any] = {"url": "https://models.example.org/", "classes": 3, "i_own_this_endpoint": True}
    with pytest.raises(ConfigError, match=message) as caught:
        Endpoint(**{**fixed, **options})
    assert "pear" not in str(caught.value)


def test_the_fingerprint_is_of_what_decides_the_answers(served: Server) -> None:
    same = endpoint(served, batch=3, retries=2, timeout=1, pause=1, headers={"Authorization": "env:PATH"})
    assert same.fingerprint() == endpoint(served).fingerprint()
    others: list[dict[str, Any]] = [
        {"url": f"{served.url}?version=2"}, {"classes": 4}, {"outputs": "logits"}, {"request": "x"}, {"response": "y"},
        {"headers": {"X-Version": "2"}}, {"method": "PUT"},
    ]  # fmt: skip
    assert len({endpoint(served, **options).fingerprint() for options in [{}, *others]}) == 8


def test_a_file_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_TEST", SECRET)
    path = tmp_path / "endpoint.yaml"
    path.write_text(
        "url: https://models.example.org/digits\nclasses: 10\noutputs: logits\npause: 0.5\nrequest: instances\n"
        "headers:\n  Authorization: Bearer env:TOKEN_OF_TEST\n"
    )
    loaded = load_endpoint(path, i_own_this_endpoint=True)
    assert loaded == Endpoint(
        url="https://models.example.org/digits", classes=10, outputs="logits", pause=0.5, request="instances",
        headers={"Authorization": "Bearer env:TOKEN_OF_TEST"}, i_own_this_endpoint=True,
    )  # fmt: skip
    moved = load_endpoint(path, url="https://other.example.org/", classes=3, i_own_this_endpoint=True)
    assert (moved.where, moved.classes, moved.outputs) == ("https://other.example.org/", 3, "logits")
    with pytest.raises(ConfigError, match="--i-own-this-endpoint"):
        load_endpoint(path)
    assert load_endpoint(url="https://a.example.org/", classes=3, i_own_this_endpoint=True).batch == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url: https://a/\nclases: 3", "unknown key 'clases'; did you mean 'classes'"),
        ("url: https://a/\nclasses: 3\nsleep: 1", "unknown key 'sleep'"),
        ("url: https://a/\nclasses: 3\ni_own_this_endpoint: true", "your word with each run: --i-own-this-endpoint"),
        ("classes: 3", "the endpoint has no url"),
        ("url: https://a/", "the endpoint has no classes"),
        ("- url", "holds list; expected the fields"),
        ("", "holds NoneType"),
        ("url: [", "is not YAML"),
        (None, "could not read .*: No such file"),
    ],
)
def test_a_bad_file_of_settings(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "endpoint.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(NutletError, match=message) as caught:
        load_endpoint(path, i_own_this_endpoint=True)
    assert type(caught.value) is ConfigError
