"""What a definition says comes back; what a newer release adds does not disturb."""

from __future__ import annotations

import pytest
from msgspec import UNSET

from kedge import NotDecodableError, Retry
from kedge.definitions import DefinitionTerms
from kedge.run_meta import RetryTerms


@pytest.mark.parametrize(
    "terms",
    [
        DefinitionTerms(),
        DefinitionTerms(timeout_s=3600.0),
        DefinitionTerms(timeout_s=None),
        DefinitionTerms(retry=RetryTerms.of(Retry(3))),
        DefinitionTerms(timeout_s=1.5, retry=RetryTerms.of(Retry(None, jitter=False))),
    ],
)
def test_terms_come_back(terms: DefinitionTerms) -> None:
    assert DefinitionTerms.decode(terms.encode()) == terms


def test_a_definition_that_says_nothing_needs_no_bytes() -> None:
    assert DefinitionTerms().encode() == b""
    assert DefinitionTerms.decode(b"").timeout_s is UNSET


def test_fields_of_newer_releases_are_skipped() -> None:
    assert DefinitionTerms.decode(b'\x01{"timeout_s":2.0,"colour":"red"}') == DefinitionTerms(timeout_s=2.0)


def test_damaged_bytes_are_said_to_be_such() -> None:
    with pytest.raises(NotDecodableError):
        DefinitionTerms.decode(b"\x01{")
