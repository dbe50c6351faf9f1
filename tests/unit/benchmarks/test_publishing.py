"""The page gets what the commands found, and keeps what none of them has measured anew."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import growth, publish, run
from benchmarks.figures import Figures, write
from benchmarks.machine import Machine
from benchmarks.measures import Goal, Measure
from benchmarks.peers import results
from benchmarks.peers.engines import ABSURD, DBOS, KEDGE
from benchmarks.peers.results import Results
from tests.proof.kit.publish import fill

MACHINE = Machine(
    commit="abc", cpu="a processor", cores=2, memory_gib=8, postgres="18.4", settings="", python="3.11.7", commit_ms=0.2
)


def line(engine: str, workload: str, repetition: int, values: dict[str, Any], commit: str = "abc") -> dict[str, Any]:
    return {
        "engine": engine, "workload": workload, "repetition": repetition, "values": values, "commit": commit,
    }  # fmt: skip


def test_tables_stand_between_the_marks_in_the_order_of_the_commands() -> None:
    page = "before\n<a>\n\nNot filled yet.\n\n<b>\nafter\n"

    filled = fill(
        page, "<a>", "<b>", ["make one", "make two"], {"make two": "`make two`\n\n2", "make one": "`make one`"}
    )

    assert filled == "before\n<a>\n\n`make one`\n\n\n`make two`\n\n2\n\n<b>\nafter\n"


def test_a_command_that_was_not_run_keeps_its_table() -> None:
    page = fill("<a><b>", "<a>", "<b>", ["one", "two"], {"one": "`one` 1", "two": "`two` 2"})

    assert fill(page, "<a>", "<b>", ["one", "two"], {"two": "`two` 3"}) == "<a>\n\n`one` 1\n\n\n`two` 3\n\n<b>"


def test_the_page_is_filled_and_filled_again_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Page\n\n{publish.BEGIN}\n\nNot filled yet.\n\n{publish.END}\n\nend\n", "utf-8")
    for name, value in (("PAGE", page), ("PLOTS", tmp_path / "plots"), ("FOLDER", tmp_path)):
        monkeypatch.setattr(publish, name, value)
    found = Figures()
    found.add(Measure("drain", "runs/s", Goal(least=10)), 9.0)
    write(tmp_path / "bench.json", run.COMMAND, MACHINE, found)
    found.series[growth.DRAIN_CURVE] = [(0, 1), (1, 1)]
    write(tmp_path / "growth.json", growth.COMMAND, MACHINE, found)
    Results(tmp_path / "peers.json").add(line(KEDGE.name, "one", 1, {"one step, runs/s": {"rate": 5.0}}), MACHINE)

    publish.main()
    once = page.read_text("utf-8")
    publish.main()

    assert page.read_text("utf-8") == once
    assert "Not filled yet" not in once
    assert "| drain | 9 | runs/s | at least 10 | **not reached** |" in once
    assert f"- {KEDGE.name}: {KEDGE.settings}" in once
    assert once.startswith("# Page\n")
    assert once.endswith("\n\nend\n")
    for picture in ("growth-drain", "peers-throughput", "peers-latency"):
        assert f"![{picture}](plots/{picture}.svg)" in once
        assert (tmp_path / "plots" / f"{picture}.svg").exists()


def test_a_page_of_which_nothing_was_measured_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "FOLDER", tmp_path)
    before = publish.PAGE.read_text("utf-8")

    publish.main()

    assert publish.PAGE.read_text("utf-8") == before


def test_the_real_page_has_the_marks() -> None:
    page = publish.PAGE.read_text("utf-8")

    assert page.count(publish.BEGIN) == page.count(publish.END) == 1


def test_a_second_part_adds_to_the_file_of_the_first(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    Results(file).add(line(DBOS.name, "one", 1, {"one step, runs/s": {"rate": 300.0}}), MACHINE)
    second = Results(file)
    second.add(line(DBOS.name, "one", 2, {"one step, runs/s": {"rate": 310.0}}), MACHINE)
    second.add(line(DBOS.name, "one", 1, {"one step, runs/s": {"rate": 290.0}}), MACHINE)

    found = json.loads(file.read_text("utf-8"))

    assert results.table(found["measured"]) == {"one step, runs/s": {DBOS.name: [290.0, 310.0]}}
    assert found["engines"][ABSURD.name] == ABSURD.settings


def test_what_the_file_has_is_not_measured_again_but_kedge_at_another_commit(tmp_path: Path) -> None:
    found = Results(tmp_path / "peers.json")
    for engine in (KEDGE, DBOS):
        found.add(line(engine.name, "one", 1, {"one step, runs/s": {"rate": 1.0}}, commit="old"), MACHINE)

    assert found.has(KEDGE, "one", 1, "old")
    assert not found.has(KEDGE, "one", 1, "new")
    assert found.has(DBOS, "one", 1, "new")
    assert not found.has(DBOS, "one", 2, "new")
    assert not found.has(DBOS, "ten", 1, "new")


def test_latencies_of_the_engines_are_shown_by_percentile() -> None:
    lines = [
        line(DBOS.name, "event", 1, {"event to result, ms": {"p50": 16.0, "p95": 20.0, "p99": 31.0, "samples": 50}}),
        line(KEDGE.name, "event", 1, {"event to result, ms": {"p50": 3.0, "p95": 4.0, "p99": 5.0, "samples": 50}}),
    ]

    assert results.table(lines) == {
        "event to result, p50, ms": {KEDGE.name: [3.0], DBOS.name: [16.0]},
        "event to result, p99, ms": {KEDGE.name: [5.0], DBOS.name: [31.0]},
    }
    assert results.engines_of(lines) == [KEDGE.name, DBOS.name]
