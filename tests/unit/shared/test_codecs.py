"""What payloads are bound to, how they look, and what the codec of the house refuses."""

import builtins
import itertools
import sys
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge import DamagedPayloadError, InvalidOptionError, KeyMissingError, NotDecodableError, WorkflowRef
from kedge.codecs import PayloadContext, key_header, split_header
from kedge.encryption import AesGcmCodec, new_key
from kedge.failures import decode_error, encode_error
from kedge.sealing import (
    error_place,
    event_place,
    fast_forward_place,
    input_place,
    lineage,
    output_place,
    poll_place,
    seal,
    seal_hash,
    seal_line,
    seal_request,
    unseal,
    unseal_error,
    unseal_line,
    value_place,
)
from kedge.wire import decode, encode

ONE = UUID("01934b00-0000-7000-8000-000000000001")
TWO = UUID("01934b00-0000-7000-8000-000000000002")
KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
NOBODY = UUID(int=0)


def codec(**options: Any) -> AesGcmCodec:
    return AesGcmCodec({"k1": KEY}, current="k1", **options)


contexts = st.builds(
    PayloadContext,
    st.sampled_from([ONE, TWO, NOBODY]),
    st.sampled_from(["input", "value", "output", "error", "event"]),
    st.text(max_size=5),
    st.integers(0, 2**31 - 1),
    st.sampled_from([ONE, TWO, NOBODY]),
)


# ---- what is bound


@given(contexts, contexts)
def test_no_two_contexts_are_one(one: PayloadContext, other: PayloadContext) -> None:
    assert (one.associated_data() == other.associated_data()) == (one == other)


@given(st.binary(max_size=200), contexts)
def test_what_is_sealed_is_opened_at_its_place(payload: bytes, place: PayloadContext) -> None:
    sealed = seal(codec(), payload, place)

    assert unseal(codec(), sealed, place) == payload if payload[:1] != b"\x03" else True
    assert payload == b"" or len(payload) < 8 or payload not in sealed


def test_each_place_refuses_what_was_made_for_another() -> None:
    places = [
        input_place(ONE, "shop"),
        input_place(ONE, "shop@2"),
        value_place(ONE, "s", "charge", 3),
        value_place(ONE, "t", "charge", 3),
        value_place(ONE, "s", "charge#2", 3),
        value_place(ONE, "s", "charge", 4),
        value_place(TWO, "s", "charge", 3),
        output_place(ONE),
        error_place(ONE),
        error_place(ONE, "charge"),
        event_place(ONE, "e:go", ONE),
        event_place(ONE, "e:go", TWO),
        event_place(None, "t:world\x1fgo", ONE),
        fast_forward_place(ONE, ONE),
        poll_place(ONE, "look", 1),
        poll_place(ONE, "look", 2),
    ]
    payload = encode("secret", where="x")
    for one, other in itertools.permutations(places, 2):
        with pytest.raises(DamagedPayloadError):
            unseal(codec(), seal(codec(), payload, one), other)


def test_a_payload_that_was_moved_from_another_run_says_so() -> None:
    sealed = seal(codec(), b"\x01null", output_place(ONE))

    with pytest.raises(DamagedPayloadError, match=f"was encrypted for run {ONE}, and moved"):
        unseal(codec(), sealed, output_place(TWO))


def test_the_same_payload_never_looks_the_same_twice() -> None:
    assert len({seal(codec(), b"\x01null", output_place(ONE)) for _ in range(100)}) == 100
    keys = codec()
    assert len({seal(keys, b"\x01null", output_place(ONE)) for _ in range(100)}) == 100


def test_a_salt_is_replaced_before_its_nonces_could_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.encryption._MESSAGES", 3)
    keys = codec()
    begin = len(key_header("k1"))

    salts = [keys.encode(b"x", output_place(ONE))[begin : begin + 16] for _ in range(9)]
    assert [len(list(same)) for _, same in itertools.groupby(salts)] == [3, 3, 3]
    assert all(keys.decode(keys.encode(b"x", output_place(ONE)), output_place(ONE)) == b"x" for _ in range(9))


# ---- bytes that lie in databases


def test_what_this_release_has_written_is_read_for_ever() -> None:
    written = bytes.fromhex(
        "0301934b00000070008000000000000001026b31" + GOLDEN  # codec byte, home, key id; salt, nonce, ciphertext
    )

    assert unseal(codec(), written, value_place(ONE, "s", "charge", 3)) == b'\x01{"a":1}'
    assert written[17:20] == key_header("k1")


GOLDEN = "91f1f00c599454c55a2e1813f99ea0a562e1163e256a5526336ed15276217d58982867fc0b6c38f5eeb41f9e5a2fa60710ec32fa"


# ---- keys


def test_older_keys_read_and_the_current_one_writes() -> None:
    both = AesGcmCodec({"k1": KEY, "k2": OTHER}, current="k2")
    new = AesGcmCodec({"k2": OTHER}, current="k2")
    old = seal(codec(), b"\x01null", output_place(ONE))

    assert unseal(both, old, output_place(ONE)) == b"\x01null"
    assert unseal(new, seal(both, b"\x01null", output_place(ONE)), output_place(ONE)) == b"\x01null"
    with pytest.raises(KeyMissingError) as missing:
        unseal(new, old, output_place(ONE))
    assert missing.value.key_id == "k1"


