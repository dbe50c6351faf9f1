"""Error texts are kept and logged: what is, or looks like, a secret is taken out of them first."""

import time
from collections.abc import Generator

import pytest

from kedge.failures import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES, decode_error, encode_error
from kedge.redaction import HIDDEN, add_redactor, hide, redact, remove_redactor

SECRET = "canary-7f3a91d0c2"


@pytest.mark.parametrize(
    "text",
    [
        f"cannot connect to postgresql://app:{SECRET}@db.example:5432/app",
        f"cannot connect to amqp://app:p@{SECRET}@mq/vhost",
        f"https://{SECRET}@github.com/x/y.git",
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET} and more of {SECRET}",
        f"{{'Authorization': 'Token {SECRET}', 'Accept': '*/*'}}",
        f'{{"authorization": "Digest username=\\"a\\", response=\\"{SECRET}\\""}}',
        f"got headers [(b'authorization', b'Bearer {SECRET}')]",
        f"password={SECRET}",
        f"host=a password='{SECRET} with a blank' user=b",
        f"PGPASSWORD={SECRET}",
        f"client_secret: {SECRET}",
        f"https://example.com/?access_token={SECRET}&x=1",
        f"{{'api_key': '{SECRET}'}}",
        f"Config(api-key => {SECRET})",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"Set-Cookie: session={SECRET}",
        f"secret = b'{SECRET}'",
        f"bearer {SECRET}-and-so-on",
        f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ{SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\ncut off here",
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    assert SECRET not in redact(text)
    assert HIDDEN in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "no row for order 7 of customer a@example.com",
        "GET https://example.com/@somebody/path returned 503",
        "max_tokens: 4096 is too much",
        "the authorization of this payment was declined",
        "card declined: insufficient_funds (code=51)",
        "Traceback (most recent call last):\n  File 'a.py', line 1, in <module>\n",
        "",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redact(text) == text


def test_what_is_known_as_a_secret_goes_wherever_it_stands() -> None:
    hide("tr0ub4dor&3 /x", None, "", "abc")

    assert redact("got 'tr0ub4dor&3 /x' or tr0ub4dor%263%20%2Fx: abc") == "got '***' or ***: abc"


def test_a_short_secret_does_not_tear_words() -> None:
    hide("gres")

    assert redact("postgres said gres!") == "postgres said ***!"


@pytest.mark.parametrize(
    "text",
    [
        "x" * 16_384,
        "password=" * 2_000,
        "password" * 2_000,
        "://" * 5_000,
        "a://b" * 3_000,
        "-----BEGIN A" * 1_400,
        "token='" * 2_300,
        'authorization: "\\' * 900,
        "eyJ" * 5_000,
        "eyJ-eyJ_" * 2_000,
        "eyJaaaaaaaaa." * 1_200,
        "bearer " * 2_300,
        " " * 16_384,
        "'" * 16_384,
        "\\" * 16_384,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()

    redact(text)

    # Milliseconds; a pattern that looks back and forth takes minutes.
    assert time.process_time() - started < 2


@pytest.fixture
def shouting() -> Generator[None]:
    def shout(text: str) -> str:
        if "boom" in text:
            raise ValueError(text)
        return text.replace("order 4711", "order <number>")

    add_redactor(shout)
    add_redactor(shout)
    yield
    remove_redactor(shout)
    remove_redactor(shout)


@pytest.mark.usefixtures("shouting")
def test_an_application_can_add_a_rule_of_its_own() -> None:
    assert redact("order 4711 failed") == "order <number> failed"


@pytest.mark.usefixtures("shouting")
def test_a_rule_that_fails_shows_nothing() -> None:
    assert redact("boom, order 4711") == "<dropped, for a redactor raised ValueError>"


@pytest.mark.parametrize("before", [0, 100, MAX_MESSAGE_BYTES - 30, 16 * 1024 - 30, 16 * 1024 - 9, 17 * 1024])
@pytest.mark.parametrize("form", ["password={}", "postgresql://app:{}@db/x", "-----BEGIN PRIVATE KEY-----\n{}\n"])
def test_secrets_are_taken_out_before_a_message_is_cut(before: int, form: str) -> None:
    error = ValueError("." * before + " " + form.format(SECRET * 20) + " end")

    message = decode_error(encode_error(error)).message

    assert "canary" not in message
    assert len(message.encode()) <= MAX_MESSAGE_BYTES


def test_many_secrets_make_no_room_for_the_one_at_the_edge() -> None:
    error = ValueError(("password=" + "p" * 1000 + " ") * 16 + f"password={SECRET * 100}")

    assert "canary" not in decode_error(encode_error(error)).message


def test_causes_and_tracebacks_are_kept_without_secrets() -> None:
    def connect(url: str) -> None:
        raise ConnectionError(f"no answer of {url}")

    def fail() -> None:
        try:
            connect("postgresql://app:canary-in-code@db/app")
        except ConnectionError as inner:
            raise ExceptionGroup("both", [KeyError(f"password={SECRET}"), inner]) from inner

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    kept = encode_error(caught.value)

    info = decode_error(kept)
    assert b"canary" not in kept
    assert info.cause is not None
    assert "def connect" not in (info.traceback or "")
    assert "connect(" in (info.cause.traceback or "")
    assert len((info.traceback or "").encode()) <= MAX_TRACEBACK_BYTES
