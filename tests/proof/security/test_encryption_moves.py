"""Encrypted payloads are refused wherever they were not made for: each is swapped with each."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from msgspec.structs import replace

import kedge_worker._sealing as sealing
from kedge import DamagedPayloadError, KeyMissingError, RunFailedError
from kedge.codecs import PayloadCodec, PayloadContext
from kedge.encryption import AesGcmCodec
from kedge.wire import SEALED_CODEC
from kedge_worker._runs import ClaimedRun
from kedge_worker._sealing import Seals
from kedge_worker.testing import Clock
from tests.proof.kit.lanes import thinned
from tests.proof.security.vault import (
    CANARY,
    OLD,
    Vault,
    approved,
    child,
    codec,
    expected,
    failing,
    news,
    plain_sync,
    rich,
    secret,
    vault,
)


@pytest.fixture
def play(database_url: str, clock: Clock) -> Generator[Vault]:
    with vault(database_url, clock) as one:
        yield one


class Cell(NamedTuple):
    """One encrypted payload of a claim."""

    run: int
    name: str
    data: bytes
    put: Callable[[ClaimedRun, bytes], ClaimedRun]
    lineage: UUID


def cells_of(number: int, run: ClaimedRun, lineage: UUID) -> Iterator[Cell]:
    """All encrypted payloads that a claim has brought, and how each is replaced."""

    def put_input(one: ClaimedRun, data: bytes) -> ClaimedRun:
        return replace(one, input=data)

    def put(column: str, place: int, field: str, status: bytes = b"") -> Callable[[ClaimedRun, bytes], ClaimedRun]:
        def changed(one: ClaimedRun, data: bytes) -> ClaimedRun:
            items: list[Any] = list(getattr(one, column))
            items[place] = replace(items[place], **{field: status + data})
            changes: dict[str, Any] = {column: tuple(items)}
            return replace(one, **changes)

        return changed

    found: list[tuple[str, bytes, Callable[[ClaimedRun, bytes], ClaimedRun]]] = [("input", run.input, put_input)]
    for place, row in enumerate(run.memo):
        named = f"{row.kind} {row.key} {row.seq}"
        found.append((named, row.value, put("memo", place, "value")))
        found.append((f"meta {named}", row.meta, put("memo", place, "meta")))
    for place, wait in enumerate(run.waits):
        found.append((f"wait {wait.key}", wait.state, put("waits", place, "state")))
    for place, mail in enumerate(run.mail):
        status = bytes(mail.payload[:1])
        if status in (b"c", b"f"):  # of a child, in front of its end
            found.append((f"end {mail.slot}", mail.payload[1:], put("mail", place, "payload", status)))
        else:
            found.append((f"mail {mail.slot} {mail.id}", mail.payload, put("mail", place, "payload")))
    for name, data, changed in found:
        if data[:1] == SEALED_CODEC:
            yield Cell(number, name, bytes(data), changed, lineage)


async def claims_of_everything(play: Vault, monkeypatch: pytest.MonkeyPatch) -> list[tuple[ClaimedRun, UUID]]:
    """The claims of two rich runs and a rerun, at each of their lives, as the database has answered them."""
    claims: list[tuple[ClaimedRun, UUID]] = []
    real = sealing.read_run

    def recording(seals: Seals | None, run: ClaimedRun) -> tuple[ClaimedRun, str | None]:
        opened, unreadable = real(seals, run)
        assert unreadable is None
        claims.append((run, opened.home or run.id))
        return opened, unreadable

    monkeypatch.setattr("kedge_worker._life.read_run", recording)
    run = await play.play_rich()
    await play.play_rich(word="another input")
    for event in ("one", "two"):
        play.client.start(plain_sync(secret(event)))
    await play.work()
    again = run.rerun_from("event")
    again.send(approved(secret("first of two")))
    again.send(approved(secret("second of two")))
    await play.work()
    play.client.send(news(secret("topic")), topic="world")
    await play.work()
    monkeypatch.undo()
    return claims


async def test_each_payload_of_a_claim_is_refused_in_the_place_of_each_other(
    play: Vault, monkeypatch: pytest.MonkeyPatch, figure: Any
) -> None:
    claims = await claims_of_everything(play, monkeypatch)
    cells = [cell for number, (run, home) in enumerate(claims) for cell in cells_of(number, run, home)]
    # A row is met again in each later life of its run: it stands for itself once.
    places: dict[tuple[UUID, str, bytes], Cell] = {(c.lineage, c.name, c.data): c for c in cells}
    kinds = {cell.name.split()[0] for cell in places.values()}
    assert kinds >= {"input", "s", "t", "e", "p", "c", "f", "meta", "wait", "mail", "end"}

    pairs = list(itertools.permutations(places.values(), 2))
    accepted = accepted_of(thinned(pairs, of=8), claims, codec())
    figure("swaps of two encrypted payloads that were accepted", len(accepted), goal=0)
    assert [(one.name, other.name) for one, other in accepted] == []
    assert len(pairs) > 3000


def accepted_of(
    pairs: Sequence[tuple[Cell, Cell]], claims: list[tuple[ClaimedRun, UUID]], keys: PayloadCodec
) -> list[tuple[Cell, Cell]]:
    """The pairs of which a worker takes the second in the place of the first."""
    seals = Seals(keys)
    accepted: list[tuple[Cell, Cell]] = []
    for here, there in pairs:
        try:
            seals.open_run(here.put(claims[here.run][0], there.data))
        except DamagedPayloadError:
            continue
        # Two runs of one lineage, at one place: no column tells them apart.
        if not (here.lineage == there.lineage and here.name == there.name):
            accepted.append((here, there))
    return accepted


class Loose(AesGcmCodec):
    """Binds nothing to anything."""

    def encode(self, payload: bytes, _context: PayloadContext, /) -> bytes:
        return super().encode(payload, PayloadContext(UUID(int=0), "log"))

    def decode(self, data: bytes, _context: PayloadContext, /) -> bytes:
        return super().decode(data, PayloadContext(UUID(int=0), "log"))


@pytest.mark.full
async def test_the_swaps_would_be_accepted_of_a_codec_that_binds_nothing(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = Loose({"old": OLD}, current="old")
    with vault(database_url, clock, codec=loose) as play:
        play.keys = loose
        claims = await claims_of_everything(play, monkeypatch)
    (run, home), *_ = sorted(claims, key=lambda one: -len(one[0].memo))
    pairs = list(itertools.permutations(cells_of(0, run, home), 2))

    assert len(accepted_of(pairs, [(run, home)], loose)) > len(pairs) / 2


@pytest.mark.full
async def test_a_bit_that_is_flipped_anywhere_is_noticed(play: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = await claims_of_everything(play, monkeypatch)
    seals = Seals(codec())
    run, home = claims[-1]
    for cell in cells_of(0, run, home):
        # The first byte says that it is encrypted: see strict mode.
        for place in range(1, len(cell.data)):
            broken = bytearray(cell.data)
            broken[place] ^= 0x10
            with pytest.raises((DamagedPayloadError, KeyMissingError)):
                seals.open_run(cell.put(run, bytes(broken)))
        for length in range(1, len(cell.data)):
            with pytest.raises(DamagedPayloadError):
                seals.open_run(cell.put(run, cell.data[:length]))


SWAPS = {
    "values of one run": (
        "update kedge.journal j set value = o.value from kedge.journal o"
        " where j.run_id = %(one)s and o.run_id = %(one)s"
        " and (j.key, o.key) in (('first', 'thread'), ('thread', 'first'))"
    ),
    "inputs of two runs": (
        "update kedge.journal j set value = o.value from kedge.journal o where j.seq = 0 and o.seq = 0"
        " and (j.run_id, o.run_id) in ((%(one)s, %(two)s), (%(two)s, %(one)s))"
    ),
    "the same step of two runs": (
        "update kedge.journal j set value = o.value from kedge.journal o where j.key = 'first' and o.key = 'first'"
        " and (j.run_id, o.run_id) in ((%(one)s, %(two)s), (%(two)s, %(one)s))"
    ),
    "an event by an event": (
        "update kedge.events e set payload = o.payload from kedge.events o"
        " where e.run_id = %(one)s and o.run_id = %(two)s and e.slot = 'e:approved' and o.slot = e.slot"
    ),
}


@pytest.mark.parametrize("swap", thinned(list(SWAPS), of=2))
async def test_a_run_with_a_moved_payload_is_put_off_and_goes_on_when_that_is_mended(play: Vault, swap: str) -> None:
    runs = [play.client.start(rich(secret(word))) for word in ("one", "two")]
    innocent = play.client.start(plain_sync(secret("innocent")))
    await play.work_through()
    for run in (*runs, innocent):
        run.send(approved(secret("event")))
    # Sorted, and not read yet: nobody has a handler.
    await play.work(codec(), _nobody())
    kept = play.rows("create table saved as select * from kedge.journal") or play.rows(
        "create table saved_events as select * from kedge.events"
    )
    assert not kept
    with_ids = SWAPS[swap].replace("%(one)s", f"'{runs[0].id}'").replace("%(two)s", f"'{runs[1].id}'")
    play.rows(with_ids)

    await play.work()
    seen = play.client.get(runs[0])
    assert seen.status == "waiting"
    assert "was changed or moved" in str(seen.reason) or "and moved" in str(seen.reason)
    assert (seen.attempt, seen.crashes) == (0, 0)
    assert CANARY not in str(seen.reason)
    assert innocent.result(timeout=0)["event"] == secret("event")

    play.rows("update kedge.journal j set value = s.value from saved s where (s.run_id, s.seq) = (j.run_id, j.seq)")
    play.rows(
        "update kedge.events e set payload = s.payload from saved_events s where (s.run_id, s.id) = (e.run_id, e.id)"
        " and e.consumed_seq is null"
    )
    play.clock.advance("1h")
    await play.work()
    play.client.send(news(secret("topic")), topic="world")
    await play.work()
    for run, word in zip(runs, ("one", "two"), strict=True):
        run.fast_forward(secret("fast-forward"), wait="skipped")
        await play.work()
        told = run.result(timeout=0)
        assert {key: told[key] for key in expected(word)} == expected(word)


def _nobody() -> Any:
    from tests.scenarios.stage import handled

    async def handler(_: Any) -> None:
        pass

    return handled(handler, name="nobody")[1]


async def test_an_output_or_error_of_another_run_is_refused_by_the_client_and_by_a_parent(play: Vault) -> None:
    one, two = (play.client.start(child(secret(word))) for word in ("one", "two"))
    bad, worse = (play.client.start(failing(secret(word))) for word in ("bad", "worse"))
    await play.work_through()
    play.rows(
        "update kedge.finished f set output = o.output, error = o.error from kedge.finished o"
        " where f.workflow = o.workflow and f.id <> o.id and f.workflow in ('child', 'failing')"
    )

    for run in (one, two):
        with pytest.raises(DamagedPayloadError, match="and moved") as refused:
            run.result(timeout=0)
        assert CANARY not in str(refused.value)
        assert isinstance(play.client.get(run).output, bytes)
    for failure in (bad, worse):
        with pytest.raises(RunFailedError) as failed:
            failure.result(timeout=0)
        assert failed.value.error.kind == "kedge.errors.DamagedPayloadError"
        assert CANARY not in str(failed.value)


async def test_steps_of_another_run_are_not_shown_in_clear(play: Vault) -> None:
    one, two = (play.client.start(plain_sync(secret(word))) for word in ("one", "two"))
    await play.work()
    play.rows(
        "update kedge.journal j set value = o.value from kedge.journal o"
        f" where j.run_id = '{one.id}' and o.run_id = '{two.id}' and j.seq = o.seq"
    )

    (first, *_) = play.client.steps(one)
    assert isinstance(first.value, bytes)
    assert isinstance(play.client.get(one).input, bytes)
    assert next(e.step for e in play.client.watch(two) if e.step is not None).value == secret("sync step")