def test_without_a_codec_the_key_is_named_that_is_needed() -> None:
    sealed = seal(codec(), encode(3, where="x"), output_place(ONE))

    with pytest.raises(KeyMissingError, match=r"the result: is encrypted: codec= with key 'k1' is needed"):
        decode(sealed, int, where="the result")
    info = decode_error(seal(codec(), encode_error(ValueError("secret")), error_place(ONE)))
    assert info.kind == "kedge.errors.KeyMissingError"
    assert "secret" not in info.message


@pytest.mark.parametrize("name", ["", "a b", "-a", "é", "x" * 65, "a\0", "a\n", None, 3])
def test_an_id_that_cannot_be_one_is_refused(name: Any) -> None:
    with pytest.raises(InvalidOptionError):
        AesGcmCodec({name: KEY}, current=name)


@pytest.mark.parametrize("key", [b"", KEY[:-1], KEY + b"x", KEY.hex(), bytearray(KEY), None])
def test_a_key_of_another_length_is_refused(key: Any) -> None:
    with pytest.raises(InvalidOptionError, match="32 bytes") as refused:
        AesGcmCodec({"k1": key}, current="k1")
    assert KEY.hex()[:20] not in str(refused.value)


@pytest.mark.parametrize("options", [{"current": "k2"}, {"current": "k1", "digest_key": "k2"}])
def test_a_key_that_is_named_must_be_held(options: Any) -> None:
    with pytest.raises(InvalidOptionError, match="'k2' is not among the keys"):
        AesGcmCodec({"k1": KEY}, **options)


def test_new_keys_are_random() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key()) == 32


def test_who_has_not_installed_cryptography_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'kedge\[encryption\]'"):
        codec()


@given(st.binary(max_size=80))
def test_no_header_breaks_the_reader(data: bytes) -> None:
    split_header(data)
    with pytest.raises(NotDecodableError):
        unseal(codec(), b"\x03" + ONE.bytes + data, output_place(ONE))
    with pytest.raises(NotDecodableError):
        decode(b"\x03" + data, int, where="x")


# ---- clear payloads, and errors


def test_payloads_in_clear_are_read_unless_that_is_forbidden() -> None:
    clear = encode(3, where="x")

    assert unseal(codec(), clear, output_place(ONE)) == clear
    with pytest.raises(DamagedPayloadError, match="strict=True"):
        unseal(codec(strict=True), clear, output_place(ONE))
    assert unseal(codec(strict=True), b"", output_place(ONE)) == b""


def test_an_error_that_cannot_be_read_is_described() -> None:
    sealed = seal(codec(), encode_error(ValueError("secret")), error_place(ONE))

    assert unseal_error(codec(), sealed, error_place(ONE)).message == "secret"
    for place in (error_place(TWO), error_place(ONE, "charge")):
        assert unseal_error(codec(), sealed, place).kind == "kedge.errors.DamagedPayloadError"


def test_a_line_of_a_log_comes_back() -> None:
    sealed = seal_line(codec(), ONE, "words", encode({"a": 1}, where="x"))

    line = unseal_line(codec(), ONE, sealed)
    assert (line.message, decode(line.fields, dict, where="x")) == ("words", {"a": 1})
    with pytest.raises(DamagedPayloadError):
        unseal_line(codec(), TWO, sealed)


# ---- starts


def test_hashes_of_inputs_match_for_equal_inputs_and_say_nothing_under_another_key() -> None:
    shop = WorkflowRef("shop", dict[str, int], None)
    one, other = shop({"a": 1}, key="k").key_hash, shop({"a": 2}, key="k").key_hash
    rotated = AesGcmCodec({"k1": KEY, "k2": OTHER}, current="k2")
    kept = AesGcmCodec({"k1": KEY, "k2": OTHER}, current="k2", digest_key="k1")

    assert seal_hash(codec(), one) == seal_hash(codec(), one) == seal_hash(kept, one)
    assert seal_hash(codec(), one)[:8] == seal_hash(codec(), other)[:8]
    assert seal_hash(codec(), one)[8:] != seal_hash(codec(), other)[8:]
    # Another first half: the database compares nothing.
    assert seal_hash(rotated, one)[:8] != seal_hash(codec(), one)[:8]
    assert len(seal_hash(codec(), one)) == len(one)


def test_a_sealed_request_is_the_same_but_for_its_payload() -> None:
    shop = WorkflowRef("shop", dict[str, int], None, version="2")
    request = shop({"a": 1}, key="k", resource="r")
    sealed = seal_request(codec(), request, ONE)

    assert (sealed.ref, sealed.key, sealed.options) == (request.ref, request.key, request.options)
    assert unseal(codec(), sealed.payload, input_place(ONE, "shop@2")) == request.payload
    assert sealed.key_hash == seal_hash(codec(), request.key_hash)


# ---- lineage


def test_only_a_rerun_has_another_lineage_than_itself() -> None:
    sealed = seal(codec(), b"\x01null", input_place(ONE, "shop"))

    assert lineage(TWO, (sealed,), is_rerun=True) == ONE
    assert lineage(TWO, (sealed,), is_rerun=False) == TWO
    assert lineage(TWO, (b"\x01null", sealed), is_rerun=True) == ONE
    assert lineage(TWO, (b"\x01null",), is_rerun=True) == TWO
