"""Who is to blame where a run's payloads cannot be read: its key, somebody's codec, or kedge."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import NoReturn
from uuid import uuid4

import pytest

from kedge.codecs import PayloadContext
from kedge.encryption import AesGcmCodec
from kedge.sealing import input_place, seal
from kedge_worker import _sealing
from kedge_worker._runs import ClaimedRun
from kedge_worker._sealing import Seals, read_run

CODEC = AesGcmCodec({"key": bytes(32)}, current="key")
SECRET = "4711"


class Broken:
    """Somebody's codec that fails, with a secret in its words."""

    strict = False

    def encode(self, payload: bytes, _: PayloadContext, /) -> NoReturn:
        raise AttributeError(f"{payload!r} {SECRET}")

    def decode(self, data: bytes, _: PayloadContext, /) -> NoReturn:
        raise AttributeError(f"{data!r} {SECRET}")

    def digest(self, data: bytes, /) -> NoReturn:
        raise AttributeError(f"{data!r} {SECRET}")


@pytest.fixture
def run() -> ClaimedRun:
    """One whose input is encrypted."""
    run_id, now = uuid4(), datetime.now(UTC)
    return ClaimedRun(
        id=run_id,
        epoch=1,
        next_seq=1,
        attempt=0,
        crashes=0,
        request=None,
        rank=0,
        deadline_s=None,
        is_observed=False,
        queue="default",
        workflow="pay",
        resource=None,
        reason=None,
        input=seal(CODEC, SECRET.encode(), input_place(run_id, "pay")),
        meta=b"",
        claimed_at=now,
        memo=(),
    )


def test_an_error_of_a_codec_is_named_as_one_without_its_words(run: ClaimedRun) -> None:
    assert read_run(Seals(Broken()), run) == (run, "its payloads cannot be decrypted: AttributeError")


def test_a_missing_key_is_named(run: ClaimedRun) -> None:
    _, reason = read_run(Seals(AesGcmCodec({"other": bytes(32)}, current="other")), run)

    assert reason is not None
    assert "'key'" in reason or "key key" in reason


def test_a_bug_of_kedge_looks_like_no_missing_key(
    run: ClaimedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise AttributeError(SECRET)

    monkeypatch.setattr(_sealing, "lineage", fails)

    with caplog.at_level(logging.ERROR):
        _, reason = read_run(Seals(CODEC), run)

    assert reason == "its payloads cannot be read or written, by a bug in kedge: AttributeError"
    assert "in fails" in caplog.text, "where it was is said"
    assert SECRET not in caplog.text


def test_what_can_be_read_is_read(run: ClaimedRun) -> None:
    opened, reason = read_run(Seals(CODEC), run)

    assert (opened.input, reason) == (SECRET.encode(), None)
