"""The oracle says nothing about a sound run of real processes, and names each promise that somebody breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, LiteralString

import msgspec
import psycopg
import pytest

from tests.proof.kit.fleet import fleet
from tests.proof.kit.journal import Journal, Line, read_journals
from tests.proof.kit.oracle import check

MIX: Final = "steps,parallel,charge,event,nap,parent,flaky"

# What goes wrong, and the promise that must be named: SQL on the tables, or lines of a journal that become other lines.
Change = LiteralString | Callable[[list[Line]], list[Line]]


def the_first(what: str, change: Callable[[Line], list[Line]]) -> Callable[[list[Line]], list[Line]]:
    """Replace the first line of a kind by others."""

    def changed(lines: list[Line]) -> list[Line]:
        place = next(i for i, line in enumerate(lines) if line["what"] == what)
        return [*lines[:place], *change(lines[place]), *lines[place + 1 :]]

    return changed


def with_a_cut_life(lines: list[Line], step: str, value: object) -> list[Line]:
    """Add another life of a run that takes events: it was told the same, but for this step."""
    life = next(line["life"] for line in lines if line["what"] == "told" and line["step"] == "e1")
    own = [{**line, "life": "cut"} for line in lines if line.get("life") == life and line["what"] in {"life", "told"}]
    return [*lines, *({**line, "value": value} if line.get("step") == step else line for line in own)]


FAULTS: Final[dict[str, tuple[str, Change]]] = {
    "a run is lost": ("I1", "delete from kedge.finished where workflow = 'steps' and key is not null"),
    "a key has two runs": ("I2", "update kedge.finished set key = (select min(key) from kedge.finished)"),
    "a key answers another run": ("I2", "update kedge.run_keys set run_id = gen_random_uuid()"),
    "a run failed": ("I10", "update kedge.finished set status = 'f' where workflow = 'flaky'"),
    "an attempt is charged": ("I13", "update kedge.finished set attempt = 1 where workflow = 'nap'"),
    "a result changed": ("I11", "update kedge.finished set output = '\\x01226e6f22' where workflow = 'steps'"),
    "an effect is doubled": ("I5", "insert into effects (run, step, value) select run, step, value from effects"),
    "an effect is lost": ("I5", "delete from effects"),
    "an outcome changed": ("I7", "update kedge.journal set value = '\\x01226e6f22' where kind = 's'"),
    "an outcome is lost": ("I7", "delete from kedge.journal where kind = 's' and key = 's0'"),
    "outcomes changed places": ("I7", "update kedge.journal set seq = 100 - seq where seq > 0"),
    "an event is lost": ("I8", "delete from kedge.journal where kind = 'e' and key = 'e0'"),
    "an event came twice": ("I8", "update kedge.journal set value = '\\x0130' where kind = 'e'"),
    "an event came from nowhere": ("I8", "update kedge.journal set value = '\\x013737' where key = 'e0'"),
    "a body ran twice": ("I6", the_first("body", lambda line: [line, line])),
    "the life that ended was not told all": ("I7", the_first("told", lambda _: [])),
    "a cut life was told of another event": ("I7", lambda lines: with_a_cut_life(lines, "e1", 77)),
    "a cut life was told another outcome": ("I7", lambda lines: with_a_cut_life(lines, "s0", "another")),
    "a start answered another run": ("I1", the_first("start.ok", lambda line: [{**line, "run": "another"}])),
    "a client got another value": ("I11", the_first("result.ok", lambda line: [{**line, "value": "another"}])),
}


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_is_named(fault: str, sound: tuple[str, Path], database_url: str, tmp_path: Path) -> None:
    promise, change = FAULTS[fault]
    copied(sound[0], database_url)
    lines = read_journals(sound[1])
    if callable(change):
        lines = change(lines)
    else:
        with psycopg.connect(database_url, autocommit=True) as conn:
            assert conn.execute(change).rowcount > 0
    written(lines, tmp_path)

    report = check(database_url, tmp_path)

    assert any(one.startswith(promise) for one in report.violations), str(report)


def test_a_sound_fleet_breaks_nothing(sound: tuple[str, Path]) -> None:
    report = check(*sound)

    assert report.violations == []
    assert report.counts["completed"] == report.counts["runs"] >= 60
    assert report.counts["extra_bodies"] == 0
    assert min(report.counts[what] for what in ("start.ok", "send.ok", "effects", "bodies", "outcomes")) > 0


def test_the_last_words_of_a_worker_that_was_frozen_come_late_and_break_nothing(
    sound: tuple[str, Path], tmp_path: Path
) -> None:
    lines = read_journals(sound[1])
    told = next(line for line in lines if line["what"] == "told")
    own = [line for line in lines if line.get("life") == told["life"]]
    frozen = [{**line, "life": "frozen"} for line in own]
    at = max(place for place, line in enumerate(frozen) if line["what"] == "told")
    frozen[at] = {**frozen[at], "value": "never kept"}
    written([*lines, *frozen], tmp_path)

    assert check(sound[0], tmp_path).violations == []


def test_an_event_that_is_told_again_after_a_step_that_was_lost_breaks_nothing(
    sound: tuple[str, Path], tmp_path: Path
) -> None:
    lines = with_a_cut_life(read_journals(sound[1]), "s0", "lost")
    cut = [line for line in lines if line.get("life") == "cut"]
    of_steps_behind = [line for line in cut if line.get("step") in {"s1", "s2"}]
    written([line for line in lines if line not in of_steps_behind], tmp_path)

    assert check(sound[0], tmp_path).violations == []


def test_killed_workers_break_nothing(database_url: str, tmp_path: Path) -> None:
    with fleet(database_url, tmp_path, LEASE="1s", POLL="1s") as processes:
        first = processes.worker()
        client = processes.client(mix=MIX, rate=60, runs=60, n=3, pause=0.05, results=0.5)
        processes.wait_until("select count(*) > 40 from kedge.journal where seq > 0")
        processes.kill(first)
        processes.worker()
        assert client.wait(timeout=60) == 0
        processes.drain()

        report = check(database_url, tmp_path)

    assert report.violations == []
    assert report.counts["faults"] == 1
    assert report.counts["completed"] >= 60


def written(lines: list[Line], folder: Path) -> None:
    """One journal of all lines."""
    Journal(folder, "all").close()
    (folder / "all.journal").write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines))


def copied(source: str, target: str) -> None:
    """Give one database what another one has."""
    with psycopg.connect(source) as here, psycopg.connect(target) as there:
        there.execute("create table effects (id bigint, run uuid, step text, value text, at timestamptz)")
        for table in ("kedge.journal", "kedge.finished", "kedge.run_keys", "kedge.failures", "kedge.events", "effects"):
            with (
                here.cursor().copy(f"copy {table} to stdout".encode()) as out,
                there.cursor().copy(f"copy {table} from stdin".encode()) as into,
            ):
                for data in out:
                    into.write(data)
