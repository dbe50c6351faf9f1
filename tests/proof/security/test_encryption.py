"""Encrypted payloads: every place round trips, and nothing of it stands in the tables."""

from collections.abc import Generator
from typing import Any

import pytest

from kedge_worker.testing import Clock
from tests.proof.security.vault import CANARY, Vault, expected, places_with, vault


@pytest.fixture
def play(database_url: str, clock: Clock) -> Generator[Vault]:
    with vault(database_url, clock) as one:
        yield one


def comparable(told: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key not in ("broken", "bad")}


async def test_every_place_round_trips_and_nothing_of_it_stands_in_the_tables(play: Vault) -> None:
    run = await play.play_rich()

    told = run.result(timeout=0)
    assert comparable(told) == expected()
    assert f"{CANARY} of an error" in told["broken"]
    assert f"{CANARY} of bad child" in told["bad"]
    assert places_with(play.url, [CANARY]) == []
